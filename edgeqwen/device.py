"""What this machine is: processor, cores, memory, system, disk; nothing else in the project asks for them."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from edgeqwen.errors import EngineMissingError

CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")
CGROUP_MEMBERSHIP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")
CPUINFO = Path("/proc/cpuinfo")
BITS_32 = frozenset({"armv6l", "armv7l", "i386", "i686"})  # of platform.machine()
GPU_ANSWER_S = 5.0
BOARD = Path("/sys/firmware/devicetree/base/model")
# Instruction sets that change the speed of a matrix product, in the kernel's words and in everybody's.
FEATURES = {
    "sse4_2": "sse4.2", "avx": "avx", "f16c": "f16c", "fma": "fma", "avx2": "avx2", "avx_vnni": "avx-vnni",
    "avx512f": "avx512", "avx512_vnni": "avx512-vnni", "avx512_bf16": "avx512-bf16", "amx_int8": "amx-int8",
    "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
    "sve2": "sve2", "sme": "sme",
}  # fmt: skip
# /proc/cpuinfo, CPU part of implementer 0x41 (Arm's Main ID registers).
ARM_CORES = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77",
    0xD40: "Neoverse-V1", 0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
    0xD49: "Neoverse-N2", 0xD4F: "Neoverse-V2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Device:
    """This machine as far as a choice depends on it; `None` where the system does not say."""

    machine: str  # platform.machine(): x86_64, aarch64, arm64
    physical_cores: int  # that this process may use; SMT siblings and efficiency cores cost more than they bring
    memory_available_bytes: int | None  # without swapping, within the cgroup's limit
    features: tuple[str, ...] | None = None  # instruction sets, of FEATURES
    gpu_free_bytes: int | None = None  # of the memory of an NVIDIA GPU; None: there is none


def this_device() -> Device:
    """Look at this machine; EngineMissingError on a 32-bit one, for which no engine is built."""
    machine = platform.machine()
    if machine in BITS_32:
        raise EngineMissingError(f"this is a 32-bit system ({machine}); install the 64-bit one: no engine runs here")
    return Device(machine, physical_cores(), memory_available_bytes(), cpu_features(), gpu_free_bytes())


def physical_cores(folder: Path = CPU_FOLDER) -> int:
    """Fast physical cores that this process may run on, at least 1.

    Counted from the kernel's topology: one for each set of SMT siblings, and of several kinds of core only those
    with the highest maximum frequency of at least 80 % of the best (a Pi has one kind, a big.LITTLE board two).
    """
    if not folder.is_dir():  # not Linux: x86 mostly has two threads a core
        count = os.cpu_count() or 1
        return max(1, count // 2 if platform.machine().lower() in {"x86_64", "amd64"} else count)
    allowed = os.sched_getaffinity(0)
    siblings = {cpu: _text(folder / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu) for cpu in allowed}
    speeds = {cpu: int(_text(folder / f"cpu{cpu}/cpufreq/cpuinfo_max_freq") or 0) for cpu in allowed}
    fast = [cpu for cpu in allowed if speeds[cpu] >= 0.8 * max(speeds.values())]
    return max(1, len({siblings[cpu] for cpu in fast}))


@cache
def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The processor's name, as it calls itself or as its part number says."""
    facts = _cpu_facts(cpuinfo)
    if name := facts.get("model name"):
        return " ".join(name.split())
    if facts.get("CPU implementer") == "0x41" and (part := ARM_CORES.get(int(facts.get("CPU part", "0"), 16))):
        return part
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def cpu_features(cpuinfo: Path = CPUINFO) -> tuple[str, ...] | None:
    """The instruction sets of FEATURES that the processor has; None where the system does not say."""
    flags = cpu_flags(cpuinfo)
    return None if flags is None else tuple(FEATURES[flag] for flag in FEATURES if flag in flags)


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str] | None:
    """Everything that the kernel says the processor can do, in its words; None where there is no such list."""
    facts = _cpu_facts(cpuinfo)
    flags = facts.get("flags") or facts.get("Features")
    return None if flags is None else frozenset(flags.split())


