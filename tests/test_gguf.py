"""The strict reader against gguf-py's writer, llama.cpp's table of types and files made to hurt."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeqwen.errors import ArtifactError
from edgeqwen.gguf import (
    GGML_TYPES,
    MAX_ALIGNMENT,
    MAX_ARRAY_ITEMS,
    MAX_KEYS,
    MAX_STRING_BYTES,
    MAX_TENSORS,
    open_gguf,
    shape_of,
)

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def entry(name: str, extents: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(extents)}Q", len(extents), *extents) + struct.pack("<IQ", kind, offset)


def build(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    tensor_count, key_count = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, tensor_count, key_count) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


GOOD_KEYS = (
    key("general.architecture", STRING, text("qwen3")),
    key("a.number", U32, struct.pack("<I", 7)),
    key("a.flag", BOOL, b"\x01"),
    key("names", ARRAY, struct.pack("<IQ", STRING, 3) + text("x") + text("é") + text("")),
    key("ids", ARRAY, struct.pack("<IQ", U32, 2) + struct.pack("<2I", 5, 6)),
)
GOOD_TENSORS = (entry("t", (64, 2), 8, 0), entry("v", (8,), 0, 160))  # Q8_0 [2, 64] = 136 bytes, F32 [8]
GOOD = build(GOOD_KEYS, GOOD_TENSORS, bytes(range(136)) + bytes(24) + np.arange(8, dtype="<f4").tobytes())


@pytest.fixture
def write(tmp_path):
    def write(raw: bytes):
        path = tmp_path / "file.gguf"
        path.write_bytes(raw)
        return path

    return write


def read_all(path) -> None:
    """Open a file and look at everything in it."""
    with open_gguf(path) as file:
        for name in file.metadata:
            file.metadata[name]
        for name in file.tensors:
            bytes(file.data(name))
        shape_of(file)


def test_a_good_file(write) -> None:
    with open_gguf(write(GOOD)) as file:
        assert dict(file.metadata) == {
            "general.architecture": "qwen3", "a.number": 7, "a.flag": True, "names": ["x", "é", ""], "ids": [5, 6],
        }  # fmt: skip
        assert file.tensors["t"].shape == (2, 64)
        assert (file.tensors["t"].type, file.tensors["t"].nbytes) == ("Q8_0", 136)
        assert bytes(file.data("t")) == bytes(range(136))
        np.testing.assert_array_equal(file.data("v").view("<f4"), np.arange(8))
        assert not file.data("v").flags.writeable
        assert (file.size, file.version) == (len(GOOD), 3)


def test_version_2_reads_the_same(write) -> None:
    with open_gguf(write(GOOD[:4] + struct.pack("<I", 2) + GOOD[8:])) as file:
        assert file.tensors["v"].shape == (8,)


N = struct.Struct("<Q").pack
HOSTILE = {
    "empty file": b"",
    "other magic": build(magic=b"GGML"),
    "short magic": b"GG",
    "only the magic": b"GGUF",
    "version 0": build(version=0),
    "version 1": build(version=1),
    "version 4": build(version=4),
    "big-endian": build(version=3 << 24),
    "cut in the counts": GOOD[:20],
    "2^64-1 tensors": build(counts=(2**64 - 1, 0)),
    "2^64-1 keys": build(counts=(0, 2**64 - 1)),
    "more tensors than bytes": build(counts=(MAX_TENSORS, 0)),
    "more keys than bytes": build(counts=(0, MAX_KEYS)),
    "too many tensors": build(counts=(MAX_TENSORS + 1, 0)),
    "key of 2^63 bytes": build((N(2**63) + b"k",)),
    "key that is too long": build((key("k" * 300, U32, b"\0" * 4),)),
    "empty key": build((key("", U32, b"\0" * 4),)),
    "key that is no UTF-8": build((key(b"\xff\xfe", U32, b"\0" * 4),)),
    "key twice": build((key("k", U32, b"\0" * 4), key("k", U32, b"\0" * 4))),
    "unknown value type": build((key("k", 13, b"\0" * 8),)),
    "value type 2^32-1": build((key("k", 2**32 - 1, b"\0" * 8),)),
    "bool of 2": build((key("k", BOOL, b"\x02"),)),
    "bool array of 2": build((key("k", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x01\x02"),)),
    "string behind the end": build((key("k", STRING, N(10_000) + b"abc"),)),
    "string of 2^64-1": build((key("k", STRING, N(2**64 - 1)),)),
    "string over the bound": build((key("k", STRING, N(MAX_STRING_BYTES + 1)),)),
    "string that is no UTF-8": build((key("k", STRING, text(b"\xc3")),)),
    "array of arrays": build((key("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", U32, 0)),)),
    "u32 array of 2^40": build((key("k", ARRAY, struct.pack("<IQ", U32, 2**40)),)),
    "array over the bound": build((key("k", ARRAY, struct.pack("<IQ", 0, MAX_ARRAY_ITEMS + 1)),)),
    "array behind the end": build((key("k", ARRAY, struct.pack("<IQ", U32, 1000)),)),
    "string array behind the end": build((key("k", ARRAY, struct.pack("<IQ", STRING, 1000)),)),
    "string item behind the end": build((key("k", ARRAY, struct.pack("<IQ", STRING, 1) + N(1000)),)),
    "string item of 2^64-1": build((key("k", ARRAY, struct.pack("<IQ", STRING, 2) + N(2**64 - 1)),)),
    "string item that is no UTF-8": build((key("k", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xff")),)),
    "alignment 0": build((key("general.alignment", U32, struct.pack("<I", 0)),)),
    "alignment 24": build((key("general.alignment", U32, struct.pack("<I", 24)),)),
    "alignment too large": build((key("general.alignment", U32, struct.pack("<I", MAX_ALIGNMENT * 2)),)),
    "alignment as a string": build((key("general.alignment", STRING, text("32")),)),
    "alignment as an array": build((key("general.alignment", ARRAY, struct.pack("<IQI", U32, 1, 32)),)),
    "tensor name too long": build((), (entry("t" * 64, (32,), 0, 0),), bytes(128)),
    "tensor twice": build((), (entry("t", (8,), 0, 0), entry("t", (8,), 0, 32)), bytes(64)),
    "no dimension": build((), (entry("t", (), 0, 0),), bytes(64)),
    "five dimensions": build((), (entry("t", (1, 1, 1, 1, 1), 0, 0),), bytes(64)),
    "2^32-1 dimensions": build((), (text("t") + struct.pack("<I", 2**32 - 1),), bytes(64)),
    "dimension of 0": build((), (entry("t", (0, 4), 0, 0),), bytes(64)),
    "dimensions that overflow 64 bits": build((), (entry("t", (2**32, 2**32), 0, 0),), bytes(64)),
    "dimensions that wrap to 8": build((), (entry("t", (2**61 + 1, 8), 0, 0),), bytes(64)),
    "bytes that wrap": build((), (entry("t", (2**62,), 0, 0),), bytes(64)),
    "unknown tensor type": build((), (entry("t", (32,), 99, 0),), bytes(64)),
    "removed tensor type": build((), (entry("t", (32,), 4, 0),), bytes(64)),
    "row that is no whole block": build((), (entry("t", (33,), 8, 0),), bytes(64)),
    "offset that is not aligned": build((), (entry("t", (8,), 0, 4),), bytes(64)),
    "offset behind the end": build((), (entry("t", (8,), 0, 2**40),), bytes(64)),
    "offset that wraps": build((), (entry("t", (8,), 0, 2**64 - 32),), bytes(64)),
    "tensor that is cut": build((), (entry("t", (64,), 0, 0),), bytes(64)),
    "tensors that overlap": build((), (entry("t", (16,), 0, 0), entry("u", (16,), 0, 32)), bytes(128)),
    "tensors at one place": build((), (entry("t", (16,), 0, 0), entry("u", (16,), 0, 0)), bytes(128)),
    "good file without its last byte": GOOD[:-1],
}  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused_in_one_line_that_names_the_file(raw: bytes, write) -> None:
    path = write(raw)
    with pytest.raises(ArtifactError) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, tmp_path / "absent"):
        with pytest.raises(ArtifactError, match=str(path)):
            open_gguf(path)


def test_every_prefix_of_a_good_file_is_refused(write) -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ArtifactError):
            read_all(write(GOOD[:length]))


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_end_in_an_artifact_error_or_are_read(seed: int, write) -> None:
    rng = random.Random(seed)
    special = [0, 1, 0x7F, 0x80, 0xFF]
    for _ in range(800):
        raw = bytearray(GOOD)
        for _ in range(rng.randint(1, 4)):
            at, how = rng.randrange(len(raw)), rng.randrange(4)
            if how == 0:
                raw[at] ^= 1 << rng.randrange(8)
            elif how == 1:
                raw[at : at + 8] = rng.choice([N(2**64 - 1), N(2**63), N(2**32), N(rng.getrandbits(64))])
            elif how == 2:
                raw[at] = rng.choice(special)
            else:
                del raw[at : at + rng.randint(1, 40)]
        with contextlib.suppress(ArtifactError):
            read_all(write(bytes(raw)))


scalars = st.one_of(
    st.text(min_size=1, max_size=20), st.booleans(), st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False)
)
arrays = st.one_of(
    st.lists(st.text(max_size=8), min_size=1, max_size=5),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=5),
)


@settings(max_examples=40, deadline=None)
@given(
    values=st.dictionaries(
        st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True), st.one_of(scalars, arrays), max_size=6
    ),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=4),
)
def test_what_gguf_py_writes_is_read_back_the_same(values, shapes, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("gguf") / "file.gguf"
    writer = gguf.GGUFWriter(path, "qwen3")
    for name, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_array(name, value)
    tensors = {f"t{i}": np.arange(math.prod(shape), dtype=np.float32).reshape(shape) for i, shape in enumerate(shapes)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_gguf(path) as file:
        assert dict(file.metadata) == {"general.architecture": "qwen3", **values}
        assert file.tensors.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert file.tensors[name].shape == tensor.shape
            np.testing.assert_array_equal(file.data(name).view("<f4").reshape(tensor.shape), tensor)


def test_the_table_of_types_is_gguf_pys() -> None:
    for kind in set(gguf.GGMLQuantizationType) - {gguf.GGMLQuantizationType.Q8_1}:  # its size there is not ggml's
        assert (GGML_TYPES[kind.name].id, GGML_TYPES[kind.name].block_size, GGML_TYPES[kind.name].type_size) == (
            kind.value, *gguf.GGML_QUANT_SIZES[kind],
        )  # fmt: skip


def test_arrays_are_decoded_on_first_use_and_not_before(write) -> None:
    names = b"".join(text(f"t{i}") for i in range(1000)) + text(b"\xff")
    path = write(build((key("names", ARRAY, struct.pack("<IQ", STRING, 1001) + names),)))
    with open_gguf(path) as file:
        assert "names" in file.metadata
        with pytest.raises(ArtifactError, match="item 1000 of 'names' is not UTF-8"):
            file.metadata["names"]


def test_a_closed_file_says_so(write) -> None:
    file = open_gguf(write(GOOD))
    view = file.data("t")
    file.close()
    file.close()
    assert bytes(view[:3]) == b"\0\1\2"  # a view that lives keeps the mapping
    with pytest.raises(ArtifactError, match="closed"):
        file.data("t")
    file = open_gguf(write(GOOD))
    file.close()
    with pytest.raises(ArtifactError, match="closed"):
        file.metadata["names"]


FIGURES = {
    "embedding_length": 64, "feed_forward_length": 96, "block_count": 2, "attention.head_count": 4,
    "attention.head_count_kv": 2, "context_length": 128,
}  # fmt: skip


def model(architecture: str = "qwen3", extra: tuple[bytes, ...] = (), **changes: bytes | None) -> bytes:
    keys = {name: key(f"{architecture}.{name}", U32, struct.pack("<I", value)) for name, value in FIGURES.items()}
    keys["eps"] = key(f"{architecture}.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-6))
    keys["theta"] = key(f"{architecture}.rope.freq_base", F32, struct.pack("<f", 1e6))
    keys = {name: value for name, value in (keys | changes).items() if value is not None}
    arch = key("general.architecture", STRING, text(architecture))
    return build((arch, *keys.values(), *extra), (entry("token_embd.weight", (64, 10), 0, 0),), bytes(64 * 10 * 4))


def test_shape_of_a_qwen3_file(write) -> None:
    extra = (
        key("qwen3.attention.key_length", U32, struct.pack("<I", 32)),
        key("qwen3.rope.scaling.type", STRING, text("yarn")),
        key("qwen3.rope.scaling.factor", F32, struct.pack("<f", 4)),
        key("qwen3.rope.scaling.original_context_length", U32, struct.pack("<I", 32768)),
        key("qwen3.rope.scaling.yarn_beta_fast", F32, struct.pack("<f", 32)),
    )
    with open_gguf(write(model(extra=extra))) as file:
        shape = shape_of(file)
    assert (shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers) == (64, 96, 2)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim) == (4, 2, 32)
    assert (shape.vocab_size, shape.max_position_embeddings, shape.tie_word_embeddings) == (10, 128, True)
    assert (shape.rms_norm_eps, shape.rope_theta) == (1e-6, 1e6)
    assert shape.rope_scaling == {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "beta_fast": 32.0,
    }  # fmt: skip


def test_head_dim_follows_from_the_heads_where_it_is_not_named(write) -> None:
    with open_gguf(write(model("qwen2"))) as file:
        assert shape_of(file).head_dim == 16


HEADS, EPSILON, THETA = "attention.head_count", "attention.layer_norm_rms_epsilon", "rope.freq_base"


def figure(name: str, kind: int, payload: bytes) -> bytes:
    return key(f"qwen3.{name}", kind, payload)


def only_architecture(kind: int, payload: bytes) -> bytes:
    return build((key("general.architecture", kind, payload),))


BAD_MODELS = {
    "another architecture": (model("llama"), "supported: qwen2, qwen3"),
    "no architecture": (build(), "None"),
    "no layers": (model(block_count=None), "qwen3.block_count is None"),
    "layers as text": (model(block_count=figure("block_count", STRING, text("2"))), "positive count"),
    "zero heads": (model(**{HEADS: figure(HEADS, U32, bytes(4))}), "head_count is 0"),
    "epsilon is NaN": (model(eps=figure(EPSILON, F32, struct.pack("<f", math.nan))), "nan"),
    "theta is infinite": (model(theta=figure(THETA, F32, struct.pack("<f", math.inf))), "inf"),
    "other width": (model(embedding_length=figure("embedding_length", U32, struct.pack("<I", 32))), "token_embd"),
    "no embedding": (only_architecture(STRING, text("qwen3")), "qwen3.embedding_length is None"),
    "the architecture is a number": (only_architecture(U32, bytes(4)), "architecture 0"),
    "the architecture is an array": (only_architecture(ARRAY, struct.pack("<IQI", U32, 1, 1)), "supported"),
}


@pytest.mark.parametrize(("raw", "message"), BAD_MODELS.values(), ids=BAD_MODELS.keys())
def test_models_that_are_refused(raw: bytes, message: str, write) -> None:
    with open_gguf(write(raw)) as file, pytest.raises(ArtifactError, match=message):
        shape_of(file)


def test_hostile_kinds_are_all_different() -> None:
    assert len(HOSTILE) >= 25
    assert all(a != b for a, b in itertools.combinations(HOSTILE.values(), 2))
