"""The container: what gguf's own reader says of sound files, and one clean error for everything else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gguf.utility import SafetensorsLocal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.safetensors import NUMPY_DTYPE, read_tensors
from converters.source_file import SourceFile
from edgeqwen.errors import CheckpointError

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, header: bytes, data: bytes = b""):
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def read(path):
    source = SourceFile(path.parent.resolve(), path.name)
    try:
        return read_tensors(source)
    finally:
        source.close()


@pytest.mark.parametrize("dtype", NUMPY_DTYPE)
def test_layout_is_that_of_gguf(make_checkpoint, tmp_path, dtype):
    file = make_checkpoint(tmp_path / "model", hidden=64, head_dim=32, dtype=dtype) / "model.safetensors"
    with SafetensorsLocal(file) as oracle:
        expected = [(n, t.dtype, t.shape, t.data_range.offset, t.data_range.size) for n, t in oracle.items()]
    assert [(t.name, t.dtype, t.shape, t.offset, t.nbytes) for t in read(file)] == expected


def test_entries_in_any_order_are_read_by_offset(tmp_path):
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]},
    }
    raw = json.dumps(header).encode()
    tensors = read(write(tmp_path / "x.safetensors", raw, bytes(12)))
    start = 8 + len(raw)
    assert [(t.name, t.shape, t.offset, t.nbytes) for t in tensors] == [
        ("a", (2, 1), start, 4),
        ("b", (2,), start + 4, 8),
    ]


def test_padded_header_and_metadata_are_legal(tmp_path):
    raw = b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}   '
    assert [t.name for t in read(write(tmp_path / "x.safetensors", raw, b"\0\0"))] == ["a"]


SOUND = json.dumps(
    {
        "__metadata__": {"format": "pt"},
        "model.embed_tokens.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]},
        "model.norm.weight": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    }
).encode()


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(SOUND) + 31), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_end_in_one_clean_error_or_in_a_sound_layout(tmp_path, changes):
    raw = bytearray(len(SOUND).to_bytes(8, "little") + SOUND + bytes(24))
    for position, value in changes:
        raw[position] = value
    check_one_outcome(tmp_path, bytes(raw))


@FUZZ
@given(st.binary(max_size=64), st.integers(0, 100))
def test_any_bytes_end_in_one_clean_error_or_in_a_sound_layout(tmp_path, body, length):
    check_one_outcome(tmp_path, length.to_bytes(8, "little") + body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries({"dtype": st.sampled_from(["BF16", "F32", 3]), "shape": JSON, "data_offsets": JSON})


@FUZZ
@given(st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=4))
def test_any_header_ends_in_one_clean_error_or_in_a_sound_layout(tmp_path, header):
    raw = json.dumps(header).encode()
    check_one_outcome(tmp_path, len(raw).to_bytes(8, "little") + raw + bytes(24))


def check_one_outcome(folder, raw: bytes) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    try:
        tensors = read(path)
    except CheckpointError as error:
        text = str(error)
        text.encode("utf-8")  # printable whatever stood in the file
        assert "x.safetensors" in text
        assert "\n" not in text
        assert len(text) < 1000
    else:
        spans = sorted((t.offset, t.offset + t.nbytes) for t in tensors)
        ends = [8 + int.from_bytes(raw[:8], "little"), *(end for _, end in spans)]
        assert [start for start, _ in spans] == ends[:-1]
        assert ends[-1] == len(raw)
        assert all(t.nbytes == NUMPY_DTYPE[t.dtype].itemsize * np.prod(t.shape, dtype=object) for t in tensors)
