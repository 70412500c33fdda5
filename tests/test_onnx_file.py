"""Graphs that are refused before native code sees them, and those that pass."""

import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeqwen import load
from edgeqwen.artifact import open_artifact
from edgeqwen.errors import ArtifactError
from edgeqwen.onnx_file import check_onnx


@pytest.fixture
def folder(nano_artifact, tmp_path):
    return shutil.copytree(nano_artifact("int4", "onnx"), tmp_path / "artifact")


@pytest.fixture
def graph(folder):
    """(path, model, files): write the model back with `save`."""
    artifact = open_artifact(folder)
    path = artifact.file("onnx")
    files = {name: payload.size for name, payload in artifact.manifest.files.items()}
    return path, onnx.load(path, load_external_data=False), files


def check(path, model, files):
    path.write_bytes(model.SerializeToString())
    return check_onnx(path, files)


def external(model):
    return [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]


def place(tensor, **values):
    for entry in tensor.external_data:
        if entry.key in values:
            entry.value = str(values.pop(entry.key))
    for key, value in values.items():
        tensor.external_data.add(key=key, value=str(value))


def test_what_the_exporter_writes_passes(graph):
    checked = check(*graph)
    assert checked.inputs[:4] == ("input_ids", "seqlens_k", "total_sequence_length", "logit_rows")
    assert checked.outputs[0] == "logits"
    assert checked.weight_bytes <= sum(size for name, size in graph[2].items() if name.endswith(".data"))
    assert checked.data.name in graph[2]


def custom_operator(model):
    model.graph.node[3].op_type = "MyOp"


def other_domain(model):
    model.graph.node[3].domain = "ai.evil"


def subgraph(model):
    model.graph.node[3].attribute.append(helper.make_attribute("body", helper.make_graph([], "inner", [], [])))


def function(model):
    model.functions.append(helper.make_function("d", "f", [], [], [], []))


def sparse(model):
    model.graph.sparse_initializer.add()


def parent_folder(model):
    place(external(model)[0], location="../weights.data")


def absolute_path(model):
    place(external(model)[0], location="/etc/passwd")


def itself(model):
    place(external(model)[0], location="graph.onnx")


def behind_the_end(model):
    place(external(model)[0], offset=1 << 40)


def negative(model):
    place(external(model)[0], offset=-64)


def other_length(model):
    place(external(model)[0], length=5)


def unknown_key(model):
    place(external(model)[0], basepath="/")


def overlap(model):
    one, other = external(model)[:2]
    start = next(entry.value for entry in one.external_data if entry.key == "offset")
    place(other, offset=int(start) + 64)


def strings(model):
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [1], [b"x"]))


def large_inside(model):
    model.graph.initializer.append(helper.make_tensor("big", TensorProto.UINT8, [2 << 20], bytes(2 << 20), raw=True))


def huge_rank(model):
    external(model)[0].dims.extend([1] * 20)


def attribute_outside(model):
    tensor = TensorProto(name="a", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    place(tensor, location="x", length=16)
    model.graph.node[3].attribute.append(helper.make_attribute("value", tensor))


def placed_twice(model):
    entry = external(model)[0].external_data[0]
    external(model)[0].external_data.add(key=entry.key, value=entry.value)


def long_name(model):
    model.graph.node[3].op_type = "M" * 5000


def endless_dims(model):
    external(model)[0].dims.extend([1] * 1_000_000)


def lengths_of_its_own(model):
    """The cache's lengths say where native code writes."""
    first(model, "GroupQueryAttention").input[5] = "logit_rows"


def lengths_stored(model):
    """By the right names, but as figures of the file."""
    for name in ("seqlens_k", "total_sequence_length"):
        model.graph.input.remove(next(given for given in model.graph.input if given.name == name))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 30], np.int32), name))


def length_with_a_default(model):
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([7], np.int32), "seqlens_k"))


def length_computed(model):
    model.graph.input.remove(next(given for given in model.graph.input if given.name == "seqlens_k"))
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["total_sequence_length"], ["seqlens_k"]))


def first(model, operator):
    return next(node for node in model.graph.node if node.op_type == operator)


def group_index(model):
    """Which scale a column takes: an index into memory."""
    product = first(model, "MatMulNBits")
    product.input.extend([""] * (4 - len(product.input)))
    product.input.append("input_ids")


def positions(model):
    """Which row of the rotary table a token takes."""
    attention = first(model, "GroupQueryAttention")
    attention.input.extend([""] * (9 - len(attention.input)))
    attention.input.append("input_ids")


ATTACKS = [
    placed_twice, long_name, endless_dims, lengths_of_its_own, lengths_stored, length_with_a_default, length_computed,
    group_index, positions,
    custom_operator, other_domain, subgraph, function, sparse, parent_folder, absolute_path, itself, behind_the_end,
    negative, other_length, unknown_key, overlap, strings, large_inside, huge_rank, attribute_outside,
]  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_hostile_graphs_are_refused(graph, attack):
    path, model, files = graph
    attack(model)
    with pytest.raises(ArtifactError, match="onnx"):
        check(path, model, files)


@pytest.mark.parametrize(
    "raw", [b"\x38\x07", b"\x3a\x02\x08\x07", b"\x3a\x04\x0a\x02\x20\x7f", b"\x3a\x04\x2a\x02\x40\x7f"]
)
def test_numbers_where_messages_and_names_are_expected_are_refused(graph, raw):
    """Of a graph, a node, an operator's name and a tensor's: as lengths they would reserve what they say."""
    path, _, files = graph
    path.write_bytes(raw)
    with pytest.raises(ArtifactError, match="expected"):
        check_onnx(path, files)


def test_a_graph_in_another_format_of_the_runtime_is_refused(graph):
    path, _, files = graph
    with pytest.raises(ArtifactError, match=r"ends in \.onnx"):
        check_onnx(path.rename(path.with_suffix(".ort")), files)


def test_a_graph_that_is_not_the_one_of_the_manifest_is_not_run(graph, folder):
    """A graph of the same size passes the quick check at load; native code does not see it."""
    path, *_ = graph
    whole = path.read_bytes()
    changed = whole.replace(b"layers.0.attn_norm", b"layers.1.attn_norm")
    assert len(changed) == len(whole)
    path.write_bytes(changed)
    with pytest.raises(ArtifactError, match="sha256"):
        load(folder, engine="ort", context_length=64, threads=1)


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("which", ["graph", "data"])
def test_links_are_refused(graph, folder, tmp_path, link, which):
    path, model, files = graph
    target = path if which == "graph" else check(path, model, files).data
    target.rename(tmp_path / "elsewhere")
    link(tmp_path / "elsewhere", target)
    with pytest.raises(ArtifactError, match="links"):
        check_onnx(path, files)


def test_data_of_another_size_is_refused(graph):
    path, model, files = graph
    data = check(path, model, files).data
    data.write_bytes(data.read_bytes()[:-64])
    with pytest.raises(ArtifactError, match="size"):
        check_onnx(path, files)


def test_cut_and_changed_files_never_end_in_another_error(graph):
    path, model, files = graph
    whole = model.SerializeToString()
    passed = 0
    for at in range(0, len(whole), 211):
        for raw in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            path.write_bytes(raw)
            try:
                check_onnx(path, files)
            except ArtifactError:
                continue
            passed += 1
    assert passed < len(whole) / 211  # a changed name passes; a cut graph does not
