"""One file of a hub's repository into the shared cache: resumed, bounded, verified, linked; it knows no model.

The cache is huggingface_hub's own, so what it holds already is used and what comes serves others too. Its downloader is
not: since 1.0 it throws a partial file away when the process ends, and it checks sizes, never hashes.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeqwen.errors import DownloadError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub says of a file. `digest` names the blob in the cache: sha256, or git's sha1 for small files."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Repository:
    """A model's folder in the cache and the commit that is wanted of it."""

    folder: Path  # CACHE/models--ORG--NAME
    commit: str

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.digest

    def partial(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def missing_bytes(self, file: RemoteFile) -> int:
        """Bytes that are still to come."""
        if (self.snapshot / file.name).exists() or self.blob(file).exists():
            return 0
        partial = self.partial(file)
        return max(0, file.size - partial.stat().st_size) if partial.exists() else file.size


def fetch_file(
    repository: Repository, file: RemoteFile, url: str, headers: dict[str, Any], report: Callable[[int], None]
) -> None:
    """Make `file` stand in the snapshot; `report` gets the bytes that are there, as they come."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # noqa: PLC0415 - half a second

    pointer, blob = repository.snapshot / file.name, repository.blob(file)
    if pointer.exists():
        return
    lock = repository.folder.parent / ".locks" / repository.folder.name / f"{file.digest}.lock"
    for folder in (blob.parent, pointer.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            _download(repository.partial(file), file, url, headers, report)
            repository.partial(file).replace(blob)
        if not pointer.exists():
            _link(pointer, blob)


class _Partial(io.FileIO):
    """A file that grows up to `size` bytes and tells of it."""

    def __init__(self, path: Path, file: RemoteFile, report: Callable[[int], None]) -> None:
        super().__init__(path, "a+")
        self._expected = file
        self._report = report

    def write(self, data: Any) -> int:
        rest = memoryview(data)
        if self.tell() + len(rest) > self._expected.size:
            raise DownloadError(
                f"{self._expected.name}: the hub sends more than the {self._expected.size:,} bytes it said"
            )
        while rest:
            rest = rest[super().write(rest) :]
        self._report(self.tell())
        return len(data)


def _download(path: Path, file: RemoteFile, url: str, headers: dict[str, Any], report: Callable[[int], None]) -> None:
    """Bring `path` to the whole content of `file`, from where an earlier try ended."""
    with _Partial(path, file, report) as partial:
        if partial.seek(0, os.SEEK_END) > file.size:
            partial.truncate(0)
            partial.seek(0)
        report(partial.tell())
        while partial.tell() < file.size:
            _download_on(partial, file, url, headers)
        os.fsync(partial.fileno())
        found = _digest(partial, file)
    if found != file.digest:
        path.unlink()
        raise DownloadError(
            f"{file.name}: the bytes hash to {found}, the hub says {file.digest}: damaged on the way; try again, "
            "or another mirror through HF_ENDPOINT"
        )


def _download_on(partial: _Partial, file: RemoteFile, url: str, headers: dict[str, Any]) -> None:
    """Add to `partial` what one connection brings; an error only where that is nothing, or the hub refuses."""
    from huggingface_hub.file_download import http_get  # noqa: PLC0415

    start = partial.tell()
    try:
        http_get(url, partial, resume_size=start, headers=headers, expected_size=file.size)
    except transport_errors() as error:
        if partial.tell() == start or getattr(error, "response", None) is not None:
            raise


def transport_errors() -> tuple[type[Exception], ...]:
    """Return what a transfer may raise: the system's errors and the root of httpx's or requests'."""
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    roots = [base for base in HfHubHTTPError.__mro__ if base.__module__.split(".")[0] in {"httpx", "requests"}]
    return OSError, *roots


def _digest(content: io.FileIO, file: RemoteFile) -> str:
    """Hash as the hub does: sha256 of large files, of others git's sha1 with its header."""
    size = content.seek(0, os.SEEK_END)
    is_git = len(file.digest) == 40
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False) if is_git else hashlib.sha256()
    content.seek(0)
    while chunk := content.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _link(pointer: Path, blob: Path) -> None:
    """Link the snapshot's name to the blob; where links are not allowed (Windows) the blob moves there."""
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        blob.replace(pointer)
