"""A decoder of any family that optimum can export -> an artifact for ONNX Runtime, traced by torch, in 32 bits.

For families that to_onnx.py has no writer for. The graph is a plain one (past in, past and present out), without
subgraphs; its weights are moved to one aligned data file, and the strict check of edgeqwen.onnx_file has the last word.
"""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from converters.build import check_template
from converters.checkpoint import open_foreign
from converters.describe import describe
from converters.onnx_plan import ALIGNMENT
from converters.report import Clock, ConvertReport, Written
from converters.stream import HashedFile
from edgeqwen.artifact import ArtifactWriter, Format
from edgeqwen.errors import CheckpointError, EngineMissingError
from edgeqwen.onnx_file import check_onnx
from edgeqwen.onnx_runtime import silence_onnxruntime
from edgeqwen.reference_checkpoint import open_reference_checkpoint
from edgeqwen.strict_json import shown
from edgeqwen.types import ModelShape

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

    from converters.checkpoint import Checkpoint

TYPE: Final = "fp32"
_INLINE_BYTES: Final = 1024  # shapes and single numbers stay in the graph
_JSON_BYTES: Final = 64 << 10  # manifest and measured.json, at most
_MAKERS: Final = ("onnx", "optimum", "optimum-onnx", "torch", "transformers")
_FLOAT32: Final = 1  # of onnx.TensorProto.DataType
_EXTERNAL: Final = 1  # of onnx.TensorProto.DataLocation

Progress = Callable[[int, int, str], None]  # done, total, what is being done


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person who converts has decided. `is_known` tells a chat template that edgeqwen renders itself."""

    name: str
    is_known: Callable[[str], bool]
    trust_template: bool = False


def convert_with_optimum(path: Path, out: Path, wish: Wish, progress: Progress | None = None) -> ConvertReport:
    """Write the artifact `out` of the checkpoint's folder `path`.

    Raises EngineMissingError (torch, transformers or optimum is not there), CheckpointError, TemplateError and
    ArtifactError (the target; a graph that the strict check refuses).
    """
    clock = Clock()
    exporter = _import()
    shown_to = progress or (lambda *_: None)
    shown_to(0, 3, f"loading {wish.name}")
    model = open_reference_checkpoint(path)
    with (
        open_foreign(path, shape_of(model.config, path), name=wish.name) as checkpoint,
        ArtifactWriter(out, source=checkpoint.path) as writer,
        tempfile.TemporaryDirectory(prefix="edgeqwen-") as folder,
    ):
        template = checkpoint.chat_template
        known = template is None or wish.is_known(template)
        check_template(checkpoint, known=known, trusted=wish.trust_template)
        clock.lap("load")
        shown_to(1, 3, f"tracing {wish.name}")
        graph = _export(exporter, model, Path(folder), path)
        check_cache(graph, checkpoint.shape, path)
        clock.lap("export")
        shown_to(2, 3, f"writing {wish.name}")
        writer.reserve(graph.ByteSize() + 2 * len(checkpoint.tokenizer_json) + _JSON_BYTES)
        written = _write(graph, writer)
        clock.lap("weights")
        manifest = describe(checkpoint, writer, {"onnx": Format(written.file, TYPE)}, trusted=not known)
        seconds = clock.finish()
        measured = {"seconds": seconds, "tensors": dict(written.tensor_types)}
        versions = {package: version(package) for package in _MAKERS}
        writer.commit(replace(manifest, versions=versions), {"convert": measured})
    shown_to(3, 3, f"writing {wish.name}")
    return _report(checkpoint, out, written, seconds)


def shape_of(config: Any, path: Path) -> ModelShape:
    """The figures of a configuration of transformers; what a family has not, and no engine reads, is the usual one."""
    try:
        return ModelShape(
            architecture=str(config.model_type),
            hidden_size=int(config.hidden_size),
            intermediate_size=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
            num_hidden_layers=int(config.num_hidden_layers),
            num_attention_heads=int(config.num_attention_heads),
            num_key_value_heads=int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads),
            vocab_size=int(config.vocab_size),
            max_position_embeddings=int(config.max_position_embeddings),
            rms_norm_eps=float(getattr(config, "rms_norm_eps", None) or 1e-5),
            rope_theta=float(getattr(config, "rope_theta", None) or 10_000.0),
            tie_word_embeddings=bool(config.tie_word_embeddings),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is no decoder that can be exported: {shown(str(error))}") from None


def check_cache(model: ModelProto, shape: ModelShape, path: Path) -> None:
    """CheckpointError unless the graph's cache is of this shape: [batch, kv_heads, past, head_dim] in each layer."""
    dims = {
        node.name: tuple(dim.dim_value for dim in node.type.tensor_type.shape.dim)
        for node in model.graph.input
        if node.name.startswith("past_key_values.")
    }
    names = {f"past_key_values.{n}.{kind}" for n in range(shape.num_hidden_layers) for kind in ("key", "value")}
    wanted = (0, shape.num_key_value_heads, 0, shape.head_dim)  # 0: any
    if dims.keys() != names or set(dims.values()) != {wanted}:
        raise CheckpointError(
            f"{path}: the exported cache has {len(dims)} parts of {shown(sorted(set(dims.values())))}; "
            f"{len(names)} of {wanted} are expected, as in Llama and its kin"
        )


