"""Every history that OpenAI's clients may send becomes Messages; every fault names its place."""

import json
import re

import pytest
from text_templates import reference, sources

from edgeqwen.errors import RequestError
from edgeqwen.messages import MAX_MESSAGES, MAX_PARTS, MAX_TOOL_CALLS, message_from, messages_from
from edgeqwen.segments import plain_text
from edgeqwen.template import find_template
from edgeqwen.types import Message, ToolCall


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ({"role": "user", "content": "hi"}, Message("user", "hi")),
        ({"role": "developer", "content": "hi"}, Message("system", "hi")),
        ({"role": "system", "content": None}, Message("system", "")),
        ({"role": "assistant"}, Message("assistant", "")),
        ({"role": "user", "content": []}, Message("user", "")),
        ({"role": "user", "content": ["a", {"type": "text", "text": "b"}, {"text": "c"}]}, Message("user", "abc")),
        ({"role": "user", "content": ({"type": "input_text", "text": "b"},)}, Message("user", "b")),
        ({"role": "tool", "content": [{"type": "text", "text": "b"}]}, Message("tool", "b")),
        ({"role": "tool", "content": "x", "tool_call_id": "c1"}, Message("tool", "x", tool_call_id="c1")),
        ({"role": "tool", "content": "x", "id": "c1", "name": "f"}, Message("tool", "x", tool_call_id="c1")),
        ({"role": "user", "content": "x", "tool_call_id": "c1", "name": "Bob"}, Message("user", "x")),
        ({"role": "user", "content": "x", "reasoning_content": "t"}, Message("user", "x")),
        ({"role": "assistant", "content": "x", "reasoning_content": "t"}, Message("assistant", "x", "t")),
        ({"role": "assistant", "content": "x", "reasoning": "t"}, Message("assistant", "x", "t")),
        ({"role": "assistant", "content": "x", "thinking": "t"}, Message("assistant", "x", "t")),
        (
            {"role": "assistant", "content": "x", "reasoning_content": None, "reasoning": ""},
            Message("assistant", "x", ""),
        ),
        ({"role": "assistant", "content": "x", "tool_calls": None, "refusal": None}, Message("assistant", "x")),
        ({"role": "user", "content": "x", "tool_calls": []}, Message("user", "x")),
    ],
)
def test_legal_messages(data, wanted):
    assert message_from(data) == wanted
    assert messages_from([data]) == (wanted,)
    assert message_from(wanted) is wanted


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x" :1}'}},
            ToolCall("f", '{"x" :1}', "a"),
        ),
        ({"function": {"name": "f", "arguments": {"x": "é", "y": (1,)}}}, ToolCall("f", '{"x": "é", "y": [1]}')),
        ({"name": "f", "arguments": {}}, ToolCall("f", "{}")),
        ({"id": None, "function": {"name": "f", "arguments": ""}}, ToolCall("f", "{}")),
        ({"function": {"name": "f", "arguments": None}}, ToolCall("f", "{}")),
        ({"function": {"name": "f"}}, ToolCall("f", "{}")),
        ({"function": {"name": "f", "arguments": "no json"}}, ToolCall("f", "no json")),
        (ToolCall("f", "{}", "x"), ToolCall("f", "{}", "x")),
    ],
)
def test_legal_tool_calls(call, wanted):
    assert message_from({"role": "assistant", "content": None, "tool_calls": [call]}).tool_calls == (wanted,)


