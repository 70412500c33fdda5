"""How fast this machine reads memory: the limit of decoding, where every token reads all weights once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgeqwen.device import counted

ARRAY_BYTES = 256 << 20  # far more than any cache holds
SMALLEST_BYTES = 32 << 20
PASSES = 8


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The best of some passes in which so many threads each read their part of one array once."""

    bytes_per_s: float
    threads: int
    array_bytes: int
    passes: int = PASSES

    @property
    def method(self) -> str:
        """What was done, in one line."""
        return (
            f"numpy's largest 32-bit integer of {self.array_bytes >> 20} MiB, a part for each of "
            f"{counted(self.threads, 'thread')}, best of {self.passes} passes"
        )


def read_bandwidth(threads: int, memory_available_bytes: int | None = None) -> Bandwidth:
    """Read an array in parallel, several times; a reduction by maximum computes next to nothing and writes nothing.

    The array takes at most an eighth of the memory that is left.
    """
    room = ARRAY_BYTES if memory_available_bytes is None else memory_available_bytes // 8
    size = max(SMALLEST_BYTES, min(ARRAY_BYTES, room))
    parts = np.array_split(np.ones(size // 4, np.int32), threads)
    with ThreadPoolExecutor(threads) as pool:
        fastest = min(_pass_s(pool, parts) for _ in range(PASSES))
    return Bandwidth(size / fastest, threads, size)


def _pass_s(pool: ThreadPoolExecutor, parts: list[npt.NDArray[np.int32]]) -> float:
    """Wall seconds of reading every part once; numpy lets go of the GIL meanwhile."""
    started = time.perf_counter()
    for _ in pool.map(np.max, parts):
        pass
    return time.perf_counter() - started
