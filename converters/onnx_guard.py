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
from onnx import helper

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgeqwen.types import ModelShape

MAX_LIFTED: Final = 4
SLOWER_AT_MOST: Final = 1.05
WORTH: Final = 0.85  # lifted, the divergence must fall to this share of itself
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
    divergence_lifted: float | None = None
    flips_lifted: int | None = None
    slower: float | None = None  # decode time lifted over before, by the weights concerned

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON data."""
        return dataclasses.asdict(self)


def guard(model: onnx.ModelProto, folder: Path, shape: ModelShape, prompts: Sequence[Sequence[int]]) -> Guard:
    """Compare and, where it pays, choose at most MAX_LIFTED products; the weights lie in `folder`."""
    bench = _Bench(model, folder, shape, [ids for ids in prompts if ids])
    names = [node.name for node in model.graph.node if node.op_type == "MatMulNBits"]
    exact, inputs = bench.run(dict.fromkeys(names, 0), probes=True)
    rounded, _ = bench.run({})
    divergence, flips = _compare(exact, rounded)
    found = Guard(sum(map(len, bench.prompts)), divergence, flips)
    bits = {node.name: _attribute(node, "bits") for node in model.graph.node if node.op_type == "MatMulNBits"}
    blocks = {node.name: _attribute(node, "block_size") for node in model.graph.node if node.op_type == "MatMulNBits"}
    # 8-bit products have no fast exact kernel, and the head is the largest product: neither is lifted
    spoiled = {
        name: _spoiled(inputs[name], blocks[name])
        for name in names
        if name in inputs and bits[name] == 4 and name != "logits"
    }
    lifted = tuple(sorted(spoiled, key=lambda name: -spoiled[name])[:MAX_LIFTED])
    if not lifted:
        return found
    better, _ = bench.run(dict.fromkeys(lifted, 0))
    divergence_lifted, flips_lifted = _compare(exact, better)
    slower = _slower(model, lifted)
    tried = dataclasses.replace(
        found, divergence_lifted=divergence_lifted, flips_lifted=flips_lifted, slower=round(slower, 3)
    )
    pays = divergence_lifted <= WORTH * divergence and slower <= SLOWER_AT_MOST
    return dataclasses.replace(tried, lifted=lifted) if pays else tried


def lift(model: onnx.ModelProto, levels: Mapping[str, int]) -> onnx.ModelProto:
    """A copy in which some products have another accuracy level."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in copy.graph.node:
        if node.name in levels:
            next(a for a in node.attribute if a.name == "accuracy_level").i = levels[node.name]
    return copy


class _Bench:
    """Runs variants of one graph over the prompts."""

    def __init__(
        self, model: onnx.ModelProto, folder: Path, shape: ModelShape, prompts: Sequence[Sequence[int]]
    ) -> None:
        self.prompts = prompts
        self._model, self._folder, self._shape = model, folder, shape

    def run(
        self, levels: Mapping[str, int], *, probes: bool = False
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
        """Logits of all prompts [tokens, vocab]; with `probes` the inputs of the products of the first, by name."""
        model = lift(self._model, levels)
        wanted: dict[str, str] = {}
        if probes:
            wanted = {node.name: node.input[0] for node in model.graph.node if node.op_type == "MatMulNBits"}
            model.graph.output.extend(
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in set(wanted.values())
            )
        session = self._session(model)
        rows: list[npt.NDArray[np.float32]] = []
        seen: dict[str, npt.NDArray[np.float32]] = {}
        for ids in self.prompts:
            names = ["logits", *(set(wanted.values()) if not seen else ())]
            values = dict(zip(names, session.run(names, self._feed(ids, 0, len(ids))), strict=True))
            rows.append(values.pop("logits"))
            seen = seen or values
        return np.concatenate(rows), {name: seen[source] for name, source in wanted.items() if source in seen}

    def _session(self, model: onnx.ModelProto) -> Any:
        import onnxruntime  # noqa: PLC0415 - only this comparison needs it

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self._folder))
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _feed(self, ids: Sequence[int], past: int, slots: int) -> dict[str, Any]:
        shape = self._shape
        empty = np.zeros((1, shape.num_key_value_heads, slots, shape.head_dim), np.float32)
        caches = {
            f"past_key_values.{layer}.{kind}": empty
            for layer in range(shape.num_hidden_layers)
            for kind in ("key", "value")
        }
        total = past + len(ids)
        return {
            "input_ids": np.array([ids], np.int64),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logit_rows": np.arange(len(ids), dtype=np.int64),
            **caches,
        }


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
