"""Reads GGUF files (v2 and v3, little-endian) strictly and within bounds; it knows no model.

Every count, length and offset is a Python int that is compared with the file's own size before anything is allocated.
Reference for the format and for what llama.cpp refuses: ggml/src/gguf.cpp.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import mmap
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from edgeqwen.errors import ArtifactError
from edgeqwen.ggml_types import GGML_TYPES, GgmlType
from edgeqwen.gguf_shape import shape_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    import numpy.typing as npt

__all__ = ["GGML_TYPES", "GgmlType", "GgufFile", "GgufTensor", "open_gguf", "shape_of"]


_TYPE_NAMES = {kind.id: name for name, kind in GGML_TYPES.items()}

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
STRING, ARRAY, BOOL = 8, 9, 7  # value types that are no plain numbers
# value type -> numpy type, all little-endian
NUMBERS: Mapping[int, str] = MappingProxyType({
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
})  # fmt: skip

# Bounds: real files have about 30 keys, 300 tensors, 152,000 tokens and a chat template of 4 KB.
MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 63  # of a tensor: GGML_MAX_NAME less its zero
MAX_KEY_BYTES = 256
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY_ITEMS = 1 << 24
MAX_ALIGNMENT = 1 << 16
_INT64_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: `shape` in numpy order ([n_out, n_in]), `offset` in bytes from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _Array:
    """An array in the file that has been bounded but not decoded."""

    kind: int
    count: int
    start: int  # of the first item
    end: int


class _Cursor:
    """Reads values at a moving position and never past the end of the file."""

    def __init__(self, data: mmap.mmap, size: int, path: Path) -> None:
        self.data, self.size, self.path, self.position = data, size, path, 0

    def fail(self, problem: str) -> ArtifactError:
        return ArtifactError(f"{self.path}: {problem}")

    def skip(self, count: int, what: str) -> int:
        """Move on by `count` bytes and give the position before."""
        start = self.position
        if count > self.size - start:
            left = self.size - start
            raise self.fail(
                f"{what} at byte {start} needs {count} bytes and the file has {left} more: it is cut or damaged"
            )
        self.position = start + count
        return start

    def u32(self, what: str) -> int:
        return int.from_bytes(self.data[self.skip(4, what) : self.position], "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.data[self.skip(8, what) : self.position], "little")

    def count(self, what: str, most: int) -> int:
        """Read a u64 that may be `most`."""
        number = self.u64(what)
        if number > most:
            raise self.fail(f"{what} is {number}; at most {most} is accepted")
        return number

    def text(self, what: str, most: int) -> str:
        """Read a string of at most `most` bytes: a u64 length, then UTF-8."""
        length = self.count(f"the length of {what}", most)
        start = self.skip(length, what)
        try:
            return self.data[start : self.position].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} at byte {start} is not UTF-8 ({error.reason})") from None

    def value(self, key: str) -> Any:
        """Read the value of a key: a scalar, or the bounds of an array."""
        what = f"the value of {key!r}"
        kind = self.u32(f"the type of {key!r}")
        if kind == ARRAY:
            return self.array(key)
        if kind == STRING:
            return self.text(what, MAX_STRING_BYTES)
        numbers = self.dtype(kind, key)
        start = self.skip(numbers.itemsize, what)
        if kind == BOOL and self.data[start] > 1:
            raise self.fail(f"{what} is {self.data[start]}; a bool is 0 or 1")
        return np.frombuffer(self.data[start : self.position], numbers)[0].item()

    def dtype(self, kind: int, key: str) -> np.dtype[Any]:
        if kind not in NUMBERS:
            raise self.fail(f"{key!r} has the unknown value type {kind}; 0 to 12 are known, nested arrays are refused")
        return np.dtype(NUMBERS[kind])

    def array(self, key: str) -> _Array:
        """Check that an array lies in the file and skip it: 150,000 strings in 20 ms."""
        kind = self.u32(f"the item type of {key!r}")
        count = self.count(f"the item count of {key!r}", MAX_ARRAY_ITEMS)
        start = self.position
        if kind == STRING:
            self.position = self._end_of_strings(key, count)
        else:
            self.skip(count * self.dtype(kind, key).itemsize, f"the items of {key!r}")
        return _Array(kind, count, start, self.position)

    def _end_of_strings(self, key: str, count: int) -> int:
        position, last = self.position, self.size - 8
        read, data = struct.Struct("<Q").unpack_from, self.data
        for index in range(count):
            if position > last:
                raise self.fail(f"item {index} of {key!r} begins behind the end of the file: it is cut or damaged")
            length = read(data, position)[0]
            if length > MAX_STRING_BYTES:
                raise self.fail(f"item {index} of {key!r} has {length} bytes; at most {MAX_STRING_BYTES} are accepted")
            position += 8 + length
        if position > self.size:
            raise self.fail(f"the items of {key!r} reach behind the end of the file: it is cut or damaged")
        return position

    def items(self, key: str, array: _Array) -> list[Any]:
        """Decode an array whose bounds were checked."""
        if self.data.closed:
            raise self.fail(f"{key!r} was never read and the file has been closed")
        if array.kind != STRING:
            raw = self.data[array.start : array.end]
            if array.kind == BOOL and raw.strip(b"\0\1"):
                raise self.fail(f"an item of {key!r} is no bool: 0 and 1 are")
            return list(np.frombuffer(raw, NUMBERS[array.kind]).tolist())
        out, position, data, read = [], array.start, self.data, struct.Struct("<Q").unpack_from
        try:
            for _ in range(array.count):
                end = position + 8 + read(data, position)[0]
                out.append(data[position + 8 : end].decode("utf-8"))
                position = end
        except UnicodeDecodeError as error:
            raise self.fail(f"item {len(out)} of {key!r} is not UTF-8 ({error.reason})") from None
        return out


class _Metadata(Mapping[str, Any]):
    """Keys and values; an array is decoded when it is first asked for."""

    def __init__(self, cursor: _Cursor, values: dict[str, Any]) -> None:
        self._cursor, self._values = cursor, values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            value = self._values[key] = self._cursor.items(key, value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values


class GgufFile:
    """An open, checked GGUF file. Views from `data` and arrays not yet read need it to stay open."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self.size = len(mapped)
        self._map: mmap.mmap | None = mapped
        cursor = _Cursor(mapped, self.size, path)
        self.version, tensor_count, key_count = _read_counts(cursor)
        self.metadata: Mapping[str, Any] = _Metadata(cursor, _read_keys(cursor, key_count))
        self.alignment = _alignment(cursor, self.metadata)
        infos = [_read_tensor(cursor) for _ in range(tensor_count)]
        self.data_start = cursor.position + -cursor.position % self.alignment
        self.tensors: Mapping[str, GgufTensor] = MappingProxyType(
            _place(cursor, infos, self.data_start, self.alignment)
        )

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """Map the stored bytes of a tensor, [nbytes], mapped and read-only."""
        if self._map is None:
            raise ArtifactError(f"{self.path} has been closed")
        tensor = self.tensors[name]
        return np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)

    def close(self) -> None:
        """Let the mapping go; views that are still alive keep it until they die."""
        if self._map is not None:
            with contextlib.suppress(BufferError):
                self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_gguf(path: str | Path) -> GgufFile:
    """Open and check a GGUF file; ArtifactError says what is wrong with it and where."""
    path = Path(path)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is no regular file; a GGUF file is expected")
        with path.open("rb") as file:
            if not file.read(1):
                raise ArtifactError(f"{path} is empty; a GGUF file is expected")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return GgufFile(path, mapped)
    except ArtifactError:
        mapped.close()
        raise


