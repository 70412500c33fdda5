"""OpenAI-shaped dicts -> Message: every legal history becomes one shape; it knows no template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from edgeqwen.errors import RequestError
from edgeqwen.types import Message, Role, ToolCall

MAX_MESSAGES = 4096
MAX_PARTS = 4096  # content parts of one message
MAX_TOOL_CALLS = 128  # of one message

_ROLES: dict[str, Role] = {role: role for role in get_args(Role)} | {"developer": "system"}
_FIELDS = tuple(field.name for field in fields(Message))
_TEXT_PARTS = ("text", "input_text", "output_text")  # Chat Completions and Responses


def messages_from(data: Sequence[Mapping[str, Any] | Message]) -> tuple[Message, ...]:
    """Normalise a conversation. Raises RequestError that names the message and its field."""
    items = _list(data, "messages", MAX_MESSAGES)
    if not items:
        raise RequestError("messages is empty: give at least one message, e.g. one with role 'user'")
    return tuple(_message(item, f"messages[{index}]") for index, item in enumerate(items))


def message_from(data: Mapping[str, Any] | Message) -> Message:
    """Normalise one message: null or missing content, text parts, role developer, reasoning, tool calls.

    Fields that say nothing about the prompt (name, refusal, audio: null, ...) are ignored, as OpenAI's clients send
    their own answers back. Raises RequestError that names the field.
    """
    return _message(data, "message")


def _message(data: Mapping[str, Any] | Message, where: str) -> Message:
    if isinstance(data, Message):
        checked = _from_fields({name: getattr(data, name) for name in _FIELDS}, where)
        return data if checked == data else checked
    if not isinstance(data, Mapping):
        raise RequestError(f"{where} must be an object with role and content, not {_kind(data)}")
    return _from_fields(data, where)


def _from_fields(data: Mapping[str, Any], where: str) -> Message:
    role = _role(data.get("role"), where)
    calls = _tool_calls(data.get("tool_calls"), f"{where}.tool_calls")
    if calls and role != "assistant":
        raise RequestError(f"{where}.tool_calls belongs to an assistant, and this role is {role}")
    return Message(
        role=role,
        content=_content(_given(data, role, where), f"{where}.content"),
        thinking=_thinking(data, where) if role == "assistant" else None,
        tool_calls=calls,
        tool_call_id=_tool_call_id(data, where) if role == "tool" else None,
    )


def _given(data: Mapping[str, Any], role: Role, where: str) -> Any:
    """The content, which may be null; who asks has one, and a typo must not make it empty."""
    if "content" not in data and role in ("system", "user"):
        raise RequestError(f"{where} has no content; it has {', '.join(map(_shown, data))}")
    return data.get("content")


def _role(role: Any, where: str) -> Role:
    if not isinstance(role, str) or role not in _ROLES:
        raise RequestError(f"{where}.role is {_shown(role)}: it must be one of {', '.join(sorted(_ROLES))}")
    return _ROLES[role]


def _content(content: Any, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _unicode(content, where)
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise RequestError(f"{where} must be a string or a list of text parts, not {_kind(content)}")
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(_list(content, where, MAX_PARTS)))


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return _unicode(part, where)
    if not isinstance(part, Mapping):
        raise RequestError(f"{where} must be a text part, not {_kind(part)}")
    if part.get("type", "text") not in _TEXT_PARTS:
        raise RequestError(f"{where}.type is {_shown(part.get('type'))}: this model reads text parts only")
    return _string(part.get("text"), f"{where}.text")


def _thinking(data: Mapping[str, Any], where: str) -> str | None:
    """Read what the assistant thought: the names are DeepSeek's and vLLM's, OpenRouter's, Ollama's and our own."""
    for name in ("reasoning_content", "reasoning", "thinking"):
        if data.get(name) is not None:
            return _string(data[name], f"{where}.{name}")
    return None


def _tool_call_id(data: Mapping[str, Any], where: str) -> str | None:
    for name in ("tool_call_id", "id"):
        if data.get(name) is not None:
            return _string(data[name], f"{where}.{name}")
    return None


def _tool_calls(calls: Any, where: str) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    return tuple(
        _tool_call(call, f"{where}[{index}]") for index, call in enumerate(_list(calls, where, MAX_TOOL_CALLS))
    )


def _tool_call(call: Any, where: str) -> ToolCall:
    if isinstance(call, ToolCall):
        return _call(call.name, call.arguments, call.id, where, where)
    if not isinstance(call, Mapping):
        raise RequestError(f"{where} must be an object, not {_kind(call)}")
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise RequestError(f"{where}.function must be an object, not {_kind(function)}")
    return _call(function.get("name"), function.get("arguments"), call.get("id"), f"{where}.function", where)


def _call(name: Any, arguments: Any, call_id: Any, function: str, where: str) -> ToolCall:
    """Check the fields of one call; `function` and `where` are the places of its name and of its id."""
    name = _string(name, f"{function}.name")
    if not name:
        raise RequestError(f"{function}.name is empty: a call needs the name of its function")
    return ToolCall(name, _arguments(arguments, f"{function}.arguments"), _string(call_id or "", f"{where}.id"))


def _arguments(arguments: Any, where: str) -> str:
    """JSON text as it came; an object becomes the text that Qwen's template writes for it. Nothing means {}."""
    if isinstance(arguments, str):
        return _unicode(arguments, where) or "{}"
    if arguments is None:
        return "{}"
    if not isinstance(arguments, Mapping):
        raise RequestError(f"{where} must be JSON text or an object, not {_kind(arguments)}")
    return json_text(arguments, where)


def json_text(value: Any, where: str) -> str:
    """JSON as transformers' templates write it (`tojson`): not ASCII-escaped, not sorted. RequestError if it cannot."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}") from None
    return _unicode(text, where)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return list(value)
    raise TypeError(f"{_kind(value)} is no JSON type")


def _list(value: Any, where: str, limit: int) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
        raise RequestError(f"{where} must be a list, not {_kind(value)}")
    if len(value) > limit:
        raise RequestError(f"{where} has {len(value)} entries: at most {limit} are taken")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a string, not {_kind(value)}")
    return _unicode(value, where)


def _unicode(text: str, where: str) -> str:
    """Refuse half of a surrogate pair here, where its place in the conversation is known."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RequestError(
            f"{where} has a lone surrogate (U+{code:04X}) at character {error.start}: "
            "it is no valid Unicode; send it as UTF-8"
        ) from None
    return text


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _shown(value: Any) -> str:
    """Show a value in an error: short, on one line."""
    return repr(value)[:60]
