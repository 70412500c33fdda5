"""Writes an artifact whole or not at all: temporary siblings, fsync, rename, and the manifest's rename is the switch.

Payloads carry their hash in their names, so a new one never touches an old one; those are removed when the switch is
done. What a killed run leaves behind goes with the next run: temporary names, and what the list of its switch names,
for a file that merely looks like a payload is somebody's. It knows nothing of weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from edgeqwen.errors import ArtifactError
from edgeqwen.folder_lock import FolderLock
from edgeqwen.manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MEASURED,
    Payload,
    dump_manifest,
    parse_manifest,
)
from edgeqwen.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping
    from io import FileIO
    from pathlib import Path
    from types import TracebackType

    from edgeqwen.manifest import Manifest

_TEMPORARY: Final = re.compile(r"\.edgeqwen-[a-z_]+\.tmp")
_PAYLOAD: Final = re.compile(
    r"(model|graph|weights|tokenizer|tokenizer_config|chat_template)-[0-9a-f]{12}\.(gguf|onnx|data|json|jinja)"
)
_SWITCH: Final = ".edgeqwen-switch.tmp"  # names of the payloads that come and go while an artifact is switched


@dataclass(frozen=True, slots=True)
class Draft:
    """A payload that is being written: an open, unbuffered file under a temporary name."""

    stem: str
    suffix: str
    path: Path
    file: FileIO


class ArtifactWriter:
    """Use in a `with` statement: create and seal payloads, then commit; leaving without a commit leaves nothing."""

    def __init__(self, folder: Path, *, source: Path | None = None) -> None:
        """`source` is the checkpoint's folder or the file that is read from; where it lies is refused as the target."""
        self.folder = folder
        self.files: dict[str, Payload] = {}  # what has been sealed, as the manifest will list it
        self._source = source
        self._drafts: dict[str, Draft] = {}  # final name -> sealed draft
        self._open: list[Draft] = []
        self._created: list[Path] = []
        self._lock: FolderLock | None = None

    def __enter__(self) -> Self:
        try:
            _check_target(self.folder, self._source)
            self._make_folder()
            self._lock = FolderLock(self.folder)
            self._remove_leftovers(_listed(self.folder))
        except OSError as error:
            self._discard()
            raise _cannot_write(self.folder, error) from None
        except ArtifactError:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()
        if isinstance(error, OSError):  # what is read from is not read with OSError's
            raise _cannot_write(self.folder, error) from None

    def reserve(self, nbytes: int) -> None:
        """Refuse to begin when the disk has not room for `nbytes` more."""
        free = shutil.disk_usage(self.folder).free
        if nbytes > free:
            raise ArtifactError(
                f"{self.folder} needs {nbytes:,} bytes and the disk has {free:,} free: make room, or choose another"
            )

    def create(self, stem: str, suffix: str) -> Draft:
        """Open a new payload that will be called STEM-HASH.SUFFIX; give it to `seal` when it is written."""
        if not _PAYLOAD.fullmatch(f"{stem}-{'0' * 12}.{suffix}"):
            raise ValueError(f"{stem}.{suffix} is no kind of payload that a later run would recognize")
        path = self.folder / f".edgeqwen-{stem}.tmp"
        draft = Draft(stem, suffix, path, path.open("x+b", buffering=0))
        self._open.append(draft)
        return draft

    def seal(self, draft: Draft, sha256: str) -> str:
        """Close a payload whose bytes have this hash, when they are on the disk; gives its final name."""
        os.fsync(draft.file.fileno())
        size = os.fstat(draft.file.fileno()).st_size
        draft.file.close()
        name = f"{draft.stem}-{sha256[:12]}.{draft.suffix}"
        self._drafts[name] = draft
        self.files[name] = Payload(size, sha256)
        return name

    def path_of(self, name: str) -> Path:
        """Where a sealed payload can be read before the commit."""
        return self._drafts[name].path

    def add(self, stem: str, suffix: str, data: bytes) -> str:
        """Create and seal a small payload; gives its final name."""
        draft = self.create(stem, suffix)
        draft.file.write(data)
        return self.seal(draft, hashlib.sha256(data).hexdigest())

    def commit(self, manifest: Manifest, measured: Mapping[str, Any]) -> None:
        """Switch to the new artifact; `manifest.files` is `files`, and `measured` goes to measured.json."""
        raw = dump_manifest(manifest)
        parse_manifest(raw, MANIFEST)  # what could not be opened is not written
        _write_switch(self.folder, {*_listed(self.folder), *self._drafts})
        for name, draft in self._drafts.items():
            draft.path.replace(self.folder / name)
        _sync_folder(self.folder)
        _replace(self.folder / MANIFEST, raw)
        self._drafts.clear()
        write_measured(self.folder, raw, measured)
        self._remove_leftovers(set(manifest.files))
        self._created.clear()

    def _make_folder(self) -> None:
        missing = [self.folder, *self.folder.parents]
        for path in reversed([path for path in missing if not path.exists()]):
            path.mkdir(exist_ok=True)
            self._created.append(path)
            _sync_folder(path.parent)

    def _remove_leftovers(self, keep: set[str]) -> None:
        """Remove temporary files, and payloads of a switch that did not come to its end but for those to `keep`."""
        for name in sorted(_leftovers(self.folder), key=_SWITCH.__eq__):  # the list goes last
            if name not in keep:
                (self.folder / name).unlink()

    def _discard(self) -> None:
        """Close and remove what was not committed, then give the lock back."""
        for draft in self._open:
            draft.file.close()
        with contextlib.suppress(OSError, ArtifactError):
            if self._lock is not None:
                self._remove_leftovers(_listed(self.folder))
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        for path in reversed(self._created):
            with contextlib.suppress(OSError):  # somebody put something in
                path.rmdir()
        self._created.clear()


