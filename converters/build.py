"""An open checkpoint -> an artifact on disk, in one format or in two of the same weights; whole or not at all."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from converters.describe import describe
from converters.mixture import find_file_type
from converters.onnx_plan import CALIBRATED, find_onnx_type, plan_onnx
from converters.report import Clock, ConvertReport
from edgeqwen.artifact import ArtifactWriter, Format
from edgeqwen.device import physical_cores
from edgeqwen.errors import RequestError, TemplateError
from edgeqwen.types import DEFAULT_TYPE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from converters.checkpoint import Checkpoint
    from converters.report import Written
    from converters.to_gguf import Progress

FORMATS: Final = ("gguf", "onnx")
_JSON_BYTES: Final = 64 << 10  # manifest and measured.json, at most
_SHARED_BLOCK: Final = 32  # of every grid that both formats have
# Of one grid in two containers: the file type and the type of the tied table.
_SHARED: Final = {"int4": ("Q4_0", "Q8_0"), "int8": ("Q8_0", None), "fp32": ("F32", None)}


def resolve_type(type: str | None, formats: Sequence[str]) -> str:
    """A type's own name in lower case for these formats, None being their default; RequestError lists what there is."""
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats or len(set(formats)) != len(formats):
        raise RequestError(f"formats are {', '.join(FORMATS)}, each at most once, not {', '.join(formats) or 'none'}")
    if formats == ("gguf",):
        return find_file_type(DEFAULT_TYPE if type is None else type).lower()
    wanted = "int4" if type is None else type.lower()
    if len(formats) == 1 or wanted == "fp16":  # which is refused with its reason
        return find_onnx_type(wanted)
    wanted = next((name for name, (file_type, _) in _SHARED.items() if file_type.lower() == wanted), wanted)
    if wanted not in _SHARED:
        raise RequestError(f"{type} is no grid that GGUF and ONNX share; {', '.join(_SHARED)} are")
    return wanted


