"""Oracles: one call of libggml on the whole tensor, and gguf-py's own numpy quantizers and dequantizers."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize
from gguf.quants import quantize as gguf_quantize

from converters import quantize
from converters.quantize import STEP_ELEMENTS, TENSOR_TYPES, RowQuantizer, dequantize, load_ggml
from edgeqwen.errors import EngineError, EngineMissingError
from edgeqwen.gguf import GGML_TYPES

WIDTH = 512
ROWS = 2 * STEP_ELEMENTS // WIDTH + 37  # two whole steps and a part of one
NUMPY_QUANTIZERS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def weights(rows: int = ROWS, width: int = WIDTH) -> np.ndarray:
    rng = np.random.default_rng(7)
    x = rng.standard_normal((rows, width), dtype=np.float32) * 0.02
    x[3] = 0  # a row of zeros: scale 0
    x[5, 64:96] = 0.5  # a block of equal values
    x[7, ::32] = 127.5 * 2.0**-7  # ties of the rounding
    return x


def as_source(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """What a checkpoint holds, and the same as exact float32."""
    if dtype == "BF16":
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    half = x.astype({"F16": np.float16, "F32": np.float32}[dtype])
    return half, half.astype(np.float32)


def run(rows: np.ndarray, kind: str) -> np.ndarray:
    out = np.full(GGML_TYPES[kind].nbytes(rows.size), 0xAA, np.uint8)
    RowQuantizer().quantize(rows, kind, out)
    return out


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_steps_give_the_bytes_of_one_call_on_the_whole_tensor(kind: str, dtype: str) -> None:
    source, exact = as_source(weights(), dtype)
    expected = np.zeros(GGML_TYPES[kind].nbytes(exact.size), np.uint8)
    written = load_ggml().ggml_quantize_chunk(
        GGML_TYPES[kind].id, exact.ctypes.data, expected.ctypes.data, 0, *exact.shape, None
    )
    assert written == expected.nbytes
    np.testing.assert_array_equal(run(source, kind), expected)


@pytest.mark.parametrize("kind", NUMPY_QUANTIZERS)
def test_bytes_are_those_of_gguf_py(kind: str) -> None:
    source, exact = as_source(weights(), "BF16")
    expected = gguf_quantize(exact, gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(run(source, kind), np.ascontiguousarray(expected).view(np.uint8).reshape(-1))


@pytest.mark.parametrize("kind", TENSOR_TYPES)
def test_values_come_back_as_gguf_py_reads_them(kind: str) -> None:
    stored = run(weights(rows=64), kind)
    expected = gguf_dequantize(stored.reshape(64, -1), gguf.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(dequantize(stored, kind).reshape(64, WIDTH), expected)


def test_rows_that_are_wider_than_a_step_go_one_by_one() -> None:
    wide = np.random.default_rng(1).standard_normal((3, STEP_ELEMENTS * 2), dtype=np.float32)
    np.testing.assert_array_equal(run(wide, "Q8_0"), run(wide.reshape(-1, 64), "Q8_0"))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_the_same_type_is_a_copy_to_the_bit(kind: str) -> None:
    source, _ = as_source(weights(), kind)
    np.testing.assert_array_equal(run(source, kind), source.reshape(-1).view(np.uint8))


def test_a_weight_too_large_for_the_scale_is_an_error() -> None:
    huge = np.full((1, 256), 1e10, np.float32)
    for kind in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "F16"):
        with pytest.raises(EngineError, match=kind):
            run(huge, kind)


@pytest.mark.parametrize(("width", "kind"), [(16, "Q8_0"), (48, "Q4_0"), (144, "Q8_0"), (288, "Q4_K")])
def test_rows_that_are_no_whole_blocks_never_reach_native_code(width: int, kind: str) -> None:
    rows = np.ones((64, width), np.float32)
    behind = np.zeros(1 << 16, np.uint8)
    with pytest.raises(EngineError, match=f"64 rows of {width} weights"):
        RowQuantizer().quantize(rows, kind, behind[: 64 * GGML_TYPES[kind].nbytes(width)])
    assert not behind.any()


def test_the_table_of_types_is_that_of_the_library() -> None:
    for name, kind in GGML_TYPES.items():
        traits = load_ggml().ggml_get_type_traits(kind.id).contents
        assert (traits.blck_size, traits.type_size) == (kind.block_size, kind.type_size), name


def test_a_missing_library_names_the_pip_line(monkeypatch, tmp_path) -> None:
    load_ggml.cache_clear()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    with pytest.raises(EngineMissingError, match="pip install"):
        load_ggml()
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH")
    monkeypatch.setattr(quantize, "library_folder", lambda: None)
    with pytest.raises(EngineMissingError, match=r"pip install 'edgeqwen\[llama\]'.*--to onnx does without"):
        load_ggml()


def test_a_file_that_is_no_library_is_an_engine_error(monkeypatch, tmp_path) -> None:
    load_ggml.cache_clear()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    for name in ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll"):
        (tmp_path / name).write_bytes(b"no library")
    with pytest.raises(EngineError, match="cannot be loaded"):
        load_ggml()


def test_llama_cpp_itself_is_not_imported() -> None:
    code = "import sys, converters.to_gguf as c; c.load_ggml(); print('llama_cpp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
