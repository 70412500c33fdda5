"""A GGUF file -> an artifact for ONNX Runtime, without the checkpoint: Q4_0 and Q8_0 are moved as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from converters.build import workers_of
from converters.onnx_plan import find_onnx_type, plan_onnx
from converters.report import Clock, ConvertReport
from converters.to_onnx import write_onnx
from converters.weights import GgufWeights
from edgeqwen.artifact import ArtifactWriter, Format, Manifest, Source, SourceFile
from edgeqwen.file_hash import sha256_of

if TYPE_CHECKING:
    from converters.onnx_plan import Progress

_JSON_BYTES = 64 << 10  # manifest and measured.json, at most


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What the file says beside its weights, in the words of an artifact."""

    name: str
    tokenizer_json: bytes
    chat_template: str
    trusted_template: bool
    special_ids: Mapping[str, int]
    end_ids: tuple[int, ...]
    sampling: Mapping[str, float]


def convert_gguf(
    path: Path,
    out: Path,
    facts: GgufFacts,
    *,
    type: str | None = None,
    threads: int | None = None,
    compare: bool = True,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the artifact `out` with the weights of a GGUF file as an ONNX graph.

    Without a type each matrix keeps the one it is stored in: Q4_0, Q8_0, or float32 for F32, F16 and BF16; others are
    rounded again, and the report names them. Raises RequestError, ArtifactError and CheckpointError.
    """
    clock = Clock()
    workers = workers_of(threads)
    if type is not None:
        find_onnx_type(type)
    with GgufWeights(path) as weights, ArtifactWriter(Path(out), source=path) as writer:
        plan = plan_onnx(weights, type, shared_grid=True)
        clock.lap("plan")
        writer.reserve(plan.size + 2 * len(facts.tokenizer_json) + _JSON_BYTES)
        written = write_onnx(weights, plan, writer, workers, progress, facts.tokenizer_json if compare else None)
        clock.lap("weights")
        size = path.stat().st_size
        manifest = Manifest(
            name=facts.name,
            architecture=weights.shape.architecture,
            shape=weights.shape,
            formats={"onnx": Format(written.file, written.type)},
            tokenizer=writer.add("tokenizer", "json", facts.tokenizer_json),
            tokenizer_config=writer.add("tokenizer_config", "json", json.dumps({}).encode()),
            chat_template=writer.add("chat_template", "jinja", facts.chat_template.encode()),
            trusted_template=facts.trusted_template,
            end_ids=facts.end_ids,
            special_ids=facts.special_ids,
            context_length=weights.shape.max_position_embeddings,
            sampling=facts.sampling,
            source=Source(path.stem, {path.name: SourceFile(size, sha256_of(path))}),
            versions={"onnx": version("onnx")},
            files=dict(writer.files),
        )
        seconds = clock.finish()
        errors, tensors = dict(written.errors), dict(written.tensor_types)
        measured = {"seconds": seconds, "threads": workers, "relative_rms_error": errors, "tensors": tensors}
        writer.commit(manifest, {"convert": measured, **({"guard": written.guard} if written.guard else {})})
    return ConvertReport(
        path=Path(out),
        type=written.type,
        bytes_in=size,
        bytes_out=written.nbytes,
        seconds=seconds,
        tensor_types=written.tensor_types,
        errors=written.errors,
        tied_duplicate_dropped=False,
        sha256=written.sha256,
        requantized=written.requantized,
        guard=written.guard,
    )
