"""Whole conversions. Oracles: llama.cpp's quantizer on the whole file, gguf-py as the reader, llama.cpp as loader."""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import threading

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize as gguf_dequantize

from converters import stream
from converters.architectures import expected_tensors
from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from converters.mixture import FILE_TYPES
from converters.verify import as_float32
from edgeqwen.artifact import open_artifact
from edgeqwen.backends import llamacpp
from edgeqwen.backends.llamacpp_library import load_llama
from edgeqwen.errors import ArtifactError, CheckpointError, RequestError, TemplateError
from edgeqwen.gguf import open_gguf, shape_of

llama_cpp = load_llama()


def convert(folder, out, *, type="q8_0", **settings):
    with open_checkpoint(folder) as checkpoint:
        return convert_checkpoint(checkpoint, out, type=type, **settings)


def weights_file(out):
    return open_artifact(out, verify="full").file("gguf")


def requantize(source, target, file_type: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[file_type].id, 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


@pytest.fixture(scope="session")
def sources(make_checkpoint, qwen3_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    wide = {"architecture": "qwen2", "hidden": 896, "intermediate": 768, "heads": 14, "head_dim": 64}
    return {
        "qwen3": qwen3_tiny,
        "qwen2-896": make_checkpoint(folder / "Qwen2.5-0.5B-Instruct", layers=2, **wide),
        "untied F16": make_checkpoint(folder / "untied", tied=False, dtype="F16", layers=3, intermediate=256, shards=2),
        "F32": make_checkpoint(folder / "f32", dtype="F32", duplicate=True, layers=1),
    }


@pytest.fixture(scope="session")
def originals(sources, tmp_path_factory):
    """Each source as a GGUF file in its own type: what llama-quantize takes."""
    folder = tmp_path_factory.mktemp("originals")
    types = {"qwen3": "bf16", "qwen2-896": "bf16", "untied F16": "f16", "F32": "f32"}
    for name, kind in types.items():
        convert(sources[name], folder / name, type=kind)
    return {name: weights_file(folder / name) for name in types}


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("name", ["qwen3", "qwen2-896", "untied F16", "F32"])
def test_the_file_is_llama_quantizes_to_the_byte(name, file_type, sources, originals, tmp_path, capfd) -> None:
    requantize(originals[name], tmp_path / "expected.gguf", file_type)
    convert(sources[name], tmp_path / "out", type=file_type)
    assert weights_file(tmp_path / "out").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_bytes_do_not_depend_on_threads_or_the_run(sources, tmp_path) -> None:
    for run, threads in enumerate((1, 3, 3)):
        convert(sources["qwen2-896"], tmp_path / str(run), type="q4_k_m", threads=threads)
    first = tmp_path / "0"
    for name in {*open_artifact(first).manifest.files, "manifest.json"}:
        assert (
            (tmp_path / "1" / name).read_bytes() == (first / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
        )


@pytest.mark.parametrize("name", ["qwen3", "qwen2-896", "untied F16"])
def test_gguf_py_finds_the_checkpoints_weights(name, sources, tmp_path) -> None:
    report = convert(sources[name], tmp_path / "out", type="q8_0")
    reader = gguf.GGUFReader(weights_file(tmp_path / "out"))
    found = {tensor.name: tensor for tensor in reader.tensors}
    with open_checkpoint(sources[name]) as checkpoint:
        expected = expected_tensors(checkpoint.shape)
        assert found.keys() == {gguf_name for gguf_name, _ in expected.values()}
        for hf_name, (gguf_name, shape) in expected.items():
            tensor = found[gguf_name]
            assert tuple(reversed(tensor.shape.tolist())) == shape
            values = gguf_dequantize(tensor.data, tensor.tensor_type).reshape(shape)
            wanted = as_float32(checkpoint.rows(hf_name, 0, shape[0]))
            tolerance = (
                0 if len(shape) == 1 else np.abs(wanted).max() / 220
            )  # half a step of 1/127, and the scale in 16 bits
            np.testing.assert_allclose(values, wanted, rtol=0, atol=tolerance)
    assert report.tensor_types == {
        kind: sum(tensor.tensor_type.name == kind for tensor in reader.tensors) for kind in ("F32", "Q8_0")
    }


@pytest.mark.parametrize("name", ["qwen3", "qwen2-896", "untied F16", "F32"])
def test_the_shape_reads_back(name, sources, tmp_path) -> None:
    convert(sources[name], tmp_path / "out", type="f16")
    with open_checkpoint(sources[name]) as checkpoint, open_gguf(weights_file(tmp_path / "out")) as file:
        assert shape_of(file) == checkpoint.shape == open_artifact(tmp_path / "out").manifest.shape


def test_llama_cpp_loads_it_and_its_words_are_the_tokenizers(sources, tmp_path, capfd) -> None:
    convert(sources["qwen3"], tmp_path / "out", type="q4_k_m")
    artifact = open_artifact(tmp_path / "out")
    llamacpp._log.attach(llama_cpp)  # and let ggml load the library for this processor
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = False
    model = llama_cpp.llama_model_load_from_file(str(artifact.file("gguf")).encode(), params)
    assert model
    try:
        vocab = llama_cpp.llama_model_get_vocab(model)
        tokens = json.loads(artifact.file("tokenizer").read_bytes())
        for token in tokens["added_tokens"]:
            assert llama_cpp.llama_vocab_get_text(vocab, token["id"]) == token["content"].encode()
        for text, number in list(tokens["model"]["vocab"].items())[::97]:
            assert llama_cpp.llama_vocab_get_text(vocab, number) == text.encode()
        assert llama_cpp.llama_vocab_n_tokens(vocab) == artifact.manifest.shape.vocab_size
        assert llama_cpp.llama_vocab_eos(vocab) in artifact.manifest.end_ids
        assert llama_cpp.llama_model_n_embd(model) == artifact.manifest.shape.hidden_size
    finally:
        llama_cpp.llama_model_free(model)


def test_the_report_and_the_manifest_say_what_was_done(sources, tmp_path) -> None:
    report = convert(sources["F32"], tmp_path / "out", type="INT8")
    artifact = open_artifact(tmp_path / "out")
    weights = artifact.file("gguf")
    assert (report.type, report.path, report.tied_duplicate_dropped) == ("Q8_0", tmp_path / "out", True)
    assert report.bytes_out == weights.stat().st_size == artifact.manifest.files[weights.name].size
    assert report.sha256 == artifact.manifest.files[weights.name].sha256
    assert report.bytes_in == (sources["F32"] / "model.safetensors").stat().st_size
    assert report.errors["F32"] == 0
    assert 0.003 < report.errors["Q8_0"] < 0.007
    assert set(report.seconds) == {"plan", "weights", "total"}
    manifest, measured = artifact.manifest, artifact.measured()["convert"]
    assert measured["relative_rms_error"] == report.errors
    assert manifest.sampling == {"temperature": 0.6, "top_k": 20.0, "top_p": 0.95}
    ids = {text: manifest.special_ids[text] for text in ("<|im_end|>", "<|endoftext|>")}
    assert manifest.end_ids == tuple(ids.values())
    assert manifest.source.name == "f32"
    assert manifest.source.files["model.safetensors"].sha256 is None
    assert manifest.source.files["config.json"].sha256 is not None
    assert artifact.file("tokenizer").read_bytes() == (sources["F32"] / "tokenizer.json").read_bytes()


def test_errors_of_coarser_types_are_larger(sources, tmp_path) -> None:
    found = {}
    for kind in ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"):
        found |= convert(sources["F32"], tmp_path / kind, type=kind).errors
    order = [found[kind] for kind in ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0")]
    assert order == sorted(order)
    assert order[-1] < 0.12


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(value, dtype, make_checkpoint, tmp_path) -> None:
    bad = np.full((512, 256), 0.5, np.float32)
    bad[301, 17] = value
    bad[400, 3] = value
    name = "model.layers.1.mlp.up_proj.weight"
    folder = make_checkpoint(tmp_path / "in", dtype=dtype, tensors={name: bad})
    with pytest.raises(CheckpointError, match=rf"{name}\[301, 17\] is NaN or infinite"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bias_that_is_not_finite_is_named(make_checkpoint, tmp_path) -> None:
    name = "model.layers.0.self_attn.k_proj.bias"
    bias = np.zeros(128, np.float32)
    bias[127] = np.nan
    folder = make_checkpoint(tmp_path / "in", architecture="qwen2", head_dim=64, tensors={name: bias})
    with pytest.raises(CheckpointError, match=rf"{name}\[127\] is NaN"):
        convert(folder, tmp_path / "out")


def test_a_weight_that_a_type_cannot_hold_is_named(make_checkpoint, tmp_path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    large = np.full((512, 256), 1e10, np.float32)
    folder = make_checkpoint(tmp_path / "in", tensors={name: large})
    with pytest.raises(CheckpointError, match=rf"{name}, rows 0 to 511: a weight is too large for Q8_0"):
        convert(folder, tmp_path / "out")
    convert(folder, tmp_path / "out", type="bf16")
    assert open_artifact(tmp_path / "out", verify="full")


def test_texts_that_are_no_unicode_are_refused(make_checkpoint, tmp_path) -> None:
    folder = make_checkpoint(tmp_path / "in")
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8")) | {"chat_template": "\ud800"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(CheckpointError):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_keeps_the_old_artifact(sources, make_checkpoint, tmp_path) -> None:
    convert(sources["qwen3"], tmp_path / "out")
    old = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    bad = make_checkpoint(tmp_path / "in", tensors={"model.norm.weight": np.full(256, np.nan, np.float32)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight\[0\]"):
        convert(bad, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == old


def test_progress_counts_up_to_the_size_of_the_file(sources, tmp_path) -> None:
    seen: list[tuple[int, int, str]] = []
    report = convert(sources["qwen3"], tmp_path / "out", progress=lambda *step: seen.append(step))
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})
    assert {total for _, total, _ in seen} == {report.bytes_out}
    assert seen[-1][:2] == (report.bytes_out, report.bytes_out)
    assert "blk.1.ffn_down.weight" in {label for _, _, label in seen}


def test_an_interrupt_leaves_nothing_and_no_thread(sources, tmp_path) -> None:
    def interrupt(done: int, total: int, label: str) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        convert(sources["qwen2-896"], tmp_path / "out", progress=interrupt, threads=3)
    assert not (tmp_path / "out").exists()
    assert threading.active_count() == before


def test_an_unknown_template_needs_trust_and_the_manifest_says_so(sources, tmp_path) -> None:
    with pytest.raises(TemplateError, match="--trust-template"):
        convert(sources["qwen3"], tmp_path / "out", template_known=False)
    assert not (tmp_path / "out").exists()
    convert(sources["qwen3"], tmp_path / "out", template_known=False, trust_template=True)
    assert open_artifact(tmp_path / "out").manifest.trusted_template
    convert(sources["qwen3"], tmp_path / "out", template_known=True, trust_template=True)
    assert not open_artifact(tmp_path / "out").manifest.trusted_template


def test_requests_that_cannot_be_met(sources, tmp_path) -> None:
    with pytest.raises(RequestError, match="q9"):
        convert(sources["qwen3"], tmp_path / "out", type="q9")
    with pytest.raises(RequestError, match="threads is 0"):
        convert(sources["qwen3"], tmp_path / "out", threads=0)
    with pytest.raises(ArtifactError, match="checkpoint's own"):
        convert(sources["qwen3"], sources["qwen3"])
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_changes_meanwhile_is_refused(make_checkpoint, tmp_path) -> None:
    folder = make_checkpoint(tmp_path / "in")

    def touch(done: int, total: int, label: str) -> None:
        (folder / "model.safetensors").touch()

    with pytest.raises(CheckpointError, match="changed while"):
        convert(folder, tmp_path / "out", progress=touch)
    assert not (tmp_path / "out").exists()


def test_a_disk_that_gives_back_other_bytes_is_found(sources, tmp_path, monkeypatch) -> None:
    drain = stream._drain
    state = {"calls": 0}

    def flaky(call, view) -> None:
        drain(call, view)
        state["calls"] += 1
        if state["calls"] == 12:  # a read: writes and reads alternate
            view[0] ^= 1

    monkeypatch.setattr(stream, "_drain", flaky)
    with pytest.raises(ArtifactError, match="other bytes"):
        convert(sources["qwen3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fails_in_the_background_is_told(sources, tmp_path, monkeypatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(stream, "_SYNC_BYTES", 1 << 16)
    monkeypatch.setattr(stream, "_sync_data", fail)
    with pytest.raises(ArtifactError, match=f"cannot be written: {os.strerror(errno.EIO)}"):
        convert(sources["qwen3"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
