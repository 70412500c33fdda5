"""The reference: nano's checkpoint through transformers, against which both engines are held; and what it refuses."""

import json
import shutil
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from edgeqwen.artifact import open_artifact
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.llamacpp import LlamaCppBackend, LlamaCppSettings
from edgeqwen.backends.ort import OrtBackend, OrtSettings
from edgeqwen.backends.session_file import SEAL_BYTES, new_session
from edgeqwen.catalog import NANO
from edgeqwen.errors import CheckpointError, EngineError, EngineMissingError
from edgeqwen.reference_checkpoint import import_torch, read_config

CONTEXT, LENGTHS = 128, 64
TOLERANCE = 2e-4  # of a logit; nano's go up to about 25
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed: make reference")


@pytest.fixture(scope="module")
def reference():
    from edgeqwen.backends.reference import ReferenceBackend, ReferenceSettings

    backend = ReferenceBackend(NANO, ReferenceSettings(CONTEXT, threads=2, sequences=2))
    yield backend
    backend.close()


@pytest.fixture(scope="module", params=["llamacpp", "ort"])
def engine(request, nano_artifact):
    if request.param == "llamacpp":
        (path,) = nano_artifact("f32").glob("*.gguf")
        backend = LlamaCppBackend(path, LlamaCppSettings(CONTEXT, threads=2, kv_type="f32"))
    else:
        artifact = open_artifact(nano_artifact("fp32", "onnx"))
        backend = OrtBackend(artifact.file("onnx"), artifact.manifest.shape, OrtSettings(CONTEXT, threads=2))
    yield backend
    backend.close()


@pytest.mark.reference
@needs_torch
def test_every_prompt_length_gives_the_same_logits_on_the_engines(reference, engine):
    rng = np.random.default_rng(5)
    for length in range(1, LENGTHS + 1):
        ids = [int(i) for i in rng.integers(0, 4000, length)]
        rows = []
        for backend in (reference, engine):
            backend.truncate(0, 0)
            rows.append(backend.forward([Chunk(0, ids)])[0].copy())
        np.testing.assert_allclose(rows[1], rows[0], rtol=0, atol=TOLERANCE, err_msg=f"{length} tokens")


@pytest.mark.reference
@needs_torch
def test_it_is_opened_by_its_name_as_it_was_planned(reference):
    from edgeqwen.backends import open_backend
    from edgeqwen.memory_need import MemoryNeed
    from edgeqwen.plan import Plan

    plan = Plan(
        "reference", CONTEXT, 2, "f32", mmap=True, gpu_layers=0, need=MemoryNeed(0, 0, 0, 0), reasons=(), sequences=2
    )
    done = []
    opened = open_backend(NANO, plan, done.append)
    reference.truncate(0, 0)
    (wanted,) = reference.forward([Chunk(0, [5, 6, 7], "all")])
    (logits,) = opened.forward([Chunk(1, [5, 6, 7], "all")])
    np.testing.assert_array_equal(logits, wanted)
    assert (opened.context_length, opened.sequences, done) == (CONTEXT, 2, [1.0])
    opened.close()


@pytest.mark.reference
@needs_torch
def test_a_session_of_another_model_is_refused(reference, tmp_path):
    import torch
    from safetensors.torch import load, save

    reference.truncate(0, 0)
    reference.truncate(1, 0)
    reference.forward([Chunk(0, [1, 2, 3])])
    reference.save(0, tmp_path / "session")
    tensors = load((tmp_path / "session").read_bytes()[:-SEAL_BYTES])
    tensors["0.key"] = torch.zeros(1, 9, 3, 128)
    with new_session(tmp_path / "other"):
        (tmp_path / "other").write_bytes(save(tensors))
    with pytest.raises(EngineError, match="not a session of these 3 tokens"):
        reference.load(1, tmp_path / "other", [1, 2, 3])
    reference.load(1, tmp_path / "session", [1, 2, 3])


@pytest.mark.reference
@needs_torch
@pytest.mark.parametrize("damage", ["pickle", "weights", "model_type"])
def test_a_checkpoint_that_cannot_be_opened_says_so(tmp_path, damage):
    import torch

    from edgeqwen.reference_checkpoint import open_reference_checkpoint

    folder = shutil.copytree(NANO, tmp_path / "checkpoint")
    if damage == "model_type":
        change_config(folder, model_type="unheard_of")
    else:
        (folder / "model.safetensors").unlink()
    if damage == "pickle":
        torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="transformers cannot open it"):
        open_reference_checkpoint(folder)


@pytest.mark.reference
@needs_torch
def test_logits_go_through_what_a_family_does_behind_its_head(tmp_path):
    """Gemma 2 caps them."""
    import torch
    import transformers

    from edgeqwen.backends.reference import ReferenceBackend, ReferenceSettings

    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, initializer_range=1.0,
    )  # fmt: skip
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    backend = ReferenceBackend(tmp_path / "gemma", ReferenceSettings(CONTEXT, threads=1))
    (logits,) = backend.forward([Chunk(0, [1, 2, 3], "all")])
    assert 0.3 < np.abs(logits).max() <= 0.5
    backend.close()


@pytest.mark.parametrize("key", ["auto_map", "quantization_config"])
def test_a_config_that_asks_for_code_is_refused(tmp_path, key):
    folder = shutil.copytree(NANO, tmp_path / "checkpoint")
    change_config(folder, **{key: {"AutoModelForCausalLM": "evil--model.Evil"}})
    with pytest.raises(CheckpointError, match=key):
        read_config(folder / "config.json")


def test_keys_that_choose_an_implementation_never_reach_transformers(tmp_path):
    folder = shutil.copytree(NANO, tmp_path / "checkpoint")
    before = read_config(folder / "config.json")
    change_config(
        folder,
        _attn_implementation_internal="evil/kernel",
        attn_implementation="evil/kernel",
        text_config={"_attn_implementation": "evil/kernel"},
    )
    assert read_config(folder / "config.json") == before | {"text_config": {}}


def test_a_config_that_is_not_there_or_too_long_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b" " * (4 << 20) + b"{}")
    with pytest.raises(CheckpointError, match="more than"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="model_type"):
        read_config(tmp_path / "config.json")


def test_without_torch_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineMissingError, match=r"pip install 'edgeqwen\[reference\]'"):
        import_torch()


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | keys), "utf-8")
