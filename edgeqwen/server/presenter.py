"""Deltas of an engine -> deltas as the client is to see them, whole answers and streams alike; it knows no wire."""

from __future__ import annotations

from dataclasses import replace

from edgeqwen.server.dialects import Shown
from edgeqwen.types import Delta, TokenLogprob

_OPENING, _CLOSING = "<think>\n", "\n</think>\n\n"
_END_TOKENS = frozenset({"<|im_end|>", "<|endoftext|>"})
_CUT = frozenset({"length", "loop"})


class Presenter:
    """push(delta) -> delta, for one answer.

    Thinking is shown apart, inline or not at all. Logprobs are those of the content's tokens: thinking has none, nor
    have newlines that begin a chat's answer and the token that ends one. An answer that was cut because it repeated
    itself ends with "length".
    """

    def __init__(self, shown: Shown = "apart", *, chat: bool = True) -> None:
        self._shown = shown
        self._is_open = False  # an inline block
        self._started = not chat  # the content: newlines before it are dropped, with their logprobs

    def push(self, delta: Delta) -> Delta:
        thinking, content = delta.thinking, delta.content
        if self._shown == "hidden":
            thinking = ""
        elif self._shown == "inline":
            thinking, content = "", self._inline(delta)
        return replace(
            delta,
            thinking=thinking,
            content=content,
            logprobs=self._logprobs(delta),
            finish_reason="length" if delta.finish_reason == "loop" else delta.finish_reason,
        )

    def _inline(self, delta: Delta) -> str:
        text = delta.thinking
        if text and not self._is_open:
            self._is_open = True
            text = _OPENING + text
        ends = delta.content or delta.tool_calls or delta.finish_reason not in {None, *_CUT}
        if self._is_open and ends:
            self._shown = "hidden"  # there is one block
            text += _CLOSING
        return text + delta.content

    def _logprobs(self, delta: Delta) -> tuple[TokenLogprob, ...]:
        kept = []
        for logprob in delta.logprobs:
            if not logprob.thinking and (self._started or logprob.token.strip("\n")):
                self._started = True
                kept.append(logprob)
        if delta.finish_reason not in {None, *_CUT} and kept and kept[-1].token in _END_TOKENS:
            kept.pop()
        return tuple(kept)
