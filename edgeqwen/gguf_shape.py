"""Reads the shape of a Qwen from the metadata of an open GGUF file; it knows keys and figures, and no bytes."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeqwen.errors import ArtifactError
from edgeqwen.types import ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgeqwen.gguf import GgufFile

# ModelShape field -> key below the architecture
_SHAPE_KEYS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
_YARN_KEYS = {"attention_factor": "yarn_attn_factor", "beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
_ARCHITECTURES = ("qwen2", "qwen3")


def shape_of(file: GgufFile) -> ModelShape:
    """Read the shape of a qwen3 or qwen2 file; ArtifactError for any other architecture or a missing figure."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ArtifactError(
            f"{file.path} holds the architecture {architecture!r}; supported: {', '.join(_ARCHITECTURES)} (dense)"
        )
    figures = {field: _count(file, f"{architecture}.{key}") for field, key in _SHAPE_KEYS.items()}
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != figures["hidden_size"]:
        raise ArtifactError(f"{file.path} has no token_embd.weight of [vocabulary, {figures['hidden_size']}]")
    head_key = f"{architecture}.attention.key_length"
    heads = figures["num_attention_heads"]
    return ModelShape(
        architecture=architecture,
        **figures,
        head_dim=_count(file, head_key) if head_key in file.metadata else figures["hidden_size"] // heads,
        vocab_size=embedding.shape[0],
        rms_norm_eps=_real(file, f"{architecture}.attention.layer_norm_rms_epsilon"),
        rope_theta=_real(file, f"{architecture}.rope.freq_base"),
        tie_word_embeddings="output.weight" not in file.tensors,
        rope_scaling=_rope_scaling(file, f"{architecture}.rope.scaling."),
    )


def _count(file: GgufFile, key: str) -> int:
    found = file.metadata.get(key)
    if type(found) is not int or not 0 < found < 1 << 31:
        raise ArtifactError(f"{file.path}: {key} is {found!r}; a positive count is expected")
    return found


def _real(file: GgufFile, key: str) -> float:
    """Read a positive 32-bit float as the shortest decimal that means it (1e-06)."""
    found = file.metadata.get(key)
    if type(found) is not float or not 0 < found < math.inf:
        raise ArtifactError(f"{file.path}: {key} is {found!r}; a positive number is expected")
    return float(str(np.float32(found)))


def _rope_scaling(file: GgufFile, prefix: str) -> Mapping[str, Any] | None:
    """YaRN's settings under the names of config.json, or None."""
    kind = file.metadata.get(f"{prefix}type", "none")
    if kind == "none":
        return None
    scaling: dict[str, Any] = {"rope_type": kind, "factor": _real(file, f"{prefix}factor")}
    if f"{prefix}original_context_length" in file.metadata:
        scaling["original_max_position_embeddings"] = _count(file, f"{prefix}original_context_length")
    scaling |= {name: _real(file, prefix + key) for name, key in _YARN_KEYS.items() if prefix + key in file.metadata}
    return MappingProxyType(scaling)
