"""What an answer must be (JSON of a schema, a pattern, a choice, a tool's call) -> a grammar as Lark text.

It knows no tokens but the two tags of a call, and nothing of how a grammar is held to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeqwen.errors import RequestError
from edgeqwen.messages import json_text
from edgeqwen.schema import MAX_PATTERN_CHARS, bounded_schema
from edgeqwen.strict_json import shown
from edgeqwen.tools import MAX_CALLS
from edgeqwen.types import GenerationConfig, Tool

PIP_LINE = "pip install 'edgeqwen[structure]'"
MAX_CHOICES = 256
MAX_CHOICE_CHARS = 1024
# JSON on one line, as Python and Qwen's calls have it. Free to write blanks a small model does not end, and what is
# not free takes no step.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
Tag = Callable[[str], str | None]  # <tool_call> -> Lark's name of that token; None: the vocabulary has no such token


@dataclass(frozen=True, slots=True)
class Structure:
    """A grammar, and what an error calls it: schema, regex, choice or tools.

    `calls_only`: the content is free, and it holds from `<tool_call>` on until the call is complete.
    """

    lark: str
    name: str
    calls_only: bool = False


def library() -> Any:
    """The package llguidance; RequestError with the line that installs it."""
    try:
        import llguidance  # noqa: PLC0415 - optional, and 60 ms
    except ImportError:
        raise RequestError(f"a schema, regex, choice or forced call needs llguidance: {PIP_LINE}") from None
    return llguidance


def structure_of(config: GenerationConfig, tools: Sequence[Tool], tag: Tag) -> Structure | None:
    """The grammar of an answer, None where it is free; `tools` are those the model is told of.

    RequestError names the place of what cannot be asked, or cannot be kept to.
    """
    name = _checked(config) or "tools"
    content = _content(config)
    opening, closing = tag("<tool_call>"), tag("</tool_call>")
    must_call = config.tool_choice not in ("auto", "none")
    if must_call and (opening is None or closing is None):
        raise RequestError(f"tool_choice={shown(config.tool_choice)}: this model has no token that begins a call")
    if not tools or opening is None or closing is None:
        return None if content is None else Structure(f"start: content\n{content}", name)
    if content is None and not must_call:
        if not any(_function(tool).get("strict") is True for tool in tools):
            return None
        return Structure(f"start: {_call(closing)}\n{_bodies(tools)}", name, calls_only=True)
    more = f' ("\\n" call){{0,{MAX_CALLS - 1}}}' if config.parallel_tool_calls else ""
    start = "calls" if content is None or must_call else "content | calls"
    calls = f"calls: call{more}\ncall: {opening} {_call(closing)}\n{_bodies(tools)}"
    return Structure(f"start: {start}\n{calls}" + (f"\n{content}" if start != "calls" else ""), name)


def _checked(config: GenerationConfig) -> str:
    """Which setting holds the content to a shape."""
    given = [name for name in ("schema", "regex") if getattr(config, name) is not None]
    given += ["choice"] if config.choice else []
    if len(given) > 1:
        raise RequestError(f"{given[1]}: the content is already held to a {given[0]}; give one of the two")
    choice: Any = config.choice  # as it came from a caller
    if not isinstance(choice, tuple | list) or len(choice) > MAX_CHOICES:
        raise RequestError(f"choice must be a list of at most {MAX_CHOICES} texts, not {shown(choice)}")
    for index, text in enumerate(choice):
        if not isinstance(text, str) or not 1 <= len(text) <= MAX_CHOICE_CHARS:
            raise RequestError(f"choice[{index}] must be a text of 1 to {MAX_CHOICE_CHARS} characters")
    return given[0] if given else ""


def _content(config: GenerationConfig) -> str | None:
    """The rule `content`."""
    if config.schema is not None:
        return f"content: {_json(bounded_schema(config.schema, 'schema'))}"
    if config.regex is not None:
        return f"content: TEXT\nTEXT: /{_pattern(config.regex)}/"
    if config.choice:
        return "content: TEXT\nTEXT: " + " | ".join(
            _literal(text, f"choice[{index}]") for index, text in enumerate(config.choice)
        )
    return None


def _pattern(regex: Any) -> str:
    """The regular expression as it stands between two slashes, matched as a whole."""
    if not isinstance(regex, str) or not 1 <= len(regex) <= MAX_PATTERN_CHARS:
        raise RequestError(f"regex must be a text of 1 to {MAX_PATTERN_CHARS} characters, not {shown(regex)}")
    json_text(regex, "regex")
    # The whole text matches: at its two ends the anchors say nothing.
    anchored = regex.endswith("$") and (len(regex) - len(regex[:-1].rstrip("\\")) - 1) % 2 == 0
    return str(library().regex_to_lark(regex.removeprefix("^")[: -1 if anchored else None], "dw"))


def _call(closing: str) -> str:
    """What follows `<tool_call>`, as Qwen's template writes it."""
    return f'"\\n" body "\\n" {closing}'


def _bodies(tools: Sequence[Tool]) -> str:
    """The rule `body`: a call of one of the tools, the arguments by its parameters.

    Each has its own JSON document, for the sake of `$ref`. What cannot be kept to is an error where the function is
    strict, and otherwise left to the model.
    """
    names, rules = [], []
    for index, tool in enumerate(tools):
        function = _function(tool)
        where = f"tools[{index}].function"
        name = function["name"]
        if not name.isprintable():
            raise RequestError(f"{where}.name is {shown(name)}: a call needs a name that can be printed")
        opening = f'{{"name": {json_text(name, f"{where}.name")}, "arguments": '
        names.append(f'{_literal(opening, where)} arguments{index} "}}"')
        rules.append(f"arguments{index}: {_json(_parameters(function, where))}")
    return "\n".join([f"body: {' | '.join(names)}", *rules])


def _parameters(function: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = function.get("parameters")
    if given is None:
        return {"type": "object"}
    schema = bounded_schema(given, f"{where}.parameters", lenient=function.get("strict") is not True)
    return {**schema, "type": "object"}


def _function(tool: Tool) -> Mapping[str, Any]:
    function: Mapping[str, Any] = tool.get("function", tool)
    return function


def _json(schema: Mapping[str, Any]) -> str:
    return "%json " + json.dumps({"x-guidance": _ONE_LINE, **schema})


def _literal(text: str, where: str) -> str:
    json_text(text, where)  # half of a surrogate pair would be let through
    return json.dumps(text)
