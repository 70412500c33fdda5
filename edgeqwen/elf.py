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


def elf_is_whole(path: Path) -> bool:
    """Whether a 64-bit little-endian library has all the bytes that its headers speak of; a mapped rest is SIGBUS."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
            return False
        (program_at, section_at) = struct.unpack_from("<QQ", head, 32)
        (entry_size, count, section_size, sections) = struct.unpack_from("<HHHH", head, 54)
        if section_at + section_size * sections > size or program_at + entry_size * count > size or entry_size < 56:
            return False
        file.seek(program_at)
        table = file.read(entry_size * count)
    segments = (struct.unpack_from("<QQQQ", table, n * entry_size + 8) for n in range(count))
    return all(offset + in_file <= size for offset, _, _, in_file in segments)


def glibc_needed(path: Path) -> int | None:
    """The N of the newest GLIBC_2.N among the names of symbol versions; None where there is none."""
    with path.open("rb") as file:
        found = _GLIBC.findall(file.read(_MAX_BYTES))
    return max((int(number) for number in found), default=None)
