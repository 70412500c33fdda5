"""Answers that continue a text -> text_completion, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeqwen.server.openai_response import Head, Json, text_logprobs
from edgeqwen.types import Completion, Delta, TokenLogprob, Usage

_KIND = "text_completion"


class TextWire:
    """One response of /v1/completions; `echoes` are the prompts, where they are wanted back."""

    def __init__(self, head: Head, echoes: Sequence[str] = ()) -> None:
        self._head = head
        self._echoes = echoes
        self._held: dict[int, list[TokenLogprob]] = {}  # of each choice, until a chunk of it carries text
        self._offsets = {index: len(echo) for index, echo in enumerate(echoes)}  # where the next token stands

    def start(self, index: int) -> Iterator[Json]:
        if self._echoes:
            yield self._chunk(index, self._echoes[index], None)

    def push(self, index: int, delta: Delta) -> Iterator[Json]:
        held = self._held.setdefault(index, [])
        held.extend(delta.logprobs)
        if not delta.content and delta.finish_reason is None:
            return
        offset = self._offsets.get(index, 0)
        last = self._chunk(index, delta.content, text_logprobs(held, offset), finish_reason=delta.finish_reason)
        self._offsets[index] = offset + sum(len(logprob.token) for logprob in held)
        held.clear()
        yield {**last, **self._head.timings(delta.usage, delta.timings)}

    def end(self, usages: Sequence[Usage]) -> Iterator[Json]:
        return self._head.last(_KIND, usages)

    def whole(self, answers: Sequence[Completion]) -> Json:
        choices = []
        for index, answer in enumerate(answers):
            echo = self._echoes[index] if self._echoes else ""
            choices.append(
                _choice(index, echo + answer.content, text_logprobs(answer.logprobs, len(echo)), answer.finish_reason)
            )
        return self._head.whole(_KIND, choices, answers)

    def _chunk(self, index: int, text: str, logprobs: Json | None, *, finish_reason: str | None = None) -> Json:
        return self._head.chunk(_KIND, _choice(index, text, logprobs, finish_reason))


def _choice(index: int, text: str, logprobs: Json | None, finish_reason: str | None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
