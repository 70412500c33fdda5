"""How ONNX Runtime is told to compute attention, and in which steps; what it computes is test_backend_contract.py's."""

import dataclasses
import os
import platform
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeqwen.artifact import open_artifact
from edgeqwen.backends import ort
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.kv_slab import _HEADER_BYTES, _MAGIC, KvSlab
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.backends.ort_plain import OrtPlainBackend
from edgeqwen.backends.session_file import check_session, new_session
from edgeqwen.errors import EngineError
from edgeqwen.memory_need import onnx_step_tokens
from edgeqwen.onnx_runtime import import_onnxruntime
from edgeqwen.published import PUBLISHED

VARIABLE = "ORT_GQA_DISABLE_FLASH_ATTENTION"
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 4000, 150)]


@pytest.mark.parametrize(
    ("machine", "given", "inside"),
    [("x86_64", None, "1"), ("AMD64", None, "1"), ("aarch64", None, None), ("x86_64", "0", "0"), ("arm64", "1", "1")],
)
def test_on_x86_attention_is_computed_by_products_unless_the_user_chose(machine, given, inside, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv(VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(VARIABLE, given)
    with ort._attention_by_products():
        assert os.environ.get(VARIABLE) == inside
    assert os.environ.get(VARIABLE) == given


@pytest.mark.parametrize("first_out", [0, 1])
def test_of_two_loads_the_last_takes_the_variable_away(first_out, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.delenv(VARIABLE, raising=False)
    loads = [ort._attention_by_products(), ort._attention_by_products()]
    for load in loads:
        load.__enter__()
    for load in (loads[first_out], loads[1 - first_out]):
        assert os.environ[VARIABLE] == "1"
        load.__exit__(None, None, None)
    assert VARIABLE not in os.environ


def test_the_variable_is_gone_when_a_graph_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(Exception, match="cannot load it"):
        ort._open(import_onnxruntime(), tmp_path / "absent.onnx", OrtSettings(64, threads=1))
    assert VARIABLE not in os.environ


def test_both_ways_compute_the_same(nano_artifact, monkeypatch):
    artifact = open_artifact(nano_artifact("fp32", "onnx"))
    rows = []
    for value in ("0", "1"):
        monkeypatch.setenv(VARIABLE, value)
        backend = OrtBackend(artifact.file("onnx"), artifact.manifest.shape, OrtSettings(256, threads=2))
        pieces = [IDS[:70], *([i] for i in IDS[70:])]
        rows.append([backend.forward([Chunk(0, tuple(piece))])[0][-1].copy() for piece in pieces])
        backend.close()
    np.testing.assert_allclose(*rows, atol=2e-4)


@pytest.mark.parametrize(
    ("machine", "slots", "tokens"),
    [("x86_64", 512, 128), ("x86_64", 8192, 128), ("AMD64", 16384, 64), ("x86_64", 40960, 64), ("aarch64", 40960, 512)],
)
def test_a_step_is_as_long_as_its_scores_allow(machine, slots, tokens):
    assert onnx_step_tokens(PUBLISHED["Qwen/Qwen3-0.6B"], slots, machine) == tokens


class Foreign:
    """A loaded graph with these inputs and outputs, which gives these arrays."""

    def __init__(self, inputs, outputs, gives=()):
        self.inputs, self.outputs, self.gives = inputs, outputs, list(gives)

    def get_inputs(self):
        return [SimpleNamespace(name=name) for name in self.inputs]

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in self.outputs]

    def run(self, *_args):
        return self.gives


OWN = ["input_ids", "logit_rows", "seqlens_k", "total_sequence_length", "past_key_values.0.key",
       "past_key_values.0.value"]  # fmt: skip
GIVEN = ["logits", "present.0.key", "present.0.value"]
SHAPE = dataclasses.replace(PUBLISHED["Qwen/Qwen3-0.6B"], num_hidden_layers=1)


@pytest.mark.parametrize(
    ("inputs", "outputs", "named"),
    [
        (OWN, GIVEN[1:], "logits"),
        (OWN, GIVEN[:1] + GIVEN[2:], r"present\.0\.key"),
        (OWN[1:], GIVEN, "input_ids"),
        (OWN[:1] + OWN[2:], GIVEN, "logit_rows"),
        ([*OWN, "past_key_values.1.key"], GIVEN, r"past_key_values\.1\.key"),
    ],
)
def test_a_graph_that_takes_or_gives_something_else_is_refused(monkeypatch, inputs, outputs, named):
    monkeypatch.setattr(ort, "_open", lambda *_: Foreign(inputs, outputs))
    with pytest.raises(EngineError, match=named):
        OrtBackend(Path("graph.onnx"), SHAPE, OrtSettings(64, threads=1))


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        (((1, 3, 100), (1, 8, 3, 128), (1, 8, 3, 128)), "logits"),
        (((1, 3, 151936), (1, 8, 2, 128), (1, 8, 3, 128)), r"present\.0\.key"),
        (((1, 3, 151936), (1, 8, 3, 128), (1, 8, 3, 64)), r"present\.0\.value"),
    ],
)
def test_another_exporters_arrays_of_another_shape_are_refused(monkeypatch, shapes, named):
    gives = [np.zeros(shape, np.float32) for shape in shapes]
    monkeypatch.setattr(ort, "_open", lambda *_: Foreign(["input_ids", "attention_mask", *OWN[4:]], GIVEN, gives))
    backend = OrtPlainBackend(Path("graph.onnx"), SHAPE, OrtSettings(64, threads=1))
    with pytest.raises(EngineError, match=named):
        backend.forward([Chunk(0, (1, 2, 3))])
    assert backend.length(0) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_session_to_wait_for(tmp_path):
    os.mkfifo(tmp_path / "session")
    with pytest.raises(EngineError, match="is a file"):
        check_session(tmp_path / "session")


def test_a_session_that_cannot_be_written_leaves_nothing(tmp_path):
    slab = KvSlab(2, 1, 2, 64, 8)
    with pytest.raises(IndexError):
        slab.save(1, [1, 2, 3], tmp_path / "session")
    assert list(tmp_path.iterdir()) == []
    slab.save(0, [1, 2, 3], tmp_path / "session")
    slab.load(0, [1, 2, 3], tmp_path / "session")


def test_a_header_of_brackets_is_no_session(tmp_path):
    slab = KvSlab(2, 1, 2, 64, 8)
    with new_session(tmp_path / "session"):
        (tmp_path / "session").write_bytes(_MAGIC + b"[" * _HEADER_BYTES)
    with pytest.raises(EngineError, match="session"):
        slab.load(0, [1], tmp_path / "session")


@pytest.mark.skipif(not ort.keeps_scores(platform.machine()), reason="on this processor steps are 512 tokens long")
def test_a_loaded_model_takes_such_steps(nano_artifact):
    from edgeqwen import load

    model = load(nano_artifact("int4", "onnx"), engine="ort", context_length=1024)
    assert model.backend.step_tokens == 128
    model.close()
