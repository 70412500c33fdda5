"""Read the headers of safetensors files strictly; it knows the container, not which tensors a model has.

Format: 8 bytes little-endian length N, N bytes of JSON, then the data. `data_offsets` count from the end of the header.
Source: https://github.com/huggingface/safetensors#format. Stricter than it: three types, no empty tensor, smaller caps.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from converters.source_file import read_file
from edgeqwen.errors import CheckpointError
from edgeqwen.strict_json import parse_object, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from converters.source_file import SourceFile

Dtype = Literal["BF16", "F16", "F32"]

# What numpy sees; it has no BF16, so those are the bits.
NUMPY_DTYPE: Final[dict[Dtype, np.dtype[Any]]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"

MAX_HEADER_BYTES = 4 << 20  # 310 tensors take 40 kB
MAX_INDEX_BYTES = 4 << 20
MAX_TENSORS = 5_000
MAX_SHARDS = 256
MAX_DIMENSIONS = 4
MAX_NAME_CHARS = 200
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `nbytes` from `offset`, counted from the start of the file `path`, row by row."""

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int


def shard_names(folder: Path) -> tuple[list[str], Mapping[str, str]]:
    """Return the files that hold the weights, sorted, and the index's tensor -> file (empty for a single file)."""
    found = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".safetensors"))
    if not (folder / INDEX).exists():
        if SINGLE in found:
            return [SINGLE], {}
        raise CheckpointError(
            f"{folder}: neither {SINGLE} nor {INDEX}; found {shown(found) if found else 'no *.safetensors'}"
        )
    weight_map = _weight_map(folder)
    files = sorted(set(weight_map.values()))
    if len(files) > MAX_SHARDS:
        raise CheckpointError(f"{folder / INDEX}: names {len(files)} files; the limit is {MAX_SHARDS}")
    strays = [name for name in found if name not in files and (name == SINGLE or _SHARD.fullmatch(name))]
    if strays:
        raise CheckpointError(f"{folder}: {shown(strays)} not named by {INDEX}: two sets of weights? Remove one")
    return files, weight_map


def _weight_map(folder: Path) -> dict[str, str]:
    where = str(folder / INDEX)
    weight_map = parse_object(read_file(folder, INDEX, MAX_INDEX_BYTES), where, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{where}: weight_map is {shown(weight_map)}, not an object of tensor -> file")
    if len(weight_map) > MAX_TENSORS:
        raise CheckpointError(f"{where}: {len(weight_map):,} tensors; the limit is {MAX_TENSORS:,}")
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
            raise CheckpointError(
                f"{where}: {shown(tensor)} is in {shown(file)}, not the plain name of a .safetensors file beside it"
            )
    return weight_map


def read_tensors(source: SourceFile) -> list[TensorInfo]:
    """Return the tensors of one file, sorted by name, after checking that they fill it without gap or overlap."""
    where = str(source.path)
    header, data_start = _header(source, where)
    _check_metadata(header.pop("__metadata__", {}), where)
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"{where}: {len(header):,} tensors; the limit is {MAX_TENSORS:,}")
    tensors = [_tensor(source.path, name, entry, data_start) for name, entry in header.items()]
    _check_layout(tensors, data_start, source.size, where)
    return sorted(tensors, key=lambda tensor: tensor.name)


def _header(source: SourceFile, where: str) -> tuple[dict[str, Any], int]:
    if source.size < 8:
        raise CheckpointError(f"{where}: {source.size} bytes are no safetensors file: is the download complete?")
    length = int.from_bytes(source.read_at(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{where}: the header claims {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}")
    if 8 + length > source.size:
        raise CheckpointError(f"{where}: the header claims {length:,} bytes, the file has {source.size:,}")
    raw = source.read_at(8, length)
    if not raw.startswith(b"{"):
        raise CheckpointError(f"{where}: the header starts with {shown(raw[:8])}, not with an object")
    return parse_object(raw, f"{where}: header", CheckpointError), 8 + length


def _check_metadata(metadata: object, where: str) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ is {shown(metadata)}; the format wants strings only")


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    where = f"{path}: tensor {shown(name)}"
    if not name or len(name) > MAX_NAME_CHARS:
        raise CheckpointError(f"{where}: a name has 1 to {MAX_NAME_CHARS} characters, this one {len(name):,}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected dtype, shape and data_offsets, found {shown(entry)}")
    dtype, shape = entry["dtype"], entry["shape"]
    if not isinstance(dtype, str) or dtype not in NUMPY_DTYPE:
        raise CheckpointError(
            f"{where}: type {shown(dtype)}; supported are BF16, F16 and F32: take the release in BF16"
        )
    if not _is_counts(shape) or not 1 <= len(shape) <= MAX_DIMENSIONS or 0 in shape:
        raise CheckpointError(f"{where}: shape {shown(shape)}; expected 1 to {MAX_DIMENSIONS} positive integers")
    offsets = entry["data_offsets"]
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: data_offsets {shown(offsets)}; expected [begin, end]")
    nbytes = math.prod(shape) * NUMPY_DTYPE[dtype].itemsize  # Python integers: no overflow
    if offsets[1] - offsets[0] != nbytes:
        raise CheckpointError(
            f"{where}: {dtype} {shape} takes {shown(nbytes)} bytes, data_offsets {shown(offsets)} hold "
            f"{shown(offsets[1] - offsets[0])}"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + offsets[0], nbytes)


def _is_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(tensors: list[TensorInfo], data_start: int, size: int, where: str) -> None:
    position = data_start
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        if tensor.offset != position:
            fault = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            raise CheckpointError(
                f"{where}: tensor {shown(tensor.name)} {fault}: starts at {shown(tensor.offset)}, expected {position}"
            )
        position += tensor.nbytes
        if position > size:
            raise CheckpointError(
                f"{where}: tensor {shown(tensor.name)} ends at {shown(position)}, the file has {size:,} bytes: "
                "is the download complete?"
            )
    if position != size:
        raise CheckpointError(f"{where}: {size - position:,} bytes after the last tensor")
