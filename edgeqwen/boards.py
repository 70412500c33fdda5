"""Devices by name, as data, to plan for one that is not here; it asks nothing of this machine but where that is meant.

What a system takes of the memory before a model comes is an assumption, and nothing here was measured on these boards.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeqwen.device import Device, memory_total_bytes, this_device
from edgeqwen.errors import RequestError

MIB = 1 << 20
THIS = "this"


@dataclass(frozen=True, slots=True)
class Board:
    """A device: its memory, and what its system is assumed to take of it."""

    name: str
    title: str
    machine: str
    cores: int
    memory_mib: int
    system_mib: int
    features: tuple[str, ...]
    gpu_mib: int | None = None

    @property
    def device(self) -> Device:
        free = (self.memory_mib - self.system_mib) * MIB
        gpu = None if self.gpu_mib is None else self.gpu_mib * MIB
        return Device(self.machine, self.cores, free, self.features, gpu)


# Arm's instruction sets by core (Arm's manuals): A53 and A72 have no dotprod, A76 has.
_PLAIN, _DOT = ("neon",), ("neon", "fp16", "dotprod")
_AVX2 = ("sse4.2", "avx", "f16c", "fma", "avx2")
_AVX512 = (*_AVX2, "avx512", "avx512-vnni")
BOARDS = {
    board.name: board
    for board in (
        Board("pi-zero2", "Raspberry Pi Zero 2 W, 512 MB", "aarch64", 4, 512, 150, _PLAIN),
        Board("pi4-2gb", "Raspberry Pi 4, 2 GB", "aarch64", 4, 2048, 350, _PLAIN),
        Board("pi4-4gb", "Raspberry Pi 4, 4 GB", "aarch64", 4, 4096, 400, _PLAIN),
        Board("pi5-4gb", "Raspberry Pi 5, 4 GB", "aarch64", 4, 4096, 400, _DOT),
        Board("pi5-8gb", "Raspberry Pi 5, 8 GB", "aarch64", 4, 8192, 500, _DOT),
        Board("laptop", "laptop, 8 GB, AVX2", "x86_64", 4, 8192, 3000, _AVX2),
        Board("laptop-avx512", "laptop, 16 GB, AVX-512", "x86_64", 4, 16384, 4000, _AVX512),
        Board("apple", "Apple silicon, 8 GB", "arm64", 4, 8192, 3500, (*_DOT, "i8mm")),
        Board("cuda", "PC, 16 GB, NVIDIA GPU with 8 GB, 7 of them free", "x86_64", 6, 16384, 3000, _AVX2, 7168),
    )
}


@dataclass(frozen=True, slots=True)
class Target:
    """What is planned for: a board by name, or this machine."""

    name: str
    title: str
    device: Device
    memory_bytes: int | None
    assumed_system_bytes: int | None  # None: what is available was asked of the system


def target_named(name: str) -> Target:
    """RequestError lists the names there are."""
    if name == THIS:
        return Target(THIS, "this machine", this_device(), memory_total_bytes(), None)
    if name not in BOARDS:
        raise RequestError(f"device {name!r} is not one of {', '.join((THIS, *BOARDS))}")
    board = BOARDS[name]
    return Target(name, board.title, board.device, board.memory_mib * MIB, board.system_mib * MIB)
