"""The conversation of `run` without a prompt: reads lines, keeps the history, prepares the cache while you read."""

from __future__ import annotations

import contextlib
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from edgeqwen.cli.answer import Printer, Stopped, play, tell_end
from edgeqwen.cli.terminal import complain, escaped, note
from edgeqwen.errors import ContextOverflowError, EdgeqwenError
from edgeqwen.model import fold
from edgeqwen.types import Message

if TYPE_CHECKING:
    from edgeqwen.model import Model

HELP = """\
/think, /no_think   think before answering, or not
/budget N           at most N tokens of thinking (/budget alone: no limit)
/system TEXT        set the system message and start anew (/system alone: none)
/clear              start anew
/bye                leave (so does Ctrl-D)
\"\"\"                 starts and ends a message of many lines
Ctrl-C              stops the answer"""
STOP_AGAIN_S = 0.05
BUDGET_DIGITS = 9


class Conversation:
    """One user, one model; `settings` are the options of `Model.stream`, `show` says if thinking is shown."""

    def __init__(self, model: Model, settings: dict[str, Any], system: str | None, *, show: bool | None) -> None:
        self._model = model
        self._settings = settings
        self._system = system
        self._show = show
        self._history: list[Message] = []
        self._prepared = threading.Event()  # not set while the cache is being prepared
        self._prepared.set()
        self._commands = {
            "/think": self._think, "/no_think": self._no_think, "/budget": self._budget, "/system": self._set_system,
            "/clear": self._clear, "/help": self._help, "/?": self._help,
        }  # fmt: skip

    def talk(self) -> None:
        """Until /bye or Ctrl-D."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - editing and history for input()
        note(f"{self._model.card.name}, {self._model.context_length} tokens of context; /help lists the commands")
        while (text := self._read()) is not None and text.strip().partition(" ")[0] != "/bye":
            try:
                self._obey(text)
            except KeyboardInterrupt:
                note("stopped")
        self._stop_preparing()

    def _obey(self, text: str) -> None:
        """One line of the user: a command or a question."""
        word, _, rest = text.strip().partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif word.startswith("/") and "\n" not in text and word.count("/") == 1:
            click.echo(f"no command {escaped(word)}; /help lists them", err=True)
        elif text.strip():
            self._answer(text)

    def _read(self) -> str | None:
        """The next message; None at the end of the input. Ctrl-C drops a half-typed one."""
        try:
            line = input(">>> ")
            if not line.startswith('"""'):
                return line
            lines = [line[3:]]
            with contextlib.suppress(EOFError):  # Ctrl-D ends the message, and the next one the conversation
                while not lines[-1].endswith('"""'):
                    lines.append(input("... "))
            return "\n".join(lines).removesuffix('"""')
        except EOFError:
            click.echo()
            return None
        except KeyboardInterrupt:
            click.echo()
            note("/bye or Ctrl-D leaves")
            return ""

    def _messages(self) -> list[Message]:
        system = [Message("system", self._system)] if self._system else []
        return [*system, *self._history]

    def _answer(self, text: str) -> None:
        """Show the answer, and keep both; a question that found no answer is not kept."""
        self._wait()
        printer = Printer(show_thinking=self._show)
        asked = Message("user", text)
        try:
            stream = self._model.stream([*self._messages(), asked], **self._settings)
            deltas = play(self._model, stream, printer.show)
            printer.end()
            completion = fold(deltas)
            tell_end(completion)
            self._history += [asked, replace(completion.message, tool_calls=())]
            self._prepare()
        except Stopped as stop:
            printer.end()
            note("stopped")
            self._history += [asked, Message("assistant", "".join(delta.content for delta in stop.deltas))]
        except EdgeqwenError as error:
            printer.end()
            complain(f"{error}; /clear starts anew" if isinstance(error, ContextOverflowError) else str(error))

    def _prepare(self) -> None:
        """Compute the cache of the history while the user reads and types."""
        messages, prepared = self._messages(), threading.Event()

        def work() -> None:
            try:
                with contextlib.suppress(EdgeqwenError):  # the next answer meets the same error and shows it
                    self._model.prepare(messages)
            finally:
                prepared.set()

        self._prepared = prepared
        threading.Thread(target=work, name="prepare", daemon=True).start()

    def _wait(self) -> None:
        """Let `prepare` end, for the next answer needs its work; Ctrl-C ends the wait, and the work with it.

        It waits for an event: Python 3.11 takes a thread for ended when Ctrl-C interrupts its join().
        """
        try:
            self._prepared.wait()
        except KeyboardInterrupt:
            self._stop_preparing()
            raise

    def _stop_preparing(self) -> None:
        """Interrupt until it ends: an interrupt that comes before the work has begun is forgotten."""
        while not self._prepared.is_set():
            with contextlib.suppress(KeyboardInterrupt):  # once more: it is stopping already
                self._model.interrupt()
                self._prepared.wait(STOP_AGAIN_S)

    def _think(self, _rest: str) -> None:
        if not self._model.template.thinks:
            click.echo(f"{escaped(self._model.card.name)} has no thinking mode", err=True)
            return
        self._settings["thinking"] = True
        if self._settings.get("thinking_budget") == 0:
            self._settings["thinking_budget"] = None
        note("thinking is on")

    def _no_think(self, _rest: str) -> None:
        self._settings["thinking"] = False
        note("thinking is off")

    def _budget(self, rest: str) -> None:
        if rest and not (rest.isdecimal() and len(rest) <= BUDGET_DIGITS):
            click.echo(f"/budget needs a number of tokens, found {rest[:60]!r}", err=True)
            return
        self._settings["thinking_budget"] = budget = int(rest) if rest else None
        if budget == 0 and self._settings.get("thinking"):
            del self._settings["thinking"]  # the later word counts
        note(f"at most {rest} tokens of thinking" if rest else "no limit on thinking")

    def _set_system(self, rest: str) -> None:
        self._system = rest or None
        self._clear("")

    def _clear(self, _rest: str) -> None:
        self._stop_preparing()
        self._history.clear()
        note("a new conversation")

    def _help(self, _rest: str) -> None:
        sys.stdout.write(HELP + "\n")
