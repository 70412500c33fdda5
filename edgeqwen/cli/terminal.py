"""What a terminal may be sent: whether it takes ANSI codes, and text in which nothing can command it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import sys
from typing import Any, TextIO

import click

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # C0 and C1 but for \t and \n
_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")  # what json.dumps leaves as it is, and a terminal obeys


def takes_ansi(stream: TextIO) -> bool:
    """Whether styles and cursor movements are wanted there: a terminal, but not with NO_COLOR or TERM=dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(
    text: str, stream: TextIO, *, fg: str | None = None, bold: bool | None = None, dim: bool | None = None
) -> str:
    """The text in a style, where the stream takes one."""
    return click.style(text, fg=fg, bold=bold, dim=dim) if takes_ansi(stream) else text


def harmless(text: str, stream: TextIO) -> str:
    """A model's words without control characters on a terminal; unchanged in a pipe or a file."""
    return _CONTROL.sub("", text) if stream.isatty() else text


def escaped(text: str) -> str:
    r"""A name from a file on one line: every character that cannot be printed as \xNN, \uNNNN or \UNNNNNNNN."""
    return "".join(c if c.isprintable() else _escape(ord(c)) for c in text)


def _escape(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def json_text(data: Any) -> str:
    """One JSON object as it is printed: readable, and without raw control characters."""
    text = json.dumps(data, ensure_ascii=False, indent=2)
    return _NOT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def note(text: str, *, always: bool = False) -> None:
    """One dimmed line on stderr; on a terminal only, unless it must not be missed."""
    if always or sys.stderr.isatty():
        click.echo(styled(escaped(text), sys.stderr, dim=True), err=True)


def complain(text: str) -> None:
    """One line on stderr that begins with `error:`."""
    line = escaped(" ".join(text.splitlines()))
    click.echo(f"{styled('error:', sys.stderr, fg='red', bold=True)} {line}", err=True)


def open_streams() -> None:
    """Make of a byte that is no text, or a character that a pipe cannot take, a mark; it must not end an answer.

    OSError where standard output is closed.
    """
    for name, mode in (("stdin", "r"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by `<&-`; what is opened next would take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open until the end
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if getattr(sys, "stdout", None) is None:
        raise OSError(errno.EBADF, "standard output is closed")


def drop_unwritten() -> None:
    """Send to nowhere what an output does not take, so that Python does not try again when it ends."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
