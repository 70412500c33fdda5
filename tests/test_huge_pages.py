"""Huge pages: what is allocated meanwhile is advised and holds what it held; what was there before is left alone."""

import ctypes
import mmap
import re
import sys
from pathlib import Path

import pytest

from edgeqwen import huge_pages
from edgeqwen.backends.kv_slab import KvSlab
from edgeqwen.huge_pages import on_huge_pages

SIZE = 64 << 20


def private(fill):
    """A private anonymous mapping of SIZE bytes."""
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(bytes([fill]) * SIZE)
    return memory


def told(memory, field):
    """What the kernel tells of the mapping that the middle of `memory` lies in."""
    middle = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + len(memory) // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= middle < int(span[2], 16)
        elif inside and line.startswith(f"{field}:"):
            return line.split()[1:]
    raise AssertionError("the mapping is not in smaps")


def is_advised(memory):
    """Whether the kernel has it down for huge pages."""
    return "hg" in told(memory, "VmFlags")


def resident_bytes(memory):
    return int(told(memory, "Rss")[0]) << 10


@pytest.mark.skipif(sys.platform != "linux" or not huge_pages.PAGE_SIZE.exists(), reason="no huge pages on this system")
def test_what_is_allocated_meanwhile_is_advised_and_holds_what_it_held():
    before = private(1)
    with on_huge_pages():
        meanwhile = private(2)
    after = private(3)
    assert [is_advised(memory) for memory in (before, meanwhile, after)] == [False, True, False]
    assert [set(memory[:]) for memory in (before, meanwhile, after)] == [{1}, {2}, {3}]


@pytest.mark.skipif(sys.platform != "linux" or not huge_pages.PAGE_SIZE.exists(), reason="no huge pages on this system")
def test_a_cache_that_another_thread_reserves_meanwhile_is_left_alone():
    with on_huge_pages():
        slab = KvSlab(2, 1, 4, 4096, 128)
        slab.array[0, 0, 0, 0, :16] = 1
    assert not is_advised(slab._map)
    assert resident_bytes(slab._map) <= 1 << 20


@pytest.mark.parametrize("text", [None, "", "none\n"])
def test_where_there_are_none_nothing_is_asked_for(text, tmp_path, monkeypatch):
    page_size = tmp_path / "hpage_pmd_size"
    if text is not None:
        page_size.write_text(text)
    monkeypatch.setattr(huge_pages, "PAGE_SIZE", page_size)
    monkeypatch.setattr(huge_pages, "_madvise", lambda: pytest.fail("asked"))
    with on_huge_pages():
        private(4).close()


def test_where_the_map_cannot_be_read_nothing_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "MAPS", tmp_path / "absent")
    monkeypatch.setattr(huge_pages, "_madvise", lambda: pytest.fail("asked"))
    with on_huge_pages():
        private(5).close()


def test_a_file_whose_name_holds_ends_of_lines_is_passed_over(tmp_path):
    named = tmp_path / "weights\u2028of\x0cseveral\rlines"
    named.write_bytes(bytes(1 << 16))
    with named.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped, on_huge_pages():
        assert mapped[0] == 0


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ([], [(0, 4)], [(0, 4)]),
        ([(0, 4)], [(0, 4)], []),
        ([(2, 4)], [(0, 8)], [(0, 2), (4, 8)]),
        ([(0, 4), (6, 8)], [(0, 8)], [(4, 6)]),
        ([(0, 4)], [(2, 6)], [(4, 6)]),
        ([(0, 2), (8, 9)], [(0, 2), (4, 6)], [(4, 6)]),
    ],
)
def test_only_what_is_new_counts(before, after, new):
    assert list(huge_pages._new(before, after)) == new
