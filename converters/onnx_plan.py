"""Where each weight of a decoder goes in the data file of its ONNX graph, and on which grid; it reads no weight."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from converters.architectures import expected_tensors
from converters.onnx_grid import Grid
from converters.onnx_place import Matrix, Place
from edgeqwen.errors import RequestError
from edgeqwen.ggml_types import GGML_TYPES

if TYPE_CHECKING:
    from converters.weights import Weights

_FLOATS: Final = frozenset({"F32", "F16", "BF16"})
ALIGNMENT: Final = 64  # of every array: a cache line
_LAYER_MATRICES: Final = {
    "qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",),
    "gate_up": ("ffn_gate", "ffn_up"), "down": ("ffn_down",),
}  # fmt: skip
_LAYER_ARRAYS: Final = {
    "attn_norm": ("attn_norm.weight",), "ffn_norm": ("ffn_norm.weight",),
    "q_norm": ("attn_q_norm.weight",), "k_norm": ("attn_k_norm.weight",),
    "qkv_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OnnxType:
    """A type of graph: the grids of the layers' matrices and of the table (None: float32)."""

    body: Grid | None
    table: Grid | None

    def grid_of(self, matrix: str) -> Grid | None:
        """The grid of a matrix by its name in the data file."""
        return self.table if matrix in {"table", "head"} else self.body


TYPES: Final[Mapping[str, OnnxType]] = MappingProxyType(
    {
        "fp32": OnnxType(None, None),
        "int8": OnnxType(Grid(8, 64), Grid(8, 64)),
        # Blocks of 32 decode no faster with a table of 4 bits than these with one of 8, and differ more from FP32.
        "int4": OnnxType(Grid(4, 64, zeros=True), Grid(8, 128)),
        "int4_fast": OnnxType(Grid(4, 64, zeros=True), Grid(4, 64, zeros=True)),
        "q8_0": OnnxType(Grid(8, 32, half=True), Grid(8, 32, half=True)),
        "q4_0": OnnxType(Grid(4, 32, half=True), Grid(8, 32, half=True)),
    }
)
# Rounded for what they are multiplied by, weights in blocks of 128 lose about as little as the nearest in blocks of 64,
# and a table of 4 bits as little as one of 8. Fewer scales are fewer bytes for every token.
CALIBRATED: Final[Mapping[str, OnnxType]] = MappingProxyType(
    {
        "int4": OnnxType(Grid(4, 128, zeros=True), Grid(4, 64, zeros=True)),
        "int4_fast": OnnxType(Grid(4, 256, zeros=True), Grid(4, 128, zeros=True)),
    }
)
_HEAD_MULTIPLE: Final = 16  # GroupQueryAttention with rotation, ONNX Runtime 1.32
_FORMER: Final = {"f32": "fp32", "int4-fast": "int4_fast"}


@dataclass(frozen=True, slots=True)
class PlannedMatrix:
    """A matrix and the tensors whose rows it is made of, one below the other."""

    matrix: Matrix
    sources: tuple[str, ...]
    rows: tuple[int, ...]  # of each source
    stored_as: str | None  # the ggml type whose blocks are moved as they are, instead of rounding


@dataclass(frozen=True, slots=True)
class PlannedArray:
    """A small array: the sources one behind the other, or none for what is computed."""

    place: Place
    sources: tuple[str, ...]
    rows: tuple[int, ...]  # of each source


@dataclass(frozen=True, slots=True)
class OnnxPlan:
    """A data file that is laid out and not yet written; both mappings are in the order of the file."""

    type: str
    matrices: Mapping[str, PlannedMatrix]
    arrays: Mapping[str, PlannedArray]
    size: int
    requantized: tuple[str, ...]


def find_onnx_type(name: str) -> str:
    """The type's own name; RequestError lists what there is, and says why there is no fp16."""
    wanted = name.lower()
    wanted = _FORMER.get(wanted, wanted)
    if wanted == "fp16":
        raise RequestError(
            "fp16 graphs are for GPUs: on a CPU, ONNX Runtime widens every weight to 32 bits, which takes twice the "
            "memory of fp32 while loading and is slower than int8; take int8 or fp32"
        )
    if wanted not in TYPES:
        raise RequestError(f"no ONNX type {name!r}; there are {', '.join(TYPES)}")
    return wanted