def convert_checkpoint(
    checkpoint: Checkpoint,
    out: Path,
    *,
    type: str,
    formats: Sequence[str] = ("gguf",),
    threads: int | None = None,
    trust_template: bool = False,
    template_known: bool = True,
    compare: bool = True,
    calibrate: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the artifact `out`.

    `type` is a file type of mixture.FILE_TYPES for gguf, one of onnx_plan.TYPES for onnx, and int4, int8 or fp32 for
    both. `threads` defaults to the physical cores; `compare` runs 4-bit graphs to find what must stay exact,
    `calibrate` to round them for what they are multiplied by. Raises RequestError (type, formats, threads,
    calibrate), TemplateError (a template that is not `template_known` nor trusted), CheckpointError (a weight is NaN or
    infinite; a file changed meanwhile), ArtifactError (the target).
    """
    clock = Clock()
    workers = workers_of(threads)
    kind = resolve_type(type, tuple(formats))
    if calibrate:
        check_calibrate(kind, tuple(formats))
    check_template(checkpoint, known=template_known, trusted=trust_template)
    with ArtifactWriter(Path(out), source=checkpoint.path) as writer:
        written = _write(
            checkpoint, writer, kind, tuple(formats), workers, clock, progress, compare=compare, calibrate=calibrate
        )
        checkpoint.check_unchanged()
        manifest = describe(
            checkpoint,
            writer,
            {name: Format(one.file, one.type) for name, one in written.items()},
            trusted=not template_known and trust_template,
        )
        report = _report(checkpoint, Path(out), written, clock)
        measured: dict[str, Any] = {
            "convert": {
                "seconds": report.seconds,
                "threads": workers,
                "relative_rms_error": report.errors,
                "tensors": report.tensor_types,
                "calibrated_on": report.calibrated_on,
            }
        }
        if report.guard is not None:
            measured["guard"] = report.guard
        writer.commit(manifest, measured)
    return report


def workers_of(threads: int | None) -> int:
    """How many threads convert: as many as asked for, or the fast physical cores."""
    workers = threads if threads is not None else physical_cores()
    if workers < 1:
        raise RequestError(f"threads is {workers}; at least 1 is needed")
    return workers


def check_calibrate(type: str, formats: tuple[str, ...]) -> None:
    """RequestError where there is nothing to calibrate, or nothing to run it with."""
    if formats != ("onnx",) or type not in CALIBRATED:
        raise RequestError(
            f"only ONNX graphs of the types {' and '.join(CALIBRATED)} can be calibrated, not {type} for "
            f"{' and '.join(formats)}: other weights are rounded as their format says"
        )
    if find_spec("onnxruntime") is None:
        raise RequestError("calibrating runs the graph: pip install 'edgeqwen[onnx]'")


def check_template(checkpoint: Checkpoint, *, known: bool, trusted: bool) -> None:
    """TemplateError for a chat template that nobody vouches for."""
    if checkpoint.chat_template is not None and not known and not trusted:
        raise TemplateError(
            f"{checkpoint.name} has a chat template that edgeqwen does not know; it would run, in a sandbox, on every "
            "message: read it and pass --trust-template to accept it"
        )


def _write(
    checkpoint: Checkpoint,
    writer: ArtifactWriter,
    type: str,
    formats: tuple[str, ...],
    threads: int,
    clock: Clock,
    progress: Progress | None,
    *,
    compare: bool,
    calibrate: bool,
) -> dict[str, Written]:
    """Write the formats, the second from the first, so that the source is read once and the weights are the same."""
    both = len(formats) > 1
    written: dict[str, Written] = {}
    reserved = 2 * len(checkpoint.tokenizer_json) + _JSON_BYTES
    if both:
        reserved += _shared_onnx_bytes(checkpoint, type)
    if "gguf" in formats:
        from converters.to_gguf import plan_gguf, write_gguf  # noqa: PLC0415 - needs ggml, which ONNX alone does not

        kind, table = _SHARED[type] if both else (find_file_type(type), None)
        plan = plan_gguf(checkpoint, kind, table=table)
        clock.lap("plan")
        writer.reserve(plan.layout.size + reserved)
        written["gguf"] = write_gguf(checkpoint, plan, writer, threads, progress)
        clock.lap("weights")
    if "onnx" in formats:
        from converters.onnx_calibration import spilled_bytes  # noqa: PLC0415 - needs onnx
        from converters.to_onnx import write_onnx  # noqa: PLC0415
        from converters.weights import CheckpointWeights, GgufWeights  # noqa: PLC0415

        weights = GgufWeights(writer.path_of(written["gguf"].file)) if both else CheckpointWeights(checkpoint)
        with weights:
            plan_of_onnx = plan_onnx(weights, type, shared_grid=both, calibrated=calibrate)
            clock.lap("plan")
            if calibrate:
                reserved += spilled_bytes(weights.shape.hidden_size)
            if not both:
                writer.reserve(plan_of_onnx.size + reserved)
            compare_by = checkpoint.tokenizer_json if compare else None
            calibrate_by = checkpoint.tokenizer_json if calibrate else None
            written["onnx"] = write_onnx(weights, plan_of_onnx, writer, threads, progress, compare_by, calibrate_by)
            clock.lap("weights")
    return written


def _shared_onnx_bytes(checkpoint: Checkpoint, type: str) -> int:
    """What the graph of both formats' grid will take; RequestError where ONNX or the grid does not take the model."""
    from converters.weights import CheckpointWeights  # noqa: PLC0415

    plan = plan_onnx(CheckpointWeights(checkpoint), type, shared_grid=True)
    for planned in plan.matrices.values():
        grid, width = planned.matrix.grid, planned.matrix.n_in
        if grid is not None and grid.block_size != _SHARED_BLOCK:
            raise RequestError(
                f"rows of {width} weights cannot be cut into the blocks of {_SHARED_BLOCK} that GGUF and ONNX share: "
                "convert to one of the two, or take fp32"
            )
    return plan.size


def _report(checkpoint: Checkpoint, out: Path, written: dict[str, Written], clock: Clock) -> ConvertReport:
    counts: Counter[str] = Counter()
    for one in written.values():
        counts.update(one.tensor_types)
    return ConvertReport(
        path=out,
        type=" + ".join(dict.fromkeys(one.type for one in written.values())),
        bytes_in=sum(path.stat().st_size for path in {tensor.path for tensor in checkpoint.tensors.values()}),
        bytes_out=sum(one.nbytes for one in written.values()),
        seconds=clock.finish(),
        tensor_types=dict(counts),
        errors={kind: error for one in written.values() for kind, error in one.errors.items()},
        tied_duplicate_dropped=checkpoint.tied_duplicate is not None,
        sha256=next(iter(written.values())).sha256,
        calibrated_on=next((one.calibrated_on for one in written.values() if one.calibrated_on is not None), None),
        guard=next((one.guard for one in written.values() if one.guard is not None), None),
        requantized=tuple(name for one in written.values() for name in one.requantized),
    )
