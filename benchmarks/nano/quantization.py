"""The rounding of 4-bit GGUF types, applied to weights while they are trained or evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .model import Nano

BLOCK = 32


def q4_0(weight: Tensor) -> Tensor:
    """Return the weights as Q4_0 holds them: 16 steps a block, the largest value at -8."""
    blocks = weight.reshape(-1, BLOCK)
    extreme = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    scale = extreme / -8
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    steps = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return (steps * scale.half().float()).reshape(weight.shape)


def q8_0(weight: Tensor) -> Tensor:
    """Return the weights as Q8_0 holds them."""
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return ((blocks * inverse).round() * scale.half().float()).reshape(weight.shape)


@contextmanager
def rounded(model: Nano) -> Iterator[None]:
    """Hold the model's matrices in 4 bits (the embedding in 8) inside the block, and give them back after it.

    Gradients taken inside belong to the rounded weights and are applied to the full ones: straight through.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                kept.append((weight, weight.clone()))
                weight.copy_(q8_0(weight) if name == "embedding" else q4_0(weight))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, full in kept:
                weight.copy_(full)
