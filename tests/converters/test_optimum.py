"""The exporter for other families: a small random Llama through optimum, on ort_plain, against transformers itself."""

import json
import shutil
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from converters.to_onnx_optimum import check_cache, shape_of
from edgeqwen import load
from edgeqwen.artifact import open_artifact
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.backends.ort_plain import OrtPlainBackend
from edgeqwen.catalog import NANO, convert
from edgeqwen.cli import edgeqwen
from edgeqwen.errors import ArtifactError, CheckpointError, EngineError, EngineMissingError, RequestError, TemplateError
from edgeqwen.inspection import inspect
from edgeqwen.memory_need import MemoryNeed
from edgeqwen.onnx_file import check_onnx
from edgeqwen.plan import Plan

TOLERANCE = 1e-3  # of a logit; the random Llama's go up to about 10
FIGURES = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 256, "tie_word_embeddings": False,
}  # fmt: skip
needs_torch = [
    pytest.mark.reference,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed: make reference"),
]


def traced(test):
    """A test of the environment of `make reference`."""
    for mark in needs_torch:
        test = mark(test)
    return test


def opened(folder):
    plan = Plan("ort", 256, 1, "f32", mmap=True, gpu_layers=0, need=MemoryNeed(0, 0, 0, 0), reasons=(), sequences=2)
    return OrtBackend.open(open_artifact(folder).file("onnx"), plan)


@traced
def test_the_exported_llama_computes_what_transformers_computes(llama_checkpoint, llama_artifact):
    from edgeqwen.backends.reference import ReferenceBackend, ReferenceSettings

    wanted = ReferenceBackend(llama_checkpoint, ReferenceSettings(256, threads=1))
    found = opened(llama_artifact)
    assert isinstance(found, OrtPlainBackend)
    rng = np.random.default_rng(3)
    largest = 0.0
    for length in range(1, 65):
        ids = [int(i) for i in rng.integers(0, 4096, length + 9)]
        rows = []
        for backend in (wanted, found):
            backend.truncate(0, 0)
            prompt = backend.forward([Chunk(0, ids[:length], "all")])[0].copy()
            step = backend.forward([Chunk(0, ids[length : length + 1])])[0].copy()
            later = backend.forward([Chunk(0, ids[length + 1 :], "all")])[0].copy()
            rows.append(np.concatenate([prompt, step, later]))
        np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=TOLERANCE, err_msg=f"{length} tokens")
        largest = max(largest, float(np.abs(rows[0]).max()))
    assert largest > 3  # logits of a model that says something
    wanted.close()
    found.close()


@traced
def test_nano_traced_gives_the_logits_of_the_graph_that_is_written(nano_artifact, tmp_path):
    report = convert("nano", tmp_path / "out", formats=("onnx",), exporter="optimum")
    traced_graph, own = opened(report.path), opened(nano_artifact("fp32", "onnx"))
    assert (type(traced_graph), type(own)) == (OrtPlainBackend, OrtBackend)
    rows = [backend.forward([Chunk(0, range(100, 160), "all")])[0].copy() for backend in (traced_graph, own)]
    np.testing.assert_allclose(rows[0], rows[1], rtol=0, atol=2e-4)
    traced_graph.close()
    own.close()


@traced
def test_it_is_an_artifact_like_any_other(llama_artifact):
    artifact = open_artifact(llama_artifact, verify="full")
    manifest = artifact.manifest
    assert (manifest.architecture, manifest.shape.num_key_value_heads, manifest.shape.head_dim) == ("llama", 2, 32)
    assert manifest.trusted_template
    assert set(manifest.versions) == {"onnx", "optimum", "optimum-onnx", "torch", "transformers"}
    checked = check_onnx(artifact.file("onnx"), {name: payload.size for name, payload in manifest.files.items()})
    assert all(tensor.offset % 64 == 0 for tensor in checked.tensors)
    graph = onnx.load(artifact.file("onnx"), load_external_data=False).graph
    assert not any(node.doc_string or node.metadata_props for node in graph.node)
    facts = inspect(str(llama_artifact))
    assert facts.parameters > 2 * 4096 * 64
    with load(llama_artifact, threads=2, context_length=64) as model:
        assert isinstance(model.backend, OrtPlainBackend)
        assert model.chat("Hello", max_tokens=4, temperature=0.0).usage.completion_tokens > 0


@traced
def test_exporting_twice_gives_the_same_bytes(llama_checkpoint, llama_artifact, tmp_path):
    again = convert(
        str(llama_checkpoint), tmp_path / "again", formats=("onnx",), exporter="optimum", trust_template=True
    )
    names = sorted(path.name for path in llama_artifact.iterdir() if path.name.startswith(("graph", "weights")))
    assert names == sorted(path.name for path in again.path.iterdir() if path.name.startswith(("graph", "weights")))
    assert len(names) == 2


