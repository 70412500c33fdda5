"""A lock on a folder that holds between processes and ends with the process; it knows nothing of what is in there."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Final

from edgeqwen.errors import ArtifactBusyError

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


class FolderLock:
    """Held from construction to `release`; ArtifactBusyError when another process has it."""

    NAME: Final = ".edgeqwen.lock"

    def __init__(self, folder: Path) -> None:
        self._path = folder / self.NAME
        while True:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(self._handle)
            except OSError:
                os.close(self._handle)
                raise ArtifactBusyError(
                    f"{folder} is being written by another run: wait for it, or name another folder"
                ) from None
            if self._is_current():
                return
            os.close(self._handle)  # its last holder removed the file between our open and our lock

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Remove the lock's file and give the lock back."""
        if os.name == "nt":  # an open file cannot be removed there; what is left is reused
            os.close(self._handle)
        with contextlib.suppress(OSError):
            self._path.unlink()
        if os.name != "nt":
            os.close(self._handle)
