"""ONNX graphs of small checkpoints: what ONNX Runtime computes with them is what llama.cpp computes; their bytes."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest

from converters import to_onnx
from converters.build import convert_checkpoint, resolve_type
from converters.checkpoint import Checkpoint, open_checkpoint
from converters.onnx_grid import Grid, round_rows, unround
from converters.onnx_plan import TYPES, find_onnx_type, plan_onnx
from converters.weights import GgufWeights
from edgeqwen import catalog
from edgeqwen.artifact import open_artifact
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.catalog import NANO
from edgeqwen.cli import convert as cli_convert
from edgeqwen.errors import ArtifactError, CheckpointError, RequestError
from edgeqwen.gguf import open_gguf
from edgeqwen.tokenizer import Tokenizer

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
CHECKPOINTS = {
    "qwen3": {},
    "qwen3-untied-f16": {"tied": False, "dtype": "F16"},
    "qwen2-biases": {"architecture": "qwen2", "hidden": 256, "heads": 4, "head_dim": 64},
    "qwen3-yarn": {"dtype": "F32", "config": {"rope_scaling": YARN}},
}
IDS = list(np.random.default_rng(0).integers(0, 4096, 96))


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request, make_checkpoint, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("onnx") / "model", **CHECKPOINTS[request.param])


def convert(folder, out, type, formats=("onnx",), **settings):
    with open_checkpoint(folder) as opened:
        convert_checkpoint(opened, out, type=type, formats=formats, **settings)
    return open_artifact(out)


def onnx_logits(artifact, ids):
    """[ids, vocab] of a first prompt."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(artifact.file("onnx"), options, providers=["CPUExecutionProvider"])
    count = len(ids)
    feed = {
        "input_ids": np.array([ids], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "logit_rows": np.arange(count, dtype=np.int64),
    }
    for given in session.get_inputs()[4:]:
        feed[given.name] = np.zeros((1, given.shape[1], count, given.shape[3]), np.float32)
    return session.run(["logits"], feed)[0]


def llama_logits(gguf, ids):
    backend = LlamaCppBackend(gguf, LlamaCppSettings(256, 1, kv_type="f32", step_rows=128))
    try:
        (rows,) = backend.forward([Chunk(0, [int(i) for i in ids], "all")])
        return rows.copy()
    finally:
        backend.close()


def test_the_graph_computes_what_llama_cpp_computes(checkpoint, tmp_path) -> None:
    graph = onnx_logits(convert(checkpoint, tmp_path / "onnx", "fp32"), IDS)
    gguf = convert(checkpoint, tmp_path / "gguf", "f32", ("gguf",)).file("gguf")
    expected = llama_logits(gguf, IDS)
    assert graph.shape == expected.shape
    assert np.abs(graph - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("type", ["int8", "int4", "int4_fast"])
def test_a_quantized_graph_computes_what_its_weights_say(checkpoint, tmp_path, type) -> None:
    artifact = convert(checkpoint, tmp_path / "out", type)
    exact = onnx_logits(convert(checkpoint, tmp_path / "exact", "fp32"), IDS)
    found = onnx_logits(artifact, IDS)
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error < {"int8": 0.05, "int4": 0.45, "int4_fast": 0.45}[type]  # random weights: errors add up undamped
    assert error > 1e-4


@pytest.mark.parametrize(("type", "stored"), [("int4", "Q4_0"), ("int8", "Q8_0"), ("fp32", "F32")])
def test_two_containers_hold_bit_for_bit_the_same_weights(checkpoint, tmp_path, type, stored) -> None:
    artifact = convert(checkpoint, tmp_path / "out", type, ("gguf", "onnx"))
    assert artifact.manifest.formats["gguf"].type == stored
    data = np.fromfile(next((tmp_path / "out").glob("weights-*.data")), np.uint8)

    def view(place):
        return data[place.offset : place.offset + place.nbytes].view(place.dtype).reshape(place.dims)

    with GgufWeights(artifact.file("gguf")) as weights:
        plan = plan_onnx(weights, type, shared_grid=True)
        assert plan.size == data.size
        assert not plan.requantized
        for name, planned in plan.matrices.items():
            matrix = planned.matrix
            ours = view(matrix.weight)
            if matrix.grid is not None:
                ours = unround(ours, view(matrix.scales), None, matrix.grid)
            rows = [weights.rows(source, 0, count) for source, count in zip(planned.sources, planned.rows, strict=True)]
            assert np.array_equal(ours, np.concatenate(rows)), name
        for planned in plan.arrays.values():
            rows = [weights.rows(source, 0, count) for source, count in zip(planned.sources, planned.rows, strict=True)]
            assert not rows or np.array_equal(view(planned.place), np.concatenate(rows))


def test_the_file_is_a_sound_onnx_model(checkpoint, tmp_path) -> None:
    path = convert(checkpoint, tmp_path / "out", "int4").file("onnx")
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime's own, though it stands in ONNX's domain
            node.domain = "com.microsoft"
    (path.parent / "checked.onnx").write_bytes(model.SerializeToString())
    onnx.checker.check_model(path.parent / "checked.onnx")
    places = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            assert entry["location"] in open_artifact(tmp_path / "out").manifest.files
            assert int(entry["offset"]) % 64 == 0
            places[tensor.name] = (int(entry["offset"]), int(entry["length"]))
    tied = json.loads((checkpoint / "config.json").read_text())["tie_word_embeddings"]
    tables = [place for name, place in places.items() if name.startswith(("table.weight", "head.weight"))]
    assert len(set(tables)) == (1 if tied else 2)  # a tied table is stored once, under two shapes
    assert len(tables) == 2


def test_bytes_do_not_depend_on_threads(checkpoint, tmp_path) -> None:
    one = convert(checkpoint, tmp_path / "one", "int4_fast", threads=1)
    three = convert(checkpoint, tmp_path / "three", "int4_fast", threads=3)
    assert one.manifest.files == three.manifest.files


def test_a_weight_that_is_not_finite_leaves_nothing(make_checkpoint, tmp_path) -> None:
    bad = np.zeros((256, 512), np.float32)
    bad[3, 7] = np.nan
    folder = make_checkpoint(tmp_path / "model", tensors={"model.layers.1.mlp.down_proj.weight": bad})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight\[3\]"):
        convert(folder, tmp_path / "out", "int4")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [1e18, 3e38])
@pytest.mark.parametrize("type", ["int4", "int4_fast", "int8", "q4_0", "q8_0"])
def test_a_weight_too_large_to_be_rounded_leaves_nothing(make_checkpoint, tmp_path, type, size) -> None:
    bad = np.zeros((256, 512), np.float32)
    bad[3, 7], bad[4, 7] = size, -size
    folder = make_checkpoint(tmp_path / "model", tensors={"model.layers.1.mlp.down_proj.weight": bad})
    with pytest.raises(CheckpointError, match="too large"):
        convert(folder, tmp_path / "out", type)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("type", "formats", "words"),
    [
        ("fp16", ("onnx",), "for GPUs"),
        ("fp16", ("gguf", "onnx"), "for GPUs"),
        ("q5_k_m", ("onnx",), "int4_fast"),
        ("int4_fast", ("gguf", "onnx"), "share"),
        ("int4", ("onnx", "onnx"), "at most once"),
        ("int4", ("tflite",), "tflite"),
    ],
)
def test_what_cannot_be_written_is_refused(make_checkpoint, tmp_path, type, formats, words) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1)
    with pytest.raises(RequestError, match=words):
        convert(folder, tmp_path / "out", type, formats)
    assert not (tmp_path / "out").exists()