@traced
def test_a_template_that_nobody_trusts_leaves_nothing(llama_checkpoint, tmp_path):
    with pytest.raises(TemplateError, match="--trust-template"):
        convert(str(llama_checkpoint), tmp_path / "out", formats=("onnx",), exporter="optimum")
    assert not (tmp_path / "out").exists()


@traced
def test_weights_that_are_not_finite_leave_nothing(llama_checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama_checkpoint, tmp_path / "damaged")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        convert(str(folder), tmp_path / "out", formats=("onnx",), exporter="optimum", trust_template=True)
    assert not (tmp_path / "out").exists()


@traced
def test_the_command_says_what_it_made(llama_checkpoint, tmp_path):
    arguments = ["convert", str(llama_checkpoint), "--exporter", "optimum", "--trust-template", "--json"]
    result = CliRunner().invoke(edgeqwen, [*arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["type"], set(report["tensor_types"])) == ("fp32", {"fp32"})
    assert opened(tmp_path / "out").vocab_size == 4096


@pytest.mark.parametrize(
    "asked", [{"formats": ("gguf",)}, {"formats": ("gguf", "onnx")}, {"formats": ("onnx",), "type": "int4"}]
)
def test_it_writes_onnx_in_32_bits_alone(tmp_path, asked):
    with pytest.raises(RequestError, match="fp32"):
        convert("nano", tmp_path / "out", exporter="optimum", **asked)
    with pytest.raises(RequestError, match="own, optimum"):
        convert("nano", tmp_path / "out", exporter="other", **asked)


@pytest.mark.skipif(find_spec("optimum") is not None, reason="optimum is installed")
def test_without_optimum_the_pip_line_is_said(tmp_path):
    with pytest.raises(EngineMissingError, match=r"pip install 'edgeqwen\[reference\]'"):
        convert("nano", tmp_path / "out", formats=("onnx",), exporter="optimum")


def test_what_a_family_has_not_is_the_usual():
    shape = shape_of(SimpleNamespace(**FIGURES), NANO)
    assert (shape.num_key_value_heads, shape.head_dim, shape.intermediate_size) == (4, 16, 256)
    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        shape_of(SimpleNamespace(model_type="vision", hidden_size=64), NANO)


def plain_graph(path, dims=("batch", 4, "past", 16), extra=(), names=("key", "value")):
    """Inputs and outputs of a plain decoder of one layer that hands everything through."""

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    caches = [value(f"past_key_values.0.{name}", TensorProto.FLOAT, dims) for name in names]
    ids = [value(name, TensorProto.INT64, ["batch", "length"]) for name in ("input_ids", "attention_mask", *extra)]
    nodes = [helper.make_node("Identity", [f"past_key_values.0.{name}"], [f"present.0.{name}"]) for name in names]
    nodes.append(helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT))
    outputs = [value(f"present.0.{name}", TensorProto.FLOAT, dims) for name in names]
    outputs.append(value("logits", TensorProto.FLOAT, ["batch", "length"]))
    graph = helper.make_graph(nodes, "plain", [*ids, *caches], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return model


ONE_LAYER = shape_of(SimpleNamespace(**{**FIGURES, "num_hidden_layers": 1}), NANO)


@pytest.mark.parametrize("dims", [("batch", 2, "past", 16), ("batch", 4, "past", 8), ("batch", "past", 64)])
def test_a_cache_of_another_shape_is_refused(tmp_path, dims):
    check_cache(plain_graph(tmp_path / "good.onnx"), ONE_LAYER, tmp_path)
    with pytest.raises(CheckpointError, match="exported cache"):
        check_cache(plain_graph(tmp_path / "graph.onnx", dims), ONE_LAYER, tmp_path)


def test_the_engine_refuses_graphs_with_other_inputs(tmp_path):
    plain_graph(tmp_path / "good.onnx", extra=("position_ids",))
    OrtPlainBackend(tmp_path / "good.onnx", ONE_LAYER, OrtSettings(64, threads=1)).close()
    plain_graph(tmp_path / "graph.onnx", extra=("token_type_ids",))
    with pytest.raises(EngineError, match="text-generation-with-past"):
        OrtPlainBackend(tmp_path / "graph.onnx", ONE_LAYER, OrtSettings(64, threads=1))


def test_merged_graphs_are_refused_before_they_run(tmp_path):
    inner = helper.make_graph([], "then", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    node = helper.make_node("If", ["use_cache_branch"], ["logits"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [node], "merged", [helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])], []
    )
    onnx.save(helper.make_model(graph), tmp_path / "merged.onnx")
    with pytest.raises(ArtifactError, match="holds a graph"):
        check_onnx(tmp_path / "merged.onnx", {})
