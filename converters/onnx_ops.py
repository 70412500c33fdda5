"""The few pieces that a decoder's ONNX graph is made of; it knows no model and writes no weights.

Operators of the domain com.microsoft: docs/ContribOperators.md of ONNX Runtime. Weights are names of places in one
external data file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import NodeProto, StringStringEntryProto, TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from converters.onnx_place import Matrix, Place

OPSET: Final = 21
_MICROSOFT: Final = "com.microsoft"
# int8 products of activations rounded by blocks: 2 to 90 times as fast as float products of widened weights
ACCURACY_LEVEL: Final = 4
DTYPES: Final = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8}


class Pieces:
    """Collects nodes and initializers; every method adds one piece and gives the name of its output."""

    def __init__(self, data_file: str) -> None:
        """`data_file` is the name under which the graph finds its weights, beside itself."""
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._data_file = data_file
        self._known: set[str] = set()

    def constant(self, name: str, values: Sequence[int]) -> str:
        """Integers inside the graph."""
        if name not in self._known:
            self._known.add(name)
            self.initializers.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def stored(self, place: Place, *, dims: tuple[int, ...] | None = None) -> str:
        """An array of the data file; with other `dims` the same bytes get a second name."""
        name = place.name if dims is None or dims == place.dims else f"{place.name}.{'x'.join(map(str, dims))}"
        if name not in self._known:
            self._known.add(name)
            tensor = TensorProto(name=name, data_type=DTYPES[place.dtype], dims=dims or place.dims)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", self._data_file), ("offset", place.offset), ("length", place.nbytes)):
                tensor.external_data.append(StringStringEntryProto(key=key, value=str(value)))
            self.initializers.append(tensor)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """A node of ONNX's own operators with one output."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def microsoft(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> str:
        """A node of ONNX Runtime's own operators; gives its first output."""
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=_MICROSOFT, **attributes))
        return outputs[0]

    def linear(self, x: str, matrix: Matrix, output: str, bias: Place | None = None) -> str:
        """X [..., n_in] times the matrix transposed: [..., n_out]."""
        plus = [] if bias is None else [self.stored(bias)]
        if matrix.grid is None:
            product = output if bias is None else f"{output}.product"
            self.microsoft("FusedMatMul", [x, self.stored(matrix.weight)], [product], transB=1)
            return self.add("Add", [product, *plus], output) if plus else product
        grid = matrix.grid
        block_bytes = grid.block_size * grid.bits // 8
        dims = (matrix.n_out, grid.blocks(matrix.n_in), block_bytes)
        inputs = [x, self.stored(matrix.weight, dims=dims), *(self.stored(p) for p in (matrix.scales,) if p)]
        inputs.append(self.stored(matrix.zeros) if matrix.zeros else "")
        inputs += ["", *plus] if plus else []
        while inputs[-1] == "":
            inputs.pop()
        return self.microsoft(
            "MatMulNBits", inputs, [output],
            K=matrix.n_in, N=matrix.n_out, bits=grid.bits, block_size=grid.block_size, accuracy_level=ACCURACY_LEVEL,
        )  # fmt: skip

    def embedding(self, ids: str, table: Matrix, output: str) -> str:
        """Rows of the table by id: [..., n_in]; the table's bytes may be the head's, too."""
        if table.grid is None:
            return self.add("Gather", [self.stored(table.weight), ids], output)
        grid = table.grid
        inputs = [self.stored(table.weight), ids, *(self.stored(p) for p in (table.scales, table.zeros) if p)]
        return self.microsoft(
            "GatherBlockQuantized", inputs, [output],
            bits=grid.bits, block_size=grid.block_size, gather_axis=0, quantize_axis=1,
        )  # fmt: skip

    def norm(self, x: str, weight: Place, output: str, epsilon: float) -> str:
        """Root-mean-square norm over the last axis."""
        return self.add(
            "SimplifiedLayerNormalization", [x, self.stored(weight)], output, epsilon=epsilon, axis=-1, stash_type=1
        )

    def add_norm(self, x: str, more: str, weight: Place, output: str, epsilon: float) -> tuple[str, str]:
        """Norm of x + more, and the sum itself, for the next one."""
        total = f"{output}.sum"
        inputs = [x, more, self.stored(weight)]
        self.microsoft("SkipSimplifiedLayerNormalization", inputs, [output, "", "", total], epsilon=epsilon)
        return output, total

    def split(self, x: str, sizes: Sequence[int], outputs: Sequence[str]) -> list[str]:
        """Cut the last axis."""
        lengths = self.constant(f"sizes.{'.'.join(map(str, sizes))}", sizes)
        self.nodes.append(helper.make_node("Split", [x, lengths], outputs, name=f"{x}.split", axis=-1))
        return list(outputs)

    def reshape(self, x: str, dims: Sequence[int], output: str) -> str:
        """A view of other dimensions; 0 keeps one, -1 is what is left."""
        return self.add("Reshape", [x, self.constant(f"dims.{'.'.join(map(str, dims))}", dims)], output)
