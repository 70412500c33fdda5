"""Qwen3 in plain torch, small and quick to train; its weights are those of transformers' Qwen3ForCausalLM."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """The shape of the network, in the names of config.json."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 768
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 4096

    def as_dict(self) -> dict[str, int | float]:
        """Return the fields as in config.json."""
        return asdict(self)


class Norm(nn.Module):
    """RMSNorm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        """Start from a scale of ones."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Return x with a root mean square of one, scaled."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Cache:
    """Keys and values of one layer, [rows, heads, length, head_dim], in room for `capacity` positions."""

    def __init__(self, capacity: int) -> None:
        """Begin empty; the room is taken when the first keys tell its shape."""
        self.capacity, self.length = capacity, 0
        self.key = self.value = torch.empty(0)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Append and return everything so far."""
        if self.length == 0:
            rows, heads, _, size = key.shape
            self.key = key.new_zeros(rows, heads, self.capacity, size)
            self.value = torch.zeros_like(self.key)
        end = self.length + key.shape[2]
        self.key[:, :, self.length : end] = key
        self.value[:, :, self.length : end] = value
        self.length = end
        return self.key[:, :, :end], self.value[:, :, :end]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding; x [rows, heads, length, head_dim], cos and sin broadcast to it."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), -1)


class Layer(nn.Module):
    """One transformer layer; query, key and value share one matrix, gate and up another."""

    def __init__(self, shape: Shape) -> None:
        """Draw the weights small; the two that write to the residual start at zero."""
        super().__init__()
        self.shape = shape
        hidden, wide = shape.hidden_size, shape.intermediate_size
        self.heads, self.kv_heads, self.head_dim = shape.num_attention_heads, shape.num_key_value_heads, shape.head_dim
        query, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.sizes = (query, kv, kv)
        self.qkv = nn.Parameter(torch.randn(query + 2 * kv, hidden) * hidden**-0.5)
        self.o = nn.Parameter(torch.zeros(hidden, query))
        self.gate_up = nn.Parameter(torch.randn(2 * wide, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.zeros(hidden, wide))
        self.input_norm = Norm(hidden, shape.rms_norm_eps)
        self.post_norm = Norm(hidden, shape.rms_norm_eps)
        self.q_norm = Norm(self.head_dim, shape.rms_norm_eps)
        self.k_norm = Norm(self.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Return the residual after this layer; x [rows, length, hidden]."""
        rows, length, _ = x.shape
        mixed = F.linear(self.input_norm(x), self.qkv)
        query, key, value = (part.view(rows, length, -1, self.head_dim) for part in mixed.split(self.sizes, -1))
        query = rotate(self.q_norm(query).transpose(1, 2), cos, sin)
        key = rotate(self.k_norm(key).transpose(1, 2), cos, sin)
        value = value.transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(key, value)
        group = self.heads // self.kv_heads
        if mask is None:
            key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:  # the query heads of one key head side by side, so that the cache is not copied
            query = query.reshape(rows, self.kv_heads, group * length, self.head_dim)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.repeat(1, 1, group, 1))
            mixed = mixed.view(rows, self.heads, length, self.head_dim)
        x = x + F.linear(mixed.transpose(1, 2).reshape(rows, length, -1), self.o)
        gate, up = F.linear(self.post_norm(x), self.gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down)


class Nano(nn.Module):
    """The network up to the last norm; the head is the embedding."""

    def __init__(self, shape: Shape) -> None:
        """Draw the weights from torch's seed."""
        super().__init__()
        self.shape = shape
        # large against what the layers add, so that each token stays itself; the last norm makes up for it in the head
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.5)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)
        nn.init.constant_(self.norm.weight, 0.04)
        half = shape.head_dim // 2
        frequencies = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(shape.max_position_embeddings, dtype=torch.float64)[:, None] * frequencies
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)

    def forward(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[Cache] | None = None,
    ) -> Tensor:
        """Return the hidden states [rows, length, hidden]; positions [rows, length] where rows are shifted."""
        if positions is None:
            cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = F.embedding(ids, self.embedding)
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, caches[index] if caches else None)
        return self.norm(x)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the summed cross-entropy over the targets that count; both [rows, length]."""
        chosen = targets >= 0
        hidden = self(ids)[chosen]
        return F.cross_entropy(F.linear(hidden, self.embedding), targets[chosen], reduction="sum")
