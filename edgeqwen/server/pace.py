"""How many prompt tokens may ride on a step, found from measured step times; it knows neither prompts nor engine."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from dataclasses import dataclass, field

GAP = 2.6  # times a step of the answers alone, aimed at; a reader is promised 3, and single steps stray
ROWS = 4  # llama.cpp multiplies four rows of tokens at a time: three cost more than four
SAMPLES = 5  # of one kind of step; their median is believed
BELIEVED = 2  # so many of them must have been seen
REFRESH = 32  # steps with prompt tokens after which one without shows what that takes by now
FORGET = 64  # steps with prompt tokens after which what another size took is not believed any more


@dataclass(slots=True)
class _Times:
    """The last seconds that one kind of step took."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    seen: int = 0  # number of the step with prompt tokens at which it was last seen

    @property
    def known(self) -> bool:
        return len(self.seconds) >= BELIEVED

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Pace:
    """Learns how long steps take on this machine, with this model, at the present length of the sequences.

    A step's size counts the answers that run and the prompt tokens beside them. It climbs a ladder of sizes as long
    as the next one can be expected to take GAP times a step of the answers alone, and goes down where it takes more.
    """

    def __init__(self, step_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._plain: dict[int, _Times] = defaultdict(_Times)  # answers -> of steps of them alone
        self._mixed: dict[tuple[int, int], _Times] = defaultdict(_Times)  # (answers, size) -> of others
        self._sizes: dict[int, int] = {}  # answers -> the size to take now
        self._steps = 0  # with prompt tokens
        self._refreshed = 0  # the last of them before a step without

    def allowance(self, answers: int) -> int:
        """Prompt tokens that may go beside `answers` running ones; with none to be kept waiting, what a step takes."""
        if not answers:
            return self._step_tokens
        if not self._plain[answers].known or self._steps - self._refreshed >= REFRESH:
            return 0  # the next step shows what it takes
        return max(0, min(self._size(answers), self._step_tokens) - answers)

    def measured(self, answers: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step."""
        if not answers:
            return
        if not prompt_tokens:
            self._plain[answers].seconds.append(seconds)
            self._refreshed = self._steps
            return
        self._steps += 1
        size = answers + prompt_tokens
        times = self._mixed[answers, size]
        if self._steps - times.seen > FORGET:
            times.seconds.clear()
        times.seconds.append(seconds)
        times.seen = self._steps
        if size == self._size(answers) and times.known and self._plain[answers].known:
            self._sizes[answers] = self._next(answers, size, times.median)

    def _next(self, answers: int, size: int, taken: float) -> int:
        plain = self._plain[answers].median
        if taken > GAP * plain:
            lower = size - ROWS if size > ROWS else answers + 1
            return lower if lower > answers else size
        higher = size // ROWS * ROWS + ROWS
        known = self._mixed[answers, higher]
        if known.known and self._steps - known.seen <= FORGET:
            expected = known.median
        else:
            expected = plain + (taken - plain) * (higher - answers) / (size - answers)
        return higher if expected <= GAP * plain else size

    def _size(self, answers: int) -> int:
        return self._sizes.get(answers, answers + 1)
