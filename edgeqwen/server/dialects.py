"""Every dialect of the thinking switch, its budget and hiding -> one setting; it knows no wire and no template.

| who                     | on or off                              | tokens                   | shown              |
|-------------------------|----------------------------------------|--------------------------|--------------------|
| edgeqwen                | enable_thinking                        | thinking_budget          | return_reasoning   |
| DashScope, ChatQwen     | enable_thinking                        | thinking_budget          |                    |
| vLLM                    | chat_template_kwargs, reasoning_effort | thinking_token_budget    | include_reasoning  |
| SGLang                  | chat_template_kwargs                   | custom_params            | separate_reasoning |
| llama.cpp               | chat_template_kwargs, reasoning_effort | reasoning_budget_tokens, | reasoning_format   |
|                         |                                        | thinking_budget_tokens,  |                    |
|                         |                                        | reasoning_budget         |                    |
| OpenAI                  | reasoning_effort                       |                          |                    |
| OpenRouter, Ollama's v1 | reasoning.enabled, reasoning.effort    | reasoning.max_tokens     | reasoning.exclude  |
| Ollama                  | think                                  |                          |                    |
| Anthropic, DeepSeek     | thinking.type                          | thinking.budget_tokens   |                    |
| Qwen                    | /think, /no_think in what was said     |                          |                    |

Contradictions: the first that says something wins, in the order of `_SWITCHES`, `_BUDGETS` and `_SHOWN`; an effort
speaks last, its budget too. A field that says off is final. Where the fields say on, or nothing, the last /think or
/no_think of user and system decides, as Qwen3 was taught. A budget of 0 turns thinking off, -1 is no budget.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeqwen.types import Message

# apart: in a field of its own; inline: in the content, between its tags; hidden: nowhere
Shown = Literal["apart", "inline", "hidden"]
# tokens of thinking; None: no limit. A small device makes 10 tokens a second.
EFFORT_BUDGETS = {"minimal": 128, "low": 512, "medium": 2048, "high": None, "xhigh": None, "max": None}
_SOFT = re.compile(r"(?<!\S)/(no_)?think(?![\w/])")
_SWITCHES = (
    "enable_thinking", "chat_template_kwargs.enable_thinking", "chat_template_kwargs.thinking", "think",
    "thinking.type", "reasoning.enabled",
)  # fmt: skip
_EFFORTS = ("reasoning_effort", "reasoning.effort", "chat_template_kwargs.reasoning_effort", "think")
_BUDGETS = (
    "thinking_budget", "chat_template_kwargs.thinking_budget", "thinking_token_budget", "thinking_budget_tokens",
    "reasoning_budget_tokens", "reasoning_budget", "thinking.budget_tokens", "reasoning.max_tokens",
    "custom_params.thinking_budget",
)  # fmt: skip
_SHOWN = ("return_reasoning", "include_reasoning", "reasoning.exclude", "separate_reasoning", "reasoning_format")
_TYPES = {"enabled": True, "disabled": False}  # of Anthropic's `thinking`; adaptive and auto leave it open
_FORMATS: dict[str, Shown] = {"none": "inline", "raw": "inline", "hidden": "hidden"}


@dataclass(frozen=True, slots=True)
class Thinking:
    """What a request wants of the thinking. `enabled` None: on, where the model can; `budget` None: no limit."""

    enabled: bool | None = None
    budget: int | None = None
    shown: Shown = "apart"


def thinking_of(body: Mapping[str, Any], messages: Sequence[Message] = ()) -> Thinking:
    """Read every dialect of a body whose fields are checked."""
    effort = _first(body, _EFFORTS, str)
    switches = (_TYPES.get(value, value) for value in _values(body, _SWITCHES))
    enabled = next((value for value in switches if isinstance(value, bool)), None)
    if enabled is None and effort == "none":
        enabled = False
    budget = _first(body, _BUDGETS, int | float)
    budget = EFFORT_BUDGETS.get(effort or "") if budget is None else None if budget < 0 else int(budget)
    if enabled is not False and _soft_switch(messages) is False:
        enabled = False
    return Thinking(enabled, None if enabled is False else budget, _shown(body))


def _shown(body: Mapping[str, Any]) -> Shown:
    for place in _SHOWN:
        value = next(_values(body, (place,)), None)
        if isinstance(value, str):
            return _FORMATS.get(value, "apart")
        if isinstance(value, bool):
            if value == (place == "reasoning.exclude"):
                return "inline" if place == "separate_reasoning" else "hidden"
            return "apart"
    return "apart"


def _soft_switch(messages: Sequence[Message]) -> bool | None:
    """What the last /think or /no_think says; None where there is none."""
    for message in reversed(messages):
        if message.role in {"user", "system"} and "think" in message.content:
            switches = _SOFT.findall(message.content)
            if switches:
                return not switches[-1]
    return None


def _first(body: Mapping[str, Any], places: Iterable[str], kind: Any) -> Any:
    """The first value of this kind; true and false are no numbers."""
    return next((v for v in _values(body, places) if isinstance(v, kind) and not isinstance(v, bool)), None)


def _values(body: Mapping[str, Any], places: Iterable[str]) -> Iterator[Any]:
    """What stands in a body at `name` or `name.inner`, without what is not there."""
    for place in places:
        name, _, inner = place.partition(".")
        value = body.get(name)
        if inner:
            value = value.get(inner) if isinstance(value, Mapping) else None
        if value is not None:
            yield value
