"""Writes a model's weights as one data file in one pass and the graph over it: rows, grids on threads, file.

Needs numpy and onnx, no torch, no tracing, and no ggml unless the weights come from a GGUF file's quantized types.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import numpy as np
from tokenizers import Tokenizer

from converters.onnx_calibration import calibrate, calibration_pages
from converters.onnx_graph import Placed, decoder
from converters.onnx_grid import repack_q4_0, repack_q8_0, round_rows, row_steps, unround
from converters.onnx_guard import TEXTS, Guard, guard
from converters.onnx_parts import lift
from converters.onnx_plan import ALIGNMENT, OnnxPlan, PlannedMatrix, Progress, plan_onnx
from converters.report import Written
from converters.rope import rotation
from converters.stream import HashedFile, OrderedPool
from edgeqwen.errors import CheckpointError
from edgeqwen.file_hash import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from converters.weights import Weights
    from edgeqwen.artifact import ArtifactWriter
    from edgeqwen.types import ModelShape

__all__ = ["plan_onnx", "write_onnx"]

_JOB_ELEMENTS: Final = 1 << 19  # of one job on a thread: about 10 ms
_REPACK: Final = {"Q4_0": repack_q4_0, "Q8_0": repack_q8_0}


@dataclass(frozen=True, slots=True)
class _Sides:
    """Scales and zero points of a matrix, kept until its weights are written."""

    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows `start` to `stop` of a source that go to `row` and on of a matrix."""

    name: str
    planned: PlannedMatrix
    sides: _Sides | None
    source: str
    start: int
    stop: int
    row: int

    @property
    def last(self) -> bool:
        """Whether the matrix is complete after it."""
        return self.row + self.stop - self.start == self.planned.matrix.n_out

    @property
    def nbytes(self) -> int:
        weight = self.planned.matrix.weight
        return weight.nbytes // weight.dims[0] * (self.stop - self.start)


def write_onnx(
    weights: Weights,
    plan: OnnxPlan,
    writer: ArtifactWriter,
    threads: int,
    progress: Progress | None,
    compare_by: bytes | None,
    calibrate_by: bytes | None = None,
) -> Written:
    """Write data file and graph as payloads of `writer`; the graph names the data file.

    With a tokenizer's JSON to `calibrate_by`, the weights of 4-bit grids are rounded for what they are multiplied by
    (converters/onnx_calibration.py); with one to `compare_by`, and where onnxruntime is installed, 4-bit graphs are
    compared with exact activations (converters/onnx_guard.py). Both run texts in the model's own tokens.
    """
    placed = Placed(
        {name: planned.matrix for name, planned in plan.matrices.items()},
        {name: planned.place for name, planned in plan.arrays.items()},
    )
    draft = writer.create("weights", "data")
    target = HashedFile(draft.path, draft.file)
    rounding, calibrated = _Rounding(weights), None
    try:
        _write_matrices(target, plan, rounding, threads, progress)
        _write_arrays(target, plan, weights)
        digest = target.finish()
    finally:
        target.close()
    errors = rounding.errors()
    if calibrate_by is not None:
        pages = calibration_pages(_encoder(calibrate_by), weights.shape.max_position_embeddings)
        model = decoder(weights.shape, placed, draft.path.name)
        calibrated = calibrate(model, draft.path, plan, weights, pages, progress)
        errors, digest = errors | calibrated.errors, sha256_of(draft.path)
    data_file = writer.seal(draft, digest)
    model = decoder(weights.shape, placed, data_file)
    compared = None
    if compare_by is not None:
        compared = _guarded(weights.shape, placed, writer.path_of(data_file), compare_by)
    if compared is not None:
        model = lift(model, dict.fromkeys(compared.lifted, 0))
    graph = model.SerializeToString(deterministic=True)
    return Written(
        file=writer.add("graph", "onnx", graph),
        type=plan.type,
        nbytes=plan.size + len(graph),
        tensor_types=dict(Counter(_type_name(planned) for planned in plan.matrices.values())),
        errors=errors,
        sha256=hashlib.sha256(graph).hexdigest(),
        requantized=plan.requantized,
        guard=compared.as_dict() if compared is not None else None,
        calibrated_on=calibrated.tokens if calibrated is not None else None,
    )