def _read_counts(cursor: _Cursor) -> tuple[int, int, int]:
    """(version, tensors, keys) of a supported file."""
    if cursor.data[:4] != MAGIC:
        raise cursor.fail(f"begins with {cursor.data[:4]!r}; a GGUF file begins with {MAGIC!r}")
    cursor.position = 4
    version = cursor.u32("the version")
    if version & 0xFFFF == 0 and version:
        raise cursor.fail("is a big-endian GGUF file; little-endian ones are supported")
    if version not in {2, 3}:
        raise cursor.fail(f"is GGUF version {version}; 2 and 3 are supported")
    tensors = cursor.count("the number of tensors", MAX_TENSORS)
    return version, tensors, cursor.count("the number of keys", MAX_KEYS)


def _read_keys(cursor: _Cursor, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for index in range(count):
        key = cursor.text(f"key {index}", MAX_KEY_BYTES)
        if not key or key in values:
            raise cursor.fail(f"key {index} is {'twice in the file' if key else 'empty'}: {key!r}")
        values[key] = cursor.value(key)
    return values


def _alignment(cursor: _Cursor, metadata: Mapping[str, Any]) -> int:
    found = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(found) is not int or not 8 <= found <= MAX_ALIGNMENT or found & (found - 1):
        raise cursor.fail(f"general.alignment is {found!r}; a power of two from 8 to {MAX_ALIGNMENT} is expected")
    return found


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    """One entry of the tensor table; its offset is still relative to the data."""
    name = cursor.text("a tensor's name", MAX_NAME_BYTES)
    dimensions = cursor.u32(f"the rank of {name!r}")
    if not 1 <= dimensions <= 4:
        raise cursor.fail(f"tensor {name!r} has {dimensions} dimensions; 1 to 4 are expected")
    extents = [cursor.u64(f"a dimension of {name!r}") for _ in range(dimensions)]  # fastest first
    elements = math.prod(extents)
    if not 0 < elements <= _INT64_MAX:
        raise cursor.fail(f"tensor {name!r} has the impossible shape {extents[::-1]}")
    type_id = cursor.u32(f"the type of {name!r}")
    type_name = _TYPE_NAMES.get(type_id)
    if type_name is None:
        raise cursor.fail(f"tensor {name!r} has the unknown type {type_id}")
    kind = GGML_TYPES[type_name]
    if extents[0] % kind.block_size:
        raise cursor.fail(
            f"tensor {name!r} has rows of {extents[0]}; {type_name} needs a multiple of {kind.block_size}"
        )
    offset = cursor.u64(f"the offset of {name!r}")
    return GgufTensor(name, type_name, tuple(extents[::-1]), offset, kind.nbytes(elements))


def _place(cursor: _Cursor, infos: list[GgufTensor], start: int, alignment: int) -> dict[str, GgufTensor]:
    """Make offsets absolute; each tensor is aligned, inside the file and shares no byte with another."""
    tensors: dict[str, GgufTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.fail(f"tensor {info.name!r} is twice in the file")
        if info.offset % alignment:
            raise cursor.fail(f"tensor {info.name!r} begins at {info.offset}; a multiple of {alignment} is expected")
        offset = start + info.offset
        if info.nbytes > cursor.size - offset:
            end = offset + info.nbytes
            raise cursor.fail(f"tensor {info.name!r} ends at byte {end} and the file at {cursor.size}: cut or damaged")
        tensors[info.name] = GgufTensor(info.name, info.type, info.shape, offset, info.nbytes)
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.fail(f"tensors {before.name!r} and {after.name!r} overlap at byte {after.offset}")
    return tensors
