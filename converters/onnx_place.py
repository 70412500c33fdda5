"""Arrays in the data file of an ONNX graph: what they are and where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from converters.onnx_grid import Grid


@dataclass(frozen=True, slots=True)
class Place:
    """An array in the data file: `dims` are its shape, `offset` is where it begins."""

    name: str
    dtype: str  # float32 or uint8
    dims: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored matrix [n_out, n_in]: float32 where there is no grid."""

    n_out: int
    n_in: int
    weight: Place
    grid: Grid | None = None
    scales: Place | None = None
    zeros: Place | None = None
