"""Puts what a library has allocated on huge pages (Linux): weights that are read for every token miss fewer addresses.

Most distributions give huge pages to those alone who ask for them, and ONNX Runtime does not ask.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAPS = Path("/proc/self/maps")
PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1: at once, not sometime

Range = tuple[int, int]  # addresses: first, behind the last


@contextmanager
def on_huge_pages() -> Iterator[None]:
    """What is allocated in the `with` statement lies on huge pages after it, where the system has them to give.

    It holds the same bytes in as much memory as before; moving them takes about a second a gigabyte.
    """
    before = _anonymous()
    yield
    size = _page_bytes()
    for first, last in _new(before, _anonymous()) if size else ():
        _advise(-(-first // size) * size, last // size * size)


def _advise(start: int, stop: int) -> None:
    """Ask for whole huge pages; what is refused stays as it was."""
    for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE) if start < stop else ():
        _madvise()(start, stop - start, advice)


def _page_bytes() -> int:
    """Bytes of a huge page; 0 where there is none."""
    try:
        return int(PAGE_SIZE.read_text(encoding="ascii")) if sys.platform == "linux" else 0
    except (OSError, ValueError):
        return 0


def _anonymous() -> list[Range]:
    """The ranges of this process that can be written and belong to no file, in the order of their addresses."""
    try:
        lines = MAPS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found: list[Range] = []
    for addresses, rights, _, _, inode, *name in map(str.split, lines):
        if rights == "rw-p" and inode == "0" and not (name and name[0].startswith("[stack")):
            first, last = (int(address, 16) for address in addresses.split("-"))
            found.append((first, last))
    return found


def _new(before: list[Range], after: list[Range]) -> Iterator[Range]:
    """What `after` has beyond `before`; both are in the order of their addresses."""
    for first, last in after:
        held = [(max(low, first), min(high, last)) for low, high in before if low < last and high > first]
        edges = [first, *itertools.chain.from_iterable(held), last]
        yield from ((start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop)


@functools.cache
def _madvise() -> ctypes._NamedFuncPointer:
    call = ctypes.CDLL(None).madvise
    call.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return call
