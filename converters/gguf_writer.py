"""Lays out a GGUF file: the header's bytes and where each tensor goes, known before any weight is read.

It knows the container (ggml/src/gguf.cpp, version 3, little-endian) and nothing of models or quantizers.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from edgeqwen.gguf import DEFAULT_ALIGNMENT, GGML_TYPES, MAGIC, GgufTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_VERSION: Final = 3
_ARRAY: Final = 9
Kind = Literal["u32", "i32", "f32", "bool", "str", "i32[]", "str[]"]
_KIND_IDS: Final = {"u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "i32[]": 5, "str[]": 8}
_PACK: Final = {
    "u32": struct.Struct("<I"),
    "i32": struct.Struct("<i"),
    "f32": struct.Struct("<f"),
    "bool": struct.Struct("<?"),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One key of the header with its typed value."""

    key: str
    kind: Kind
    value: str | float | Sequence[str] | Sequence[int]  # a bool and an int are floats to the type checker


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole file but for its weights: `header` with the padding up to the first tensor, tensors in order."""

    header: bytes
    tensors: tuple[GgufTensor, ...]
    size: int


def plan_layout(fields: Iterable[Field], tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Layout:
    """Lay out a file from its keys and (name, type, shape) of its tensors, both in the order of the file."""
    placed, table, offset = [], [], 0
    for name, kind, shape in tensors:
        nbytes = GGML_TYPES[kind].nbytes(math.prod(shape))
        placed.append((name, kind, shape, offset, nbytes))
        table.append(_tensor_entry(name, kind, shape, offset))
        offset += _padded(nbytes)
    keys = [_string(field.key) + _value(field) for field in fields]
    header = b"".join([MAGIC, struct.pack("<IQQ", _VERSION, len(table), len(keys)), *keys, *table])
    header += bytes(-len(header) % DEFAULT_ALIGNMENT)
    start = len(header)
    planned = tuple(GgufTensor(name, kind, shape, start + at, nbytes) for name, kind, shape, at, nbytes in placed)
    return Layout(header, planned, start + offset)


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % DEFAULT_ALIGNMENT


def _tensor_entry(name: str, kind: str, shape: tuple[int, ...], offset: int) -> bytes:
    """Describe one tensor: name, rank, dimensions (fastest first), type, offset from the start of the data."""
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _string(name) + dimensions + struct.pack("<IQ", GGML_TYPES[kind].id, offset)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(field: Field) -> bytes:
    kind, value = field.kind, field.value
    prefix = struct.pack("<I", _KIND_IDS[kind])
    if kind == "str":
        return prefix + _string(str(value))
    if kind in _PACK:
        return prefix + _PACK[kind].pack(value)
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{field.key}: an array is a list or a tuple, not {type(value).__name__}")
    head = struct.pack("<I", _ARRAY) + prefix + struct.pack("<Q", len(value))
    return head + (_strings(value) if kind == "str[]" else np.array(value, "<i4").tobytes())


def _strings(texts: Sequence[str]) -> bytes:
    """Pack many strings (150,000 tokens) without a struct call for each."""
    raw = [text.encode() for text in texts]
    lengths = np.fromiter(map(len, raw), "<u8", len(raw)).tobytes()
    parts = [b""] * (2 * len(raw))
    parts[0::2] = [lengths[at : at + 8] for at in range(0, len(lengths), 8)]
    parts[1::2] = raw
    return b"".join(parts)
