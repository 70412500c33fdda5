"""What this machine is: cores and memory; nothing else in the project asks the system."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import EngineMissingError

CPU_FOLDER = Path("/sys/devices/system/cpu")
CGROUP_FOLDER = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Device:
    """This machine as far as a choice depends on it; `None` where the system does not say."""

    machine: str  # platform.machine(): x86_64, aarch64, arm64
    physical_cores: int  # that this process may use; SMT siblings and efficiency cores cost more than they bring
    memory_available_bytes: int | None  # without swapping, within the cgroup's limit


def this_device() -> Device:
    """Look at this machine; EngineMissingError on a 32-bit one, for which no engine is built."""
    machine = platform.machine()
    if machine in {"armv6l", "armv7l", "i386", "i686"}:
        raise EngineMissingError(f"this is a 32-bit system ({machine}); install the 64-bit one: no engine runs here")
    return Device(machine, physical_cores(), memory_available_bytes())


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


def memory_available_bytes(meminfo: Path = MEMINFO, cgroup: Path = CGROUP_FOLDER) -> int | None:
    """Bytes that can still be used without swapping: MemAvailable, or less where a cgroup says so."""
    lines = dict(line.split(":", 1) for line in (_text(meminfo) or "").splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else None
    limit = _text(cgroup / "memory.max") or _text(cgroup / "memory/memory.limit_in_bytes")
    used = _text(cgroup / "memory.current") or _text(cgroup / "memory/memory.usage_in_bytes")
    if available is None or not limit or not limit.isdecimal() or not used:
        return available
    stat = _text(cgroup / "memory.stat") or _text(cgroup / "memory/memory.stat") or ""
    figures = dict(line.split() for line in stat.splitlines() if line.count(" ") == 1)
    reclaimable = int(figures.get("inactive_file", 0)) + int(figures.get("active_file", 0))
    return min(available, max(0, int(limit) - int(used) + reclaimable))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