def _import() -> Callable[..., None]:
    silence_onnxruntime()
    try:
        from optimum.exporters.onnx.convert import onnx_export_from_model  # noqa: PLC0415 - imports torch
    except ImportError as error:
        raise EngineMissingError(f"optimum is not there ({error}): pip install 'edgeqwen[reference]'") from None
    exporter: Callable[..., None] = onnx_export_from_model
    return exporter


def _export(exporter: Callable[..., None], model: Any, folder: Path, path: Path) -> ModelProto:
    """The traced graph with its weights; one graph for prompts and steps, not two under an If."""
    import onnx  # noqa: PLC0415 - after torch, 0.2 s

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer tells of every branch that transformers takes
            exporter(model, folder, task="text-generation-with-past", no_post_process=True, do_validation=False)
        return onnx.load(folder / "model.onnx")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: optimum cannot export it: {shown(str(error))}") from None


def _write(model: ModelProto, writer: ArtifactWriter) -> Written:
    """Write data file and graph as payloads; the graph is checked strictly before anything is committed."""
    data, graph = writer.create("weights", "data"), writer.create("graph", "onnx")
    target = HashedFile(data.path, data.file)
    try:
        moved = _move_weights(model, target)
        digest = target.finish()
    finally:
        target.close()
    _forget_sources(model)
    graph.file.write(_named(model, moved, data.path.name))
    check_onnx(graph.path, {data.path.name: target.size})
    raw = _named(model, moved, writer.seal(data, digest))
    graph.file.seek(0)
    graph.file.truncate()
    graph.file.write(raw)
    hashed = hashlib.sha256(raw).hexdigest()
    return Written(
        file=writer.seal(graph, hashed),
        type=TYPE,
        nbytes=target.size + len(raw),
        tensor_types=dict(Counter("fp32" if tensor.data_type == _FLOAT32 else "other" for tensor in moved)),
        errors={},
        sha256=hashed,
    )


def _move_weights(model: ModelProto, target: HashedFile) -> list[TensorProto]:
    """Write all initializers but the small ones; gives those that are now in the file."""
    moved: list[TensorProto] = []
    for tensor in model.graph.initializer:
        raw = tensor.raw_data
        if len(raw) <= _INLINE_BYTES:
            continue
        if tensor.data_type == _FLOAT32 and not np.isfinite(np.frombuffer(raw, np.float32)).all():
            raise CheckpointError(f"{shown(tensor.name)} holds NaN or infinite weights")
        tensor.ClearField("raw_data")
        tensor.data_location = _EXTERNAL
        for key, value in (("location", ""), ("offset", target.size), ("length", len(raw))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)
        target.write(raw)
        target.write(bytes(-target.size % ALIGNMENT))
        moved.append(tensor)
    return moved


def _named(model: ModelProto, moved: list[TensorProto], data_file: str) -> bytes:
    """The graph with its weights in the file of this name."""
    for tensor in moved:
        tensor.external_data[0].value = data_file
    raw: bytes = model.SerializeToString(deterministic=True)
    return raw


def _forget_sources(model: ModelProto) -> None:
    """Remove what tells of the machine that traced: source lines and scopes."""
    for part in (model.graph, *model.graph.node):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


def _report(checkpoint: Checkpoint, out: Path, written: Written, seconds: dict[str, float]) -> ConvertReport:
    return ConvertReport(
        path=out,
        type=written.type,
        bytes_in=sum(path.stat().st_size for path in {tensor.path for tensor in checkpoint.tensors.values()}),
        bytes_out=written.nbytes,
        seconds=seconds,
        tensor_types=written.tensor_types,
        errors=written.errors,
        tied_duplicate_dropped=False,
        sha256=written.sha256,
    )
