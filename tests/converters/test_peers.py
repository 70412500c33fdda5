"""Side by side with the tools of llama.cpp, over the real vocabulary: whole files are equal to the byte.

EDGEQWEN_PEERS names a folder with llama.cpp/convert_hf_to_gguf.py, venv/bin/python to run it and bin/llama-quantize.
The vocabulary comes from llama.cpp's own models/ggml-vocab-qwen2.gguf.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from converters.build import convert_checkpoint
from converters.checkpoint import open_checkpoint
from converters.mixture import FILE_TYPES
from converters.quantize import TENSOR_TYPES, RowQuantizer, load_ggml
from edgeqwen.artifact import open_artifact
from edgeqwen.gguf import GGML_TYPES, open_gguf

PEERS = Path(os.environ.get("EDGEQWEN_PEERS", ""))
pytestmark = [
    pytest.mark.peers,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not os.environ.get("EDGEQWEN_PEERS"), reason="EDGEQWEN_PEERS names no folder with the peers"),
]

ROWS = 151_936
CARD = """---
library_name: transformers
license: apache-2.0
license_link: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/LICENSE
pipeline_tag: text-generation
base_model:
- Qwen/Qwen3-0.6B-Base
language: [en, zh]
tags:
- chat
---
# A model
"""
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
WIDE = {"architecture": "qwen2", "hidden": 896, "intermediate": 4864, "heads": 14, "head_dim": 64}
# folder's name -> (settings of make_checkpoint, type of its weights, model card)
CHECKPOINTS = {
    "Qwen3-0.1B": ({}, "bf16", None),
    "Qwen2.5-0.5B-Instruct": (WIDE, "bf16", CARD),
    "my-model-v2": ({"tied": False, "dtype": "F16", "layers": 9, "config": {"rope_scaling": YARN}}, "f16", None),
    "odd_name": (
        {"dtype": "F32", "layers": 1, "config": {"_name_or_path": "Some-Org/Qwen3-8B-Chat-v1.5"}},
        "f32",
        CARD,
    ),
}


def run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def write_tokenizer(folder: Path) -> None:
    """The vocabulary of Qwen2 as a tokenizer.json, and the chat template of Qwen3."""
    with open_gguf(PEERS / "llama.cpp/models/ggml-vocab-qwen2.gguf") as file:
        tokens, types = file.metadata["tokenizer.ggml.tokens"], file.metadata["tokenizer.ggml.token_type"]
        merges = file.metadata["tokenizer.ggml.merges"]
    plain = {text: number for number, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    control = [(number, text) for number, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 3]
    control += [(len(plain) + len(control) + extra, text) for extra, text in enumerate(("<think>", "</think>"))]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": n, "content": text, **flags, "special": text.startswith("<|")} for n, text in control]
    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))  # the nano model's: the same scheme
    data |= {"added_tokens": added, "model": data["model"] | {"vocab": plain, "merges": merges}}
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    template = (PEERS / "llama.cpp/models/templates/Qwen-Qwen3-0.6B.jinja").read_text("utf-8")
    config = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": template, "add_bos_token": False}
    config |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    ids = {text: number for number, text in control}
    for name in ("config.json", "generation_config.json"):
        data = json.loads((folder / name).read_text("utf-8"))
        data |= {"eos_token_id": ids["<|im_end|>"]}
        data.pop("pad_token_id", None)
        (folder / name).write_text(json.dumps(data), "utf-8")


@pytest.fixture(scope="module", params=CHECKPOINTS)
def checkpoint(request, make_checkpoint, tmp_path_factory):
    """A checkpoint and what convert_hf_to_gguf makes of it in the type of its weights."""
    settings, kind, card = CHECKPOINTS[request.param]
    folder = make_checkpoint(tmp_path_factory.mktemp("peers") / request.param, rows=ROWS, **settings)
    write_tokenizer(folder)
    if card:
        (folder / "README.md").write_text(card, "utf-8")
    converted = folder.parent / "converted.gguf"
    run(PEERS / "venv/bin/python", PEERS / "llama.cpp/convert_hf_to_gguf.py", folder,
        "--outtype", kind, "--outfile", converted)  # fmt: skip
    return folder, converted


def convert(folder: Path, out: Path, kind: str) -> Path:
    with open_checkpoint(folder) as opened:
        convert_checkpoint(opened, out, type=kind)
    return open_artifact(out).file("gguf")


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_the_file_is_that_of_llama_quantize_to_the_byte(checkpoint, kind, tmp_path) -> None:
    folder, converted = checkpoint
    run(PEERS / "bin/llama-quantize", converted, tmp_path / "expected.gguf", kind)
    mine = convert(folder, tmp_path / "out", kind)
    with open_gguf(mine) as ours, open_gguf(tmp_path / "expected.gguf") as theirs:
        assert list(ours.metadata) == list(theirs.metadata)
        for key in theirs.metadata:
            assert ours.metadata[key] == theirs.metadata[key], key
        assert {t.name: t.type for t in ours.tensors.values()} == {t.name: t.type for t in theirs.tensors.values()}
    assert mine.read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_the_keys_are_those_of_convert_hf_to_gguf(checkpoint, tmp_path) -> None:
    folder, converted = checkpoint
    with open_gguf(convert(folder, tmp_path / "out", "q8_0")) as ours, open_gguf(converted) as theirs:
        assert set(ours.metadata) == set(theirs.metadata)
        for key in set(theirs.metadata) - {"general.file_type"}:
            assert ours.metadata[key] == theirs.metadata[key], key


def awkward_rows() -> dict[str, np.ndarray]:
    """Rows of 1,024 weights that a search for scales may stumble over: zeros, ties, one sign, next to nothing."""
    random = np.random.default_rng(7)
    normal = random.standard_normal((64, 1024)).astype(np.float32)
    groups = np.repeat(random.random((64, 64)) < 0.5, 16, axis=1)
    rows = {
        "normal": normal,
        "heavy-tailed": random.standard_t(2, normal.shape),
        "sparse": np.where(random.random(normal.shape) < 0.05, normal, 0),
        "groups of zeros": np.where(groups, normal, 0),
        "zeros": np.zeros_like(normal),
        "whole numbers": random.integers(-3, 4, normal.shape),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "alike": np.full_like(normal, 0.3),
        "small": normal * 1e-16,
        "subnormal": normal * 1e-38,
        "of many sizes": normal * np.repeat(10.0 ** random.integers(-20, 4, (64, 64)), 16, axis=1),
    }
    return {name: np.ascontiguousarray(values, dtype=np.float32) for name, values in rows.items()}


@pytest.mark.parametrize("kind", [kind for kind in TENSOR_TYPES if GGML_TYPES[kind].block_size > 1])
def test_awkward_rows_become_the_bytes_of_the_peers_ggml(kind) -> None:
    theirs = ctypes.CDLL(str(PEERS / "build/bin/libggml-base.so")).ggml_quantize_chunk
    theirs.argtypes, theirs.restype = load_ggml().ggml_quantize_chunk.argtypes, ctypes.c_size_t
    for name, rows in awkward_rows().items():
        mine, expected = (np.empty(GGML_TYPES[kind].nbytes(rows.size), np.uint8) for _ in range(2))
        RowQuantizer().quantize(rows, kind, mine)
        theirs(GGML_TYPES[kind].id, rows.ctypes.data, expected.ctypes.data, 0, *rows.shape, None)
        assert np.array_equal(mine, expected), name