def write_measured(folder: Path, manifest: bytes, measured: Mapping[str, Any]) -> None:
    """Write measured.json for the artifact whose manifest.json has these bytes."""
    data = {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), **measured}
    _replace(folder / MEASURED, json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True).encode() + b"\n")


def _check_target(folder: Path, source: Path | None) -> None:
    if folder.is_symlink():
        raise ArtifactError(f"{folder} is a symbolic link; name the folder itself")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file; the artifact is a folder")
    if source is not None and folder.samefile(source if source.is_dir() else source.resolve().parent):
        whose = "the checkpoint's own folder" if source.is_dir() else f"the folder of {source.name}, which is read"
        raise ArtifactError(f"{folder} is {whose}; name another one")
    if _is_ours(folder / MANIFEST):
        return
    others = {path.name for path in folder.iterdir()} - _leftovers(folder) - {FolderLock.NAME}
    if others:
        raise ArtifactError(f"{folder} is no artifact and not empty (it holds {min(others)!r}): name a new folder")


def _leftovers(folder: Path) -> set[str]:
    """Names of the files that a run left here that was killed, or did not come to its end."""
    switched: set[object] = set()
    with contextlib.suppress(OSError, ArtifactError):
        data = parse_object((folder / _SWITCH).read_bytes()[:MAX_MANIFEST_BYTES], _SWITCH, ArtifactError)
        switched = set(data)
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if _TEMPORARY.fullmatch(name) or (name in switched and _PAYLOAD.fullmatch(name))}


def _write_switch(folder: Path, names: set[str]) -> None:
    """On the disk before the first of them is renamed: without it, whole or not at all, nothing was."""
    _write(folder / _SWITCH, json.dumps(dict.fromkeys(sorted(names), "")).encode())
    _sync_folder(folder)


def _is_ours(manifest: Path) -> bool:
    """Whether this is a manifest of any version of ours."""
    try:
        data = parse_object(manifest.read_bytes()[:MAX_MANIFEST_BYTES], str(manifest), ArtifactError)
    except (OSError, ArtifactError):
        return False
    return isinstance(data.get("format_version"), int) and isinstance(data.get("formats"), dict)


def _listed(folder: Path) -> set[str]:
    """Names of the payloads of the artifact that is there now; empty where none is."""
    try:
        data = parse_object((folder / MANIFEST).read_bytes()[:MAX_MANIFEST_BYTES], MANIFEST, ArtifactError)
    except (OSError, ArtifactError):
        return set()
    files = data.get("files")
    return set(files) if isinstance(files, dict) else set()


def _replace(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    temporary = path.with_name(f".edgeqwen-{path.stem}.tmp")
    _write(temporary, data)
    temporary.replace(path)
    _sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    """Bytes that are on the disk afterwards; its folder may not know of them yet."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Make renames durable; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(folder: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{folder} cannot be written: {error.strerror}")
