"""Shows one streamed answer on a terminal or a pipe; Ctrl-C stops the answer, also inside a native call."""

from __future__ import annotations

import itertools
import queue
import sys
import threading
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from edgeqwen.cli.terminal import harmless, note, takes_ansi
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
    """Prints deltas as they come: thinking dimmed on stderr, content on stdout: a pipe gets the answer alone.

    `show_thinking` None shows it on a terminal only.
    """

    def __init__(self, *, show_thinking: bool | None, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._show_thinking = self._err.isatty() if show_thinking is None else show_thinking
        self._ansi = takes_ansi(self._err)
        self._in_progress = False  # the last line of the terminal says how much of the prompt was read
        self._in_thinking = False

    def show(self, delta: Delta) -> None:
        if delta.prompt_progress and self._ansi:
            done, total = delta.prompt_progress
            self._write(self._err, f"\r\x1b[2mreading the prompt: {done} of {total} tokens\x1b[0m\x1b[K")
            self._in_progress = True
        elif delta.thinking or delta.content or delta.tool_calls or delta.finish_reason:
            self._end_progress()
        if delta.thinking and self._show_thinking:
            if self._ansi and not self._in_thinking:
                self._write(self._err, "\x1b[2m")
            self._write(self._err, harmless(delta.thinking, self._err))
            self._in_thinking = True
        if delta.content or delta.tool_calls or delta.finish_reason:
            self._end_thinking()
        if delta.content:
            self._write(self._out, harmless(delta.content, self._out))
        for call in delta.tool_calls:
            text = (f"\n[tool call] {call.name} " if call.name else "") + call.arguments
            self._write(self._out, harmless(text, self._out))

    def end(self) -> None:
        self._end_progress()
        self._end_thinking()
        self._write(self._out, "\n")

    def _end_progress(self) -> None:
        if self._in_progress:
            self._write(self._err, "\r\x1b[K")
            self._in_progress = False

    def _end_thinking(self) -> None:
        if self._in_thinking:
            self._write(self._err, ("\x1b[0m" if self._ansi else "") + "\n\n")
            self._in_thinking = False

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def facts(completion: Completion, model: Model) -> dict[str, Any]:
    """An answer, its counts and its speeds, and how the model was loaded, as plain JSON data."""
    plan = model.card.plan
    logprobs = [{**asdict(p), "token_bytes": list(p.token_bytes)} for p in completion.logprobs] or None
    return {
        **asdict(completion), "logprobs": logprobs, "model": model.card.name,
        "engine": plan and plan.engine, "reasons": plan and plan.reasons,
    }  # fmt: skip


def tell_end(completion: Completion) -> None:
    """The summary on a terminal; everywhere where the answer was cut: what a pipe holds is not the whole of it."""
    note(summary(completion), always=bool(_ended(completion)))


_CUT = {"length": "cut by length: ", "loop": "cut because it repeated itself: "}
_UNFINISHED = "ended within its thinking, without an answer: "


def _ended(completion: Completion) -> str:
    """What of an answer is missing, if anything is."""
    silent = completion.thinking and not (completion.content or completion.tool_calls)
    return _CUT.get(completion.finish_reason, _UNFINISHED if silent else "")


def summary(completion: Completion) -> str:
    """One line: what ended the answer, how long it is and how fast it came."""
    usage, timings = completion.usage, completion.timings
    thought = f" ({usage.thinking_tokens} of thinking)" if usage.thinking_tokens else ""
    cached = f" ({usage.cached_tokens} from the cache)" if usage.cached_tokens else ""
    return (
        f"{_ended(completion)}{usage.completion_tokens} tokens{thought}, {timings.decode_tokens_per_s:.1f} tokens/s; "
        f"prompt {usage.prompt_tokens} tokens{cached}, {timings.prompt_s:.2f} s"
    )
