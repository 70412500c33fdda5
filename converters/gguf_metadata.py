"""Says what the header of a GGUF file holds for a checkpoint: the keys that llama.cpp's converter writes, in its order.

Source: conversion/base.py and conversion/qwen.py of llama.cpp, gguf-py/gguf/metadata.py and vocab.py; at the end come
the two keys that llama-quantize sets. It knows no weights and no file.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from converters.gguf_writer import Field
from converters.model_name import make_title, size_label, split_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from converters.checkpoint import Checkpoint
    from converters.gguf_writer import Kind

_QUANTIZATION_VERSION: Final = 2  # GGML_QNT_VERSION of ggml.h
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # enum llama_token_type
_HUB: Final = "https://huggingface.co/"

# generation_config.json -> key below general.sampling
_SAMPLING: Final[tuple[tuple[str, str, Kind], ...]] = (
    ("top_k", "top_k", "i32"),
    ("top_p", "top_p", "f32"),
    ("min_p", "min_p", "f32"),
    ("temperature", "temp", "f32"),
    ("repetition_penalty", "penalty_repeat", "f32"),
)
# rope_scaling -> key below rope.scaling
_YARN: Final = (
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
)
# role in tokenizer_config.json and config.json -> key below tokenizer.ggml
_ROLES: Final = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",
    "pad": "padding_token_id",
    "mask": "mask_token_id",
}


def header_fields(checkpoint: Checkpoint, file_type: int) -> list[Field]:
    """List every key of the header; `file_type` is the id of llama.cpp's enum llama_ftype."""
    return [
        *_general(checkpoint),
        *_architecture(checkpoint),
        *_tokenizer(checkpoint),
        Field("general.quantization_version", "u32", _QUANTIZATION_VERSION),
        Field("general.file_type", "u32", file_type),
    ]


def _general(checkpoint: Checkpoint) -> Iterator[Field]:
    yield Field("general.architecture", "str", checkpoint.shape.architecture)
    yield Field("general.type", "str", "model")
    for key, target, kind in _SAMPLING:
        if (value := checkpoint.generation_config.get(key)) is not None:  # bounded by the checkpoint's reader
            yield Field(f"general.sampling.{target}", kind, int(value) if kind == "i32" else value)
    parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    for key, text in _names(checkpoint, parameters).items():
        if text is not None:
            yield Field(f"general.{key}", "str", text)
    yield from _card(checkpoint.card)


def _names(checkpoint: Checkpoint, parameters: int) -> dict[str, str | None]:
    """Merge what `_name_or_path` of config.json says, where it is no path, with what the checkpoint's name says."""
    ids = [checkpoint.name]
    origin = checkpoint.config.get("_name_or_path")
    if isinstance(origin, str) and origin.count("/") <= 1:
        ids.insert(0, origin)
    found: dict[str, str | None] = dict.fromkeys(
        ("name", "version", "organization", "finetune", "basename", "size_label")
    )
    for index, model_id in enumerate(ids):
        parts = split_name(model_id, parameters)
        from_id = {
            "name": make_title(parts.full) or None,
            "version": parts.version,
            "organization": make_title(parts.organization) if parts.organization and index < len(ids) - 1 else None,
            "finetune": parts.finetune,
            "basename": parts.basename,
            "size_label": parts.size_label,
        }
        found = {key: value if value is not None else from_id[key] for key, value in found.items()}
    return found | {"size_label": found["size_label"] or size_label(parameters)}


def _card(card: Mapping[str, Any]) -> Iterator[Field]:
    """Repeat licence, base models, tags and languages of the model card."""
    for key, target in (("license", "license"), ("license_name", "license.name"), ("license_link", "license.link")):
        if key in card:
            yield Field(f"general.{target}", "str", card[key])
    if bases := card.get("base_model"):
        yield Field("general.base_model.count", "u32", len(bases))
        for number, base in enumerate(bases):
            yield from _base_model(f"general.base_model.{number}.", base)
    tags = [*card.get("tags", ()), *((card["pipeline_tag"],) if "pipeline_tag" in card else ())]
    for key, texts in (("tags", tags), ("languages", list(card.get("language", ())))):
        if texts:
            yield Field(f"general.{key}", "str[]", texts)


