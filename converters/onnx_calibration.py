"""Runs a 4-bit graph over some text while it is made, and rounds each layer's weights anew for what they multiply.

Layer by layer: what its products are multiplied by is computed with the layers before it as they are rounded by then.
Needs onnxruntime. What runs on another processor may round a few weights otherwise.
"""

from __future__ import annotations

import ctypes
import hashlib
import lzma
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from converters.onnx_gptq import Inputs, round_products
from converters.onnx_grid import packed, row_steps, unround
from converters.onnx_parts import Parts, Values
from converters.onnx_plan import CALIBRATING
from converters.onnx_spill import Spill
from edgeqwen.errors import ArtifactError

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx
    from tokenizers import Tokenizer

    from converters.onnx_gptq import Factor
    from converters.onnx_grid import Floats, Grid
    from converters.onnx_place import Place
    from converters.onnx_plan import OnnxPlan, PlannedMatrix, Progress
    from converters.weights import Weights

_TEXT: Final = "calibration.txt.xz"  # pages of prose, chats, tools and code in 20 languages, apart by form feeds
_PAGE_TOKENS: Final = 256
_BATCH_TOKENS: Final = 512  # that are run at a time
_ROWS_ELEMENTS: Final = 1 << 21  # of a source that are rounded at a time: fifty megabytes
# The first token of a text takes the attention that no other wants, with inputs a thousand times those of all others:
# counted in as it is, it would be all that is rounded for, and left out, it would be lost.
_LARGEST: Final = 10.0  # of a token's norm, in medians
# mallopt's M_MMAP_THRESHOLD, what calibrating sets it to, and how far glibc raises it on its own. Source: mallopt(3).
_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 2 << 20
_MMAP_THRESHOLD_MAX: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What was done: tokens that were run, and the errors that are left."""

    tokens: int
    errors: dict[str, float]  # relative RMS error of sampled rows, by grid


def calibration_pages(tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """The text's pages in the model's own tokens, of at most _PAGE_TOKENS and what the model was made for."""
    return [tokenizer.encode(page).ids[: min(_PAGE_TOKENS, longest)] for page in _pages()]


def spilled_bytes(hidden_size: int) -> int:
    """What calibrating takes on the disk for a while, at most: a layer's input, and the sum it is the norm of."""
    return 2 * len(_pages()) * _PAGE_TOKENS * hidden_size * 4


def _pages() -> list[str]:
    return lzma.decompress((files("converters") / _TEXT).read_bytes()).decode("utf-8").split("\f")


