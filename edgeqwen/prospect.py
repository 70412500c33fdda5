"""A model that is there or could be made: its shape, and its sizes in every type; nothing is loaded or converted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from edgeqwen.catalog import HUB_ID, NANO
from edgeqwen.errors import CheckpointError, RequestError
from edgeqwen.ggml_types import GGML_TYPES
from edgeqwen.inspection import TensorLine
from edgeqwen.manifest import MANIFEST
from edgeqwen.memory_need import Weights, onnx_weights, weights_of
from edgeqwen.outline import outline
from edgeqwen.published import PUBLISHED, find_published
from edgeqwen.strict_json import CONFIG_BYTES_MAX, parse_object
from edgeqwen.types import ModelShape

CONFIG = "config.json"
HEADER_TOKEN_BYTES = 40  # of a GGUF header, for each token of the vocabulary: its text, its type, its merge
ONNX_TYPES = ("fp32", "int8", "int4", "int4_fast")


@dataclass(frozen=True, slots=True)
class Option:
    """One type of a model in one format: the bytes of its file, estimated where that is not written yet."""

    type: str
    format: str
    file_bytes: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class Prospect:
    """A model and what it could run as; `is_made` where the file is there and its type decided.

    `digest` is that of an artifact's manifest, by which what was measured here is found.
    """

    name: str
    source: str
    shape: ModelShape
    options: tuple[Option, ...]
    is_made: bool
    digest: str | None = None


def prospect(name: str, *, offline: bool = False) -> Prospect:
    """What a name is for memory: an artifact, a GGUF file, a checkpoint's folder or its config.json, `nano`, a hub id.

    A published model may be called by its size, 0.6b; of any other hub id the config.json alone is fetched.
    RequestError for a name that is none of these; ArtifactError, CheckpointError and DownloadError as they come.
    """
    path = NANO if name == "nano" else Path(name).expanduser()
    if path.is_dir() and (path / MANIFEST).is_file():
        return _made(path, "artifact")
    if path.is_dir() and (path / CONFIG).is_file():
        return _unmade("nano" if name == "nano" else path.resolve().name, "checkpoint", path / CONFIG)
    if path.is_file() and path.suffix == ".json":
        return _unmade(path.resolve().parent.name, CONFIG, path)
    if path.is_file():
        return _made(path, "GGUF file")
    if path.is_dir() and name:
        raise RequestError(f"{path} is neither an artifact nor a checkpoint: there is no {MANIFEST} and no {CONFIG}")
    if known := find_published(name):
        return _of_shape(known, "published shape", PUBLISHED[known])
    if HUB_ID.fullmatch(name) is None or name.endswith(".gguf"):
        raise RequestError(
            f"no model {name!r}: give an artifact's folder, a GGUF file, a checkpoint's folder or its {CONFIG}, nano, "
            f"a hub id, or one of {', '.join(PUBLISHED)}"
        )
    from converters.hub import fetch_config  # noqa: PLC0415 - half a second

    return _unmade(name, f"{CONFIG} of the hub", fetch_config(name, offline=offline))


def _made(path: Path, source: str) -> Prospect:
    found = outline(path)
    files = path if path.is_dir() else path.parent
    options = tuple(
        Option(found.types[kind], kind, _file_bytes(files, path, kind, weights), weights)
        for kind, weights in found.weights.items()
    )
    return Prospect(found.name, source, found.shape, options, is_made=True, digest=found.digest)


def _file_bytes(folder: Path, path: Path, format: str, weights: Weights) -> int:
    """Bytes of a format's own files on disk."""
    if path.is_file():
        return path.stat().st_size
    endings = (".gguf",) if format == "gguf" else (".onnx", ".data")
    return sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith(endings)) or weights.total_bytes


def _unmade(name: str, source: str, config: Path) -> Prospect:
    from converters.model_config import read_shape  # noqa: PLC0415 - only what is not converted needs the other half

    if config.stat().st_size > CONFIG_BYTES_MAX:
        raise CheckpointError(f"{config} has {config.stat().st_size} bytes; at most {CONFIG_BYTES_MAX} are read")
    shape = read_shape(parse_object(config.read_bytes(), str(config), CheckpointError), str(config))
    return _of_shape(name, source, shape)


def _of_shape(name: str, source: str, shape: ModelShape) -> Prospect:
    return Prospect(name, source, shape, (*_gguf_options(shape), *_onnx_options(shape)), is_made=False)


def _gguf_options(shape: ModelShape) -> Iterator[Option]:
    """Every type that `convert` writes, the most exact first."""
    from converters.architectures import expected_tensors  # noqa: PLC0415
    from converters.mixture import FILE_TYPES, choose_types  # noqa: PLC0415

    shapes = dict(expected_tensors(shape).values())
    for kind in FILE_TYPES:
        types = choose_types(shapes, kind)
        weights = weights_of(
            TensorLine(name, one, shapes[name], GGML_TYPES[one].nbytes(math.prod(shapes[name])))
            for name, one in types.items()
        )
        yield Option(kind.lower(), "gguf", weights.total_bytes + HEADER_TOKEN_BYTES * shape.vocab_size, weights)


class _Unwritten:
    """Of converters.weights.Weights what a layout asks for: the shape and that nothing is quantized yet."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape

    def kind(self, _name: str) -> str:
        return "BF16"


def _onnx_options(shape: ModelShape) -> Iterator[Option]:
    from converters.onnx_plan import plan_onnx  # noqa: PLC0415

    for kind in ONNX_TYPES:
        try:
            planned = plan_onnx(cast("Any", _Unwritten(shape)), kind)
        except RequestError:  # rows that cannot be cut into blocks
            continue
        places = [
            place
            for one in planned.matrices.values()
            for place in (one.matrix.weight, one.matrix.scales, one.matrix.zeros)
            if place is not None
        ]
        places += [one.place for one in planned.arrays.values()]
        yield Option(kind, "onnx", planned.size, onnx_weights(places))
