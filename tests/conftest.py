"""Shared fixtures: converted nano models, one load each a session."""

import shutil
from pathlib import Path

import pytest

from edgeqwen.catalog import NANO, convert
from edgeqwen.onnx_runtime import silence_onnxruntime

silence_onnxruntime()  # some tests import it themselves


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory):
    """type and formats -> the folder of nano converted to them, once a session."""
    folder = tmp_path_factory.mktemp("nano")
    made: dict[tuple[str, ...], Path] = {}

    def artifact(kind: str, *formats: str) -> Path:
        key = (kind, *(formats or ("gguf",)))
        if key not in made:
            made[key] = convert("nano", folder / "-".join(("nano", *key)), type=kind, formats=key[1:]).path
        return made[key]

    return artifact


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory):
    """A small random Llama with nano's tokenizer and a chat template that edgeqwen does not know; needs torch."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.2,
        tie_word_embeddings=False, eos_token_id=2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama") / "tiny-llama"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(NANO / name, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}",
        "utf-8",
    )
    return folder


@pytest.fixture(scope="session")
def llama_artifact(llama_checkpoint, tmp_path_factory):
    """The same through optimum."""
    out = tmp_path_factory.mktemp("llama") / "tiny-llama-onnx"
    return convert(str(llama_checkpoint), out, formats=("onnx",), exporter="optimum", trust_template=True).path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees or changes the user's cache, and none finds a hub."""
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "edgeqwen-home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
