"""Runs jobs on threads and writes their bytes to one file in order, hashed and read back; it knows no weights.

Jobs are cut before they are spread, and bytes are taken in the order of the jobs: the file is the same whatever the
number of threads.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

from edgeqwen.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from io import FileIO
    from pathlib import Path

    import numpy.typing as npt

Job = TypeVar("Job")


_SYNC_BYTES: Final = 64 << 20  # of one background sync


class HashedFile:
    """Appends to a file, reads each piece back, compares it and hashes what was read.

    What has been written is brought to the disk meanwhile, so that the last fsync finds little to do.
    """

    def __init__(self, path: Path, file: FileIO) -> None:
        """`file` is open for writing and unbuffered, at its beginning; `path` names it for reading."""
        self._path, self._file = path, file
        self._reader = path.open("rb", buffering=0)
        self._scratch = np.empty(0, np.uint8)
        self._hash = hashlib.sha256()
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="edgeqwen-sync")
        self._syncs: list[Future[None]] = []
        self.size = 0

    def write(self, data: bytes | npt.NDArray[np.uint8]) -> None:
        """Append bytes; ArtifactError when the file gives others back."""
        piece = np.frombuffer(data, np.uint8)
        if self._scratch.size < piece.size:
            self._scratch = np.empty(piece.size, np.uint8)
        back = self._scratch[: piece.size]
        _drain(self._file.write, piece.data)
        _drain(self._reader.readinto, back.data)
        word = np.uint64 if piece.size % 8 == 0 else np.uint8
        if not np.array_equal(piece.view(word), back.view(word)):
            raise ArtifactError(f"{self._path}: the disk gave back other bytes than were written at {self.size}")
        self._hash.update(back.data)
        if self.size // _SYNC_BYTES != (self.size + piece.size) // _SYNC_BYTES:
            self._syncs.append(self._syncer.submit(_sync_data, self._file.fileno()))
        self.size += piece.size

    def finish(self) -> str:
        """Give the sha256 of all bytes, in hexadecimal; OSError when some did not reach the disk."""
        for sync in self._syncs:
            sync.result()  # the system tells an error once, to the sync that meets it
        return self._hash.hexdigest()

    def close(self) -> None:
        """Let go of the file, which stays open for its owner."""
        self._syncer.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


def _sync_data(handle: int) -> None:
    """Bring data to the disk, where the system can do it apart from the rest."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(handle)


def _drain(call: Callable[[memoryview], int | None], view: memoryview) -> None:
    """Repeat a raw read or write, which may stop short, until the view is done."""
    while view:
        done = call(view)
        if not done:
            raise ArtifactError("the file being written became shorter: another process has changed it")
        view = view[done:]


class OrderedPool(Generic[Job]):
    """Fills buffers by jobs on threads and hands them on in the order of the jobs, a bounded number at a time."""

    def __init__(self, run: Callable[[Job, npt.NDArray[np.uint8]], None], threads: int, buffer_bytes: int) -> None:
        """`run(job, buffer)` fills the first bytes of a buffer of buffer_bytes."""
        self._run = run
        self._threads = threads
        self._buffers = [np.empty(buffer_bytes, np.uint8) for _ in range(2 * threads + 2)]

    def each(self, jobs: Iterable[Job], take: Callable[[Job, npt.NDArray[np.uint8]], None]) -> None:
        """Run all jobs and call `take` here with each one's buffer; after an error no job runs any more."""
        pending: deque[tuple[Job, npt.NDArray[np.uint8], Future[None]]] = deque()

        def finish() -> npt.NDArray[np.uint8]:
            job, buffer, future = pending.popleft()
            future.result()
            take(job, buffer)
            return buffer

        free = list(self._buffers)
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="edgeqwen-convert")
        try:
            for job in jobs:
                buffer = free.pop() if free else finish()
                pending.append((job, buffer, pool.submit(self._run, job, buffer)))
            while pending:
                finish()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
