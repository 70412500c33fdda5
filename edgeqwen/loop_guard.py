"""Finds an answer that repeats itself for ever; it knows ids only."""

from __future__ import annotations

EVERY = 32  # ids between two looks
PERIOD_MAX = 256  # the longest cycle that is looked for, in ids
REPEATED_MIN = 192  # so many ids in a row must repeat ...
TIMES_MIN = 3  # ... and the cycle must have come so often again


class LoopGuard:
    """Watches the ids of one answer for an exact cycle: 192 ids or three more turns of it, whichever is longer.

    Small Qwens fall into such cycles under greedy decoding and never leave them: Qwen's own model card warns of it.
    """

    def __init__(self) -> None:
        self._ids: list[int] = []

    def push(self, token_id: int) -> bool:
        """Take the next id; true when the answer is caught in a cycle."""
        self._ids.append(token_id)
        if len(self._ids) % EVERY:
            return False
        del self._ids[: -(PERIOD_MAX * (TIMES_MIN + 1))]
        last = len(self._ids) - 1
        periods = (p for p in range(1, min(PERIOD_MAX, last) + 1) if self._ids[last - p] == token_id)
        return any(self._repeats(period) for period in periods)

    def _repeats(self, period: int) -> bool:
        wanted = max(REPEATED_MIN, TIMES_MIN * period)
        return len(self._ids) >= wanted + period and self._ids[-wanted:] == self._ids[-wanted - period : -period]
