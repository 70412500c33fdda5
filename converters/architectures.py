"""The supported model families as data: which tensors each has, their shapes and their names in GGUF; it reads no file.

Source: transformers `models/qwen3` and `models/qwen2` (checkpoint), llama.cpp `gguf-py/gguf/constants.py` (GGUF).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgeqwen.types import ModelShape

# checkpoint name, GGUF name, dimensions as the checkpoint has them: [n_out, n_in] or [n]
Row = tuple[str, str, tuple[str, ...]]

EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"

_OUTER: tuple[Row, ...] = (
    (HEAD, "output.weight", ("vocab", "hidden")),
    (EMBEDDING, "token_embd.weight", ("vocab", "hidden")),
)
_NORM: Row = ("model.norm.weight", "output_norm.weight", ("hidden",))

# Of each layer, behind `model.layers.N.` here and `blk.N.` there. Sorted by the checkpoint's name.
_LAYER: tuple[Row, ...] = (
    ("input_layernorm.weight", "attn_norm.weight", ("hidden",)),
    ("mlp.down_proj.weight", "ffn_down.weight", ("hidden", "intermediate")),
    ("mlp.gate_proj.weight", "ffn_gate.weight", ("intermediate", "hidden")),
    ("mlp.up_proj.weight", "ffn_up.weight", ("intermediate", "hidden")),
    ("post_attention_layernorm.weight", "ffn_norm.weight", ("hidden",)),
    ("self_attn.k_proj.weight", "attn_k.weight", ("kv", "hidden")),
    ("self_attn.o_proj.weight", "attn_output.weight", ("hidden", "q")),
    ("self_attn.q_proj.weight", "attn_q.weight", ("q", "hidden")),
    ("self_attn.v_proj.weight", "attn_v.weight", ("kv", "hidden")),
)
_QK_NORMS: tuple[Row, ...] = (
    ("self_attn.k_norm.weight", "attn_k_norm.weight", ("head",)),
    ("self_attn.q_norm.weight", "attn_q_norm.weight", ("head",)),
)
_BIASES: tuple[Row, ...] = (
    ("self_attn.k_proj.bias", "attn_k.bias", ("kv",)),
    ("self_attn.q_proj.bias", "attn_q.bias", ("q",)),
    ("self_attn.v_proj.bias", "attn_v.bias", ("kv",)),
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family: GGUF's name for it, the class its config.json names and what its layers hold."""

    name: str
    model_class: str
    layer: tuple[Row, ...]
    has_head_dim: bool  # False: older configs leave the key out and mean hidden_size / num_attention_heads


ARCHITECTURES: Final[dict[str, Architecture]] = {
    "qwen2": Architecture("qwen2", "Qwen2ForCausalLM", tuple(sorted(_LAYER + _BIASES)), has_head_dim=False),
    "qwen3": Architecture("qwen3", "Qwen3ForCausalLM", tuple(sorted(_LAYER + _QK_NORMS)), has_head_dim=True),
}
SUPPORTED: Final = ", ".join(f"{a.name} ({a.model_class})" for a in ARCHITECTURES.values())

# Buffers that old versions of transformers saved; the rotation is computed from rope_theta.
_HARMLESS = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def expected_tensors(shape: ModelShape) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return checkpoint name -> (GGUF name, shape as in the checkpoint), without the head when it is tied.

    Sorted by the checkpoint's name, the order in which convert_hf_to_gguf writes a checkpoint of one file.
    """
    sizes = {
        "vocab": shape.vocab_size,
        "hidden": shape.hidden_size,
        "intermediate": shape.intermediate_size,
        "head": shape.head_dim,
        "q": shape.num_attention_heads * shape.head_dim,
        "kv": shape.num_key_value_heads * shape.head_dim,
    }
    rows = [row for row in _OUTER if row[0] != HEAD or not shape.tie_word_embeddings]
    for n in range(shape.num_hidden_layers):
        layer = ARCHITECTURES[shape.architecture].layer
        rows += [(f"model.layers.{n}.{hf}", f"blk.{n}.{gguf}", dims) for hf, gguf, dims in layer]
    rows.append(_NORM)
    return {hf: (gguf, tuple(sizes[dim] for dim in dims)) for hf, gguf, dims in sorted(rows)}


def is_harmless(name: str) -> bool:
    """Whether a tensor that is not in the table holds nothing the table's tensors do not imply."""
    return _HARMLESS.fullmatch(name) is not None