LOOP = {}
LOOP["x"] = LOOP


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (None, r"messages must be a list, not null"),
        ("hi", r"messages must be a list, not str"),
        (b"hi", r"messages must be a list, not bytes"),
        ({"role": "user"}, r"messages must be a list, not dict"),
        ([], r"messages is empty"),
        (["hi"], r"messages\[0\] must be an object.*not str"),
        ([{"role": "user", "content": ""}, None], r"messages\[1\] must be an object.*not null"),
        ([{"role": "user", "contnet": "hi"}], r"messages\[0\] has no content; it has 'role', 'contnet'"),
        ([{}], r"messages\[0\]\.role is None: it must be one of assistant, developer, system, tool, user"),
        ([{"role": "human"}], r"messages\[0\]\.role is 'human'"),
        ([{"role": ["user"]}], r"messages\[0\]\.role"),
        ([Message("human")], r"messages\[0\]\.role is 'human'"),
        (
            [{"role": "user", "content": ""}, Message("user", 5)],
            r"messages\[1\]\.content must be a string or a list of.*not int",
        ),
        ([Message("assistant", thinking=5)], r"messages\[0\]\.thinking must be a string, not int"),
        ([Message("tool", tool_call_id=5)], r"messages\[0\]\.tool_call_id must be a string, not int"),
        ([Message("assistant", tool_calls=5)], r"messages\[0\]\.tool_calls must be a list, not int"),
        ([Message("user", tool_calls=(ToolCall("f", "{}"),))], r"messages\[0\]\.tool_calls belongs to an assistant"),
        ([Message("assistant", tool_calls=(ToolCall("", "{}"),))], r"messages\[0\]\.tool_calls\[0\]\.name is empty"),
        ([Message("assistant", tool_calls=(ToolCall(5, "{}"),))], r"tool_calls\[0\]\.name must be a string, not int"),
        ([Message("assistant", tool_calls=(ToolCall("f", 5),))], r"tool_calls\[0\]\.arguments must be JSON text or"),
        ([Message("assistant", tool_calls=(ToolCall("f", "{}", 5),))], r"tool_calls\[0\]\.id must be a string"),
        ([{"role": "User" * 99}], r"messages\[0\]\.role is .{60}:"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string or a list of text parts, not int"),
        (
            [{"role": "user", "content": {"type": "text"}}],
            r"content must be a string or a list of text parts, not dict",
        ),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\.content\[0\] must be a text part, not int"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string, not null"),
        (
            [{"role": "user", "content": ["", {"type": "image_url"}]}],
            r"content\[1\]\.type is 'image_url'.*text parts only",
        ),
        ([{"role": "assistant", "reasoning_content": 5}], r"messages\[0\]\.reasoning_content must be a string"),
        ([{"role": "assistant", "reasoning": ["t"]}], r"messages\[0\]\.reasoning must be a string"),
        ([{"role": "tool", "tool_call_id": 5}], r"messages\[0\]\.tool_call_id must be a string"),
        ([{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}], r"tool_calls belongs to an assistant.*user"),
        ([{"role": "assistant", "tool_calls": "x"}], r"tool_calls must be a list, not str"),
        ([{"role": "assistant", "tool_calls": [5]}], r"tool_calls\[0\] must be an object, not int"),
        ([{"role": "assistant", "tool_calls": [{"function": 5}]}], r"tool_calls\[0\]\.function must be an object"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"tool_calls\[0\]\.function\.name must be a string, not null"),
        ([{"role": "assistant", "tool_calls": [{"name": ""}]}], r"function\.name is empty"),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}],
            r"arguments must be JSON text or an obj",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": b""}}]}],
            r"arguments cannot be written",
        ),
        (
            [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": LOOP}]}],
            r"arguments cannot be written as JSON",
        ),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "id": 5}]}], r"tool_calls\[0\]\.id must be a string"),
        ([{"role": "user"}] * (MAX_MESSAGES + 1), r"messages has 4097 entries: at most 4096"),
        ([{"role": "user", "content": [""] * (MAX_PARTS + 1)}], r"messages\[0\]\.content has 4097 entries"),
        ([{"role": "assistant", "tool_calls": [{"name": "f"}] * (MAX_TOOL_CALLS + 1)}], r"tool_calls has 129 entries"),
    ],
)
def test_faults_name_their_place(data, place):
    with pytest.raises(RequestError, match=place) as caught:
        messages_from(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (Message("user", None), Message("user", "")),
        (Message("developer", "x"), Message("system", "x")),
        (Message("user", ["a", {"text": "b"}]), Message("user", "ab")),
        (Message("assistant", "x", tool_calls=None), Message("assistant", "x")),
        (
            Message("assistant", "", tool_calls=[ToolCall("f", {"x": 1}), {"name": "g"}]),
            Message("assistant", "", tool_calls=(ToolCall("f", '{"x": 1}'), ToolCall("g", "{}"))),
        ),
    ],
)
def test_a_message_is_taken_as_its_dict_would_be(given, wanted):
    as_dict = {name: getattr(given, name) for name in ("role", "content", "thinking", "tool_calls", "tool_call_id")}
    assert message_from(given) == wanted == message_from(as_dict)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"role": "user", "content": "ab\ud800"}, r"messages[1].content has a lone surrogate (U+D800) at character 2"),
        ({"role": "user", "content": ["a", {"text": "\udfff"}]}, r"messages[1].content[1].text has a lone"),
        ({"role": "user", "content": ["\ud800"]}, r"messages[1].content[0] has a lone surrogate"),
        ({"role": "assistant", "thinking": "\ud800"}, r"messages[1].thinking has a lone surrogate"),
        ({"role": "assistant", "tool_calls": [ToolCall("\ud800", "{}")]}, r"messages[1].tool_calls[0].name has a"),
        ({"role": "assistant", "tool_calls": [ToolCall("f", "\ud800")]}, r"messages[1].tool_calls[0].arguments has a"),
        ({"role": "assistant", "tool_calls": [ToolCall("f", {"\ud800": 1})]}, r"tool_calls[0].arguments has a lone"),
    ],
)
def test_a_lone_surrogate_is_reported_with_its_place(fields, place):
    for message in (fields, Message(**fields)):
        with pytest.raises(RequestError, match=re.escape(place)) as caught:
            messages_from([{"role": "system", "content": "\U0001f600"}, message])
        str(caught.value).encode()  # the report itself can be printed


def test_what_openai_clients_send_renders_like_its_plain_form():
    sent = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning": "I must look.",
            "tool_calls": [{"id": "c", "type": "function", "function": {"name": "w", "arguments": '{"city": "Köln"}'}}],
        },
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "rain"}]},
    ]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I must look.",
            "tool_calls": [{"function": {"name": "w", "arguments": json.loads('{"city": "Köln"}')}}],
        },
        {"role": "tool", "content": "rain"},
    ]
    rendered = plain_text(find_template(sources()["qwen3"]).render(messages_from(sent)))
    assert rendered == reference("qwen3", plain, [], thinking=True, generation_prompt=True)