def _base_model(prefix: str, base: str) -> Iterator[Field]:
    """Describe one base model, given as a hub id or an address."""
    is_address = base.startswith(("http://", "https://", "ssh://"))
    on_hub = re.fullmatch(rf"{_HUB}([^/]+/[^/]+)", base) if is_address else None
    if not is_address or on_hub:
        parts = split_name(on_hub[1] if on_hub else base, 0)
        yield Field(f"{prefix}name", "str", make_title(parts.full))
        if parts.version:
            yield Field(f"{prefix}version", "str", parts.version)
        if parts.organization:
            yield Field(f"{prefix}organization", "str", make_title(parts.organization))
            base = base if is_address else f"{_HUB}{parts.organization}/{parts.full}"
    if is_address or base.startswith(_HUB):
        yield Field(f"{prefix}repo_url", "str", base)


def _architecture(checkpoint: Checkpoint) -> Iterator[Field]:
    shape = checkpoint.shape
    prefix = shape.architecture
    for key, value in (
        ("block_count", shape.num_hidden_layers),
        ("context_length", shape.max_position_embeddings),
        ("embedding_length", shape.hidden_size),
        ("feed_forward_length", shape.intermediate_size),
        ("attention.head_count", shape.num_attention_heads),
        ("attention.head_count_kv", shape.num_key_value_heads),
    ):
        yield Field(f"{prefix}.{key}", "u32", value)
    yield from _rope_scaling(f"{prefix}.rope.scaling.", shape.rope_scaling or {})
    yield Field(f"{prefix}.rope.freq_base", "f32", shape.rope_theta)
    yield Field(f"{prefix}.attention.layer_norm_rms_epsilon", "f32", shape.rms_norm_eps)
    if shape.head_dim * shape.num_attention_heads != shape.hidden_size or prefix == "qwen3":
        yield Field(f"{prefix}.attention.key_length", "u32", shape.head_dim)
        yield Field(f"{prefix}.attention.value_length", "u32", shape.head_dim)


def _rope_scaling(prefix: str, scaling: Mapping[str, Any]) -> Iterator[Field]:
    if not scaling:
        return
    yield Field(f"{prefix}type", "str", scaling["rope_type"])
    yield Field(f"{prefix}factor", "f32", scaling["factor"])
    yield Field(f"{prefix}original_context_length", "u32", scaling["original_max_position_embeddings"])
    for key, target in _YARN:
        if key in scaling:
            yield Field(prefix + target, "f32", scaling[key])


def _tokenizer(checkpoint: Checkpoint) -> Iterator[Field]:
    data = checkpoint.tokenizer.data
    added = {token["content"]: token for token in data["added_tokens"]}
    tokens, types = _vocabulary(data["model"]["vocab"], added, checkpoint.shape.vocab_size)
    yield Field("tokenizer.ggml.model", "str", "gpt2")
    yield Field("tokenizer.ggml.pre", "str", "qwen2")
    yield Field("tokenizer.ggml.tokens", "str[]", tokens)
    yield Field("tokenizer.ggml.token_type", "i32[]", types)
    merges = data["model"]["merges"]
    yield Field("tokenizer.ggml.merges", "str[]", merges if isinstance(merges[0], str) else list(map(" ".join, merges)))
    yield from _role_ids(checkpoint, added)
    if data.get("post_processor"):  # ByteLevel: adds nothing
        yield from (Field(f"tokenizer.ggml.add_{role}_token", "bool", value=False) for role in ("bos", "eos"))
    if checkpoint.chat_template is not None:
        yield Field("tokenizer.chat_template", "str", checkpoint.chat_template)


def _vocabulary(
    vocab: Mapping[str, int], added: Mapping[str, Mapping[str, Any]], size: int
) -> tuple[Sequence[str], Sequence[int]]:
    """List every id's text and type; rows of the embedding without a token are [PADn]."""
    tokens = [f"[PAD{number}]" for number in range(size)]
    types = [_UNUSED] * size
    for text, number in vocab.items():
        tokens[number] = text
        types[number] = _NORMAL
    for text, token in added.items():
        is_control = token.get("special") or (text.startswith("<|") and text.endswith("|>"))
        tokens[token["id"]] = text
        types[token["id"]] = _CONTROL if is_control else _USER_DEFINED
    return tokens, types


def _role_ids(checkpoint: Checkpoint, added: Mapping[str, Mapping[str, Any]]) -> Iterator[Field]:
    """Give the ids of eos and the like: by tokenizer_config.json first, then by config.json."""
    ids: dict[str, int] = {}
    for role in _ROLES:
        entry = checkpoint.tokenizer_config.get(f"{role}_token")
        text = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(text, str) and text in added:
            ids[role] = added[text]["id"]
    for role in _ROLES:
        number = checkpoint.config.get(f"{role}_token_id")
        if type(number) is int and 0 <= number < checkpoint.shape.vocab_size:
            ids.setdefault(role, number)
    for role, number in ids.items():
        yield Field(f"tokenizer.ggml.{_ROLES[role]}", "u32", number)
