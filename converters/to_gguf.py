"""Turns an open checkpoint into an artifact with one GGUF file in one pass: mapped rows, quantizers on threads, file.

It knows neither the checkpoint's container nor what makes a chat template known.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from converters.architectures import expected_tensors
from converters.checkpoint import find_nonfinite
from converters.describe import describe
from converters.gguf_metadata import header_fields
from converters.gguf_writer import plan_layout
from converters.mixture import FILE_TYPES, choose_types, find_file_type
from converters.quantize import RowQuantizer, load_ggml
from converters.stream import HashedFile, OrderedPool
from converters.verify import verify_file
from edgeqwen.artifact import ArtifactWriter, Format
from edgeqwen.device import physical_cores
from edgeqwen.errors import CheckpointError, EngineError, RequestError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from converters.checkpoint import Checkpoint
    from converters.gguf_writer import Layout
    from edgeqwen.artifact_writer import Draft
    from edgeqwen.gguf import GgufTensor

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, what is being written

_JOB_ELEMENTS: Final = 1 << 19  # of one job on a thread: 10 to 50 ms
_JSON_BYTES: Final = 64 << 10  # manifest and measured.json, at most


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What a conversion did. `errors`: relative RMS error of sampled rows, by tensor type."""

    path: Path
    type: str
    bytes_in: int
    bytes_out: int  # of the GGUF file
    seconds: Mapping[str, float]  # by stage: plan, weights, sync, verify, total
    tensor_types: Mapping[str, int]
    errors: Mapping[str, float]
    tied_duplicate_dropped: bool
    sha256: str


@dataclass(frozen=True, slots=True)
class _Job:
    """Some rows of one tensor; `source` is its name in the checkpoint."""

    tensor: GgufTensor
    source: str
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes // self.tensor.shape[0] * (self.stop - self.start)


