"""Writes an open checkpoint's weights as one GGUF file in one pass: mapped rows, quantizers on threads, file.

It knows neither the checkpoint's container nor what makes a chat template known.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from converters.architectures import expected_tensors
from converters.checkpoint import find_nonfinite
from converters.gguf_metadata import header_fields
from converters.gguf_writer import plan_layout
from converters.mixture import FILE_TYPES, choose_types
from converters.quantize import RowQuantizer, load_ggml
from converters.report import Written
from converters.stream import HashedFile, OrderedPool
from converters.verify import verify_file
from edgeqwen.errors import CheckpointError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import numpy.typing as npt

    from converters.checkpoint import Checkpoint
    from converters.gguf_writer import Layout
    from edgeqwen.artifact import ArtifactWriter
    from edgeqwen.artifact_writer import Draft
    from edgeqwen.gguf import GgufTensor

Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, what is being written

_JOB_ELEMENTS: Final = 1 << 19  # of one job on a thread: 10 to 50 ms


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


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """A file that is laid out and not yet written; `sources` is GGUF name -> the checkpoint's name."""

    file_type: str
    layout: Layout
    sources: Mapping[str, str]


def write_gguf(
    checkpoint: Checkpoint, plan: GgufPlan, writer: ArtifactWriter, threads: int, progress: Progress | None
) -> Written:
    """Write the planned file as a payload of `writer`, read it back and seal it.

    CheckpointError for a weight that is NaN or infinite, ArtifactError where the disk fails.
    """
    layout, sources = plan.layout, plan.sources
    draft = writer.create("model", "gguf")
    digest = _write_weights(checkpoint, layout, sources, draft, threads, progress)
    errors = verify_file(draft.path, layout, lambda name, start, stop: checkpoint.rows(sources[name], start, stop))
    return Written(
        file=writer.seal(draft, digest),
        type=plan.file_type,
        nbytes=layout.size,
        tensor_types=dict(Counter(tensor.type for tensor in layout.tensors)),
        errors=errors,
        sha256=digest,
    )


def plan_gguf(checkpoint: Checkpoint, file_type: str, *, table: str | None = None) -> GgufPlan:
    """Lay the file out; `table` is another type for the embedding than the file type's own."""
    load_ggml()
    expected = expected_tensors(checkpoint.shape)
    if expected.keys() != checkpoint.tensors.keys():
        differ = sorted(expected.keys() ^ checkpoint.tensors.keys())
        raise CheckpointError(f"{checkpoint.path}: tensors missing or left over: {', '.join(differ[:5])}")
    shapes = dict(expected.values())
    types = choose_types(shapes, file_type)
    if table is not None:
        types |= {name: table for name in types if name in ("token_embd.weight", "output.weight")}
    fields = header_fields(checkpoint, FILE_TYPES[file_type].id)
    try:
        checkpoint.name.encode()
        layout = plan_layout(fields, [(name, kind, shapes[name]) for name, kind in types.items()])
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{checkpoint.path}: a text in it, {error.object!r:.60}, is no valid Unicode") from None
    return GgufPlan(file_type, layout, {gguf: hf for hf, (gguf, _) in expected.items()})


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
