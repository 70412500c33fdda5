"""The file of a saved sequence: written whole or not at all, with a hash at its end; what an engine writes before it.

The hash finds what was cut or damaged, which native code need not survive. It proves no origin.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeqwen.errors import EngineError

_MAGIC = b"edgeqwen session\n"
_PIECE_BYTES = 1 << 20
SEAL_BYTES = len(_MAGIC) + hashlib.sha256().digest_size


@contextmanager
def new_session(path: Path) -> Iterator[None]:
    """Make an empty file that the `with` statement fills, and seal it; where that fails, there is none.

    EngineError where it exists or cannot be written.
    """
    try:
        path.open("xb").close()
        try:
            yield
            digest = _digest(path, path.stat().st_size)
            with path.open("ab") as file:
                file.write(_MAGIC + digest)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise EngineError(f"{path}: the session cannot be written: {error.strerror}") from None


def check_session(path: Path) -> int:
    """How many bytes stand before the seal; EngineError for what is no session, or not as it was saved."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise EngineError(f"{path}: is no session, which is a file")
        size = status.st_size - SEAL_BYTES
        with path.open("rb") as file:
            file.seek(max(0, size))
            seal = file.read(SEAL_BYTES)
        if size < 0 or not seal.startswith(_MAGIC):
            raise EngineError(f"{path}: is no session, or was cut")
        if seal[len(_MAGIC) :] != _digest(path, size):
            raise EngineError(f"{path}: is not the session that was saved: the file is damaged")
    except OSError as error:
        raise EngineError(f"{path}: is no session: {error.strerror}") from None
    return size


def _digest(path: Path, size: int) -> bytes:
    """The sha256 of the first bytes of a file, of fewer where it was cut meanwhile."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(min(size, _PIECE_BYTES)):
            digest.update(piece)
            size -= len(piece)
    return digest.digest()
