"""The comparison with exact activations: it finds a channel that spoils its block, and lifts what pays."""

import json

import numpy as np
import onnx
import pytest

from converters import onnx_guard
from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from edgeqwen.artifact import open_artifact

SPOILED = "layers.1.down.out"


def convert(folder, out):
    with open_checkpoint(folder) as opened:
        report = convert_checkpoint(opened, out, type="int4", formats=("onnx",))
    return report.guard, open_artifact(out)


@pytest.fixture
def outlier(make_checkpoint, tmp_path):
    """A model whose second feed-forward layer has one channel far above the others, and uses the others."""
    random = np.random.default_rng(3)
    up = random.standard_normal((512, 256)).astype(np.float32) * 0.05
    up[5] *= 400
    down = random.standard_normal((256, 512)).astype(np.float32) * 0.05
    down[:, 5] = 0
    tensors = {"model.layers.1.mlp.up_proj.weight": up, "model.layers.1.mlp.down_proj.weight": down}
    return make_checkpoint(tmp_path / "model", tensors=tensors, dtype="F32")


def product(name, width, rows):
    return onnx.helper.make_node("MatMulNBits", ["x"], [name], name, K=width, N=rows)


def levels(artifact):
    model = onnx.load(artifact.file("onnx"), load_external_data=False)
    return {
        node.name: next(a.i for a in node.attribute if a.name == "accuracy_level")
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }


def test_a_spoiling_channel_is_lifted(outlier, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_guard, "SLOWER_AT_MOST", 100.0)  # a model this small is slower by any change
    found, artifact = convert(outlier, tmp_path / "out")
    assert SPOILED in found["lifted"]
    assert len(found["lifted"]) <= 4
    assert found["divergence_lifted"] <= onnx_guard.WORTH * found["divergence"]
    assert {name for name, level in levels(artifact).items() if level == 0} == set(found["lifted"])
    assert artifact.measured()["guard"] == json.loads(json.dumps(found))


def test_what_costs_too_much_is_left(outlier, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_guard, "SLOWER_AT_MOST", 0.0)
    found, artifact = convert(outlier, tmp_path / "out")
    assert found["lifted"] == ()
    assert found["divergence_lifted"] is None
    assert set(levels(artifact).values()) == {4}


@pytest.mark.parametrize(("rows", "lifted"), [(256, False), (8, True)])
def test_lifting_costs_five_percent_at_most(rows, lifted):
    """Of 100,000 weights each row of 256 that is exact costs as much as two more, about half a percent."""
    model = onnx.helper.make_model(onnx.helper.make_graph(
        [product("small", 256, rows), product("large", 1000, 100)], "g", [], []))  # fmt: skip
    slower = onnx_guard._slower(model, ["small"])
    assert slower == pytest.approx(1 + 1.9 * 256 * rows / (256 * rows + 100_000))
    assert (slower <= onnx_guard.SLOWER_AT_MOST) == lifted
    assert onnx_guard.SLOWER_AT_MOST <= 1.05
    assert onnx_guard.MAX_LIFTED <= 4


def test_divergence_and_flips_are_those_of_the_definition():
    random = np.random.default_rng(0)
    one, two = random.standard_normal((2, 5, 40)).astype(np.float32) * 3
    divergence, flips = onnx_guard._compare(one, two)
    p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True) for x in (one, two))
    assert divergence == pytest.approx((p * np.log(p / q)).sum(axis=1).mean())
    assert flips == (p.argmax(axis=1) != q.argmax(axis=1)).sum()
    assert onnx_guard._compare(one, one) == (0.0, 0)
