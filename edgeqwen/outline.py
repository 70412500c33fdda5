"""What a model on disk is, seen from its headers alone: formats, shape, sizes; nothing of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.artifact import Artifact, open_artifact
from edgeqwen.engines import ENGINES
from edgeqwen.errors import ArtifactError
from edgeqwen.gguf import open_gguf, shape_of
from edgeqwen.memory_need import Weights, onnx_weights, weights_of
from edgeqwen.onnx_file import check_graph
from edgeqwen.types import ModelShape


@dataclass(frozen=True, slots=True)
class Outline:
    """A model's formats, each with its weights and the name of their type: `gguf` -> `q8_0`."""

    name: str
    digest: str | None  # of the manifest; a plain GGUF file has none
    shape: ModelShape
    weights: Mapping[str, Weights]
    types: Mapping[str, str]


def outline(path: Path) -> Outline:
    """Read the headers of what `catalog.locate` found; ArtifactError for a damaged one."""
    if not path.is_dir():
        shape, weights, kind = _gguf(path)
        return Outline(path.stem, None, shape, {"gguf": weights}, {"gguf": kind})
    artifact = open_artifact(path)
    manifest = artifact.manifest
    readable = {engine.format for engine in ENGINES.values()}
    formats = {key: entry for key, entry in manifest.formats.items() if key in readable}
    if not formats:
        raise ArtifactError(f"{path}: is there as {', '.join(manifest.formats)}, and no engine reads that")
    return Outline(
        manifest.name,
        artifact.manifest_sha256,
        manifest.shape,
        {key: _weights(artifact, key) for key in formats},
        {key: entry.type.lower() for key, entry in formats.items()},
    )


def _weights(artifact: Artifact, format: str) -> Weights:
    if format == "gguf":
        return _gguf(artifact.file(format))[1]
    return onnx_weights(check_graph(artifact).tensors)


def _gguf(path: Path) -> tuple[ModelShape, Weights, str]:
    """Shape, weights, and the type that most bytes are of."""
    with open_gguf(path) as file:
        weights = weights_of(file.tensors.values())
        kinds = {kind: sum(t.nbytes for t in file.tensors.values() if t.type == kind) for kind in weights.matrix_bytes}
        return shape_of(file), weights, max(kinds, key=lambda kind: kinds[kind], default="f32").lower()
