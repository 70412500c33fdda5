"""The dialects of the thinking switch: each alone, contradictions, soft switches."""

import pytest

from edgeqwen.messages import messages_from
from edgeqwen.server.dialects import Thinking, thinking_of
from edgeqwen.server.openai_fields import EFFORTS, THINKING
from edgeqwen.server.openai_request import chat_from

ON, OFF, OPEN = Thinking(enabled=True), Thinking(enabled=False), Thinking()
HIDDEN, INLINE = Thinking(shown="hidden"), Thinking(shown="inline")
TEMPLATE = "chat_template_kwargs"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({}, OPEN),
        ({"enable_thinking": True}, ON),
        ({"enable_thinking": False}, OFF),
        ({"enable_thinking": True, "return_reasoning": True}, ON),
        ({"enable_thinking": None, "thinking_budget": 100}, Thinking(budget=100)),
        ({TEMPLATE: {"enable_thinking": False}}, OFF),
        ({TEMPLATE: {"enable_thinking": True, "thinking_budget": 9}}, Thinking(enabled=True, budget=9)),
        ({TEMPLATE: {"thinking": False}}, OFF),
        ({"reasoning_effort": "none"}, OFF),
        ({"reasoning_effort": "minimal"}, Thinking(budget=128)),
        ({"reasoning_effort": "low"}, Thinking(budget=512)),
        ({"reasoning_effort": "medium"}, Thinking(budget=2048)),
        ({"reasoning_effort": "high"}, OPEN),
        ({"reasoning": {"effort": "none"}}, OFF),
        ({"reasoning": {"enabled": False}}, OFF),
        ({"reasoning": {"effort": "low", "max_tokens": 64}}, Thinking(budget=64)),
        ({"think": False}, OFF),
        ({"think": True}, ON),
        ({"think": "low"}, Thinking(budget=512)),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, Thinking(enabled=True, budget=1024)),
        ({"thinking": {"type": "disabled"}}, OFF),
        ({"thinking": {"type": "adaptive"}}, OPEN),
        ({"thinking_token_budget": 7}, Thinking(budget=7)),
        ({"thinking_budget_tokens": 7}, Thinking(budget=7)),
        ({"reasoning_budget_tokens": 7}, Thinking(budget=7)),
        ({"reasoning_budget": 7}, Thinking(budget=7)),
        ({"reasoning_budget": -1}, OPEN),
        ({"custom_params": {"thinking_budget": 7}}, Thinking(budget=7)),
        ({"thinking_budget": 0}, Thinking(budget=0)),
        ({"return_reasoning": False}, HIDDEN),
        ({"include_reasoning": False}, HIDDEN),
        ({"include_reasoning": True}, OPEN),
        ({"reasoning": {"exclude": True}}, HIDDEN),
        ({"reasoning": {"exclude": False}}, OPEN),
        ({"reasoning_format": "hidden"}, HIDDEN),
        ({"reasoning_format": "none"}, INLINE),
        ({"reasoning_format": "deepseek"}, OPEN),
        ({"separate_reasoning": False}, INLINE),
        # contradictions
        ({"enable_thinking": True, TEMPLATE: {"enable_thinking": False}}, ON),
        ({TEMPLATE: {"enable_thinking": False}, "think": True}, OFF),
        ({"enable_thinking": True, "reasoning_effort": "none"}, ON),
        ({"enable_thinking": False, "reasoning_effort": "high", "thinking_budget": 5}, OFF),
        ({"thinking_budget": 5, "thinking_token_budget": 6, "reasoning_effort": "low"}, Thinking(budget=5)),
        ({"thinking_budget": -1, "reasoning_effort": "low"}, OPEN),
        ({"return_reasoning": True, "include_reasoning": False}, OPEN),
    ],
)
def test_every_dialect(body, wanted):
    assert thinking_of(body) == wanted
    config = chat_from({"messages": [{"role": "user", "content": "a"}], **body}).requests[0].config
    assert (config.thinking, config.thinking_budget) == (wanted.enabled, wanted.budget)


def said(*texts, role="user"):
    return messages_from([{"role": role, "content": text} for text in texts])


@pytest.mark.parametrize(
    ("texts", "off"),
    [
        (["Why? /no_think"], True),
        (["/no_think"], True),
        (["Why?\n/no_think."], True),
        (["Why? /no_think", "And now? /think"], False),
        (["Why? /think /no_think"], True),
        (["Why? /no_think", "And now?"], True),
        (["see https://a.example/no_think"], False),
        (["the file /no_think/a"], False),
        (["/no_thinking"], False),
        (["a/no_think"], False),
    ],
)
def test_soft_switches(texts, off):
    assert thinking_of({}, said(*texts)).enabled is (False if off else None)
    assert thinking_of({"enable_thinking": True}, said(*texts)).enabled is not off
    assert thinking_of({"enable_thinking": False}, said(*texts)).enabled is False


def test_only_user_and_system_switch():
    assert thinking_of({}, said("/no_think", role="system")).enabled is False
    assert thinking_of({}, said("/no_think", role="tool")).enabled is None
    assert thinking_of({}, said("/no_think", role="assistant")).enabled is None


def test_every_field_of_a_dialect_is_read():
    """A field that the API accepts and no dialect reads would be a trap."""
    values = {
        "enable_thinking": False, "think": False, "return_reasoning": False, "include_reasoning": False,
        "separate_reasoning": False, "reasoning_effort": "none", "reasoning_format": "none",
        TEMPLATE: {"enable_thinking": False}, "thinking": {"type": "disabled"}, "reasoning": {"effort": "none"},
        "custom_params": {"thinking_budget": 3},
    }  # fmt: skip
    for name in THINKING:
        assert thinking_of({name: values.get(name, 3)}) != OPEN, name
    for effort in EFFORTS:
        assert chat_from({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": effort})
