"""Tool calls in a model's answer (Hermes: JSON between <tool_call> tags) -> ToolCallDelta; it knows no tokens."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeqwen.errors import RequestError
from edgeqwen.strict_json import shown
from edgeqwen.types import Tool, ToolCallDelta, ToolChoice

MAX_CALLS = 128
MAX_CALL_CHARS = 1 << 16

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_STRING_OR_CLOSE = re.compile(f'"|{_CLOSE}')
_STRING_BODY = re.compile(r'(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*')
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class ToolText:
    """What some text made visible: content, and calls that are complete."""

    content: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class ToolCallParser:
    """push(text) -> ToolText. A call is held back until it is complete and valid, then comes in one delta.

    A fault near the end of a call would otherwise be noticed after half of it was sent. Whatever turns out to be no
    call (malformed JSON, no name, arguments that are no object, no closing tag, over 64 Ki characters) is content,
    verbatim. The arguments are the model's own text. The newline that the template writes before a call is dropped,
    and blanks after a call where another call or the end follows. The result is the same however the text is cut.
    """

    def __init__(self, seed: int = 0, *, only_one: bool = False) -> None:
        """`seed` makes the ids: the same seed gives the same ids. `only_one`: nothing is given after the first call."""
        self._seed = seed
        self._only_one = only_one
        self._held = ""
        self._call: _CallScanner | None = None  # of the call that `_held` starts with, after its separator
        self._after_call = False  # nothing but blanks came since a call
        self.calls_seen = 0

    @property
    def ended(self) -> bool:
        """The only call that may come has come."""
        return self._only_one and self.calls_seen > 0

    def push(self, text: str) -> ToolText:
        """Give what this text made certain."""
        return self._advance(text, final=False)

    def flush(self) -> ToolText:
        """End the answer: an unfinished call is content."""
        return self._advance("", final=True)

    def _advance(self, text: str, *, final: bool) -> ToolText:
        if not self._held and not self._after_call and "<" not in text and not text.endswith("\n"):
            return ToolText(text)
        self._held += text
        content: list[str] = []
        calls: list[ToolCallDelta] = []
        progress = True
        while progress and not self.ended:
            if self._call is None:
                progress = self._text(content, final=final)
            else:
                progress = self._end_call(self._call, content, calls, final=final)
        return ToolText("".join(content), tuple(calls))

    def _text(self, content: list[str], *, final: bool) -> bool:
        """Move text to the content up to the next opening tag; True if there is one."""
        held = self._held
        at = held.find(_OPEN)
        blanks = len(held) - len(held.lstrip()) if self._after_call else 0
        separated = self._after_call and blanks <= MAX_CALL_CHARS
        if at >= 0:
            start = 0 if separated and at == blanks else at - (held[:at][-1:] == "\n")
            self._emit(content, start)
            self._call = _CallScanner(at - start + len(_OPEN))
            return True
        if separated and (blanks == len(held) or (not final and _OPEN.startswith(held[blanks:]))):
            return False
        self._emit(content, len(held) if final else len(held) - _unsure(held))
        return False

    def _end_call(self, call: _CallScanner, content: list[str], calls: list[ToolCallDelta], *, final: bool) -> bool:
        """Decide on the call at the start of the held text; False if more text is needed."""
        limit = call.start + MAX_CALL_CHARS
        held = self._held[:limit]
        final = final or len(self._held) >= limit
        end = call.find_end(held, final=final)
        if end is None and not final:
            return False
        parsed = (
            _parse(held[call.start : end - len(_CLOSE)]) if end is not None and self.calls_seen < MAX_CALLS else None
        )
        if end is None or parsed is None:
            self._emit(content, len(held) if end is None else end)
        else:
            calls.append(ToolCallDelta(self.calls_seen, self._id(), *parsed))
            self.calls_seen += 1
            self._held = self._held[end:]
            self._after_call = True
        self._call = None
        return bool(self._held)

    def _emit(self, content: list[str], length: int) -> None:
        if length:
            content.append(self._held[:length])
            self._held = self._held[length:]
            self._after_call = False

    def _id(self) -> str:
        digest = hashlib.blake2b(f"{self._seed}/{self.calls_seen}".encode(), digest_size=12)
        return f"call_{digest.hexdigest()}"


class _CallScanner:
    """Finds where a call ends: a closing tag inside a JSON string belongs to the string."""

    def __init__(self, start: int) -> None:
        self.start = start  # after the opening tag
        self._at = start
        self._quote: int | None = None  # where the string began that `_at` is in
        self._broken = False  # that string can never end: this is no JSON

    def find_end(self, held: str, *, final: bool) -> int | None:
        """Give the end of the closing tag, or None while there is none; `final`: no more text will come."""
        while not self._broken:
            if self._quote is None:
                found = _STRING_OR_CLOSE.search(held, self._at)
                if found is None:
                    self._at = max(self._at, len(held) - len(_CLOSE) + 1)
                    return None
                self._at = found.end()
                if found[0] == _CLOSE:
                    return self._at
                self._quote = found.start()
            if not self._pass_string(held, final=final):
                return None
        end = held.find(_CLOSE, self._quote)
        return None if end < 0 else end + len(_CLOSE)

    def _pass_string(self, held: str, *, final: bool) -> bool:
        """Move on through the string; False if more text is needed to know where it ends."""
        body = _STRING_BODY.match(held, self._at)
        self._at = body.end() if body else self._at
        rest = held[self._at : self._at + 2]
        if rest.startswith('"'):
            self._at += 1
            self._quote = None
            return True
        if rest in ("", "\\") and not final:
            return False
        self._broken = True
        return True


def _unsure(text: str) -> int:
    """Count the characters at the end that may begin a tag, with the newline before it."""
    at = text.rfind("<", max(0, len(text) - len(_OPEN) + 1))
    if at < 0 or not _OPEN.startswith(text[at:]):
        at = len(text)
    return len(text) - at + (text[:at][-1:] == "\n")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


# Values are only looked at for their type: as floats, no integer is too long to be read.
_DECODER = json.JSONDecoder(parse_constant=_refuse, parse_int=float)


def _parse(text: str) -> tuple[str, str] | None:
    """Name and arguments, the latter as they were written; None for what is no call."""
    try:
        members = _members(text)
    except (ValueError, RecursionError):
        return None
    name, _ = members.get("name", (None, ""))
    # A call without any arguments may leave them out; with other keys in their place it is another dialect.
    members.setdefault("arguments", ({}, "{}") if len(members) == 1 else (None, ""))
    arguments, written = members["arguments"]
    if not isinstance(name, str) or not name.isprintable() or not name or not isinstance(arguments, dict):
        return None
    return name, written


def _members(text: str) -> dict[str, tuple[Any, str]]:
    """Read a JSON object: each member's value and its own text. Raises ValueError for anything else."""
    members: dict[str, tuple[Any, str]] = {}
    at = _expect(text, 0, "{")
    while True:
        key, at = _DECODER.raw_decode(text, at)
        at = _expect(text, at, ":")
        value, end = _DECODER.raw_decode(text, at)
        if not isinstance(key, str) or key in members:
            raise ValueError("a key that is no string, or twice")
        members[key] = (value, text[at:end])
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            break
        at = _expect(text, at, ",")
    if _expect(text, at, "}") != len(text):
        raise ValueError("more after the object")
    return members


