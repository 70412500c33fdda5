"""Small synthetic checkpoints: real names, real files, random weights from a seed, the tokenizer of the nano model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

import edgeqwen

NANO = Path(edgeqwen.__file__).parent / "nano"
ROWS = 4160  # the nano tokenizer has 4,096 ids; the rest is padding, as in the public releases

Entries = dict[str, tuple[str, np.ndarray]]  # tensor name -> safetensors type, values (BF16: bits)


class Builder(Protocol):
    """What the fixture `make_checkpoint` gives; see `build`."""

    def __call__(self, folder: Path, **settings: Any) -> Path: ...


def build(
    folder: Path,
    *,
    architecture: str = "qwen3",
    hidden: int = 256,
    intermediate: int = 512,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 128,
    rows: int = ROWS,
    tied: bool = True,
    duplicate: bool = False,
    dtype: str = "BF16",
    shards: int = 1,
    transformers: int = 4,
    seed: int = 0,
    config: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a checkpoint into `folder` and return it.

    duplicate: store the tied lm_head too. transformers: 4 or 5, the spelling of config.json. config: keys to set on
    top. tensors: values (float32) to put in place of the random ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(architecture, hidden, intermediate, layers, heads, kv_heads, head_dim, rows)
    if tied and not duplicate:
        del shapes["lm_head.weight"]
    values = {name: draw(name, shape, seed, tied) for name, shape in shapes.items()} | (tensors or {})
    entries: Entries = {name: (dtype, encode(array, dtype)) for name, array in sorted(values.items())}
    write_shards(folder, entries, shards)
    data = {
        "architectures": ["Qwen3ForCausalLM" if architecture == "qwen3" else "Qwen2ForCausalLM"],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": tied,
        "use_sliding_window": False,
        "vocab_size": rows,
    }
    if architecture == "qwen3" or head_dim != hidden // heads:
        data |= {"head_dim": head_dim, "attention_bias": False}
    if transformers == 5:
        data |= {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}}
    else:
        data |= {"torch_dtype": "bfloat16", "rope_theta": 1000000, "rope_scaling": None}
    ids = {token["content"]: token["id"] for token in json.loads((NANO / "tokenizer.json").read_text())["added_tokens"]}
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    write_json(folder / "config.json", data | {"bos_token_id": pad, "eos_token_id": end} | (config or {}))
    generation = {"eos_token_id": [end, pad], "pad_token_id": pad, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    write_json(folder / "generation_config.json", generation)
    shutil.copy(NANO / "tokenizer.json", folder)
    shutil.copy(NANO / "tokenizer_config.json", folder)
    return folder


def tensor_shapes(
    architecture: str, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, head_dim: int, rows: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers writes them, spelled out here once more: the oracle of the table under test."""
    q, kv = heads * head_dim, kv_heads * head_dim
    shapes: dict[str, tuple[int, ...]] = {"lm_head.weight": (rows, hidden), "model.embed_tokens.weight": (rows, hidden)}
    for n in range(layers):
        layer, attention = f"model.layers.{n}.", f"model.layers.{n}.self_attn."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "mlp.down_proj.weight": (hidden, intermediate),
            layer + "mlp.gate_proj.weight": (intermediate, hidden),
            layer + "mlp.up_proj.weight": (intermediate, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            attention + "k_proj.weight": (kv, hidden),
            attention + "o_proj.weight": (hidden, q),
            attention + "q_proj.weight": (q, hidden),
            attention + "v_proj.weight": (kv, hidden),
        }
        if architecture == "qwen3":
            shapes |= {attention + "k_norm.weight": (head_dim,), attention + "q_norm.weight": (head_dim,)}
        else:
            shapes |= {attention + "k_proj.bias": (kv,), attention + "q_proj.bias": (q,)}
            shapes |= {attention + "v_proj.bias": (kv,)}
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def draw(name: str, shape: tuple[int, ...], seed: int, tied: bool) -> np.ndarray:
    """float32: norms near one, matrices and biases normal with a deviation of 0.02; the same for the same name."""
    name = "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
    rng = np.random.default_rng([seed, *name.encode()])
    x = rng.standard_normal(shape, dtype=np.float32)
    return 1 + 0.1 * x if "norm" in name else 0.02 * x


def encode(array: np.ndarray, dtype: str) -> np.ndarray:
    """float32 -> what the file holds: BF16 bits cut off (no rounding: values are random anyway), float16, float32."""
    array = np.asarray(array, np.float32)
    if dtype == "BF16":
        return (array.view(np.uint32) >> 16).astype("<u2")
    return array.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def write_shards(folder: Path, entries: Entries, shards: int) -> None:
    """One model.safetensors, or `shards` files and their index."""
    names = list(entries)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", entries)
        return
    weight_map: dict[str, str] = {}
    for s in range(shards):
        part = names[s * len(names) // shards : (s + 1) * len(names) // shards]
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {name: entries[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(array.nbytes for _, array in entries.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_safetensors(path: Path, entries: Entries) -> None:
    """Tensors one behind the other, in the order given, as the safetensors library lays them out."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, array) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    data = b"".join(array.tobytes() for _, array in entries.values())
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")


@pytest.fixture(scope="session")
def make_checkpoint() -> Builder:
    """The builder above: make_checkpoint(folder, architecture="qwen2", ...) -> folder."""
    return build


@pytest.fixture(scope="session")
def qwen3_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen3 folder, tied, BF16, head_dim 128 where hidden/heads is 64. Not to be changed by a test."""
    return build(tmp_path_factory.mktemp("checkpoints") / "qwen3-tiny")


@pytest.fixture(scope="session")
def qwen2_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A qwen2 folder with biases and no head_dim key. Not to be changed by a test."""
    return build(tmp_path_factory.mktemp("checkpoints") / "qwen2-tiny", architecture="qwen2", head_dim=64)
