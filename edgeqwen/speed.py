"""How long a loaded model takes: for a prompt, for decoding, until the first token. It loads and reports nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from edgeqwen.backends.base import Backend, Chunk
from edgeqwen.model import Model

Test = Literal["prompt", "decode", "first_token", "load"]
SHORTEST_S = 0.05  # what takes less is done several times for one sample
PASSES_MAX = 100
WARM_TOKENS = 4  # of decoding, ahead of the first sample


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: `tokens` behind `depth` tokens of context took `seconds`, `native_s` of it in the engine."""

    test: Test
    tokens: int
    depth: int
    seconds: float
    native_s: float = 0.0


def random_ids(backend: Backend, count: int) -> list[int]:
    """The same ids each time: a dense model takes as long for any."""
    return [int(i) for i in np.random.default_rng(0).integers(0, backend.vocab_size, count)]


def append(backend: Backend, ids: Sequence[int]) -> None:
    """Put ids behind sequence 0 in steps as long as the engine takes, with logits for the last of them."""
    size = backend.step_tokens
    for start in range(0, len(ids), size):
        last = start + size >= len(ids)
        backend.forward([Chunk(0, ids[start : start + size], "last" if last else "none")])


def prompt_sample(backend: Backend, tokens: int, depth: int, passes: int = 1) -> Sample:
    """Append `tokens` behind the first `depth` ones of sequence 0, which holds at least those; llama-bench's pp."""
    ids = random_ids(backend, tokens)
    seconds, native_s = 0.0, backend.native_s
    for _ in range(passes):
        backend.truncate(0, depth)
        started = time.perf_counter()
        append(backend, ids)
        seconds += time.perf_counter() - started
    return Sample("prompt", tokens, depth, seconds / passes, (backend.native_s - native_s) / passes)


def decode_sample(backend: Backend, tokens: int, depth: int) -> Sample:
    """Append `tokens` one by one behind the first `depth` ones, logits after each; llama-bench's tg."""
    ids = random_ids(backend, tokens)
    backend.truncate(0, depth)
    native_s, started = backend.native_s, time.perf_counter()
    for i in ids:
        backend.forward([Chunk(0, (i,))])
    return Sample("decode", tokens, depth, time.perf_counter() - started, backend.native_s - native_s)


def first_token_sample(model: Model, tokens: int) -> Sample:
    """From a question of so many tokens to the first one of the answer: template, tokenizer and sampler included."""
    model.backend.truncate(0, 0)
    native_s, started = model.backend.native_s, time.perf_counter()
    for _ in model.stream(_question(tokens), max_tokens=1, seed=0):
        pass
    return Sample("first_token", tokens, 0, time.perf_counter() - started, model.backend.native_s - native_s)


def _question(tokens: int) -> str:
    """A text of so many tokens: `a` and ` a` are one each in every vocabulary of Qwen."""
    return "a" + " a" * (tokens - 1)


def measure(
    model: Model, *, prompts: Sequence[int], generate: Sequence[int], depths: Sequence[int], repeat: int
) -> Iterator[Sample]:
    """Every combination `repeat` times, in turns, so that a disturbance does not fall on one of them alone."""
    asked = [n for n in prompts if model.count_tokens(_question(n)) < model.context_length]
    if asked:
        first_token_sample(model, min(asked))
    yield from _in_turns([partial(first_token_sample, model, n) for n in asked], repeat)
    backend = model.backend
    for depth in depths:
        backend.truncate(0, 0)
        append(backend, random_ids(backend, depth))
        tests = [_prompt_test(backend, n, depth) for n in prompts]
        tests += [_decode_test(backend, n, depth) for n in generate]
        yield from _in_turns(tests, repeat)


def _prompt_test(backend: Backend, tokens: int, depth: int) -> Callable[[], Sample]:
    """The test behind its warm-up, which tells how often a short one is repeated for one sample."""
    warm = prompt_sample(backend, tokens, depth)
    passes = min(PASSES_MAX, math.ceil(SHORTEST_S / warm.seconds))
    return partial(prompt_sample, backend, tokens, depth, passes)


def _decode_test(backend: Backend, tokens: int, depth: int) -> Callable[[], Sample]:
    decode_sample(backend, min(tokens, WARM_TOKENS), depth)
    return partial(decode_sample, backend, tokens, depth)


def _in_turns(tests: Sequence[Callable[[], Sample]], repeat: int) -> Iterator[Sample]:
    for _ in range(repeat):
        for test in tests:
            yield test()
