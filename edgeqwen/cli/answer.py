"""Shows one streamed answer on a terminal or a pipe; Ctrl-C stops the answer, also inside a native call."""

from __future__ import annotations

import itertools
import json
import queue
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import click

from edgeqwen.types import Completion, Delta

if TYPE_CHECKING:
    from edgeqwen.model import Model


class Stopped(Exception):  # noqa: N818 - not an error: the user's wish
    """Ctrl-C was pressed; `deltas` came before it."""

    def __init__(self, deltas: list[Delta]) -> None:
        super().__init__("stopped")
        self.deltas = deltas


def play(model: Model, deltas: Generator[Delta], show: Callable[[Delta], None]) -> list[Delta]:
    """Show every delta as it comes; returns them all. Stopped on Ctrl-C, when the engine has come to rest.

    They are computed on another thread: a native call cannot see Ctrl-C, the thread that waits can.
    """
    arrived: queue.SimpleQueue[Delta | BaseException | None] = queue.SimpleQueue()
    leave = threading.Event()

    def compute() -> None:
        end: BaseException | None = None
        try:
            for delta in itertools.takewhile(lambda _: not leave.is_set(), deltas):
                arrived.put(delta)
            deltas.close()
        except BaseException as error:  # noqa: BLE001 - handed over to the thread that waits
            end = error
        arrived.put(end)

    seen: list[Delta] = []
    worker = threading.Thread(target=compute, name="answer", daemon=True)
    try:
        worker.start()
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            seen.append(item)
            show(item)
    except KeyboardInterrupt:
        leave.set()
        model.interrupt()
        raise Stopped(seen) from None
    finally:
        leave.set()
        worker.join()
    return seen


class Printer:
    """Prints deltas as they come: thinking dimmed on stderr, content on stdout: a pipe gets the answer alone."""

    def __init__(self, *, show_thinking: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._show_thinking = show_thinking and self._err.isatty()
        self._progress = self._err.isatty()
        self._in_thinking = False

    def show(self, delta: Delta) -> None:
        if delta.prompt_progress and self._progress:
            done, total = delta.prompt_progress
            self._write(self._err, f"\r\x1b[2mreading the prompt: {done} of {total} tokens\x1b[0m\x1b[K")
        elif self._progress and (delta.thinking or delta.content or delta.tool_calls or delta.finish_reason):
            self._write(self._err, "\r\x1b[K")  # the line of the prompt's progress
            self._progress = False
        if delta.thinking and self._show_thinking:
            self._write(self._err, ("" if self._in_thinking else "\x1b[2m") + delta.thinking)
            self._in_thinking = True
        if delta.content or delta.tool_calls or delta.finish_reason:
            self.end_thinking()
        if delta.content:
            self._write(self._out, delta.content)
        for call in delta.tool_calls:
            self._write(self._out, (f"\n[tool call] {call.name} " if call.name else "") + call.arguments)

    def end_thinking(self) -> None:
        if self._in_thinking:
            self._write(self._err, "\x1b[0m\n\n")
            self._in_thinking = False

    def end(self) -> None:
        self.end_thinking()
        self._write(self._out, "\n")

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def as_json(completion: Completion, model: Model) -> str:
    """One JSON object with the answer, its counts and its speeds."""
    facts = asdict(completion)
    facts["model"] = model.card.name
    facts["logprobs"] = [{**asdict(p), "token_bytes": list(p.token_bytes)} for p in completion.logprobs] or None
    return json.dumps(facts, ensure_ascii=False, indent=2)


def summary(completion: Completion) -> str:
    """One line: what ended the answer, how long it is and how fast it came."""
    usage, timings = completion.usage, completion.timings
    thought = f" ({usage.thinking_tokens} of thinking)" if usage.thinking_tokens else ""
    cached = f" ({usage.cached_tokens} from the cache)" if usage.cached_tokens else ""
    ended = {"length": "cut by length: ", "loop": "cut because it repeated itself: "}.get(completion.finish_reason, "")
    return (
        f"{ended}{usage.completion_tokens} tokens{thought}, {timings.decode_tokens_per_s:.1f} tokens/s; "
        f"prompt {usage.prompt_tokens} tokens{cached}, {timings.prompt_s:.2f} s"
    )


def note(text: str) -> None:
    """One dimmed line on stderr, on a terminal only."""
    if sys.stderr.isatty():
        click.echo(click.style(text, dim=True), err=True)
