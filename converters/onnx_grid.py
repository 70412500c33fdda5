"""Rounds rows of weights to the grids of ONNX Runtime's MatMulNBits; it knows no graph, no file and no model.

A grid is x = scale * (q - zero) over blocks of a row. Source of the packing: ContribOperators.md of ONNX Runtime 1.31,
MatMulNBits: [rows, blocks, block_size * bits / 8] bytes, the even element in the low nibble; zero points, where there
are any, packed alike along a row; without them zero is 8 or 128.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeqwen.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

_STEP_ELEMENTS: Final = 1 << 15  # rounded at a time: all scratch stays in the second-level cache
# What either end of a range is cut to in the search for the smallest squared error. On trained weights in blocks of 64
# these two remove 4.0 % of the plain range's error for three times its time; four or five remove 4.2 % for ten times.
_CUTS: Final = (np.float32(1.0), np.float32(0.92))
_CUTS_WEIGHTED: Final = (*_CUTS, np.float32(0.84))  # where columns count differently: blocks of 256 want the third

_LARGEST: Final = 1e15  # of a weight: sums of squares stay finite
_LARGEST_HALF: Final = 65504.0  # of a scale in 16 bits


@dataclass(frozen=True, slots=True)
class Grid:
    """How one matrix is stored. `half` rounds scales to 16 bits, as GGUF's Q4_0 and Q8_0 have them."""

    bits: int  # 4 or 8
    block_size: int
    zeros: bool = False  # a zero point for each block, searched with its scale for the least squared error
    half: bool = False

    @property
    def name(self) -> str:
        """How a report names it: int4/64 has blocks of 64, int4/64z a zero point for each."""
        return f"int{self.bits}/{self.block_size}{'z' * self.zeros}"

    def nbytes(self, width: int) -> int:
        """Bytes of a row's weights."""
        return width * self.bits // 8

    def blocks(self, width: int) -> int:
        """Blocks of a row."""
        return width // self.block_size

    def zero_bytes(self, width: int) -> int:
        """Bytes of a row's zero points."""
        return (self.blocks(width) * self.bits + 7) // 8 if self.zeros else 0