def convert_to_gguf(
    checkpoint: Checkpoint,
    out: Path,
    *,
    type: str,
    threads: int | None = None,
    trust_template: bool = False,
    template_known: bool = True,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the artifact `out`, whole or not at all.

    `type` is a file type of mixture.FILE_TYPES, in any case, or int8 or int4; `threads` defaults to the physical
    cores. Raises RequestError (type, threads), TemplateError (a template that is not `template_known` nor trusted),
    CheckpointError (a weight is NaN or infinite; a file changed meanwhile), ArtifactError (the target).
    """
    clock = _Clock()
    file_type = find_file_type(type)
    workers = threads if threads is not None else physical_cores()
    if workers < 1:
        raise RequestError(f"threads is {workers}; at least 1 is needed")
    if checkpoint.chat_template is not None and not template_known and not trust_template:
        raise TemplateError(
            f"{checkpoint.name} has a chat template that edgeqwen does not know; it would run, in a sandbox, on every "
            "message: read it and pass --trust-template to accept it"
        )
    load_ggml()
    layout, sources = _plan(checkpoint, file_type)
    clock.lap("plan")
    with ArtifactWriter(Path(out), checkpoint=checkpoint.path) as writer:
        writer.reserve(layout.size + 2 * len(checkpoint.tokenizer_json) + _JSON_BYTES)
        draft = writer.create("model", "gguf")
        digest = _write_weights(checkpoint, layout, sources, draft, workers, progress)
        clock.lap("weights")
        errors = verify_file(draft.path, layout, lambda name, start, stop: checkpoint.rows(sources[name], start, stop))
        checkpoint.check_unchanged()
        clock.lap("verify")
        model = writer.seal(draft, digest)
        clock.lap("sync")
        manifest = describe(
            checkpoint, writer, {"gguf": Format(model, file_type)}, trusted=not template_known and trust_template
        )
        seconds = clock.finish()
        counts = dict(Counter(tensor.type for tensor in layout.tensors))
        measured = {
            "convert": {"seconds": seconds, "threads": workers, "relative_rms_error": errors, "tensors": counts}
        }
        writer.commit(manifest, measured)
    bytes_in = sum(path.stat().st_size for path in {tensor.path for tensor in checkpoint.tensors.values()})
    return ConvertReport(
        path=Path(out),
        type=file_type,
        bytes_in=bytes_in,
        bytes_out=layout.size,
        seconds=seconds,
        tensor_types=counts,
        errors=errors,
        tied_duplicate_dropped=checkpoint.tied_duplicate is not None,
        sha256=digest,
    )


class _Clock:
    """Seconds by stage, rounded to the millisecond."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self._laps[stage] = round(now - self._last, 3)
        self._last = now

    def finish(self) -> dict[str, float]:
        return self._laps | {"total": round(time.perf_counter() - self._began, 3)}


def _plan(checkpoint: Checkpoint, file_type: str) -> tuple[Layout, dict[str, str]]:
    """Lay the file out; the second value is GGUF name -> the checkpoint's name."""
    expected = expected_tensors(checkpoint.shape)
    if expected.keys() != checkpoint.tensors.keys():
        differ = sorted(expected.keys() ^ checkpoint.tensors.keys())
        raise CheckpointError(f"{checkpoint.path}: tensors missing or left over: {', '.join(differ[:5])}")
    shapes = dict(expected.values())
    types = choose_types(shapes, file_type)
    fields = header_fields(checkpoint, FILE_TYPES[file_type].id)
    try:
        checkpoint.name.encode()
        layout = plan_layout(fields, [(name, kind, shapes[name]) for name, kind in types.items()])
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{checkpoint.path}: a text in it, {error.object!r:.60}, is no valid Unicode") from None
    return layout, {gguf: hf for hf, (gguf, _) in expected.items()}


def _write_weights(
    checkpoint: Checkpoint,
    layout: Layout,
    sources: Mapping[str, str],
    draft: Draft,
    threads: int,
    progress: Progress | None,
) -> str:
    """Write the whole file and give its sha256."""
    target = HashedFile(draft.path, draft.file)
    jobs = list(_jobs(layout, sources))
    pool = OrderedPool(_Quantizing(checkpoint), threads, max(job.nbytes for job in jobs))

    def take(job: _Job, buffer: npt.NDArray[np.uint8]) -> None:
        target.write(buffer[: job.nbytes])
        if job.stop == job.tensor.shape[0]:
            target.write(bytes(-target.size % 32))
        if progress is not None:
            progress(target.size, layout.size, job.tensor.name)

    try:
        target.write(layout.header)
        pool.each(jobs, take)
        return target.finish()
    finally:
        target.close()


def _jobs(layout: Layout, sources: Mapping[str, str]) -> Iterator[_Job]:
    for tensor in layout.tensors:
        count = tensor.shape[0]
        width = tensor.shape[1] if len(tensor.shape) > 1 else 1
        step = max(1, _JOB_ELEMENTS // width)
        for start in range(0, count, step):
            yield _Job(tensor, sources[tensor.name], start, min(count, start + step))


class _Quantizing:
    """The work of a thread: rows of the checkpoint, checked to be finite, to blocks."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._local = threading.local()

    def __call__(self, job: _Job, buffer: npt.NDArray[np.uint8]) -> None:
        rows = self._checkpoint.rows(job.source, job.start, job.stop)
        bad = find_nonfinite(rows)
        if bad is not None:
            width = rows.size // len(rows)
            index = [job.start + bad // width, *([bad % width] if rows.ndim > 1 else [])]
            raise CheckpointError(
                f"{self._checkpoint.path}: {job.source}{index} is NaN or infinite; weights are finite: "
                "the file is damaged, or the training run diverged"
            )
        if not hasattr(self._local, "quantizer"):
            self._local.quantizer = RowQuantizer()
        matrix = rows.reshape(1, -1) if rows.ndim == 1 else rows
        try:
            self._local.quantizer.quantize(matrix, job.tensor.type, buffer[: job.nbytes])
        except EngineError as error:
            raise CheckpointError(
                f"{self._checkpoint.path}: {job.source}, rows {job.start} to {job.stop - 1}: {error}"
            ) from None