def board_name(path: Path = BOARD) -> str | None:
    """What a small computer calls itself: "Raspberry Pi 5 Model B Rev 1.0"; None elsewhere."""
    return (_text(path) or "").strip("\0 ") or None


def largest_cache_bytes(folder: Path = CPU_FOLDER) -> int | None:
    """Bytes of the last level of cache: weights smaller than that are not read from memory."""
    sizes = [_text(path) or "" for path in folder.glob("cpu0/cache/index*/size")]
    return max(
        (int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes if size[-1:] in {"K", "M"}), default=None
    )


def machine_facts() -> dict[str, Any]:
    """Processor, cores, memory, system and Python: what a measurement was made on."""
    return {
        "cpu": cpu_name(),
        "board": board_name(),
        "cores": physical_cores(),
        "memory_bytes": memory_total_bytes(),
        "system": system_name(),
        "libc": libc_name(),
        "python": platform.python_version(),
    }


def counted(number: int, noun: str) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} {noun}{'s' * (number > 1)}"


def system_name() -> str:
    """The operating system and its kernel."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()
    return f"{name}, {platform.system()} {platform.release()}"


def libc_name() -> str | None:
    """`glibc 2.36`, `musl`; None where there is neither."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except (AttributeError, ValueError, OSError):
        return "musl" if next(Path("/lib").glob("ld-musl-*"), None) else None


def disk_free_bytes(path: Path) -> int:
    """Bytes that this user can still write where `path` is or would be; OSError where that cannot be told."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def gpu_free_bytes() -> int | None:
    """Free memory of the first NVIDIA GPU, as its driver's tool says; None without one, or where it does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]  # in MiB, one line for each GPU
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GPU_ANSWER_S).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    first = said.strip().partition("\n")[0].strip()
    return int(first) << 20 if first.isascii() and first.isdecimal() and len(first) < 12 else None


def memory_total_bytes(meminfo: Path = MEMINFO) -> int | None:
    """Bytes of memory that this machine has."""
    return _meminfo(meminfo).get("MemTotal")


def memory_available_bytes(
    meminfo: Path = MEMINFO, cgroup: Path = CGROUP_FOLDER, membership: Path = CGROUP_MEMBERSHIP
) -> int | None:
    """Bytes that can still be used without swapping: MemAvailable, or less where a cgroup says so."""
    available, left = _meminfo(meminfo).get("MemAvailable"), cgroup_left_bytes(cgroup, membership)
    return available if available is None or left is None else min(available, left)


def cgroup_left_bytes(cgroup: Path = CGROUP_FOLDER, membership: Path = CGROUP_MEMBERSHIP) -> int | None:
    """Bytes that this process's cgroup and those above it may still take, reclaimable cache included; None: no limit.

    Version 2 has one tree, version 1 one for memory; in a container, its own cgroup is mostly the root that it sees.
    """
    left = []
    for line in (_text(membership) or "0::/").splitlines():
        number, controllers, path = [*line.split(":", 2), "", "/"][:3]
        if number != "0" and "memory" not in controllers.split(","):
            continue
        root = cgroup / "memory" if controllers else cgroup
        inner = PurePosixPath(path.lstrip("/"))
        left += [_left_in(root / folder) for folder in (inner, *inner.parents) if ".." not in folder.parts]
    left += [_left_in(cgroup), _left_in(cgroup / "memory")]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=None)


def _left_in(folder: Path) -> int | None:
    """Bytes that one cgroup may still take."""
    limits = [_text(folder / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    limit = min((int(text) for text in limits if text and text.isdecimal()), default=None)
    used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
    if limit is None or not used or not used.isdecimal():
        return None
    stat = _text(folder / "memory.stat") or ""
    figures = dict(line.split() for line in stat.splitlines() if line.count(" ") == 1)
    reclaimable = int(figures.get("inactive_file", 0)) + int(figures.get("active_file", 0))
    return max(0, limit - int(used) + reclaimable)


def _meminfo(path: Path) -> dict[str, int]:
    """The lines of /proc/meminfo in bytes."""
    lines = (line.split() for line in (_text(path) or "").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}


def _cpu_facts(path: Path) -> dict[str, str]:
    """The first value of every key of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in (_text(path) or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
