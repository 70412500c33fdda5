"""The words of manifest.json: frozen dataclasses, written canonically and read strictly; it touches no file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

from edgeqwen.errors import ArtifactError
from edgeqwen.strict_json import parse_object
from edgeqwen.types import ModelShape

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
MEASURED: Final = "measured.json"
MAX_MANIFEST_BYTES: Final = 1 << 20
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Payload:
    """One file of the artifact."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Format:
    """The weights for one kind of engine: a payload file and llama.cpp's name for its mixture of types."""

    file: str
    type: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of the checkpoint. `sha256` is None for weights: hashing them would cost a pass of its own."""

    size: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights came from; the name is the checkpoint's, without the path it lay at."""

    name: str
    files: Mapping[str, SourceFile]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an artifact is. `tokenizer`, `tokenizer_config`, `chat_template` and Format.file are keys of `files`."""

    name: str
    architecture: str
    shape: ModelShape
    formats: Mapping[str, Format]  # "gguf"
    tokenizer: str
    tokenizer_config: str
    chat_template: str | None
    trusted_template: bool  # an unknown template was accepted by the person who converted
    end_ids: tuple[int, ...]  # any of them ends an answer
    special_ids: Mapping[str, int]  # the added tokens by their text
    context_length: int
    sampling: Mapping[str, float]  # the checkpoint's own defaults, under the keys of generation_config.json
    source: Source
    versions: Mapping[str, str]  # what determined the bytes
    files: Mapping[str, Payload]
    format_version: int = FORMAT_VERSION


def dump_manifest(manifest: Manifest) -> bytes:
    """Write the one JSON text of a manifest: sorted keys, UTF-8, a newline at the end."""
    text = json.dumps(_plain(manifest), ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def parse_manifest(raw: bytes, where: str) -> Manifest:
    """Read a manifest strictly: exactly the known keys, each of its type; ArtifactError names the key at fault."""
    data = parse_object(raw, where, ArtifactError)
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(f"{where}: format_version is {version!r}; this edgeqwen reads {FORMAT_VERSION}")
    manifest: Manifest = _build(Manifest, data, f"{where}: ")
    _check_references(manifest, where)
    return manifest


def _build(kind: Any, value: Any, where: str) -> Any:
    """Turn JSON into the type `kind`: a dataclass, a Mapping or tuple of such, a plain type, or one of these | None."""
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in {UnionType, Union}:  # X | None
        return None if value is None else _build(arguments[0], value, where)
    if origin is Mapping and isinstance(value, dict):
        return MappingProxyType({key: _build(arguments[1], item, f"{where}{key}.") for key, item in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item, where) for item in value)
    if kind is Any or type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    name = getattr(origin or kind, "__name__", str(kind))
    raise ArtifactError(f"{where.rstrip('.')} is {value!r:.80}; {name} is expected")


def _build_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where.rstrip('.')} is {value!r:.80}; an object is expected")
    types = get_type_hints(kind)
    if unknown := sorted(value.keys() - types.keys()):
        raise ArtifactError(f"{where}{unknown[0]} is a key this edgeqwen does not know; it knows {', '.join(types)}")
    if missing := sorted(types.keys() - value.keys()):
        raise ArtifactError(f"{where}{missing[0]} is missing")
    return kind(**{key: _build(types[key], item, f"{where}{key}.") for key, item in value.items()})


def _check_references(manifest: Manifest, where: str) -> None:
    """Names are plain, hashes are hashes, figures are possible, and every file that is referred to is listed."""
    for name, payload in manifest.files.items():
        if not _FILE_NAME.fullmatch(name) or name in {MANIFEST, MEASURED}:
            raise ArtifactError(f"{where}: files has {name!r}; a plain file name inside the folder is expected")
        if payload.size < 0 or not _SHA256.fullmatch(payload.sha256):
            raise ArtifactError(f"{where}: files.{name} has an impossible size or sha256")
    named = [manifest.tokenizer, manifest.tokenizer_config, *(entry.file for entry in manifest.formats.values())]
    for name in [*named, *([manifest.chat_template] if manifest.chat_template is not None else [])]:
        if name not in manifest.files:
            raise ArtifactError(f"{where}: refers to {name!r}, which is not in files")
    shape = manifest.shape
    if manifest.architecture != shape.architecture or not manifest.formats:
        raise ArtifactError(f"{where}: architecture {manifest.architecture!r} is not the shape's, or formats is empty")
    figures = [
        value for value in dataclasses.astuple(dataclasses.replace(shape, rope_scaling=None)) if type(value) is int
    ]
    if min(*figures, manifest.context_length) < 1 or max(figures) >= 1 << 31:
        raise ArtifactError(f"{where}: a figure of shape or context_length is not positive or too large")
    if not manifest.end_ids or not all(
        0 <= n < shape.vocab_size for n in (*manifest.end_ids, *manifest.special_ids.values())
    ):
        raise ArtifactError(
            f"{where}: end_ids is empty, or an id is outside of the {shape.vocab_size} of the vocabulary"
        )
    if not all(math.isfinite(value) for value in (*manifest.sampling.values(), shape.rms_norm_eps, shape.rope_theta)):
        raise ArtifactError(f"{where}: a number of sampling or shape is not finite")
