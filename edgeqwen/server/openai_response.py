"""What chats and completions share on OpenAI's wire: the head of a response, usage, speeds; it knows no HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgeqwen.types import Completion, Delta, Timings, TokenLogprob, Usage

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Head:
    """What all of a response carries, and what was asked of it. Answers to one prompt stand side by side."""

    id: str
    created: int  # seconds since 1970
    model: str
    answers: int = 1
    prompts: int = 1
    include_usage: bool = False

    def of(self, kind: str, choices: Sequence[Json]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}

    def chunk(self, kind: str, choice: Json) -> Json:
        """A chunk with a choice: the usage, if it is wanted, comes at the end, and is null until then."""
        return {**self.of(kind, [choice]), **({"usage": None} if self.include_usage else {})}

    def last(self, kind: str, usages: Sequence[Usage]) -> Iterator[Json]:
        """The chunk behind all choices."""
        if self.include_usage:
            yield {**self.of(kind, []), "usage": usage_json(self.total(usages))}

    def whole(self, kind: str, choices: Sequence[Json], answers: Sequence[Completion]) -> Json:
        """A response that is no stream."""
        usage = self.total([answer.usage for answer in answers])
        return {
            **self.of(kind, choices),
            "usage": usage_json(usage),
            **self.timings(answers[0].usage, answers[0].timings),
        }

    def timings(self, usage: Usage | None, timings: Timings | None) -> Json:
        """Speeds under llama-server's names; none where several answers ran side by side."""
        if usage is None or timings is None or self.answers > 1:
            return {}
        return {"timings": timings_json(usage, timings)}

    def total(self, usages: Sequence[Usage]) -> Usage:
        """Of all answers together; a prompt that several answers share counts once."""
        prompts = usages[:: self.answers // self.prompts]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            thinking_tokens=sum(usage.thinking_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
        )


class Wire(Protocol):
    """One response: chunks of a stream, or all of it at once, from the same deltas."""

    def start(self, index: int) -> Iterator[Json]:
        """What opens a choice."""
        ...

    def push(self, index: int, delta: Delta) -> Iterator[Json]:
        """The chunks of a delta."""
        ...

    def end(self, usages: Sequence[Usage]) -> Iterator[Json]:
        """What comes behind all choices."""
        ...

    def whole(self, answers: Sequence[Completion]) -> Json:
        """Everything in one piece."""
        ...


def usage_json(usage: Usage) -> Json:
    """Token counts under OpenAI's names."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
    }


def timings_json(usage: Usage, timings: Timings) -> Json:
    """Milliseconds and tokens/s under llama-server's names."""
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": usage.prompt_tokens - usage.cached_tokens,
        "prompt_ms": round(1000 * timings.prompt_s, 3),
        "prompt_per_second": round(timings.prompt_tokens_per_s, 3),
        "predicted_n": usage.completion_tokens,
        "predicted_ms": round(1000 * timings.decode_s, 3),
        "predicted_per_second": round(timings.decode_tokens_per_s, 3),
    }


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> Json | None:
    """Of a chat's content; None where there are none."""
    if not logprobs:
        return None
    content = [
        {
            **_token(logprob.token, logprob.logprob, logprob.token_bytes),
            "top_logprobs": [_token(token, value, token.encode()) for token, value in logprob.top],
        }
        for logprob in logprobs
    ]
    return {"content": content, "refusal": None}


def text_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> Json | None:
    """Of a completion's text; `offset` is where the first token stands in it, in characters."""
    if not logprobs:
        return None
    offsets = [offset]
    for logprob in logprobs[:-1]:
        offsets.append(offsets[-1] + len(logprob.token))
    return {
        "tokens": [logprob.token for logprob in logprobs],
        "token_logprobs": [_finite(logprob.logprob) for logprob in logprobs],
        "top_logprobs": [{token: _finite(value) for token, value in logprob.top} or None for logprob in logprobs],
        "text_offset": offsets,
    }


def model_json(name: str, created: int, facts: Mapping[str, Any]) -> Json:
    """One entry of /v1/models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "edgeqwen", **facts}


def _token(text: str, logprob: float, raw: bytes) -> Json:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def _finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what cannot be."""
    return max(logprob, -9999.0)
