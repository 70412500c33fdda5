"""Whose turn it is: one answer of a model at a time, and how any thread ends one; it knows no tokens and no text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgeqwen.backends.base import Backend
from edgeqwen.errors import InterruptedForwardError, RequestError


class Halt:
    """Names one answer, so that it alone is ended."""

    def __init__(self) -> None:
        self.asked = False


class Turns:
    """The answers of one engine, one after the other. A turn lasts from an answer's start to its end."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._changed = threading.Condition()  # held for moments only, never while anything is computed
        self._taken = False
        self._owner: threading.Thread | None = None  # who drives the answer that has the turn
        self._halt: Halt | None = None

    @contextmanager
    def take(self, halt: Halt | None = None) -> Iterator[None]:
        """Wait for one's turn and have it; RequestError where a thread would wait for itself.

        InterruptedForwardError where `halt` ends the answer before it has begun.
        """
        if self._owner is threading.current_thread():
            raise RequestError("an answer of this model is still running in this thread: finish or close its stream")
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or (halt is not None and halt.asked))
            if halt is not None and halt.asked:
                raise InterruptedForwardError("the answer was ended before its turn")
            self._taken, self._owner, self._halt = True, threading.current_thread(), halt
            self._backend.resume()
        try:
            yield
        finally:
            with self._changed:
                self._taken, self._owner, self._halt = False, None, None
                self._changed.notify_all()

    def drive(self) -> None:
        """The turn is this thread's from now on: a stream may be read by one thread after another."""
        self._owner = threading.current_thread()

    def end(self, halt: Halt) -> None:
        """End the answer of that name: within a step if it has the turn, at once if it waits for it."""
        with self._changed:
            halt.asked = True
            if self._halt is halt:
                self._backend.interrupt()
            self._changed.notify_all()
