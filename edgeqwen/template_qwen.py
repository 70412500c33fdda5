"""Qwen's own chat templates, written natively: byte for byte what their Jinja renders, in segments; no tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from edgeqwen.errors import RequestError
from edgeqwen.messages import json_text
from edgeqwen.segments import Segment, Special, literal
from edgeqwen.types import Message, Tool, ToolCall

_START, _END = Special("<|im_start|>"), literal("<|im_end|>\n")
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n%s\n</tool_call><|im_end|>\n"
)
_CALL_SHAPE = '{"name": <function-name>, "arguments": <args-json-object>}'
_CALL_BEFORE, _CALL_AFTER = literal('<tool_call>\n{"name": "'), literal("}\n</tool_call>")
_RESPONSE_BEFORE, _RESPONSE_AFTER = literal("\n<tool_response>\n"), literal("\n</tool_response>")
_THINK_BEFORE, _THINK_AFTER = literal("<think>\n"), literal("\n</think>\n\n")
_NO_THINKING = literal("<think>\n\n</think>\n\n")


@dataclass(frozen=True, slots=True)
class QwenTemplate:
    """One release's template; the fields are all that differs between them."""

    name: str
    thinks: bool = False  # its model can think; the thinking of turns after the last question stays
    opens: bool = False  # it always thinks: the prompt ends inside an open block. Otherwise off writes an empty one
    finds_responses: bool = False  # a user turn that holds a tool's answer anywhere is no question
    system: str = ""  # written where the messages have no system turn
    call_shape: str = _CALL_SHAPE  # how the tools' preamble shows a call
    parses_arguments: bool = False  # writes arguments as JSON of its own; otherwise as the text came

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        thinking: bool = True,
        generation_prompt: bool = True,
    ) -> list[Segment]:
        """Render a prompt. Raises RequestError for no messages and for tools that are not JSON."""
        if not messages:
            raise RequestError("messages is empty: give at least one message, e.g. one with role 'user'")
        out = self._head(messages[0], tools)
        last_query = self._last_query(messages)
        for index, message in enumerate(messages):
            if message.role == "assistant":
                out += self._assistant(message, index > last_query, last=index == len(messages) - 1)
            elif message.role == "tool":
                out += _tool_response(messages, index)
            elif message.role == "user" or index:
                out += [_START, f"{message.role}\n{message.content}", *_END]
        if generation_prompt:
            out += self._prompt(thinking=thinking)
        return out

    def _head(self, first: Message, tools: Sequence[Tool]) -> list[Segment]:
        """Write the system turn: the first message if it is one, then the tools."""
        given = first.role == "system"
        system = first.content if given else self.system
        if not tools:
            return [_START, f"system\n{system}", *_END] if given or system else []
        gap = "\n\n" if given or system else ""
        listed = "".join(f"\n{json_text(tool, f'tools[{index}]')}" for index, tool in enumerate(tools))
        return [_START, f"system\n{system}{gap}{_TOOLS_BEFORE}{listed}", *literal(_TOOLS_AFTER % self.call_shape)]

    def _assistant(self, message: Message, after_query: bool, *, last: bool) -> list[Segment]:
        thought, content = _reasoning(message) if self.thinks else ("", message.content)
        out: list[Segment] = [_START, "assistant\n"]
        if after_query and (last or thought):
            out += [*_THINK_BEFORE, thought.strip("\n"), *_THINK_AFTER, content.lstrip("\n")]
        else:
            out.append(content)
        for index, call in enumerate(message.tool_calls):
            if index or content:
                out.append("\n")
            out += [*_CALL_BEFORE, call.name, '", "arguments": ', self._arguments(call), *_CALL_AFTER]
        return [*out, *_END]

    def _arguments(self, call: ToolCall) -> str:
        if not self.parses_arguments:
            return call.arguments
        try:
            return json.dumps(json.loads(call.arguments), ensure_ascii=False)
        except (ValueError, RecursionError):  # a history may hold what a model wrote wrongly
            return call.arguments

    def _last_query(self, messages: Sequence[Message]) -> int:
        """Index of the last real question, or beyond the end: a user turn that wraps a tool's answer is none."""
        indices = range(len(messages) - 1, -1, -1) if self.thinks else ()
        questions = (i for i in indices if messages[i].role == "user" and not self._wraps_response(messages[i].content))
        return next(questions, len(messages))

    def _wraps_response(self, content: str) -> bool:
        if self.finds_responses:
            return "<tool_response>" in content and "</tool_response>" in content
        return content.startswith("<tool_response>") and content.endswith("</tool_response>")

    def _prompt(self, *, thinking: bool) -> list[Segment]:
        out: list[Segment] = [_START, "assistant\n"]
        if self.opens:
            out += _THINK_BEFORE
        elif self.thinks and not thinking:
            out += _NO_THINKING
        return out


_QWEN2_5_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."

# By the sha256 of the Jinja source without one newline at its end, which Jinja drops as well.
TEMPLATES = {
    "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5": QwenTemplate("qwen3", thinks=True),
    # In Qwen's own GGUF files: a revision that looks for the tags of a tool's answer anywhere in a turn.
    "57f1fd00f0013a2be96aa79b857391f27e23df5b5f847072b524c897e24d0361": QwenTemplate(
        "qwen3-gguf", thinks=True, finds_responses=True
    ),
    "3802169b2a02b81e6adb7ab4f64f91ff02db753c8c3a64a01c35192d3a61d8d7": QwenTemplate(
        "qwen3-thinking-2507", thinks=True, opens=True
    ),
    "64f85b198065d0fba2a81f37e10ed68161ce2c19a754c7100e67e0ca2ee9c326": QwenTemplate("qwen3-instruct-2507"),
    "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a": QwenTemplate(
        "qwen2.5", system=_QWEN2_5_SYSTEM, parses_arguments=True
    ),
    # Qwen2.5-Coder, and the first revision of Qwen2.5: a format string's doubled braces were left in.
    "4e9918361c284a93880606d182d64da6a9fe97cdc1f5c5a78c1c8840444246fc": QwenTemplate(
        "qwen2.5-coder", system=_QWEN2_5_SYSTEM, parses_arguments=True, call_shape="{" + _CALL_SHAPE + "}"
    ),
}


def _reasoning(message: Message) -> tuple[str, str]:
    """Split an assistant's turn into what it thought and what it said, as the template does."""
    content = message.content
    if message.thinking is not None:
        return message.thinking, content
    if "</think>" not in content:
        return "", content
    thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
    return thought, content.split("</think>")[-1].lstrip("\n")


def _tool_response(messages: Sequence[Message], index: int) -> list[Segment]:
    """One tool's answer; answers in a row share a user turn."""
    first = index == 0 or messages[index - 1].role != "tool"
    last = index == len(messages) - 1 or messages[index + 1].role != "tool"
    before: list[Segment] = [_START, "user"] if first else []
    after = _END if last else ()
    return [*before, *_RESPONSE_BEFORE, messages[index].content, *_RESPONSE_AFTER, *after]
