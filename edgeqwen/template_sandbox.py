"""A trusted but unknown chat template, rendered by a process of its own; text of the messages stays text."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqwen import template_process
from edgeqwen.errors import RequestError, TemplateError
from edgeqwen.messages import json_text
from edgeqwen.segments import Segment, Special
from edgeqwen.types import Message, Tool

START_S = 20.0  # for Python itself on a slow device; the rendering has its own limit


@dataclass(frozen=True, slots=True)
class SandboxedTemplate:
    """A Jinja template in a sandbox, with limits on time, memory and output."""

    source: str
    name: str

    @property
    def thinks(self) -> bool:
        return "enable_thinking" in self.source

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        thinking: bool = True,
        generation_prompt: bool = True,
    ) -> list[Segment]:
        """Render a prompt. Raises TemplateError where the template refuses the messages or a limit is reached."""
        switches = {"enable_thinking": thinking, "add_generation_prompt": generation_prompt}
        try:
            written = [json.loads(json_text(tool, f"tools[{index}]")) for index, tool in enumerate(tools)]
            given = {"messages": [_turn(message) for message in messages], "tools": written or None, **switches}
            mark = _mark(self.source + json.dumps(given, ensure_ascii=False))
            guarded = _guard(given, mark)
        except RecursionError:
            raise RequestError("the messages or the tools are nested too deeply") from None
        return _segments(_run({"source": self.source, "variables": guarded}), mark)


def _turn(message: Message) -> dict[str, Any]:
    """One message in the shape that Jinja templates expect from transformers."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking is not None:
        turn["reasoning_content"] = message.thinking
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _object(call.arguments)}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _object(arguments: str) -> Any:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _mark(given: str) -> str:
    """Pick a private character that occurs nowhere, neither itself nor as a JSON escape."""
    for code in range(0xE000, 0xF900):
        if chr(code) not in given and f"\\u{code:04x}" not in given:
            return chr(code)
    raise RequestError("the messages use every private-use character (U+E000 to U+F8FF): none is left to mark text")


def _guard(value: Any, mark: str) -> Any:
    """Break every control token, and every piece of one, in what comes from outside: `<` and `>` get a mark inside."""
    if isinstance(value, str):
        return value.replace("<", f"<{mark}").replace(">", f"{mark}>")
    if isinstance(value, Mapping):
        return {_guard(key, mark): _guard(item, mark) for key, item in value.items()}
    return [_guard(item, mark) for item in value] if isinstance(value, list) else value


def _segments(rendered: str, mark: str) -> list[Segment]:
    """What looks like a control token without a mark inside was written by the template; then the marks go."""
    marked = rendered.replace(f"\\u{ord(mark):04x}", mark)  # tojson(ensure_ascii=true) escapes it
    # A control token has no blank in it; what the tokenizer does not know by this name stays text.
    parts = enumerate(re.split(rf"(<[^<>\s{mark}]{{1,64}}>)", marked))
    found = [Special(part) if index % 2 else part.replace(mark, "") for index, part in parts]
    return [part for part in found if part]


def _run(request: dict[str, Any]) -> str:
    """Render in a child process. Its module is run as a file, -P keeps that file's folder off the import path."""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if "SYSTEMROOT" in os.environ:  # Windows starts no Python without it
        environment["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-X", "utf8", str(Path(template_process.__file__))],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=START_S,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TemplateError(f"the chat template was not rendered within {START_S:.0f} s") from None
    except OSError as error:
        raise TemplateError(f"the process that renders the chat template could not be started: {error}") from None
    return _answer(done)


def _answer(done: subprocess.CompletedProcess[bytes]) -> str:
    try:
        answer = json.loads(done.stdout)
        kind, text = answer["kind"], str(answer["text"])
    except (ValueError, KeyError, TypeError):
        raise TemplateError(
            f"the chat template broke a limit ({template_process.RENDER_S:.0f} s, "
            f"{template_process.MEMORY_BYTES >> 20} MiB of memory) and its process ended with {done.returncode}"
        ) from None
    if kind != "text":
        raise TemplateError(f"the chat template failed: {text[:500]}")
    return text
