"""Prompts computed on threads of their own while a backend's steps go on, in a second engine over the same weights.

A prompt beside running answers is slow within their steps: llama.cpp's attention takes 7 ms for a token in a batch of
four and 1.2 ms in one of hundreds, for each 1,000 tokens before it (Qwen3-0.6B, two cores).
"""

from __future__ import annotations

import contextlib
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Generic, Protocol, Self, TypeVar

from edgeqwen.backends.base import Backend, Chunk, Logits
from edgeqwen.errors import EngineError, NoRoomError


class Twin(Backend, Protocol):
    """A backend that can hand what it has computed to another one of the same model."""

    def pass_on(self, sequence: int, target: Self, into: int, start: int, end: int) -> None:
        """Append tokens start..end of a sequence to a sequence of `target` that holds `start` tokens.

        NoRoomError where its pool cannot take them.
        """
        ...

    def use_threads(self, count: int) -> None:
        """Compute with so many threads from the next step on."""
        ...


Engine = TypeVar("Engine", bound=Twin)


class SecondEngine(Generic[Engine]):
    """edgeqwen.backends.base.Aside over two backends; `side_threads` of the `threads` are the second one's at work."""

    def __init__(
        self, main: Engine, side: Engine, *, threads: int, side_threads: int, executor: Executor | None = None
    ) -> None:
        """`side` is closed with this object; another `executor` is for tests."""
        self.step_tokens = side.step_tokens
        self._main = main
        self._side = side
        self._threads = threads
        self._side_threads = side_threads
        self._executor = executor or ThreadPoolExecutor(1, "edgeqwen-aside")
        self._piece = Chunk(0, ())
        self._slot = 0  # the second engine's sequence in which it is computed
        self._recent = list(range(side.sequences))  # its sequences, the last used last
        self._owners = [""] * side.sequences  # of what they hold
        self._work: Future[list[Logits]] | None = None
        self.ahead = 0

    def start(self, chunk: Chunk, owner: str = "") -> None:
        if self._work is not None or (self.ahead and chunk.sequence != self._piece.sequence):
            raise EngineError("a prompt is computed aside already")
        held = list(self._side.ids(self._slot) if self.ahead else self._main.ids(chunk.sequence))
        self._slot, known = self._slot_for(held, len(chunk.ids), owner)
        if known < len(held):
            self._main.pass_on(chunk.sequence, self._side, self._slot, known, len(held))
        self._main.use_threads(self._threads - self._side_threads)
        self._piece = chunk
        self._work = self._executor.submit(self._side.forward, [replace(chunk, sequence=self._slot)])

    def _slot_for(self, held: list[int], more: int, owner: str) -> tuple[int, int]:
        """The sequence here that goes on where `held` ends, and how much of it is there already: nothing of others."""
        known = {slot: list(self._side.ids(slot)) for slot in self._recent if self._owners[slot] == owner}
        same = [slot for slot, ids in known.items() if ids and held[: len(ids)] == ids]
        slot = max(same, key=lambda slot: len(known[slot])) if same else self._recent[0]
        self._recent.remove(slot)
        self._recent.append(slot)
        self._owners[slot] = owner
        if not same:
            self._side.truncate(slot, 0)
        length = self._side.length(slot)
        for other in self._recent[:-1]:
            if self._side.room() < len(held) - length + more:
                self._side.truncate(other, 0)
        return slot, length

    @property
    def running(self) -> bool:
        return self._work is not None and not self._work.done()

    def wait(self, seconds: float) -> None:
        if self._work is not None:
            wait([self._work], seconds)

    def finish(self) -> Logits:
        (logits,) = self._end().result()
        self.ahead += len(self._piece.ids)
        return logits

    def hand_over(self, tokens: int) -> None:
        sequence = self._piece.sequence
        held = self._main.length(sequence)
        try:
            self._side.pass_on(self._slot, self._main, sequence, held, held + tokens)
        finally:
            self.ahead -= self._main.length(sequence) - held

    def drop(self) -> None:
        if self._work is not None:
            if not self._work.cancel():
                self._side.interrupt()
                wait([self._work])
                self._side.resume()
            self._end()
        with contextlib.suppress(NoRoomError):
            self.hand_over(min(self.ahead, self._main.room()))
        self.ahead = 0

    def close(self) -> None:
        """Stop, and free the second engine."""
        self.drop()
        self._executor.shutdown()
        self._side.close()

    def _end(self) -> Future[list[Logits]]:
        """The work of the piece, done or not, which is none from now on."""
        if self._work is None:
            raise EngineError("no piece of a prompt was started")
        work, self._work = self._work, None
        self._main.use_threads(self._threads)
        return work
