"""Ids -> (thinking, content), split where the model closes its thinking; it knows no template and no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeqwen.tokenizer import Tokenizer

# expected: the model opens the block itself; open: the prompt ends inside it; content: there is none, or it is closed;
# text: the answer continues a text, and all of it is content, newlines at its start included.
ThinkStart = Literal["expected", "open", "content", "text"]


@dataclass(frozen=True, slots=True)
class Split:
    """What some ids made visible, on either side of `</think>`."""

    thinking: str = ""
    content: str = ""


def think_start(prompt_ids: Sequence[int], tokenizer: Tokenizer, *, thinks: bool, thinking: bool) -> ThinkStart:
    """Read the start state from the rendered prompt: the last think tag of its last turn says it.

    `thinks`: the template knows the switch; `thinking`: it is on. Where the last turn has no tag, the model opens the
    block itself if both are true (Qwen3's first release), and there is no thinking otherwise.
    """
    opening, closing = tokenizer.id("<think>"), tokenizer.id("</think>")
    if opening is None or closing is None:
        return "content"
    turn = tokenizer.id("<|im_start|>")
    for number in reversed(prompt_ids):
        if number == closing:
            return "content"
        if number == opening:
            return "open"
        if number == turn:
            break
    return "expected" if thinks and thinking else "content"


class ThinkSplitter:
    """push(ids) -> Split. The first `</think>` ends the thinking; later ones are content.

    Without any `</think>` an answer that was to think is unfinished thinking, never content. Newlines on either side
    of the tags are dropped: thinking neither starts nor ends with one, and content does not start with one.
    `thinking_tokens` counts the ids of the thinking, tags included. The result is the same however the ids are cut.
    """

    def __init__(self, tokenizer: Tokenizer, start: ThinkStart) -> None:
        self._opening = tokenizer.id("<think>")
        self._closing = tokenizer.id("</think>")
        self._tokenizer = tokenizer
        self._decoder = tokenizer.decoder()
        self._newlines = ""  # of the thinking, held back until more of it comes
        self._leading = start != "text"  # nothing but newlines came yet on this side of the tag
        self.state: Literal["thinking", "content"] = "content" if start in {"content", "text"} else "thinking"
        self.closed = False  # a </think> came
        self.thinking_tokens = 0

    def push(self, ids: Sequence[int]) -> Split:
        """Give what these ids made visible."""
        if self.state == "content":
            return Split(content=self._content(self._decoder.push(ids)))
        if self._closing not in ids:
            return Split(thinking=self._think(ids))
        cut = ids.index(self._closing)
        thinking = self._think(ids[:cut]) + self._close()
        return Split(thinking, self._content(self._decoder.push(ids[cut + 1 :])))

    def begin_content(self) -> None:
        """Take what comes from here on to the byte, newlines at its start included."""
        self._leading = False

    def flush(self) -> Split:
        """End the answer: an unfinished character becomes U+FFFD, newlines at the end of the thinking are dropped."""
        rest = self._decoder.flush()
        if self.state == "content":
            return Split(content=self._content(rest))
        return Split(thinking=self._thinking(rest))

    def _close(self) -> str:
        """End the thinking at its tag and give what the decoder still held."""
        rest = self._thinking(self._decoder.flush())
        self.thinking_tokens += 1
        self.state = "content"
        self.closed = self._leading = True
        return rest

    def _think(self, ids: Sequence[int]) -> str:
        self.thinking_tokens += len(ids)
        if self._opening is None or self._opening not in ids:
            return self._thinking(self._decoder.push(ids))
        cut = ids.index(self._opening)
        before = self._thinking(self._decoder.push(ids[:cut]))
        after = ids[cut + 1 :] if self._leading else ids[cut:]
        self._opening = None  # the model's own opening tag, where nothing came before it; any other is text
        return before + self._thinking(self._decoder.push(after))

    def _thinking(self, text: str) -> str:
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        text = self._newlines + text
        shown = text.rstrip("\n")
        self._newlines = text[len(shown) :]
        return shown

    def _content(self, text: str) -> str:
        if self._leading:
            text = text.lstrip("\n")
            self._leading = not text
        return text
