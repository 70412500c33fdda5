"""A row of logits -> an id: the only sampler, the same for every engine; it knows no text and no engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeqwen.errors import EngineError, RequestError
from edgeqwen.types import GenerationConfig, Sampling

Row = npt.NDArray[np.float32]  # [vocab_size]
Ids = npt.NDArray[np.intp]
Mask = npt.NDArray[np.bool_]  # [vocab_size]: whether an id may be drawn

FEW = 1 << 13  # ids; so many or more lie in 64 blocks at least, and `likeliest` is quick
BLOCK = 128  # logits whose maximum is looked at before the logits themselves
# name -> the closed interval that makes sense; what lies outside is refused, not clamped
LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_p": (1e-6, 1), "top_k": (0, 2**31), "min_p": (0, 1),
    "presence_penalty": (-2, 2), "frequency_penalty": (-2, 2), "repetition_penalty": (0.01, 100),
}  # fmt: skip


def resolve(config: GenerationConfig, defaults: Sampling) -> Sampling:
    """The defaults of the mode with what the caller set; RequestError for a value out of its range."""
    chosen: dict[str, Any] = {
        field.name: value
        for field in fields(Sampling)
        if (value := getattr(config, field.name)) is not None and field.name != "logit_bias"
    }
    for name, value in chosen.items():
        low, high = LIMITS.get(name, (0, 2**64 - 1))
        whole = name in {"top_k", "seed"}
        kinds = int if whole else int | float
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise RequestError(f"{name}={value!r} must be a {'whole ' if whole else ''}number from {low} to {high}")
    return replace(defaults, **chosen, logit_bias=dict(config.logit_bias))


class Sampler:
    """Draws the ids of one answer.

    The order is that of transformers and vLLM: bias, penalties, temperature, top_k, top_p, min_p; what a grammar does
    not allow is out before the temperature. Presence and
    frequency count the answer alone, as OpenAI's do; repetition counts the prompt too. Equal seeds and equal
    logits give equal ids; ties go to the lower id.
    """

    def __init__(self, sampling: Sampling, prompt_ids: Iterable[int] = ()) -> None:
        self._sampling = sampling
        self._random = np.random.Generator(np.random.PCG64(sampling.seed))
        self._answer: Counter[int] = Counter()
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1 else set()

    def sample(self, logits: Row, allowed: Mask | None = None) -> int:
        """Draw an id, one of those `allowed`; EngineError where the logits are not numbers."""
        adjusted, ids = self._adjusted(logits), None
        if allowed is not None:
            adjusted, ids = among(adjusted, allowed)
        best = int(adjusted.argmax())
        if not np.isfinite(adjusted[best]):
            raise EngineError(f"the engine's logits hold {adjusted[best]}: the weights or the build are damaged")
        sure = self._sampling.temperature == 0 or adjusted.size == 1  # nothing is drawn: no random number is used
        chosen = best if sure else self._draw(adjusted)
        chosen = chosen if ids is None else int(ids[chosen])
        self.took((chosen,))
        return chosen

    def took(self, ids: Iterable[int]) -> None:
        """Count ids of the answer, drawn or forced, for the penalties."""
        for token_id in ids:
            self._answer[token_id] += 1
            self._seen.add(token_id)

    def _adjusted(self, logits: Row) -> Row:
        """Logits after bias and penalties; a copy only where one of them is set."""
        s = self._sampling
        penalised = (s.presence_penalty or s.frequency_penalty) and self._answer
        if not s.logit_bias and not penalised and s.repetition_penalty == 1:
            return logits
        out = logits.copy()
        for token_id, bias in s.logit_bias.items():
            out[token_id] += bias
        if s.repetition_penalty != 1 and self._seen:
            ids = np.fromiter(self._seen, np.intp, len(self._seen))
            out[ids] = np.where(out[ids] > 0, out[ids] / s.repetition_penalty, out[ids] * s.repetition_penalty)
        if penalised:
            ids = np.fromiter(self._answer.keys(), np.intp, len(self._answer))
            counts = np.fromiter(self._answer.values(), np.float32, len(self._answer))
            out[ids] -= s.presence_penalty + s.frequency_penalty * counts
        return out

    def _draw(self, logits: Row) -> int:
        ids, weights = distribution(logits, self._sampling)
        heights = np.cumsum(weights)
        drawn = int(np.searchsorted(heights, self._random.random() * heights[-1], side="right"))
        return int(ids[min(drawn, ids.size - 1)])


def among(logits: Row, allowed: Mask) -> tuple[Row, Ids | None]:
    """The logits of what is allowed: of few ids those alone, and the ids; of many the row, -inf at the others."""
    if np.count_nonzero(allowed) >= FEW:
        out = logits.copy()
        out[np.flatnonzero(~allowed)] = -np.inf  # 110 us of Qwen3's 151,936, where np.where takes 280
        return out, None
    ids = np.flatnonzero(allowed)
    return logits[ids], ids


def distribution(logits: Row, sampling: Sampling) -> tuple[Ids, npt.NDArray[np.float64]]:
    """The ids that may be drawn, best first, and their weights relative to the best one's, which is 1."""
    s = sampling
    ids = likeliest(logits, s.top_k) if 0 < s.top_k < logits.size else np.argsort(-logits, kind="stable")
    scores = logits[ids].astype(np.float64)
    weights = np.exp((scores - scores[0]) / s.temperature)
    weights = weights[weights > 0]  # what is not allowed is at the end
    if s.top_p < 1:
        before = np.cumsum(weights) - weights  # the mass of all likelier ids
        weights = weights[before < s.top_p * weights.sum()]
    if s.min_p > 0:
        weights = weights[weights >= s.min_p]
    return ids[: weights.size], weights


def likeliest(logits: Row, count: int) -> Ids:
    """The ids of the `count` largest logits, best first; ties go to the lower id.

    The count-th largest block maximum bounds the count-th largest logit from below, so only the few logits above it
    are sorted: 48 us for Qwen3's 151,936 logits, where a partition of them all takes 1,500 us.
    """
    whole = logits.size - logits.size % BLOCK
    maxima = logits[:whole].reshape(-1, BLOCK).max(axis=1)
    if maxima.size >= count:
        bound = np.partition(maxima, maxima.size - count)[maxima.size - count]
        candidates = np.flatnonzero(logits >= bound)
    else:
        candidates = np.arange(logits.size)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def log_probabilities(logits: Row, ids: Ids) -> npt.NDArray[np.float64]:
    """Natural logarithms of the softmax of a whole row, at `ids`."""
    top = float(logits.max())
    total = float(np.exp(logits - np.float32(top)).sum(dtype=np.float64))
    return logits[ids].astype(np.float64) - (top + math.log(total))
