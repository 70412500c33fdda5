"""The table of ggml's tensor types; it knows sizes and nothing of how values are packed."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A tensor type of ggml: `block_size` elements are stored in `type_size` bytes."""

    id: int
    block_size: int
    type_size: int

    def nbytes(self, elements: int) -> int:
        """Bytes of so many elements; a multiple of block_size."""
        return elements // self.block_size * self.type_size


# ggml/include/ggml.h (enum ggml_type) and the block structs of ggml/src/ggml-common.h
GGML_TYPES: Mapping[str, GgmlType] = MappingProxyType(
    {
        "F32": GgmlType(0, 1, 4),
        "F16": GgmlType(1, 1, 2),
        "Q4_0": GgmlType(2, 32, 18),
        "Q4_1": GgmlType(3, 32, 20),
        "Q5_0": GgmlType(6, 32, 22),
        "Q5_1": GgmlType(7, 32, 24),
        "Q8_0": GgmlType(8, 32, 34),
        "Q8_1": GgmlType(9, 32, 36),
        "Q2_K": GgmlType(10, 256, 84),
        "Q3_K": GgmlType(11, 256, 110),
        "Q4_K": GgmlType(12, 256, 144),
        "Q5_K": GgmlType(13, 256, 176),
        "Q6_K": GgmlType(14, 256, 210),
        "Q8_K": GgmlType(15, 256, 292),
        "IQ2_XXS": GgmlType(16, 256, 66),
        "IQ2_XS": GgmlType(17, 256, 74),
        "IQ3_XXS": GgmlType(18, 256, 98),
        "IQ1_S": GgmlType(19, 256, 50),
        "IQ4_NL": GgmlType(20, 32, 18),
        "IQ3_S": GgmlType(21, 256, 110),
        "IQ2_S": GgmlType(22, 256, 82),
        "IQ4_XS": GgmlType(23, 256, 136),
        "I8": GgmlType(24, 1, 1),
        "I16": GgmlType(25, 1, 2),
        "I32": GgmlType(26, 1, 4),
        "I64": GgmlType(27, 1, 8),
        "F64": GgmlType(28, 1, 8),
        "IQ1_M": GgmlType(29, 256, 56),
        "BF16": GgmlType(30, 1, 2),
        "TQ1_0": GgmlType(34, 256, 54),
        "TQ2_0": GgmlType(35, 256, 66),
        "MXFP4": GgmlType(39, 32, 17),
        "NVFP4": GgmlType(40, 64, 36),
        "Q1_0": GgmlType(41, 128, 18),
        "Q2_0": GgmlType(42, 64, 18),
    }
)
