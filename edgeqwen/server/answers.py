"""Answers under way on an event loop, by number; it does not know where they are computed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable

from edgeqwen.errors import EdgeqwenError, EngineDownError
from edgeqwen.types import Delta


class Answers:
    """Gives every answer a number and a queue, and its reader what is delivered under that number."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._queues: dict[int, asyncio.Queue[Delta | EdgeqwenError]] = {}
        self._none = asyncio.Event()
        self._none.set()

    async def stream(self, ask: Callable[[int], None], cancel: Callable[[int], None]) -> AsyncGenerator[Delta]:
        """Ask for an answer and give it piece by piece; one that its reader leaves is cancelled."""
        number = next(self._numbers)
        ask(number)
        queue = self._queues[number] = asyncio.Queue()
        self._none.clear()
        try:
            while True:
                event = await queue.get()
                if isinstance(event, EdgeqwenError):
                    self._drop(number)
                    raise event
                if event.finish_reason is not None:
                    self._drop(number)
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if self._drop(number):
                cancel(number)

    def deliver(self, events: Iterable[tuple[int, Delta | EdgeqwenError]]) -> None:
        """Hand events to their readers; those of readers who have left are dropped."""
        for number, event in events:
            if number in self._queues:
                self._queues[number].put_nowait(event)

    def fail(self, why: str) -> None:
        """End every answer with an EngineDownError."""
        self.deliver([(number, EngineDownError(why)) for number in self._queues])

    async def ended(self, seconds: float) -> None:
        """Wait until there is none, `seconds` at most."""
        try:
            await asyncio.wait_for(self._none.wait(), seconds)
        except TimeoutError:
            return

    def _drop(self, number: int) -> bool:
        known = self._queues.pop(number, None) is not None
        if not self._queues:
            self._none.set()
        return known
