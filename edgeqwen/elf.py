"""What a Linux library says of itself without being loaded: its processor and the glibc it needs; it runs nothing."""

from __future__ import annotations

import re
import struct
from pathlib import Path

# e_machine, /usr/include/elf.h -> platform.machine()
MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
_GLIBC = re.compile(rb"\0GLIBC_2\.(\d{1,3})(?:\.\d+)?(?=\0)")
_MAX_BYTES = 1 << 28


def elf_machine(path: Path) -> str | None:
    """The processor that a library is for, as platform.machine() calls it; None where it is no ELF file."""
    with path.open("rb") as file:
        head = file.read(20)
    if len(head) < 20 or head[:4] != b"\x7fELF" or head[5] not in (1, 2):
        return None
    (number,) = struct.unpack_from("<H" if head[5] == 1 else ">H", head, 18)
    return MACHINES.get(number, f"ELF machine {number}")


def glibc_needed(path: Path) -> int | None:
    """The N of the newest GLIBC_2.N among the names of symbol versions; None where there is none."""
    with path.open("rb") as file:
        found = _GLIBC.findall(file.read(_MAX_BYTES))
    return max((int(number) for number in found), default=None)