def test_types_have_names() -> None:
    assert [resolve_type(name, ("gguf", "onnx")) for name in ("Q8_0", "q4_0", "f32")] == ["int8", "int4", "fp32"]
    assert {find_onnx_type(name) for name in ("INT4", "int4-fast", "F32", "int8")} <= set(TYPES)


def rounded(rows, grid):
    weights = np.empty((len(rows), grid.nbytes(rows.shape[1])), np.uint8)
    scales = np.empty((len(rows), grid.blocks(rows.shape[1])), np.float32)
    zeros = np.zeros((len(rows), grid.zero_bytes(rows.shape[1])), np.uint8) if grid.zeros else None
    round_rows(rows, grid, weights, scales, zeros)
    return unround(weights, scales, zeros, grid), scales


def kinds_of_rows():
    random = np.random.default_rng(1)
    normal = random.standard_normal((48, 384)).astype(np.float32)
    yield normal
    yield random.standard_t(2, (48, 384)).astype(np.float32)
    yield np.abs(normal) + 1
    yield np.where(random.random((48, 384)) < 0.9, 0, normal).astype(np.float32)
    yield np.zeros((4, 384), np.float32)
    yield (normal * np.float32(1e-30)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_a_value_is_off_by_half_a_step_at_most(bits, block) -> None:
    for rows in kinds_of_rows():
        found, scales = rounded(rows, Grid(bits, block))
        steps = np.abs(np.repeat(scales, block, axis=1))
        # with 4 bits the largest value of the other sign may be cut off at 7 of 8 steps
        most = 0.502 if bits == 8 else 1.001
        assert (np.abs(found - rows) <= most * steps + 1e-37).all()


def plain_range(rows, bits, block):
    """Every block between its smallest and its largest value, zero among them, rounded to integers."""
    blocks = rows.astype(np.float64).reshape(len(rows), -1, block)
    low, high = blocks.min(-1, keepdims=True).clip(max=0), blocks.max(-1, keepdims=True).clip(min=0)
    scale = np.maximum((high - low) / (2**bits - 1), 1e-300)
    zero = np.rint(-low / scale)
    levels = np.clip(np.rint(blocks / scale) + zero, 0, 2**bits - 1)
    return ((levels - zero) * scale).reshape(rows.shape)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_a_searched_zero_point_never_loses_to_the_plain_range(bits, block) -> None:
    for rows in kinds_of_rows():
        found, _ = rounded(rows, Grid(bits, block, zeros=True))
        error, plain = np.square(found - rows).sum(), np.square(plain_range(rows, bits, block) - rows).sum()
        assert error <= plain * (1 + 1e-6)
    normal = next(kinds_of_rows())
    found, _ = rounded(normal, Grid(4, 64, zeros=True))
    symmetric, _ = rounded(normal, Grid(4, 64))
    plain = plain_range(normal, 4, 64)
    errors = [np.square(x - normal).sum() for x in (found, plain, symmetric)]
    assert errors[0] < 0.95 * errors[1] < 0.95 * errors[2]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("block", [32, 128])
def test_onnx_runtime_reads_a_grid_as_it_was_meant(bits, zeros, block) -> None:
    rows = next(kinds_of_rows())
    grid = Grid(bits, block, zeros=zeros)
    weights = np.empty((len(rows), grid.nbytes(384)), np.uint8)
    scales = np.empty((len(rows), grid.blocks(384)), np.float32)
    points = np.zeros((len(rows), grid.zero_bytes(384)), np.uint8) if zeros else None
    round_rows(rows, grid, weights, scales, points)
    initializers = {"weights": weights.reshape(len(rows), grid.blocks(384), -1), "scales": scales}
    initializers |= {"points": points} if zeros else {}
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *initializers], ["y"], domain="com.microsoft", K=384, N=len(rows), bits=bits,
        block_size=block, accuracy_level=0,
    )  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "one", [value("x", 1, ["n", 384])], [value("y", 1, ["n", len(rows)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (product,) = session.run(["y"], {"x": np.eye(384, dtype=np.float32)})
    np.testing.assert_allclose(product.T, unround(weights, scales, points, grid), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("threads", [0, -3])
def test_a_gguf_file_is_converted_with_at_least_one_thread(nano_artifact, tmp_path, threads) -> None:
    gguf = open_artifact(nano_artifact("q8_0")).file("gguf")
    with pytest.raises(RequestError, match=f"threads is {threads}"):
        catalog.convert(str(gguf), tmp_path / "out", formats=("onnx",), threads=threads)


@pytest.mark.parametrize(("type", "kinds"), [("q4_0", {"Q4_0"}), ("q8_0", {"Q8_0"}), ("bf16", {"BF16"})])
def test_a_gguf_file_becomes_a_graph_of_the_same_weights(nano_artifact, tmp_path, type, kinds) -> None:
    """Without the checkpoint: what the two engines compute, and what the tokenizer says, stay the same."""
    gguf = open_artifact(nano_artifact(type)).file("gguf")
    report = catalog.convert(str(gguf), tmp_path / "out", formats=("onnx",))
    artifact = open_artifact(tmp_path / "out")
    assert report.type == {"q4_0": "q4_0", "q8_0": "q8_0", "bf16": "fp32"}[type]
    assert bool(report.requantized) == (type == "q4_0")  # llama-quantize keeps the table of Q4_0 in Q6_K
    with GgufWeights(gguf) as weights:
        assert kinds <= {weights.kind(name) for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")}
    expected, found = llama_logits(gguf, IDS), onnx_logits(artifact, IDS)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < (0.1 if type == "q4_0" else 0.05) * scale
    mine = Tokenizer.from_json(artifact.file("tokenizer").read_bytes())
    with open_gguf(gguf) as file:
        theirs = Tokenizer.from_gguf(file.metadata)
    for text in ("Hello, world! 你好 <|im_end|>", "a\u0301 12345\n\n x"):
        assert mine.encode(text) == theirs.encode(text)
    assert mine.added == theirs.added
    assert mine.control == theirs.control


def test_a_gguf_file_is_no_source_for_gguf(nano_artifact, tmp_path) -> None:
    gguf = open_artifact(nano_artifact("q8_0")).file("gguf")
    with pytest.raises(RequestError, match="--to onnx"):
        catalog.convert(str(gguf), tmp_path / "out")


def test_a_gguf_file_is_no_target(nano_artifact, tmp_path) -> None:
    """An artifact's old weights go when new ones are there, and these are what is read."""
    folder = tmp_path / "both"
    shutil.copytree(nano_artifact("q8_0"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    gguf = open_artifact(folder).file("gguf")
    (tmp_path / "elsewhere.gguf").symlink_to(gguf)
    for source in (gguf, tmp_path / "elsewhere.gguf"):
        with pytest.raises(ArtifactError, match=r"is the folder of .*\.gguf, which is read; name another"):
            catalog.convert(str(source), folder, formats=("onnx",))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_a_tokenizer_says_of_cutting_and_filling_up_is_not_followed(tmp_path) -> None:
    """Engines do not follow it either, and a comparison of pads alone compares nothing."""
    odd = tmp_path / "odd"
    shutil.copytree(NANO, odd)
    data = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))
    data["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    data["padding"] = {"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 5,
                       "pad_type_id": 0, "pad_token": "a"}  # fmt: skip
    (odd / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    plain, other = (convert(folder, tmp_path / f"out-{folder.name}", "int4") for folder in (NANO, odd))
    assert plain.measured()["guard"]["tokens"] > 90
    assert plain.measured()["guard"] == other.measured()["guard"]


def test_both_formats_read_the_source_once(monkeypatch, tmp_path) -> None:
    seen: dict[str, int] = {}
    real = Checkpoint.rows

    def counted(self, name, start, stop):
        seen[name] = seen.get(name, 0) + stop - start
        return real(self, name, start, stop)

    monkeypatch.setattr(Checkpoint, "rows", counted)
    convert(NANO, tmp_path / "out", "int4", ("gguf", "onnx"))
    with open_checkpoint(NANO) as opened:
        matrices = {name: tensor.shape[0] for name, tensor in opened.tensors.items() if len(tensor.shape) == 2}
    for name, rows in matrices.items():
        assert rows <= seen[name] <= rows + 8  # the last are compared with what was written


@pytest.mark.parametrize("what", ["comparing", "writing"])
def test_ctrl_c_leaves_nothing(monkeypatch, tmp_path, what) -> None:
    def stopped(*_args):
        raise KeyboardInterrupt

    settings = {"progress": stopped}
    if what == "comparing":
        monkeypatch.setattr(to_onnx, "guard", stopped)
        settings = {}
    with pytest.raises(KeyboardInterrupt):
        convert(NANO, tmp_path / "out", "int4", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_is_no_number_is_refused(nano_artifact, tmp_path) -> None:
    """Blocks that are moved as they are, are looked at, too."""
    source = open_artifact(nano_artifact("q8_0")).file("gguf")
    with open_gguf(source) as file:
        start = file.tensors["blk.1.ffn_down.weight"].offset
    damaged = tmp_path / "damaged.gguf"
    raw = bytearray(source.read_bytes())
    raw[start + 34 * 5 : start + 34 * 5 + 2] = np.float16(np.nan).tobytes()
    damaged.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight.*scale"):
        catalog.convert(str(damaged), tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("head_dim", [8, 20, 24])
@pytest.mark.parametrize("formats", [("onnx",), ("gguf", "onnx")])
def test_heads_that_onnx_runtime_does_not_rotate_are_refused(make_checkpoint, tmp_path, head_dim, formats) -> None:
    folder = make_checkpoint(tmp_path / "small", hidden=64, intermediate=64, head_dim=head_dim)
    with pytest.raises(RequestError, match=f"head_dim is {head_dim}.*multiples of 16"):
        convert(folder, tmp_path / "out", "int8", formats)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("type", ["int4", "int8"])
def test_rows_that_both_formats_cut_differently_are_refused_for_both(make_checkpoint, tmp_path, type) -> None:
    """GGUF would fall back to F16 where ONNX takes smaller blocks: not the same weights."""
    folder = make_checkpoint(tmp_path / "odd", hidden=144, intermediate=208, heads=3, kv_heads=1, head_dim=48)
    with pytest.raises(RequestError, match="rows of 144 weights"):
        convert(folder, tmp_path / "out", type, ("gguf", "onnx"))
    convert(folder, tmp_path / "out", "fp32", ("gguf", "onnx"))


@pytest.mark.parametrize("calibrate", [False, True])
def test_a_model_made_for_a_few_tokens_is_compared_and_calibrated_on_as_many(
    make_checkpoint, tmp_path, calibrate
) -> None:
    folder = make_checkpoint(tmp_path / "short", config={"max_position_embeddings": 16})
    with open_checkpoint(folder) as checkpoint:
        report = convert_checkpoint(
            checkpoint, tmp_path / "out", type="int4", formats=("onnx",), trust_template=True, calibrate=calibrate
        )
    assert report.guard is not None
    assert report.guard["tokens"] <= 4 * 16


def test_without_onnxruntime_it_is_said_that_nothing_was_compared(tmp_path, monkeypatch) -> None:
    absent = lambda name: None if name == "onnxruntime" else find_spec(name)  # noqa: E731
    monkeypatch.setattr(to_onnx, "find_spec", absent)
    monkeypatch.setattr(cli_convert, "find_spec", absent)
    report = catalog.convert("nano", tmp_path / "out", type="int4", formats=("onnx",))
    assert report.guard is None
    assert "not compared with exact activations" in cli_convert.summary(report)
