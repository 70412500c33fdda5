"""The decoder of qwen2 and qwen3 as an ONNX graph, layer by layer, over weights that are placed already.

Inputs: input_ids int64 [batch, length]; seqlens_k int32 [batch], the tokens of each row, past and new, less one;
total_sequence_length int32 []; logit_rows int64 [rows], positions of batch * length whose logits are wanted;
past_key_values.N.key and .value float32 [batch, kv_heads, slots, head_dim]. Outputs: logits float32 [rows, vocab] and
present.N.key and .value, which may be bound to the buffers of the past.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from converters.onnx_ops import OPSET, Pieces
from converters.onnx_place import Matrix, Place

if TYPE_CHECKING:
    from edgeqwen.types import ModelShape

IR_VERSION: Final = 10  # what ONNX 1.16 wrote: every ONNX Runtime that knows the operators reads it


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the weights are: matrices and arrays by the names that `matrix_sources` and `array_sources` give them."""

    matrices: Mapping[str, Matrix]
    arrays: Mapping[str, Place]


def decoder(shape: ModelShape, placed: Placed, data_file: str) -> ModelProto:
    """Write the whole graph."""
    pieces = Pieces(data_file)
    table = placed.matrices["table"]
    hidden = pieces.embedding("input_ids", table, "embedding")
    normed = pieces.norm(hidden, placed.arrays["layers.0.attn_norm"], "layers.0.attn_norm.out", shape.rms_norm_eps)
    for number in range(shape.num_hidden_layers):
        normed, hidden = _layer(pieces, shape, placed, number, normed, hidden)
    flat = pieces.reshape(normed, (-1, shape.hidden_size), "hidden.flat")
    wanted = pieces.add("Gather", [flat, "logit_rows"], "hidden.wanted", axis=0)
    pieces.linear(wanted, placed.matrices.get("head", table), "logits")
    graph = helper.make_graph(
        pieces.nodes, shape.architecture, _inputs(shape), _outputs(shape), initializer=pieces.initializers
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="edgeqwen")


def _layer(pieces: Pieces, shape: ModelShape, placed: Placed, number: int, normed: str, hidden: str) -> tuple[str, str]:
    """One layer: the norm before it was computed with the sum before it; gives the next norm and the sum."""
    at = f"layers.{number}"
    attended = _attention(pieces, shape, placed, number, normed)
    mixed = pieces.linear(attended, placed.matrices[f"{at}.o"], f"{at}.o.out")
    normed, hidden = pieces.add_norm(
        hidden, mixed, placed.arrays[f"{at}.ffn_norm"], f"{at}.ffn_norm.out", shape.rms_norm_eps
    )
    both = pieces.linear(normed, placed.matrices[f"{at}.gate_up"], f"{at}.gate_up.out")
    gate, up = pieces.split(both, (shape.intermediate_size,) * 2, (f"{at}.gate", f"{at}.up"))
    pieces.microsoft("QuickGelu", [gate], [f"{at}.silu"], alpha=1.0)  # x * sigmoid(x)
    product = pieces.add("Mul", [f"{at}.silu", up], f"{at}.product")
    down = pieces.linear(product, placed.matrices[f"{at}.down"], f"{at}.down.out")
    last = number + 1 == shape.num_hidden_layers
    following = "norm" if last else f"layers.{number + 1}.attn_norm"
    return pieces.add_norm(hidden, down, placed.arrays[following], f"{following}.out", shape.rms_norm_eps)


def _attention(pieces: Pieces, shape: ModelShape, placed: Placed, number: int, normed: str) -> str:
    """Grouped-query attention with the rotation inside; norms of queries and keys before it, where there are any."""
    at = f"layers.{number}"
    sizes = (shape.num_attention_heads * shape.head_dim, *(shape.num_key_value_heads * shape.head_dim,) * 2)
    bias = placed.arrays.get(f"{at}.qkv_bias")
    packed = pieces.linear(normed, placed.matrices[f"{at}.qkv"], f"{at}.qkv.out", bias)
    query, key, value = packed, "", ""
    if f"{at}.q_norm" in placed.arrays:
        query, key, value = pieces.split(packed, sizes, [f"{at}.{name}" for name in "qkv"])
        query, key = (
            _head_norm(pieces, shape, placed.arrays[f"{at}.{name}_norm"], text, f"{at}.{name}")
            for name, text in (("q", query), ("k", key))
        )
    past = [f"past_key_values.{number}.key", f"past_key_values.{number}.value"]
    rotation = [pieces.stored(placed.arrays["cos"]), pieces.stored(placed.arrays["sin"])]
    return pieces.microsoft(
        "GroupQueryAttention",
        [query, key, value, *past, "seqlens_k", "total_sequence_length", *rotation],
        [f"{at}.attended", f"present.{number}.key", f"present.{number}.value"],
        num_heads=shape.num_attention_heads, kv_num_heads=shape.num_key_value_heads, do_rotary=1,
        rotary_interleaved=0, scale=1.0, local_window_size=-1,  # see rope.rotation
    )  # fmt: skip


def _head_norm(pieces: Pieces, shape: ModelShape, weight: Place, x: str, at: str) -> str:
    """Norm of each head by itself."""
    heads = pieces.reshape(x, (0, 0, -1, shape.head_dim), f"{at}.heads")
    normed = pieces.norm(heads, weight, f"{at}.normed", shape.rms_norm_eps)
    return pieces.add("Reshape", [normed, pieces.constant("dims.0.0.-1", (0, 0, -1))], f"{at}.flat")


def _inputs(shape: ModelShape) -> list[ValueInfoProto]:
    value = helper.make_tensor_value_info
    return [
        value("input_ids", TensorProto.INT64, ["batch", "length"]),
        value("seqlens_k", TensorProto.INT32, ["batch"]),
        value("total_sequence_length", TensorProto.INT32, []),
        value("logit_rows", TensorProto.INT64, ["rows"]),
        *_caches(shape, "past_key_values"),
    ]


def _outputs(shape: ModelShape) -> list[ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", shape.vocab_size])
    return [logits, *_caches(shape, "present")]


def _caches(shape: ModelShape, prefix: str) -> list[ValueInfoProto]:
    dims: list[str | int | None] = ["batch", shape.num_key_value_heads, "slots", shape.head_dim]
    return [
        helper.make_tensor_value_info(f"{prefix}.{number}.{kind}", TensorProto.FLOAT, dims)
        for number in range(shape.num_hidden_layers)
        for kind in ("key", "value")
    ]
