"""What is in an artifact, a GGUF file or a checkpoint, without an engine; it prints nothing."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeqwen.artifact import Artifact, open_artifact
from edgeqwen.catalog import NANO, locate_converted, model_name
from edgeqwen.device import cpu_features
from edgeqwen.gguf import GGML_TYPES, open_gguf, shape_of
from edgeqwen.manifest import MANIFEST
from edgeqwen.memory_need import Weights, memory_need, onnx_weights, weights_of
from edgeqwen.onnx_file import check_graph
from edgeqwen.template import is_known
from edgeqwen.types import DEFAULT_TYPE, ModelShape

CONTEXTS = (2048, 4096, 8192)


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor: its type under GGUF's name, its shape as [n_out, n_in]."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class MemoryLine:
    """Bytes that a context length needs, by what they are for."""

    context: int
    parts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found. `types` are (type, tensors, bytes), the largest first; `notes` are (label, text)."""

    kind: str  # artifact, GGUF file, checkpoint
    name: str
    path: str
    size_bytes: int
    shape: ModelShape
    template: str
    tensors: tuple[TensorLine, ...]
    memory: tuple[MemoryLine, ...]
    notes: tuple[tuple[str, str], ...] = ()

    @property
    def parameters(self) -> int:
        """Weights of a model of this shape; a tied embedding counts once."""
        from converters.architectures import ARCHITECTURES, expected_tensors  # noqa: PLC0415 - what there is

        if self.shape.architecture not in ARCHITECTURES:  # of another exporter, in 32 bits
            return sum(math.prod(tensor.shape) for tensor in self.tensors)
        return sum(math.prod(dims) for _, dims in expected_tensors(self.shape).values())

    @property
    def types(self) -> list[tuple[str, int, int]]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for tensor in self.tensors:
            groups[tensor.type].append(tensor.nbytes)
        rows = [(kind, len(sizes), sum(sizes)) for kind, sizes in groups.items()]
        return sorted(rows, key=lambda row: -row[2])

    def as_dict(self) -> dict[str, Any]:
        """The same facts as plain JSON data."""
        return {
            **asdict(self),
            "parameters": self.parameters,
            "types": [{"type": kind, "tensors": count, "bytes": size} for kind, count, size in self.types],
            "notes": dict(self.notes),
        }


def inspect(name: str, *, verify: bool = False) -> Inspection:
    """Look into a name that `load` or `convert` takes; the errors are theirs.

    Of a hub id it shows what was converted of it.
    """
    path = NANO if name == "nano" else Path(name).expanduser()
    if path.is_dir() and (path / "config.json").is_file() and not (path / MANIFEST).is_file():
        return _checkpoint(path, model_name(name))
    path = locate_converted(name)
    if path.is_dir():
        return _artifact(path, verify=verify)
    return _gguf(path)


def _artifact(path: Path, *, verify: bool) -> Inspection:
    artifact = open_artifact(path, verify="full" if verify else "quick")
    manifest = artifact.manifest
    source = artifact.file("chat_template").read_text(encoding="utf-8") if manifest.chat_template else None
    tensors, memory = _weights(artifact)
    return Inspection(
        "artifact", manifest.name, str(path), sum(payload.size for payload in manifest.files.values()),
        manifest.shape, _template(source, trusted=manifest.trusted_template), tensors, memory,
        (
            ("format", ", ".join(f"{kind} {found.type}" for kind, found in manifest.formats.items())),
            ("source", manifest.source.name),
            ("hashes", "all checked" if verify else "sizes checked; --verify checks every hash"),
        ),
    )  # fmt: skip


def _weights(artifact: Artifact) -> tuple[tuple[TensorLine, ...], tuple[MemoryLine, ...]]:
    """Tensors and memory of the format that stands first in the manifest."""
    if "gguf" in artifact.manifest.formats:
        inner = _gguf(artifact.file("gguf"))
        return inner.tensors, inner.memory
    checked = check_graph(artifact)
    tensors = tuple(TensorLine(t.name, t.type, t.dims, t.nbytes) for t in checked.tensors)
    return tensors, _memory(artifact.manifest.shape, onnx_weights(checked.tensors), "ort")


def _gguf(path: Path) -> Inspection:
    with open_gguf(path) as file:
        source = file.metadata.get("tokenizer.chat_template")
        tensors = tuple(TensorLine(t.name, t.type, t.shape, t.nbytes) for t in file.tensors.values())
        shape = shape_of(file)
        return Inspection(
            "GGUF file", str(file.metadata.get("general.name") or path.stem), str(path), file.size, shape,
            _template(source if isinstance(source, str) else None), tensors, _memory(shape, weights_of(tensors)),
        )  # fmt: skip


def _checkpoint(path: Path, name: str) -> Inspection:
    from converters.architectures import expected_tensors  # noqa: PLC0415 - only this branch needs the other half
    from converters.checkpoint import open_checkpoint  # noqa: PLC0415
    from converters.mixture import choose_types  # noqa: PLC0415

    with open_checkpoint(path, name=name) as checkpoint:
        tensors = tuple(TensorLine(t.name, t.dtype, t.shape, t.nbytes) for t in checkpoint.tensors.values())
        duplicate = checkpoint.tied_duplicate
        notes = [("tied", f"{duplicate} repeats the embedding; convert leaves it out")] if duplicate else []
        shapes = dict(expected_tensors(checkpoint.shape).values())
        types = choose_types(shapes, DEFAULT_TYPE.upper())
        planned = [
            TensorLine(n, kind, shapes[n], GGML_TYPES[kind].nbytes(math.prod(shapes[n]))) for n, kind in types.items()
        ]
        size = sum(tensor.nbytes for tensor in planned)
        notes.append((f"as {DEFAULT_TYPE}", f"{size / 1e6:.0f} MB of weights; the memory below is for it"))
        files = {t.path for t in checkpoint.tensors.values()}
        return Inspection(
            "checkpoint", checkpoint.name, str(path), sum(file.stat().st_size for file in files), checkpoint.shape,
            _template(checkpoint.chat_template), tensors, _memory(checkpoint.shape, weights_of(planned)), tuple(notes),
        )  # fmt: skip


def _template(source: str | None, *, trusted: bool = False) -> str:
    if source is None:
        return "none: a base model"
    if is_known(source):
        return "known, rendered natively"
    return "unknown, trusted when it was converted: sandboxed" if trusted else "unknown: needs --trust-template"


def _memory(shape: ModelShape, weights: Weights, engine: str = "llamacpp") -> tuple[MemoryLine, ...]:
    contexts = [context for context in CONTEXTS if context <= shape.max_position_embeddings]
    return tuple(
        MemoryLine(
            context,
            memory_need(
                shape,
                weights,
                machine=platform.machine(),
                features=cpu_features(),
                context_length=context,
                engine=engine,
            ).parts,
        )
        for context in contexts
    )
