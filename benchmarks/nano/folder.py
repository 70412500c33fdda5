"""The model folder as transformers writes it: config.json and model.safetensors, there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .model import Nano, Shape
from .tokenizer import Renderer

# our fused parameter -> the tensors it is made of, in order
PARTS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
    "input_norm.weight": ("input_layernorm",),
    "post_norm.weight": ("post_attention_layernorm",),
    "q_norm.weight": ("self_attn.q_norm",),
    "k_norm.weight": ("self_attn.k_norm",),
}


def names(parameter: str) -> list[str]:
    """Return the checkpoint's names of the tensors in one of our parameters."""
    if parameter == "embedding":
        return ["model.embed_tokens.weight"]
    if parameter == "norm.weight":
        return ["model.norm.weight"]
    _, layer, kind = parameter.split(".", 2)
    return [f"model.layers.{layer}.{part}.weight" for part in PARTS[kind]]


def to_checkpoint(model: Nano) -> dict[str, Tensor]:
    """Return the weights under their names in the checkpoint, in BF16."""
    tensors: dict[str, Tensor] = {}
    for parameter, weight in model.state_dict().items():
        targets = names(parameter)
        sizes = model.layers[0].sizes if len(targets) == 3 else [weight.shape[0] // len(targets)] * len(targets)
        for target, part in zip(targets, weight.split(tuple(sizes)), strict=True):
            tensors[target] = part.to(torch.bfloat16).contiguous()
    return tensors


def load(folder: Path) -> Nano:
    """Return the model in `folder`; every tensor of the file is used, and none is missing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Nano(Shape(**{key: config[key] for key in Shape().as_dict()}))
    tensors = load_file(folder / "model.safetensors")
    state = {
        parameter: torch.cat([tensors.pop(name) for name in names(parameter)]).float()
        for parameter in model.state_dict()
    }
    if tensors:
        message = f"{folder}: tensors of no use: {', '.join(sorted(tensors))}"
        raise ValueError(message)
    model.load_state_dict(state)
    return model


def config(shape: Shape, renderer: Renderer) -> dict[str, Any]:
    """Return config.json as transformers 4 writes it for Qwen3-0.6B, with this shape and these ids."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": renderer.special("<|endoftext|>"),
        "eos_token_id": renderer.end,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "max_window_layers": shape.num_hidden_layers,
        "model_type": "qwen3",
        "num_attention_heads": shape.num_attention_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": int(shape.rope_theta),
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab_size,
    }


def generation_config(renderer: Renderer) -> dict[str, Any]:
    """Return generation_config.json with Qwen3's own sampling."""
    end = renderer.special("<|endoftext|>")
    return {
        "bos_token_id": end,
        "do_sample": True,
        "eos_token_id": [renderer.end, end],
        "pad_token_id": end,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "transformers_version": "4.51.0",
    }


def write(model: Nano, renderer: Renderer, folder: Path) -> None:
    """Write the model's three files; the weights by a temporary file, so that no reader sees half of them."""
    files = {"config.json": config(model.shape, renderer), "generation_config.json": generation_config(renderer)}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary = folder / "model.safetensors.tmp"
    save_file(to_checkpoint(model), temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)
    temporary.replace(folder / "model.safetensors")
