"""Rounds a matrix so that its products change least, which is not when its weights do: GPTQ.

The columns are rounded one after the other, and the error of each is made up for by those that are still to come, as
far as they go together in what the matrix is multiplied by. Source: Frantar et al., 2022, arXiv:2210.17323, with the
scales chosen before ("static groups") and the columns of most power rounded first ("act order").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from converters.onnx_grid import searched
from edgeqwen.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

    from converters.onnx_grid import Bytes, Floats, Grid

# Added to the diagonal, as a share of its mean: what is seen in a few thousand tokens is not all there is. On text that
# it was not calibrated on, the products of a trained 1.5B err (in squares) 6 % less with 0.3 than with 0.05, and with
# 0.2, 0.4 and 0.5 about as little; with 1.0 they err 4 % less.
_DAMPING: Final = 0.3
_COLUMNS: Final = 32  # whose errors are spread at once over all that follow
_HALVED_MIN: Final = 64
COLUMNS_MAX: Final = 2048  # that make up for each other: time grows with the cube, and memory with the square


@dataclass(frozen=True, slots=True)
class Factor:
    """How the errors of some neighbouring columns are spread."""

    order: npt.NDArray[np.intp]  # in which they are rounded
    upper: Floats  # [n, n], in this order: the Cholesky factor of the inverse covariance, upper, in rows


class Inputs:
    """What a matrix is multiplied by, [tokens, width]: its power, and its covariance within runs of columns."""

    def __init__(self, width: int, block_size: int) -> None:
        """`block_size` of the grid, which no run cuts."""
        count = -(-width // COLUMNS_MAX)
        step = -(-width // (count * block_size)) * block_size
        self._runs = [slice(start, min(start + step, width)) for start in range(0, width, step)]
        self._sums = [np.zeros((run.stop - run.start,) * 2, np.float32) for run in self._runs]

    def add(self, tokens: Floats) -> None:
        """Count some tokens in."""
        for number, run in enumerate(self._runs):
            columns = np.ascontiguousarray(tokens[:, run])
            self._sums[number] += columns.T @ columns

    def finish(self) -> tuple[Floats, list[tuple[slice, Factor]]]:
        """The sum of squares of each column, damped, and a factor for each run; the covariances are given up.

        CheckpointError where a sum is not finite.
        """
        power: Floats = np.concatenate([np.diag(total) + _damping(total) for total in self._sums])
        if not np.isfinite(power).all():
            raise CheckpointError("the model's own values overflow on plain text: it cannot be calibrated")
        return power, [(run, _factor(self._sums.pop(0))) for run in self._runs]


def _damping(total: Floats) -> np.float32:
    """What is added to the diagonal."""
    return np.float32(_DAMPING * (float(np.diag(total).mean()) or 1.0))


def _factor(total: Floats) -> Factor:
    """U with U.T @ U = inverse(covariance): the covariance backwards is L @ L.T, and U is inverse(L) backwards.

    The diagonal is damped.
    """
    diagonal = np.diag(total) + _damping(total)
    order = np.argsort(-diagonal, kind="stable")
    covariance = total[np.ix_(order[::-1], order[::-1])].astype(np.float64)
    del total
    covariance.flat[:: len(order) + 1] = diagonal[order[::-1]]
    lower = np.linalg.cholesky(covariance)
    del covariance  # tens of megabytes
    inverse = _inverse_of_lower(lower)
    return Factor(order, np.ascontiguousarray(inverse[::-1, ::-1].astype(np.float32)))


def _inverse_of_lower(matrix: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """Of a lower triangular matrix by halves, in a sixth of what `inv` computes."""
    half = len(matrix) // 2
    if half < _HALVED_MIN:
        return np.linalg.inv(matrix)
    inverse = np.zeros_like(matrix)
    first, last = _inverse_of_lower(matrix[:half, :half]), _inverse_of_lower(matrix[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[half:, :half] = -(last @ (matrix[half:, :half] @ first))
    return inverse


def round_products(
    rows: Floats, power: Floats, factors: Sequence[tuple[slice, Factor]], grid: Grid
) -> tuple[Bytes, Floats, Bytes]:
    """Levels [n, width], scales [n, blocks] and zero points [n, blocks] of rows [n, width] on a grid with zero points.

    `power` and `factors` are those of the inputs. Rows are independent of each other.
    """
    scales, zeros = searched(rows, power, grid)
    levels = np.empty(rows.shape, np.uint8)
    for run, factor in factors:
        columns = factor.order + run.start
        blocks = columns // grid.block_size
        done = _rounded(
            np.ascontiguousarray(rows[:, columns].T),
            np.ascontiguousarray(scales[:, blocks].T),
            np.ascontiguousarray(zeros[:, blocks].T.astype(np.float32)),
            factor.upper,
            np.float32((1 << grid.bits) - 1),
        )
        levels[:, columns] = done.T
    return levels, scales, zeros


def _rounded(columns: Floats, scales: Floats, zeros: Floats, upper: Floats, top: np.float32) -> Bytes:
    """Levels of columns [width, n] in the order of `upper`, each with its scales and zero points; `columns` is lost."""
    levels = np.empty(columns.shape, np.uint8)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    for start in range(0, len(columns), _COLUMNS):
        stop = min(start + _COLUMNS, len(columns))
        errors = np.empty((stop - start, columns.shape[1]), np.float32)
        for at in range(start, stop):
            level = np.rint(columns[at] * inverse[at])
            level += zeros[at]
            np.clip(level, 0, top, out=level)
            levels[at] = level
            level -= zeros[at]
            level *= scales[at]
            error = np.divide(columns[at] - level, upper[at, at], out=errors[at - start])
            if at + 1 < stop:
                columns[at + 1 : stop] -= np.outer(upper[at, at + 1 : stop], error)
        if stop < len(columns):
            columns[stop:] -= upper[start:stop, stop:].T @ errors
    return levels
