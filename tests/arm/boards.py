"""The boards that are emulated: what their kernels say of them, and the processor that qemu plays.

Both must agree: onnxruntime believes /proc/cpuinfo and takes instructions from it. The memory is what such a board has
left after Raspberry Pi OS has started.
"""

import os
from dataclasses import dataclass
from pathlib import Path

ARM = os.environ.get("EDGEQWEN_ARM", "")  # the folder that sysroot.py has filled
CORES = 4


@dataclass(frozen=True, slots=True)
class Board:
    name: str
    model: str
    processor: str  # qemu's name
    known_as: str  # what doctor calls it
    part: str  # of the Main ID register
    variant: str
    features: str
    mhz: int
    memory_mb: int
    available_mb: int
    library: str  # ggml's variant


BOARDS = {
    board.name: board
    for board in (
        Board(
            "pi5", "Raspberry Pi 5 Model B Rev 1.0", "cortex-a76", "Cortex-A76", "0xd0b", "0x4",
            "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
            2400, 4045, 3600, "armv8.2_2",
        ),
        Board(
            "pi4", "Raspberry Pi 4 Model B Rev 1.4", "cortex-a72", "Cortex-A72", "0xd08", "0x0",
            "fp asimd evtstrm crc32 cpuid", 1800, 1849, 1500, "armv8.0_1",
        ),
    )
}  # fmt: skip


def dress(root: Path, board: Board) -> None:
    """Put what the kernel of a board says under a root: files there hide those of this machine from qemu's guest."""
    core = (
        "BogoMIPS\t: 108.00\n"
        f"Features\t: {board.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        f"CPU variant\t: {board.variant}\nCPU part\t: {board.part}\nCPU revision\t: 1\n"
    )
    cores = "".join(f"processor\t: {number}\n{core}\n" for number in range(CORES))
    _write(root / "proc/cpuinfo", f"{cores}Model\t\t: {board.model}\n")
    _write(root / "sys/firmware/devicetree/base/model", f"{board.model}\0")
    _write(
        root / "proc/meminfo",
        f"MemTotal: {board.memory_mb * 1024} kB\nMemFree: {board.available_mb * 1024} kB\n"
        f"MemAvailable: {board.available_mb * 1024} kB\n",
    )
    folder, all_of_them = root / "sys/devices/system/cpu", f"0-{CORES - 1}\n"
    for name, text in {
        "possible": all_of_them,
        "present": all_of_them,
        "online": all_of_them,
        "kernel_max": "255\n",
    }.items():
        _write(folder / name, text)
    for number in range(CORES):
        cpu = folder / f"cpu{number}"
        _write(cpu / "topology/thread_siblings_list", f"{number}\n")
        _write(cpu / "topology/core_siblings_list", all_of_them)
        _write(cpu / "topology/core_id", f"{number}\n")
        _write(cpu / "topology/physical_package_id", "0\n")
        _write(cpu / "cpufreq/cpuinfo_max_freq", f"{board.mhz * 1000}\n")
        for index, (level, size, shared) in enumerate((("1", "64K", f"{number}\n"), ("2", "512K", all_of_them))):
            _write(cpu / f"cache/index{index}/level", f"{level}\n")
            _write(cpu / f"cache/index{index}/size", f"{size}\n")
            _write(cpu / f"cache/index{index}/shared_cpu_list", shared)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