def plan_onnx(weights: Weights, type: str | None, *, shared_grid: bool = False, calibrated: bool = False) -> OnnxPlan:
    """Lay the data file out; with `shared_grid` int4 and int8 are the grids of GGUF's Q4_0 and Q8_0.

    Without a type each matrix keeps the one it is stored in, as far as ONNX has it. With `calibrated` the grids are
    those of CALIBRATED.
    """
    shape = weights.shape
    if shape.head_dim % _HEAD_MULTIPLE:
        raise RequestError(
            f"head_dim is {shape.head_dim}: ONNX Runtime rotates heads of multiples of {_HEAD_MULTIPLE} alone; "
            "convert to gguf"
        )
    name = _stored_type(weights) if type is None else find_onnx_type(type)
    if shared_grid:
        name = {"int4": "q4_0", "int8": "q8_0"}.get(name, name)
    layout = _Layout(weights, None if type is None else CALIBRATED[name] if calibrated else TYPES[name])
    layout.matrix("table", ("token_embd",))
    for number in range(shape.num_hidden_layers):
        for matrix, parts in _LAYER_MATRICES.items():
            layout.matrix(f"layers.{number}.{matrix}", tuple(f"blk.{number}.{part}" for part in parts))
    if not shape.tie_word_embeddings:
        layout.matrix("head", ("output",))
    for number in range(shape.num_hidden_layers):
        for array, parts in _LAYER_ARRAYS.items():
            layout.array(f"layers.{number}.{array}", tuple(f"blk.{number}.{part}" for part in parts))
    layout.array("norm", ("output_norm.weight",))
    for table in ("cos", "sin"):
        layout.computed(table, (shape.max_position_embeddings, shape.head_dim // 2))
    return OnnxPlan(name, layout.matrices, layout.arrays, layout.size, tuple(layout.requantized))


class _Layout:
    """Gives out places one behind the other."""

    def __init__(self, weights: Weights, type: OnnxType | None) -> None:
        self._weights, self._type = weights, type
        self._dims = dict(expected_tensors(weights.shape).values())
        self.matrices: dict[str, PlannedMatrix] = {}
        self.arrays: dict[str, PlannedArray] = {}
        self.requantized: list[str] = []
        self.size = 0

    def place(self, name: str, dtype: str, dims: tuple[int, ...]) -> Place:
        nbytes = math.prod(dims) * np.dtype(dtype).itemsize
        place = Place(name, dtype, dims, self.size, nbytes)
        self.size += nbytes + -nbytes % ALIGNMENT
        return place

    def matrix(self, name: str, parts: tuple[str, ...]) -> None:
        sources = tuple(f"{part}.weight" for part in parts)
        rows = tuple(self._dims[source][0] for source in sources)
        n_out, n_in = sum(rows), self._dims[sources[0]][1]
        kinds = {self._weights.kind(source) for source in sources}
        grid = stored_grid(kinds) if self._type is None else self._type.grid_of(name)
        if grid is None:
            placed = Matrix(n_out, n_in, self.place(f"{name}.weight", "float32", (n_out, n_in)))
            self.matrices[name] = PlannedMatrix(placed, sources, rows, None)
            return
        grid = fitting(grid, n_in)
        weight = self.place(f"{name}.weight", "uint8", (n_out, grid.nbytes(n_in)))
        scales = self.place(f"{name}.scales", "float32", (n_out, grid.blocks(n_in)))
        zeros = self.place(f"{name}.zeros", "uint8", (n_out, grid.zero_bytes(n_in))) if grid.zeros else None
        stored = "Q4_0" if grid.bits == 4 else "Q8_0"
        same = kinds == {stored} and grid.half and grid.block_size == 32
        if not same and not kinds <= _FLOATS:
            self.requantized += sources
        self.matrices[name] = PlannedMatrix(
            Matrix(n_out, n_in, weight, grid, scales, zeros), sources, rows, stored if same else None
        )

    def array(self, name: str, sources: tuple[str, ...]) -> None:
        if all(source in self._dims for source in sources):
            rows = tuple(self._dims[source][0] for source in sources)
            self.arrays[name] = PlannedArray(self.place(name, "float32", (sum(rows),)), sources, rows)

    def computed(self, name: str, dims: tuple[int, ...]) -> None:
        self.arrays[name] = PlannedArray(self.place(name, "float32", dims), (), ())


def stored_grid(kinds: set[str]) -> Grid | None:
    """The grid that holds matrices of these ggml types: none for floats, Q4_0's for up to 5 bits, or else Q8_0's."""
    if kinds <= _FLOATS:
        return None
    bits = max(8 * GGML_TYPES[kind].type_size / GGML_TYPES[kind].block_size for kind in kinds)
    return Grid(4, 32, half=True) if bits < 5 else Grid(8, 32, half=True)


def _stored_type(weights: Weights) -> str:
    """What a graph is called whose matrices keep their types: as most of the layers' weights are stored."""
    sources = [(name, math.prod(dims)) for name, dims in expected_tensors(weights.shape).values() if len(dims) > 1]
    counts: Counter[str] = Counter()
    for source, count in sources:
        if source.startswith("blk."):
            grid = stored_grid({weights.kind(source)})
            counts["fp32" if grid is None else f"q{grid.bits}_0"] += count
    return counts.most_common(1)[0][0]


def fitting(grid: Grid, width: int) -> Grid:
    """The grid with the largest block size, its own or half of it and so on, that divides a row."""
    size = grid.block_size
    while width % size:
        size //= 2
    if size < 16:  # MatMulNBits: a power of two of at least 16
        raise RequestError(
            f"rows of {width} weights cannot be cut into blocks of 16 or more: --type fp32 keeps them whole"
        )
    return grid if size == grid.block_size else Grid(grid.bits, size, grid.zeros, grid.half)


CALIBRATING: Final = "calibrating"  # its progress counts layers, not bytes
Progress = Callable[[int, int, str], None]  # bytes written, bytes in all, what is being written