def round_rows(rows: Floats, grid: Grid, weights: Bytes, scales: Floats, zeros: Bytes | None) -> None:
    """Write [n, width] rows as weights [n, width * bits / 8], scales [n, blocks] and zero points [n, zero_bytes].

    CheckpointError where a weight is too large for the grid.
    """
    count, width = rows.shape
    blocks = grid.blocks(width)
    step = max(1, _STEP_ELEMENTS // width)
    for first in range(0, count, step):
        part = rows[first : first + step]
        stop = first + len(part)
        columns = np.ascontiguousarray(part.reshape(-1, grid.block_size).T)  # [block_size, n * blocks]
        levels, scale, zero = _rounded(columns, grid)
        weights[first:stop] = packed(np.ascontiguousarray(levels.T).reshape(len(part), -1), grid.bits)
        scales[first:stop] = scale.reshape(len(part), blocks)
        if zeros is not None and zero is not None:
            zeros[first:stop] = packed(zero.reshape(len(part), blocks), grid.bits)


def _rounded(columns: Floats, grid: Grid) -> tuple[Bytes, Floats, Bytes | None]:
    """Levels [block_size, m], scales [m] and zero points [m] of blocks that stand in columns."""
    if grid.zeros:
        return _with_zeros(columns, grid)
    most = _signed_largest(columns)
    top = np.float32(1 << (grid.bits - 1))
    # 4 bits: the largest value becomes -8, as in Q4_0; 8 bits: it becomes 127 or -127, as in Q8_0
    span = -top if grid.bits == 4 else np.copysign(top - 1, most)
    scale = most / span
    if not np.abs(scale).max(initial=0) <= (_LARGEST_HALF if grid.half else _LARGEST):
        raise _too_large(grid)
    stored = scale.astype(np.float16).astype(np.float32) if grid.half else scale
    scaled = columns * _inverse(scale)
    if grid.half and grid.bits == 4:  # Q4_0 rounds halves up, by adding and cutting off
        levels = np.minimum((scaled + np.float32(8.5)).astype(np.int8), 15).astype(np.uint8)
    elif grid.half:  # Q8_0 rounds halves away from zero
        away = np.copysign(np.float32(0.49999997), scaled)
        levels = ((scaled + away).astype(np.int32) + 128).astype(np.uint8)
    else:
        levels = (np.clip(np.rint(scaled), -top, top - 1) + top).astype(np.uint8)
    return levels, stored, None


def searched(rows: Floats, power: Floats, grid: Grid) -> tuple[Floats, Bytes]:
    """Scales and zero points [n, blocks] of rows [n, width], for the least squares where column i counts power[i]."""
    count, width = rows.shape
    blocks = grid.blocks(width)
    scales, zeros = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.uint8)
    weights = np.ascontiguousarray(power.reshape(blocks, 1, grid.block_size).T)  # [block_size, 1, blocks]
    step = max(1, _STEP_ELEMENTS // width)
    for first in range(0, count, step):
        part = rows[first : first + step].reshape(-1, blocks, grid.block_size)
        columns = np.ascontiguousarray(part.transpose(2, 0, 1))
        _, scales[first : first + step], zeros[first : first + step] = _with_zeros(columns, grid, weights)
    return scales, zeros


def _keep_better(
    columns: Floats, levels: Floats, best: Floats, gain: Floats, weights: Floats | None
) -> npt.NDArray[np.bool_]:
    """Least squares: with scale = <x, q> / <q, q>, the error is <x, x> less <x, q> ** 2 / <q, q>."""
    weighted = levels if weights is None else levels * weights
    along = np.add.reduce(columns * weighted, axis=0)
    power = np.add.reduce(levels * weighted, axis=0)
    fitted = np.divide(along, power, out=np.zeros_like(along), where=power > 0)
    better: npt.NDArray[np.bool_] = fitted * along > gain
    np.copyto(gain, fitted * along, where=better)
    np.copyto(best, fitted, where=better)
    return better


def _with_zeros(columns: Floats, grid: Grid, weights: Floats | None = None) -> tuple[Bytes, Floats, Bytes]:
    """Blocks with a zero point each: the range from the smallest to the largest value, or what is left after cuts."""
    top = np.float32((1 << grid.bits) - 1)
    low, high = np.minimum(columns.min(axis=0), 0), np.maximum(columns.max(axis=0), 0)
    if not max(high.max(initial=0), -low.min(initial=0)) <= _LARGEST:
        raise _too_large(grid)
    best, zero, gain = np.zeros_like(low), np.zeros_like(low), np.full_like(low, -1)
    for cut_low, cut_high in itertools.product(_CUTS if weights is None else _CUTS_WEIGHTED, repeat=2):
        inverse = _inverse((high * cut_high - low * cut_low) / top)
        middle = np.clip(np.rint(-low * cut_low * inverse), 0, top)
        levels = np.clip(np.rint(columns * inverse) + middle, 0, top) - middle
        np.copyto(zero, middle, where=_keep_better(columns, levels, best, gain, weights))
    if not (np.isfinite(gain) & (gain >= 0)).all():  # the weights are finite: what they are multiplied by is not
        raise _too_large(grid)
    levels = np.clip(np.rint(columns * _inverse(best)) + zero, 0, top)
    return levels.astype(np.uint8), best, zero.astype(np.uint8)


def _too_large(grid: Grid) -> CheckpointError:
    return CheckpointError(
        f"a weight, or what it is multiplied by, is too large for {grid.name}: take fp32, and see whether the original "
        "answers at all"
    )


def _inverse(scale: Floats) -> Floats:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _signed_largest(columns: Floats) -> Floats:
    """The value of largest magnitude of each column, the first of equals."""
    high, low = columns.max(axis=0), columns.min(axis=0)
    most: Floats = np.where(high > -low, high, low)
    tied = np.flatnonzero(high == -low)
    if len(tied):
        part = columns[:, tied]
        most[tied] = part[np.abs(part).argmax(axis=0), np.arange(len(tied))]
    return most


def _nibbles(levels: Bytes) -> Bytes:
    """Two levels a byte, along the last axis."""
    packed: Bytes = levels[..., 0::2] | (levels[..., 1::2] << np.uint8(4))
    return packed


def packed(levels: Bytes, bits: int) -> Bytes:
    """Rows of levels or zero points [n, count] as they are stored: bytes, or two to a byte with the last one padded."""
    if bits == 8:
        return levels
    return _nibbles(np.pad(levels, ((0, 0), (0, 1))) if levels.shape[1] % 2 else levels)


def repack_q4_0(blocks: Bytes, weights: Bytes, scales: Floats) -> None:
    """Move [n, row bytes] of GGUF's Q4_0 (scale; low nibbles are elements 0-15, high 16-31) to a 4-bit grid of 32."""
    record = blocks.reshape(len(blocks), -1, 18)
    scales[:] = record[..., :2].copy().view(np.float16)[..., 0]
    levels = np.concatenate([record[..., 2:] & 15, record[..., 2:] >> 4], axis=-1)
    weights[:] = _nibbles(levels).reshape(len(blocks), -1)


def repack_q8_0(blocks: Bytes, weights: Bytes, scales: Floats) -> None:
    """Move [n, row bytes] of GGUF's Q8_0 (scale, signed bytes) to an 8-bit grid of 32 around 128."""
    record = blocks.reshape(len(blocks), -1, 34)
    scales[:] = record[..., :2].copy().view(np.float16)[..., 0]
    weights[:] = (record[..., 2:] ^ 0x80).reshape(len(blocks), -1)


def unround(weights: Bytes, scales: Floats, zeros: Bytes | None, grid: Grid) -> Floats:
    """Give stored rows back as float32 [n, width]: what the engine multiplies by."""
    rows, blocks = scales.shape
    levels = weights if grid.bits == 8 else np.stack([weights & 15, weights >> 4], axis=-1).reshape(rows, -1)
    middle: Any = np.float32(1 << (grid.bits - 1))
    if zeros is not None:
        points = zeros if grid.bits == 8 else np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(rows, -1)
        middle = points[:, :blocks, None].astype(np.float32)
    values = levels.reshape(rows, blocks, -1).astype(np.float32) - middle
    widened: Floats = (values * scales[..., None]).reshape(rows, -1)
    return widened


def row_steps(count: int, width: int, elements: int) -> Iterator[tuple[int, int]]:
    """Cut `count` rows into runs of about so many elements."""
    step = max(1, elements // width)
    for start in range(0, count, step):
        yield start, min(count, start + step)
