"""A graph that is run part by part computes what it computes in one piece."""

import numpy as np
import onnx
import onnxruntime
import pytest

from converters import onnx_parts
from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from converters.onnx_parts import Parts, lift
from edgeqwen.artifact import open_artifact

PROMPTS = [[5, 900, 17, 4000], [3], list(range(40, 75))]
KINDS = {
    "qwen3": {},
    "qwen3-untied": {"tied": False},
    "qwen2-biases": {"architecture": "qwen2", "head_dim": 64},
}


def whole(model, folder, shape, ids):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(ids)
    feed = {
        "input_ids": np.array([ids], np.int64),
        "seqlens_k": np.array([count - 1], np.int32),
        "total_sequence_length": np.array(count, np.int32),
        "logit_rows": np.arange(count, dtype=np.int64),
    }
    for given in session.get_inputs()[4:]:
        feed[given.name] = np.zeros((1, shape.num_key_value_heads, count, shape.head_dim), np.float32)
    return session.run(["logits"], feed)[0]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, make_checkpoint, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("parts") / "model", layers=3, **KINDS[request.param])


@pytest.mark.parametrize("type", ["int4", "int4_fast", "fp32"])
@pytest.mark.parametrize("level", [0, 4])
def test_parts_compute_what_the_whole_computes(checkpoint, tmp_path, monkeypatch, type, level) -> None:
    monkeypatch.setattr(onnx_parts, "_HEAD_BYTES", 1 << 17)  # the head in several runs of rows
    with open_checkpoint(checkpoint) as opened:
        convert_checkpoint(opened, tmp_path / "out", type=type, formats=("onnx",))
        shape = opened.shape
    model = onnx.load(open_artifact(tmp_path / "out").file("onnx"), load_external_data=False)
    levels = {node.name: level for node in model.graph.node if node.op_type == "MatMulNBits"}
    parts = Parts(model, tmp_path / "out", shape)
    assert len(parts) == shape.num_hidden_layers + 1
    values = parts.begin(PROMPTS)
    for number in range(len(parts)):
        values, _ = parts.run(number, values, levels)
    found = parts.logits(values, levels)
    expected = np.concatenate([whole(lift(model, levels), tmp_path / "out", shape, ids) for ids in PROMPTS])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert sum(len(parts.products(number)) for number in range(len(parts))) == max(0, len(levels) - 1)