def _expect(text: str, at: int, char: str) -> int:
    """Position after `char` and the blanks around it."""
    at = _skip(text, at)
    if text[at : at + 1] != char:
        raise ValueError(f"no {char} at {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def offered(tools: Sequence[Tool], choice: ToolChoice) -> Sequence[Tool]:
    """The tools that the model is told of: none with tool_choice none, the one that is named, else all.

    RequestError where one must be called and there is none, or it is not among them.
    """
    if choice == "none":
        return ()
    if choice == "auto":
        return tools
    named = choice.get("function") if isinstance(choice, Mapping) else None
    if choice != "required" and not (isinstance(named, Mapping) and isinstance(named.get("name"), str)):
        raise RequestError(
            f"tool_choice={shown(choice)} must be auto, none, required or "
            "{'type': 'function', 'function': {'name': ...}}"
        )
    if not tools:
        raise RequestError(f"tool_choice={shown(choice)} needs tools")
    if named is None:
        return tools
    found = [tool for tool in tools if tool.get("function", tool)["name"] == named["name"]]
    if not found:
        raise RequestError(f"tool_choice={shown(choice)} names {shown(named['name'])}, which is none of the tools")
    return found[:1]


def check_tools(tools: Any) -> Sequence[Tool]:
    """Tools as a caller gave them, None for none; RequestError where one is not in OpenAI's shape or has no name."""
    if tools is None:
        return ()
    if isinstance(tools, str | Mapping) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list of objects as in OpenAI's API, not {type(tools).__name__}")
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestError(
                f"tools[{index}] must be {{'type': 'function', 'function': {{'name': ...}}}}, not {tool!r:.80}"
            )
    return tools
