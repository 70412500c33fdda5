"""An open checkpoint: its figures and rows are what was written, nothing is copied, a change is noticed."""

from __future__ import annotations

import math
import mmap
import os
import shutil

import gguf
import numpy as np
import pytest
import yaml
from gguf.utility import SafetensorsLocal

from converters.architectures import expected_tensors
from converters.checkpoint import find_nonfinite, open_checkpoint
from converters.safetensors import NUMPY_DTYPE
from converters.source_file import SourceFile
from edgeqwen.errors import CheckpointError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
SMALL = {"hidden": 64, "intermediate": 128, "layers": 1, "head_dim": 32}
VARIANTS = {
    "qwen3": {},
    "qwen2": {"architecture": "qwen2", "head_dim": 16},
    "qwen2-head-dim": {"architecture": "qwen2"},
    "untied": {"tied": False},
    "duplicate": {"duplicate": True},
    "two-shards": {"shards": 2},
    "five-shards": {"shards": 5, "duplicate": True},
    "f16": {"dtype": "F16"},
    "f32": {"dtype": "F32"},
    "transformers-5": {"transformers": 5},
}


def oracle(folder):
    """Name -> values as gguf's reader maps them, over all files of the folder."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with SafetensorsLocal(file) as parts:
            for name, part in parts.items():
                tensors[name] = part.mmap_bytes().view(NUMPY_DTYPE[part.dtype]).reshape(part.shape)
    return tensors


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_row_is_what_the_file_holds(make_checkpoint, tmp_path, variant):
    folder = make_checkpoint(tmp_path / "model", **SMALL | VARIANTS[variant])
    expected = oracle(folder)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.tied_duplicate == (HEAD if VARIANTS[variant].get("duplicate") else None)
        if checkpoint.tied_duplicate:
            del expected[HEAD]
        assert list(checkpoint.tensors) == list(expected)
        for name, values in expected.items():
            view = checkpoint.rows(name, 0, len(values))
            assert view.dtype == values.dtype
            np.testing.assert_array_equal(view, values)
            np.testing.assert_array_equal(checkpoint.rows(name, 3, 7), values[3:7])


@pytest.mark.parametrize("architecture", ["qwen3", "qwen2"])
def test_names_are_those_of_gguf(make_checkpoint, tmp_path, architecture):
    folder = make_checkpoint(tmp_path / "model", **SMALL, architecture=architecture, tied=False)
    number = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    table = gguf.get_tensor_name_map(number, 1)
    with open_checkpoint(folder) as checkpoint:
        expected = expected_tensors(checkpoint.shape)
        assert expected.keys() == checkpoint.tensors.keys()
        for name, (gguf_name, dims) in expected.items():
            assert table.get_name(name, (".weight", ".bias")) == gguf_name
            assert checkpoint.tensors[name].shape == dims
        assert list(expected) == list(checkpoint.tensors)  # one file: the order in which it is written


def test_facts(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "Qwen3-Tiny", **SMALL)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.path == folder.resolve()
        assert checkpoint.name == "Qwen3-Tiny"
        assert checkpoint.config["model_type"] == checkpoint.shape.architecture == "qwen3"
        assert (checkpoint.shape.head_dim, checkpoint.shape.hidden_size, checkpoint.shape.num_attention_heads) == (
            32,
            64,
            4,
        )
        assert checkpoint.generation_config["top_k"] == 20
        assert checkpoint.tokenizer_json == (folder / "tokenizer.json").read_bytes()
        assert checkpoint.tokenizer_config["eos_token"] == "<|im_end|>"
        assert checkpoint.chat_template == checkpoint.tokenizer_config["chat_template"]
        assert checkpoint.card == {}
    (folder / "generation_config.json").unlink()
    with open_checkpoint(folder, name="other") as checkpoint:
        assert checkpoint.name == "other"
        assert checkpoint.generation_config == {}


def test_template_file_wins(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    (folder / "chat_template.jinja").write_text("from the file: ü")
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.chat_template == "from the file: ü"


def test_weights_are_not_read_to_open(make_checkpoint, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("weights were read")

    folder = make_checkpoint(tmp_path / "model", **SMALL, shards=2)
    monkeypatch.setattr(SourceFile, "map", refuse)
    with open_checkpoint(folder) as checkpoint, pytest.raises(AssertionError):
        checkpoint.rows(EMBEDDING, 0, 1)


def test_views_are_windows_of_the_file_and_outlive_it(qwen3_tiny):
    with open_checkpoint(qwen3_tiny) as checkpoint:
        view = checkpoint.rows(EMBEDDING, 1000, 1010)
    base = view
    while isinstance(base, np.ndarray):
        base = base.base
    window = base.obj if isinstance(base, memoryview) else base
    assert isinstance(window, mmap.mmap)
    assert len(window) < view.nbytes + mmap.ALLOCATIONGRANULARITY
    assert not view.flags.writeable
    np.testing.assert_array_equal(view, oracle(qwen3_tiny)[EMBEDDING][1000:1010])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 4161), (4161, 4161)])
def test_rows_outside_are_refused(qwen3_tiny, start, stop):
    with open_checkpoint(qwen3_tiny) as checkpoint, pytest.raises(IndexError, match="4160"):
        checkpoint.rows(EMBEDDING, start, stop)


def test_no_rows_are_an_empty_view(qwen3_tiny):
    with open_checkpoint(qwen3_tiny) as checkpoint:
        assert checkpoint.rows(EMBEDDING, 4160, 4160).shape == (0, 256)
        assert checkpoint.rows("model.norm.weight", 0, 0).shape == (0,)


def test_old_buffers_are_ignored(make_checkpoint, tmp_path):
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(16)}
    with open_checkpoint(make_checkpoint(tmp_path / "model", **SMALL, tensors=buffer)) as checkpoint:
        assert not buffer.keys() & checkpoint.tensors.keys()
        assert checkpoint.tensors.keys() == expected_tensors(checkpoint.shape).keys()


def test_types_may_differ_by_tensor(make_checkpoint, tmp_path):
    """Mixed files exist: norms in F32 beside matrices in BF16."""
    one = make_checkpoint(tmp_path / "one", **SMALL, shards=2)
    other = make_checkpoint(tmp_path / "other", **SMALL, shards=2, dtype="F32")
    last = "model-00002-of-00002.safetensors"
    shutil.copy(other / last, one / last)
    with open_checkpoint(one) as checkpoint:
        assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {"BF16", "F32"}


def rewrite(file):
    file.write_bytes(file.read_bytes())
    os.utime(file, ns=(0, 0))


def replace_file(file):
    copy = file.with_suffix(".copy")
    shutil.copy2(file, copy)
    copy.replace(file)


def cut(file):
    os.truncate(file, file.stat().st_size - 1)


@pytest.mark.parametrize("change", [rewrite, replace_file, cut, os.unlink], ids=lambda change: change.__name__)
def test_a_change_while_open_is_noticed(make_checkpoint, tmp_path, change):
    folder = make_checkpoint(tmp_path / "model", **SMALL, shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    checkpoint = open_checkpoint(folder)
    checkpoint.check_unchanged()
    change(file)
    with pytest.raises(CheckpointError, match=rf"{file.name}: (changed|vanished) while it was read"):
        checkpoint.check_unchanged()
    with pytest.raises(CheckpointError, match=file.name), checkpoint:
        pass  # leaving the block checks too


def test_a_fault_inside_the_block_is_not_hidden(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", **SMALL)

    def fail() -> None:
        with open_checkpoint(folder):
            cut(folder / "model.safetensors")
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_rows_of_a_file_cut_short_are_an_error(make_checkpoint, tmp_path):
    """Not the bus error that reading a mapping beyond the end would be."""
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(CheckpointError, match="cannot be mapped"):
        checkpoint.rows("model.norm.weight", 0, 64)
    checkpoint.close()
    checkpoint.close()  # twice is allowed


def test_rows_after_close_are_an_error(qwen3_tiny):
    checkpoint = open_checkpoint(qwen3_tiny)
    checkpoint.close()
    with pytest.raises(ValueError, match="closed"):
        checkpoint.rows(EMBEDDING, 0, 1)


def test_links_of_a_hub_cache(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-Tiny" / "snapshots" / ("0" * 40)
    blobs = snapshot.parent.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    shared = tmp_path / "hub" / "blobs" / "00" / "shared"  # of all models in the cache
    shared.parent.mkdir(parents=True)
    weights = (snapshot / "model.safetensors").resolve()
    weights.rename(shared)
    weights.symlink_to("../../blobs/00/shared")
    with open_checkpoint(snapshot) as checkpoint:
        assert checkpoint.name == "Qwen3-Tiny"
        assert checkpoint.rows(EMBEDDING, 0, 1).shape == (1, 64)
    for file in (tmp_path / "secret", blobs.parent / "secret"):  # outside, though inside the cache
        file.write_text("{}")
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(file)
        with pytest.raises(CheckpointError, match=r"config\.json: the link leads out"):
            open_checkpoint(snapshot)


def test_a_link_to_the_folder_is_followed(make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with open_checkpoint(link) as checkpoint:
        assert checkpoint.path == folder.resolve()


CARDS = {
    "qwen": (
        "library_name: transformers\nlicense: apache-2.0\nlicense_link: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main"
        "/LICENSE\npipeline_tag: text-generation\nbase_model:\n- Qwen/Qwen3-0.6B-Base\n"
    ),
    "lists": "license: 'mit'\nlanguage: [en, \"zh\"]\ntags:\n  - chat\n  - 'qwen3'\nbase_model: a/b\n",
    "nested": "model-index:\n- name: x\n  results:\n    - license: evil\nlicense: mit\n",
}


@pytest.mark.parametrize("card", CARDS)
def test_card_agrees_with_yaml(make_checkpoint, tmp_path, card):
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    (folder / "README.md").write_text(f"---\n{CARDS[card]}---\n# Title\nlicense: not this\n")
    expected = {
        key: value if key.startswith(("license", "pipeline")) else tuple([value] if isinstance(value, str) else value)
        for key, value in yaml.safe_load(CARDS[card]).items()
        if key not in {"library_name", "model-index"}
    }
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.card == expected


@pytest.mark.parametrize(
    "text", ["", "---", "license: mit", "---\nlicense: {a: b}\n---\n", "---\nlicense: >\n x\n---\n"]
)
def test_cards_without_facts(make_checkpoint, tmp_path, text):
    folder = make_checkpoint(tmp_path / "model", **SMALL)
    (folder / "README.md").write_text(text)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.card == {}


def as_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32) if bits.dtype == np.uint16 else bits


@pytest.mark.parametrize("kind", ["BF16", "F16"])
def test_nonfinite_agrees_with_numpy_on_every_pattern_of_16_bits(kind):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = bits.view(NUMPY_DTYPE[kind])
    with np.errstate(invalid="ignore"):
        bad = ~np.isfinite(as_float(values))
    found = np.array([find_nonfinite(values[n : n + 1]) == 0 for n in range(1 << 16)])
    np.testing.assert_array_equal(found, bad)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 32767, 32768, 99_999])
def test_nonfinite_names_the_first(value, position):
    rows = np.random.default_rng(0).standard_normal((100, 1000), dtype=np.float32)
    rows[0, :4] = [np.finfo(np.float32).max, np.finfo(np.float32).tiny / 2, -0.0, np.finfo(np.float32).min]
    assert find_nonfinite(rows) is None
    rows.reshape(-1)[position:] = value
    assert find_nonfinite(rows) == position
    assert find_nonfinite((rows.view(np.uint32) >> 16).astype(np.uint16)) == position
    assert find_nonfinite(rows[:0]) is None


def test_nonfinite_in_a_checkpoint(make_checkpoint, tmp_path):
    norm = np.ones(64)
    norm[17] = np.nan
    folder = make_checkpoint(tmp_path / "model", **SMALL, tensors={"model.norm.weight": norm})
    with open_checkpoint(folder) as checkpoint:
        assert find_nonfinite(checkpoint.rows("model.norm.weight", 0, 64)) == 17
