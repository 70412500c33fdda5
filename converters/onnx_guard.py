"""Compares a written graph with exact activations, and finds the few products whose activations must stay exact.

With accuracy_level 4 MatMulNBits rounds activations to int8 by blocks; a channel that is far larger than the others of
its block spoils them (ONNX Runtime issue 29849). Level 0 multiplies in float32. Needs onnxruntime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from converters.onnx_parts import Parts, Values
from edgeqwen.errors import CheckpointError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeqwen.types import ModelShape

MAX_LIFTED: Final = 4
SLOWER_AT_MOST: Final = 1.05
WORTH: Final = 0.85  # lifted, the divergence must fall to this share of itself
HELD_AT_LEAST: Final = 0.075  # of all that rounding loses: what holds less cannot make the divergence fall so far
# A 4-bit product computed exactly takes 2.2 to 2.9 times as long (ONNX Runtime 1.31 with AVX-512, one row, 2 threads).
# By this figure and not by a clock, so that the same weights always give the same graph.
_EXACT_COST: Final = 2.9
# What is compared: questions, code and prose in the two languages of most users.
TEXTS: Final = (
    "The capital of France is Paris, and the largest city of Japan is Tokyo. Water boils at 100 degrees.",
    "def mean(values):\n    total = sum(values)\n    return total / len(values)\n",
    "今天的天气很好,从北京到上海坐高铁需要四个半小时。",
    '{"name": "Anna", "age": 31, "city": "Berlin"}',
)


@dataclass(frozen=True, slots=True)
class Guard:
    """What was compared. `divergence`: mean KL divergence from exact to rounded activations, in nats a token."""

    tokens: int
    divergence: float
    flips: int  # tokens whose likeliest successor is another
    lifted: tuple[str, ...] = ()  # products that are computed exactly now
    divergence_lifted: float | None = None  # None: it could not pay, and was not tried
    flips_lifted: int | None = None
    slower: float | None = None  # decode time lifted over before, by the weights concerned

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON data."""
        return dataclasses.asdict(self)


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is found
def guard(model: onnx.ModelProto, folder: Path, shape: ModelShape, prompts: Sequence[Sequence[int]]) -> Guard:
    """Compare and, where it pays, choose at most MAX_LIFTED products; the weights lie in `folder`."""
    parts = Parts(model, folder, shape)
    began = parts.begin([ids for ids in prompts if ids])
    exact, spoiled = _exact(parts, began, {node.name: node for node in model.graph.node})
    rounded = _logits(parts, began, {})
    divergence, flips = _compare(exact, rounded)
    if not np.isfinite(divergence):
        raise CheckpointError("the model's logits are not finite on plain text: its weights are damaged or too large")
    found = Guard(len(exact), divergence, flips)
    lifted = tuple(sorted(spoiled, key=lambda name: -spoiled[name])[:MAX_LIFTED])
    slower = _slower(model, lifted)
    held = sum(spoiled[name] for name in lifted) / (sum(spoiled.values()) or 1)
    if slower > SLOWER_AT_MOST or held < HELD_AT_LEAST:
        return found
    better = _logits(parts, began, dict.fromkeys(lifted, 0))
    divergence_lifted, flips_lifted = _compare(exact, better)
    tried = dataclasses.replace(
        found, divergence_lifted=divergence_lifted, flips_lifted=flips_lifted, slower=round(slower, 3)
    )
    return dataclasses.replace(tried, lifted=lifted) if divergence_lifted <= WORTH * divergence else tried


def _exact(
    parts: Parts, values: Values, nodes: Mapping[str, onnx.NodeProto]
) -> tuple[npt.NDArray[np.float32], dict[str, float]]:
    """Logits with exact activations [tokens, vocab], and how much rounding would spoil each layer's 4-bit products.

    8-bit products have no fast exact kernel, and the head is the largest product: neither would be lifted.
    """
    spoiled: dict[str, float] = {}
    for number in range(len(parts)):
        products = parts.products(number)
        values, seen = parts.run(number, values, dict.fromkeys(products, 0), tuple(products.values()))
        for name, source in products.items():
            if _attribute(nodes[name], "bits") == 4:
                tokens = seen[source].reshape(-1, seen[source].shape[-1])[values["logit_rows"]]
                spoiled[name] = _spoiled(tokens, _attribute(nodes[name], "block_size"))
    return parts.logits(values, {"logits": 0}), spoiled


def _logits(parts: Parts, values: Values, levels: Mapping[str, int]) -> npt.NDArray[np.float32]:
    """Logits of all prompts [tokens, vocab]."""
    for number in range(len(parts)):
        values, _ = parts.run(number, values, levels)
    return parts.logits(values, levels)


def _slower(model: onnx.ModelProto, lifted: Sequence[str]) -> float:
    """Decode time with these products exact over the time without; it goes with the weights that are read."""
    weights = {
        node.name: _attribute(node, "K") * _attribute(node, "N")
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }
    return 1 + (_EXACT_COST - 1) * sum(weights[name] for name in lifted) / sum(weights.values())


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _compare(exact: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> tuple[float, int]:
    """Mean KL divergence in nats, and how many tokens have another likeliest successor."""
    divergence = 0.0
    for one, two in zip(exact, other, strict=True):
        p, q = (row.astype(np.float64) - row.max() for row in (one, two))
        p, q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
        divergence += float((np.exp(p) * (p - q)).sum())
    flips = int((exact.argmax(axis=1) != other.argmax(axis=1)).sum())
    return divergence / len(exact), flips


def _spoiled(activations: npt.NDArray[np.float32], block_size: int) -> float:
    """The share of an input's power that rounding its blocks to int8 loses."""
    blocks = activations.reshape(-1, block_size)
    steps = np.abs(blocks).max(axis=1, keepdims=True) / 127
    scaled = np.divide(blocks, steps, out=np.zeros_like(blocks), where=steps > 0)
    error = (scaled - np.rint(scaled)) * steps
    return float(np.square(error).sum() / max(np.square(blocks).sum(), 1e-30))