def calibrate(
    model: onnx.ModelProto,
    data: Path,
    plan: OnnxPlan,
    weights: Weights,
    pages: Sequence[Sequence[int]],
    progress: Progress | None,
) -> Calibrated:
    """Round the layers' matrices of 4 bits with zero points anew, in the graph's data file."""
    parts = Parts(model, data.parent, weights.shape)
    rounding = _Rounding(weights, np.memmap(data, np.uint8, "r+"))
    step = max(1, _BATCH_TOKENS // _PAGE_TOKENS)
    began = [parts.begin(pages[start : start + step]) for start in range(0, len(pages), step)]
    quiet = np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused
    with quiet, _giving_back() as give_back, TemporaryFile(dir=data.parent) as file:
        batches = Spill(file, began)
        for number in range(len(parts)):
            give_back()
            if progress is not None:
                progress(number, len(parts), CALIBRATING)
            _round_part(parts, number, batches, plan, rounding)
            for at, (values, _) in enumerate(parts.each(number, batches, {})):
                batches[at] = values
        give_back()
        _round_head(plan, batches, rounding)
    rounding.check(data)
    return Calibrated(sum(len(page) for page in pages), rounding.errors())


@dataclass(frozen=True, slots=True)
class _Target:
    """A matrix on a grid of our choice: of 4 bits, with a zero point for each block."""

    planned: PlannedMatrix
    grid: Grid
    scales: Place
    zeros: Place


def _target(planned: PlannedMatrix) -> _Target | None:
    matrix = planned.matrix
    if matrix.grid is None or matrix.grid.bits != 4 or matrix.scales is None or matrix.zeros is None:
        return None
    return _Target(planned, matrix.grid, matrix.scales, matrix.zeros)


def _round_part(parts: Parts, number: int, batches: Iterable[Values], plan: OnnxPlan, rounding: _Rounding) -> None:
    products = parts.products(number).items()
    named = {source: _target(plan.matrices[name.removesuffix(".out")]) for name, source in products}
    targets = {source: target for source, target in named.items() if target is not None}
    if not targets:
        return
    inputs = {source: Inputs(target.planned.matrix.n_in, target.grid.block_size) for source, target in targets.items()}
    for values, seen in parts.each(number, batches, {}, tuple(targets)):
        for source in targets:
            inputs[source].add(_tamed(seen.pop(source), values["logit_rows"]))
    for source, target in targets.items():
        rounding.round(target, inputs.pop(source))


def _round_head(plan: OnnxPlan, batches: Iterable[Values], rounding: _Rounding) -> None:
    """The rows that give the logits, for what the last norm gives; as the embedding, too, they are what is read."""
    target = _target(plan.matrices.get("head") or plan.matrices["table"])
    if target is None:
        return
    inputs = Inputs(target.planned.matrix.n_in, target.grid.block_size)
    for batch in batches:
        inputs.add(_tamed(batch["norm.out"], batch["logit_rows"]))
    rounding.round(target, inputs)


def _tamed(tokens: Floats, rows: Sequence[int]) -> Floats:
    """The tokens [n, width] of [prompts, longest, width] that are no padding, none of a norm far above the others'."""
    tokens = tokens.reshape(-1, tokens.shape[-1])[rows]  # a copy
    norms = np.linalg.norm(tokens, axis=1, keepdims=True)
    tokens *= np.minimum(1, _LARGEST * np.median(norms) / np.maximum(norms, 1e-30))
    return tokens


@contextmanager
def _giving_back() -> Iterator[Callable[[], object]]:
    """Let glibc give large arrays back to the system where they are freed; what is given gives back the rest.

    By itself it keeps a hundred megabytes and more of them.
    """
    mallopt, trim = (_of_glibc(name) for name in ("mallopt", "malloc_trim"))
    mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield lambda: trim(0)
    finally:
        mallopt(_MMAP_THRESHOLD, _MMAP_THRESHOLD_MAX)
        trim(0)


def _of_glibc(name: str) -> Callable[..., object]:
    """A function of the C library, or one that does nothing where it is another library."""
    found = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    return found or (lambda *_: None)


class _Rounding:
    """Rows of the source to the data file; the first of each run is compared. Threads are BLAS's own."""

    def __init__(self, weights: Weights, data: np.memmap[tuple[int, ...], np.dtype[np.uint8]]) -> None:
        self._weights, self._data = weights, data
        self._written: list[tuple[int, int, bytes]] = []  # offset, length and sha256 of each piece
        self._sums: dict[str, list[tuple[float, float]]] = {}

    def round(self, target: _Target, inputs: Inputs) -> None:
        """Round a matrix for these inputs, which are given up."""
        power, factors = inputs.finish()
        sums = [self._rows_of(target, power, factors, *rows) for rows in _runs(target.planned)]
        self._sums.setdefault(target.grid.name, []).extend(sums)

    def errors(self) -> dict[str, float]:
        """Relative RMS error of the compared rows by grid."""
        totals = {name: np.sum(sums, axis=0) for name, sums in self._sums.items()}
        return {name: math.sqrt(error / power) if power else 0.0 for name, (error, power) in totals.items()}

    def _rows_of(
        self,
        target: _Target,
        power: Floats,
        factors: Sequence[tuple[slice, Factor]],
        source: str,
        start: int,
        stop: int,
        row: int,
    ) -> tuple[float, float]:
        rows = self._weights.rows(source, start, stop)
        levels, scales, zeros = round_products(rows, power, factors, target.grid)
        stored, points = packed(levels, target.grid.bits), packed(zeros, target.grid.bits)
        for place, values in ((target.planned.matrix.weight, stored), (target.scales, scales), (target.zeros, points)):
            self._put(place, row, values)
        difference = (unround(stored[:1], scales[:1], points[:1], target.grid) - rows[:1]).reshape(-1)
        return float(difference @ difference), float(rows[0] @ rows[0])

    def _put(self, place: Place, row: int, values: npt.NDArray[Any]) -> None:
        """Write some rows of an array of the data file."""
        row_bytes = place.nbytes // place.dims[0]
        piece = np.ascontiguousarray(values, place.dtype).reshape(-1).view(np.uint8)
        offset = place.offset + row * row_bytes
        self._data[offset : offset + piece.size] = piece
        self._written.append((offset, piece.size, hashlib.sha256(piece.data).digest()))

    def check(self, path: Path) -> None:
        """Read all of it back; ArtifactError where the file gives other bytes."""
        self._data.flush()
        with path.open("rb") as file:
            for offset, length, digest in self._written:
                file.seek(offset)
                if hashlib.sha256(file.read(length)).digest() != digest:
                    raise ArtifactError(f"{path}: the disk gave back other bytes than were written at {offset}")


def _runs(planned: PlannedMatrix) -> Iterator[tuple[str, int, int, int]]:
    """Source, first and last row of it, and where they go."""
    row = 0
    for source, count in zip(planned.sources, planned.rows, strict=True):
        for start, stop in row_steps(count, planned.matrix.n_in, _ROWS_ELEMENTS):
            yield source, start, stop, row + start
        row += count
