"""Stop strings in streamed text: nothing of a stop string, nor after it, is ever emitted; it knows no tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeqwen.errors import RequestError

MAX_STOPS = 16
MAX_STOP_CHARS = 256


class StopStrings:
    """push(text) -> what is safe to show; `hit` is the stop string that ended it.

    The stop string that is complete first wins; of several complete at the same character, the longest. So the result
    is the same however the text is cut.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises RequestError for more than 16 stop strings, or one that is empty or longer than 256 characters."""
        self._patterns = [_Pattern(stop) for stop in _checked(stops)]
        self._first = {pattern.text[0] for pattern in self._patterns}
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        if self.hit is not None:
            return ""
        if not self._held and self._first.isdisjoint(text):
            return text
        held = self._held + text
        for position, char in enumerate(text, len(self._held) + 1):
            done = [pattern.text for pattern in self._patterns if pattern.step(char)]
            if done:
                self.hit = max(done, key=len)
                self._held = ""
                return held[: position - len(self.hit)]
        safe = len(held) - max(pattern.matched for pattern in self._patterns)
        self._held = held[safe:]
        return held[:safe]

    def flush(self) -> str:
        """Give what was held back: the text ended before a stop string was complete."""
        held, self._held = self._held, ""
        return held


class _Pattern:
    """One stop string and how many of its characters the text ends with (Knuth-Morris-Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = [0] * len(text)  # [i]: the longest proper border of text[:i + 1]
        for index in range(1, len(text)):
            self._shorter[index] = self._longest(self._shorter[index - 1], text[index])

    def step(self, char: str) -> bool:
        self.matched = self._longest(self.matched, char)
        return self.matched == len(self.text)

    def _longest(self, matched: int, char: str) -> int:
        """Extend a match of `matched` characters by one, or fall back to the longest shorter one."""
        while matched and self.text[matched] != char:
            matched = self._shorter[matched - 1]
        return matched + (self.text[matched] == char)


def _checked(stops: Any) -> Sequence[str]:
    if not isinstance(stops, list | tuple) or len(stops) > MAX_STOPS:
        raise RequestError(f"stop must be a list of at most {MAX_STOPS} strings, not {stops!r:.80}")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise RequestError(f"stop[{index}] must be a string of 1 to {MAX_STOP_CHARS} characters, not {stop!r:.80}")
    return tuple(stops)
