"""Runs ggml's own block quantizers on rows of weights through ctypes; it knows no file and no model.

The libraries are those that llama-cpp-python ships, so the bytes are the ones llama-quantize writes. ctypes releases
the GIL during a call: row chunks run side by side on threads.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeqwen.errors import EngineError, EngineMissingError
from edgeqwen.gguf import GGML_TYPES
from edgeqwen.native_engine import library_folder, library_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

# Tensor types that can be written. Another one of ggml is another word here (the IQ1 and IQ2 types need an importance
# matrix).
TENSOR_TYPES: Final = ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0")

# Elements converted and quantized at a time: 256 kB as float32 stay in the second-level cache.
STEP_ELEMENTS: Final = 1 << 16

# dtype of the source rows -> its ggml type; BF16 comes as its bits
_SOURCES: Final[Mapping[np.dtype[Any], str]] = MappingProxyType({
    np.dtype("<u2"): "BF16", np.dtype("<f2"): "F16", np.dtype("<f4"): "F32",
})  # fmt: skip


class _TypeTraits(ctypes.Structure):
    """struct ggml_type_traits of ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@functools.cache
def load_ggml() -> ctypes.CDLL:
    """Load libggml-base of llama-cpp-python without importing that package; EngineMissingError when it is not there."""
    path = _library_path()
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(f"{path} cannot be loaded: {error}") from None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, pointer, pointer, integer, integer, integer, pointer,
    )  # fmt: skip  # type, src, dst, start, nrows, n_per_row, imatrix
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_bf16_to_fp32_row.argtypes = library.ggml_fp16_to_fp32_row.argtypes = (pointer, pointer, integer)
    library.ggml_bf16_to_fp32_row.restype = library.ggml_fp16_to_fp32_row.restype = None
    library.ggml_validate_row_data.argtypes = (ctypes.c_int, pointer, ctypes.c_size_t)
    library.ggml_validate_row_data.restype = ctypes.c_bool
    library.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    library.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    _check_sizes(library, path)
    return library


def _library_path() -> Path:
    """Find the library where the engine itself is looked for, so that a process never holds two of them."""
    folder = library_folder()
    if folder is None:
        raise EngineMissingError(
            "GGUF's types are computed by ggml, which an engine wheel brings, or pip install 'edgeqwen[llama]'; "
            "what is made of a checkpoint with --to onnx does without"
        )
    path = folder / library_name("ggml-base")
    if not path.is_file():
        raise EngineMissingError(
            f"{path} is missing; pip install --force-reinstall 'llama-cpp-python==0.3.36' brings it"
        )
    return path


def _check_sizes(library: ctypes.CDLL, path: Path) -> None:
    """A library of another version may number or pack its types differently."""
    for name in TENSOR_TYPES:
        kind = GGML_TYPES[name]
        traits = library.ggml_get_type_traits(kind.id).contents
        found = (traits.type_name.decode().upper(), traits.blck_size, traits.type_size)
        if found != (name.upper(), kind.block_size, kind.type_size):
            expected = (name, kind.block_size, kind.type_size)
            raise EngineError(
                f"{path}: type {kind.id} is {found}; {expected} was expected: pip install llama-cpp-python==0.3.36"
            )


class RowQuantizer:
    """Turns rows of one source into the blocks of any type; owns the scratch of one thread."""

    def __init__(self) -> None:
        self._ggml = load_ggml()
        self._float32 = np.empty(0, np.float32)

    def quantize(self, rows: npt.NDArray[Any], kind: str, out: npt.NDArray[np.uint8]) -> None:
        """Write the bytes of `rows` [n, n_in] (float32, float16 or BF16 bits as uint16) as `kind` into `out` [nbytes].

        Raises EngineError when they do not fill `out` in whole blocks, and when a block came out with a scale that is
        not finite (a weight too large for the 16-bit scale).
        """
        source = _SOURCES[rows.dtype]
        if source == kind:
            np.copyto(out, rows.reshape(-1).view(np.uint8))
            return
        count, width = rows.shape
        if width % GGML_TYPES[kind].block_size or out.nbytes != count * GGML_TYPES[kind].nbytes(width):
            raise EngineError(f"{count} rows of {width} weights do not fill {out.nbytes} bytes of {kind}")
        row_bytes = GGML_TYPES[kind].nbytes(width)
        step = max(1, STEP_ELEMENTS // width)
        for first in range(0, count, step):
            part = rows[first : first + step]
            target = out[first * row_bytes : (first + len(part)) * row_bytes]
            self._quantize_step(part, source, kind, target)

    def _quantize_step(self, rows: npt.NDArray[Any], source: str, kind: str, out: npt.NDArray[np.uint8]) -> None:
        floats = self._as_float32(rows, source)
        type_id = GGML_TYPES[kind].id
        written = self._ggml.ggml_quantize_chunk(
            type_id, floats.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], None
        )
        if written != out.nbytes or not self._ggml.ggml_validate_row_data(type_id, out.ctypes.data, out.nbytes):
            raise EngineError(
                f"a weight is too large for {kind} ({written} of {out.nbytes} bytes written): take bf16 or f32"
            )

    def _as_float32(self, rows: npt.NDArray[Any], source: str) -> npt.NDArray[np.float32]:
        """Widen [n, n_in] into the scratch; float32 is given back as it is."""
        if source == "F32":
            return rows
        if self._float32.size < rows.size:
            self._float32 = np.empty(rows.size, np.float32)
        widen = self._ggml.ggml_bf16_to_fp32_row if source == "BF16" else self._ggml.ggml_fp16_to_fp32_row
        widen(rows.ctypes.data, self._float32.ctypes.data, rows.size)
        return self._float32


def dequantize(data: npt.NDArray[np.uint8], kind: str) -> npt.NDArray[np.float32]:
    """Give the stored bytes of whole blocks back as float32 values, [elements], with ggml's own reader."""
    ggml_type = GGML_TYPES[kind]
    if kind == "F32":
        return data.view(np.float32)
    out = np.empty(data.nbytes // ggml_type.type_size * ggml_type.block_size, np.float32)
    data = np.ascontiguousarray(data)
    load_ggml().ggml_get_type_traits(ggml_type.id).contents.to_float(data.ctypes.data, out.ctypes.data, out.size)
    return out
