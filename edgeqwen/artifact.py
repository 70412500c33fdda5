"""An artifact on disk: a folder with weights, tokenizer, chat template and manifest.json, opened and verified here.

It knows files and hashes, and nothing of engines or of how weights are made.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeqwen.artifact_writer import ArtifactWriter, write_measured
from edgeqwen.errors import ArtifactError, RequestError
from edgeqwen.file_hash import sha256_of
from edgeqwen.folders import cache_folder
from edgeqwen.gguf import MAGIC
from edgeqwen.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MEASURED,
    Format,
    Manifest,
    Payload,
    Source,
    SourceFile,
    parse_manifest,
)
from edgeqwen.strict_json import parse_object

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FORMAT_VERSION",
    "Artifact",
    "ArtifactWriter",
    "Format",
    "Manifest",
    "Payload",
    "Source",
    "SourceFile",
    "is_artifact",
    "mending",
    "open_artifact",
    "write_measured",
]

_MAX_MEASURED_BYTES = 16 << 20
_HEADS = {"gguf": MAGIC}  # how the payload of a format begins


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose manifest has been checked against its files."""

    path: Path
    manifest: Manifest
    manifest_sha256: str

    def file(self, kind: str) -> Path:
        """Give the path of a payload: "tokenizer", "tokenizer_config", "chat_template" or a format such as "gguf"."""
        manifest = self.manifest
        names: dict[str, str | None] = {key: entry.file for key, entry in manifest.formats.items()}
        names |= {
            "tokenizer": manifest.tokenizer,
            "tokenizer_config": manifest.tokenizer_config,
            "chat_template": manifest.chat_template,
        }
        name = names.get(kind)
        if name is None:
            there = ", ".join(key for key, value in names.items() if value is not None)
            raise RequestError(f"{self.path} has no {kind!r}; it has {there}")
        return self.path / name

    def measured(self) -> Mapping[str, Any]:
        """Read what was measured on exactly this artifact; empty where nothing was, or on another one."""
        path = self.path / MEASURED
        if not path.is_file():
            return {}
        data = parse_object(_read_small(path, _MAX_MEASURED_BYTES), str(path), ArtifactError)
        return data if data.get("manifest_sha256") == self.manifest_sha256 else {}


def mending(folder: Path) -> str:
    """What makes a damaged artifact whole: what lies in the cache is made by the next run, once it is gone."""
    if folder.absolute().parent == cache_folder().absolute():
        return f"delete {folder}, and the next run makes it anew"
    return "convert or copy it again"


def is_artifact(path: str | Path) -> bool:
    """Whether the folder has a manifest at all; opening it tells whether it is a good one."""
    return (Path(path) / MANIFEST).is_file()


def open_artifact(path: str | Path, *, verify: Literal["quick", "full"] = "quick") -> Artifact:
    """Open an artifact; ArtifactError says which file is not what the manifest says.

    "quick" checks the manifest, that each file is a regular one of the stated size, and how the weights begin;
    "full" hashes every byte as well (about 2.5 s a gigabyte).
    """
    path = Path(path)
    where = path / MANIFEST
    if not path.is_dir():
        raise ArtifactError(f"{path} is no folder; an artifact is a folder with {MANIFEST}")
    raw = _read_small(where, MAX_MANIFEST_BYTES)
    manifest = parse_manifest(raw, str(where))
    for name, payload in manifest.files.items():
        _check_file(path / name, payload, hashed=verify == "full")
    for key, entry in manifest.formats.items():
        _check_head(path / entry.file, _HEADS.get(key, b""))
    return Artifact(path, manifest, hashlib.sha256(raw).hexdigest())


def _read_small(path: Path, most: int) -> bytes:
    """Read a regular file of at most `most` bytes."""
    size = _regular_size(path)
    if size > most:
        raise ArtifactError(f"{path} has {size} bytes; at most {most} are accepted")
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def _regular_size(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: {mending(path.parent)}") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path} is no regular file (symbolic links are refused)")
    return status.st_size


def _check_file(path: Path, payload: Payload, *, hashed: bool) -> None:
    size = _regular_size(path)
    if size != payload.size:
        raise ArtifactError(f"{path} has {size} bytes; the manifest says {payload.size}: {mending(path.parent)}")
    if not hashed:
        return
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    if found != payload.sha256:
        raise ArtifactError(
            f"{path} has the sha256 {found}; the manifest says {payload.sha256}: it is damaged, {mending(path.parent)}"
        )


def _check_head(path: Path, head: bytes) -> None:
    try:
        with path.open("rb") as file:
            found = file.read(len(head))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    if found != head:
        raise ArtifactError(f"{path} begins with {found!r}; {head!r} is expected")
