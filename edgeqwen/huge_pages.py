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

MAPS = Path("/proc/self/smaps")
PAGE_SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
_REFUSED = "nh"  # among a range's flags: it was asked to have none (proc(5))
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; the second since Linux 6.1: at once, not sometime

Range = tuple[int, int]  # addresses: first, behind the last


@contextmanager
def on_huge_pages() -> Iterator[None]:
    """What is allocated in the `with` statement lies on huge pages after it, where the system has them to give.

    So does what other threads allocate meanwhile, unless it was asked to have none, as caches of keys and values are.
    What was written to all over takes as much memory as before; moving it takes about a second a gigabyte.
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
    """The ranges of this process that can be written, belong to no file and may lie on huge pages, by addresses."""
    try:
        lines = MAPS.read_bytes().decode("utf-8", "replace").split("\n")  # other ends of lines are in names
    except OSError:
        return []
    found: list[Range] = []
    current: Range | None = None
    for line in filter(None, lines):
        first, *rest = line.split()
        if not first.endswith(":"):
            rights, _, _, inode, *name = rest
            low, high = (int(address, 16) for address in first.split("-"))
            ours = rights == "rw-p" and inode == "0" and not (name and name[0].startswith("[stack"))
            current = (low, high) if ours else None
        elif first == "VmFlags:" and current is not None and _REFUSED not in rest:
            found.append(current)
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
