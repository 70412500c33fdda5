"""Shapes of published dense Qwens, from their config.json, so that a model can be planned for before it is there."""

from __future__ import annotations

import re

from edgeqwen.types import ModelShape


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, *, tied: bool) -> ModelShape:
    return ModelShape(
        "qwen3", hidden, intermediate, layers, heads, 8, 128, 151936, 40960, 1e-6, 1e6, tie_word_embeddings=tied
    )


def _qwen25(hidden: int, intermediate: int, layers: int, heads: tuple[int, int]) -> ModelShape:
    width = hidden // heads[0]
    return ModelShape(
        "qwen2", hidden, intermediate, layers, *heads, width, 151936, 32768, 1e-6, 1e6, tie_word_embeddings=True
    )


# The hub's name -> shape, the smallest first.
PUBLISHED = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(896, 4864, 24, (14, 2)),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(1536, 8960, 28, (12, 2)),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen25(2048, 11008, 36, (16, 2)),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, tied=False),
}


def find_published(name: str) -> str | None:
    """The hub's name of what is called so: Qwen/Qwen3-0.6B, qwen3-0.6b, qwen3:0.6b or 0.6b."""
    asked = re.sub(r"[:_ ]", "-", name.strip().lower()).removeprefix("qwen/").removesuffix("-instruct")
    for known in PUBLISHED:
        plain = known.lower().removeprefix("qwen/").removesuffix("-instruct")
        if asked in {plain, plain.rpartition("-")[2]}:
            return known
    return None
