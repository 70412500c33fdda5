"""Answers of a chat -> chat.completion, whole and in chunks, in the one shape that every client takes.

Each chunk has the same id, object, created and model, each choice its index; the role comes once, in the first delta,
with content ""; thinking before content; a call's id and name once, with arguments "", its arguments behind them; a
last delta {} with finish_reason stop, length or tool_calls; then, if asked for, a chunk with the usage and no choices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from edgeqwen.server.openai_response import Head, Json, chat_logprobs
from edgeqwen.types import Completion, Delta, TokenLogprob, ToolCallDelta, Usage

_CHUNK, _WHOLE = "chat.completion.chunk", "chat.completion"


class ChatWire:
    """One response of /v1/chat/completions."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._logprobs: dict[int, list[TokenLogprob]] = {}  # of each choice, until a chunk of it carries content

    def start(self, index: int) -> Iterator[Json]:
        yield self._chunk(index, {"role": "assistant", "content": ""})

    def push(self, index: int, delta: Delta) -> Iterator[Json]:
        held = self._logprobs.setdefault(index, [])
        held.extend(delta.logprobs)
        if delta.thinking:
            yield self._chunk(index, _reasoning(delta.thinking))
        if delta.content:
            yield self._chunk(index, {"content": delta.content}, held)
            held.clear()
        for call in delta.tool_calls:
            for piece in _pieces(call):
                yield self._chunk(index, {"tool_calls": [piece]})
        if delta.finish_reason is not None:
            last = self._chunk(index, {}, held, finish_reason=delta.finish_reason)
            yield {**last, **self._head.timings(delta.usage, delta.timings)}

    def end(self, usages: Sequence[Usage]) -> Iterator[Json]:
        return self._head.last(_CHUNK, usages)

    def whole(self, answers: Sequence[Completion]) -> Json:
        choices = [
            {
                "index": index,
                "message": _message(answer),
                "logprobs": chat_logprobs(answer.logprobs),
                "finish_reason": answer.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self._head.whole(_WHOLE, choices, answers)

    def _chunk(
        self, index: int, delta: Json, logprobs: Sequence[TokenLogprob] = (), *, finish_reason: str | None = None
    ) -> Json:
        choice = {"index": index, "delta": delta, "logprobs": chat_logprobs(logprobs), "finish_reason": finish_reason}
        return self._head.chunk(_CHUNK, choice)


def _reasoning(text: str) -> Json:
    """DeepSeek's and Qwen's name, and vLLM's later one: some clients read the first, some the second, none is hurt."""
    return {"reasoning_content": text, "reasoning": text}


def _pieces(call: ToolCallDelta) -> Iterator[Json]:
    """Id and name, then the arguments: clients append strings, and take an id for the start of a call."""
    if call.id or call.name:
        function = {"name": call.name, "arguments": ""}
        yield {"index": call.index, "id": call.id, "type": "function", "function": function}
    if call.arguments:
        yield {"index": call.index, "function": {"arguments": call.arguments}}


def _message(answer: Completion) -> Json:
    message: Json = {"role": "assistant", "content": answer.content, "refusal": None}
    if answer.thinking:
        message.update(_reasoning(answer.thinking))
    if answer.tool_calls:
        message["content"] = answer.content or None  # as OpenAI has it
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    return message