def _encoder(tokenizer_json: bytes) -> Tokenizer:
    """The tokenizer without what its file may say of cutting and filling up, as the engines use it."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _guarded(shape: ModelShape, placed: Placed, data: Path, tokenizer_json: bytes) -> Guard | None:
    """Compare a graph that finds its weights in the file as it is called before the commit."""
    four_bits = any(matrix.grid is not None and matrix.grid.bits == 4 for matrix in placed.matrices.values())
    if not four_bits or find_spec("onnxruntime") is None:
        return None
    encode, most = _encoder(tokenizer_json).encode, shape.max_position_embeddings
    return guard(decoder(shape, placed, data.name), data.parent, shape, [encode(text).ids[:most] for text in TEXTS])


def _type_name(planned: PlannedMatrix) -> str:
    return "fp32" if planned.matrix.grid is None else planned.matrix.grid.name


def _write_matrices(
    target: HashedFile, plan: OnnxPlan, rounding: _Rounding, threads: int, progress: Progress | None
) -> None:
    buffer_bytes = max(_job_bytes(planned) for planned in plan.matrices.values())
    pool: OrderedPool[_Job] = OrderedPool(rounding, threads, buffer_bytes)

    def take(job: _Job, buffer: npt.NDArray[np.uint8]) -> None:
        target.write(buffer[: job.nbytes])
        if job.last:
            _pad(target)
            for side in (job.sides.scales, job.sides.zeros) if job.sides else ():
                if side is not None:
                    target.write(side.reshape(-1).view(np.uint8))
                    _pad(target)
        if progress is not None:
            progress(target.size, plan.size, job.name)

    pool.each(_jobs(plan), take)


def _job_bytes(planned: PlannedMatrix) -> int:
    """The most bytes that a job of this matrix fills."""
    matrix = planned.matrix
    return matrix.weight.nbytes // matrix.n_out * max(1, _JOB_ELEMENTS // matrix.n_in)


def _pad(target: HashedFile) -> None:
    target.write(bytes(-target.size % ALIGNMENT))


def _jobs(plan: OnnxPlan) -> Iterator[_Job]:
    """Cut the matrices into jobs in the order of the file; a matrix's sides are made with its first one."""
    for name, planned in plan.matrices.items():
        matrix, sides, row = planned.matrix, None, 0
        if matrix.scales is not None:
            zeros = np.zeros(matrix.zeros.dims, np.uint8) if matrix.zeros else None
            sides = _Sides(np.empty(matrix.scales.dims, np.float32), zeros)
        for source, count in zip(planned.sources, planned.rows, strict=True):
            for start, stop in row_steps(count, matrix.n_in, _JOB_ELEMENTS):
                yield _Job(name, planned, sides, source, start, stop, row + start)
            row += count


@dataclass
class _Rounding:
    """The work of a thread: rows to a grid; the first row of each job is compared with its source."""

    weights: Weights
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, job: _Job, buffer: npt.NDArray[np.uint8]) -> None:
        matrix, count = job.planned.matrix, job.stop - job.start
        out = buffer[: job.nbytes].reshape(count, -1)
        if job.sides is None or matrix.grid is None:
            out[:] = self.weights.rows(job.source, job.start, job.stop).view(np.uint8).reshape(count, -1)
            return
        scales = job.sides.scales[job.row : job.row + count]
        zeros = None if job.sides.zeros is None else job.sides.zeros[job.row : job.row + count]
        if job.planned.stored_as is not None:
            _REPACK[job.planned.stored_as](self.weights.blocks(job.source, job.start, job.stop), out, scales)
            if not np.isfinite(scales).all():
                raise CheckpointError(f"{job.source}: a block's scale is NaN or infinite: the file is damaged")
            return
        rows = self.weights.rows(job.source, job.start, job.stop)
        round_rows(rows, matrix.grid, out, scales, zeros)
        stored = unround(out[:1], scales[:1], None if zeros is None else zeros[:1], matrix.grid)
        difference, wanted = (stored - rows[:1]).reshape(-1), rows[0]
        name = _type_name(job.planned)
        with self.lock:
            error, power = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (error + float(difference @ difference), power + float(wanted @ wanted))

    def errors(self) -> dict[str, float]:
        """Relative RMS error of the compared rows by grid."""
        return {name: math.sqrt(error / power) if power else 0.0 for name, (error, power) in sorted(self.sums.items())}


def _write_arrays(target: HashedFile, plan: OnnxPlan, weights: Weights) -> None:
    """Norms and biases, then the rotation."""
    computed: Mapping[str, npt.NDArray[np.float32]] = dict(zip(("cos", "sin"), rotation(weights.shape), strict=True))
    for name, planned in plan.arrays.items():
        rows = [weights.rows(source, 0, count) for source, count in zip(planned.sources, planned.rows, strict=True)]
        values = np.concatenate(rows) if rows else computed[name]
        target.write(values.reshape(-1).view(np.uint8))
        _pad(target)
