"""One input file of a checkpoint, opened read-only, mapped by windows and watched for change; it knows no format.

Rule of what is opened: regular files that lie, with every symbolic link followed, inside the checkpoint's folder; for a
folder `CACHE/models--ORG--NAME/snapshots/REVISION` of a hub cache also in the `blobs` of the model and of the cache.
Nothing else, so that a checkpoint from elsewhere cannot make us read (and then publish) other files of this machine.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeqwen.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

Identity = tuple[int, int, int]  # st_size, st_mtime_ns, st_ino

# Not every system has each flag. O_NONBLOCK: opening a named pipe must not wait for a writer.
_FLAGS = os.O_RDONLY
for _flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _flag, 0)


class SourceFile:
    """An open input file; `path` is the name the user knows, `size` its bytes when it was opened."""

    def __init__(self, folder: Path, name: str) -> None:
        """Open `name` in `folder` (resolved already); CheckpointError where the rule above forbids it."""
        self.path = folder / name
        try:
            real = self.path.resolve(strict=True)
            if not any(real.is_relative_to(root) for root in _roots(folder)):
                raise CheckpointError(f"{self.path}: the link leads out of the folder, to {real}: copy the file there")
            self._file = os.open(real, _FLAGS)
        except FileNotFoundError:
            raise CheckpointError(f"{self.path}: the file is missing: is the download complete?") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, Python < 3.13
            reason = getattr(error, "strerror", None) or error
            raise CheckpointError(f"{self.path}: cannot be opened: {reason}") from None
        status = os.fstat(self._file)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CheckpointError(f"{self.path}: not a regular file")
        self.size = status.st_size
        self._identity = _identity(status)

    def read(self, limit: int) -> bytes:
        """Return the whole file, of at most `limit` bytes."""
        if self.size > limit:
            raise CheckpointError(f"{self.path}: {self.size:,} bytes; such a file has at most {limit:,}")
        return self.read_at(0, self.size)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """Return `nbytes` from `offset`; CheckpointError when the file ends before."""
        parts = []
        os.lseek(self._file, offset, os.SEEK_SET)
        while nbytes > 0 and (part := os.read(self._file, min(nbytes, 1 << 24))):
            parts.append(part)
            nbytes -= len(part)
        if nbytes:
            raise CheckpointError(f"{self.path}: became shorter while it was read")
        return b"".join(parts)

    def map(self, offset: int, count: int, dtype: np.dtype[Any]) -> np.ndarray:
        """Return a read-only view [count] of the file itself.

        Each view has a mapping of its own that ends with it: what was read leaves the resident set at once.
        """
        if self._file < 0:
            raise ValueError(f"{self.path} is closed")  # mmap would take -1 for a request of zeros
        if count == 0:
            return np.empty(0, dtype)
        start = offset - offset % mmap.ALLOCATIONGRANULARITY
        nbytes = offset - start + count * dtype.itemsize
        try:
            window = mmap.mmap(self._file, nbytes, access=mmap.ACCESS_READ, offset=start)
        except (OSError, ValueError) as error:  # ValueError: the file ends before
            raise CheckpointError(f"{self.path}: {nbytes:,} bytes at {start:,} cannot be mapped: {error}") from None
        return np.frombuffer(window, dtype, count, offset - start)

    def check_unchanged(self) -> None:
        """Raise a CheckpointError when the file is no longer the one that was opened."""
        try:
            now = _identity(self.path.stat())
        except OSError as error:
            raise CheckpointError(f"{self.path}: vanished while it was read: {error.strerror}") from None
        if now != self._identity:
            raise CheckpointError(
                f"{self.path}: changed while it was read (size, mtime_ns, inode: {self._identity}, now {now}): "
                "wait until the download or the copy is done, then run again"
            )

    def close(self) -> None:
        """Close the file; views that are still held stay valid. May be called twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_file(folder: Path, name: str, limit: int) -> bytes:
    """Return the bytes of a small file, opened by the rule of this module."""
    source = SourceFile(folder, name)
    try:
        return source.read(limit)
    finally:
        source.close()


def _roots(folder: Path) -> tuple[Path, ...]:
    model = folder.parent.parent
    if folder.parent.name != "snapshots" or not model.name.startswith("models--"):
        return (folder,)
    return folder, model / "blobs", model.parent / "blobs"  # the last: files that models share


def _identity(status: os.stat_result) -> Identity:
    return status.st_size, status.st_mtime_ns, status.st_ino
