"""Bodies: bounded JSON, checked fields, errors that name the place; what is unknown reaches nothing."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeqwen.errors import RequestError
from edgeqwen.server.failures import FieldError, HttpError, failure_of
from edgeqwen.server.json_body import MAX_DEPTH, parse_body
from edgeqwen.server.json_check import check, words
from edgeqwen.server.openai_fields import CHAT, IGNORED, REFUSED, TEXT
from edgeqwen.server.openai_request import chat_from, text_from

HELLO = [{"role": "user", "content": "Hello"}]


def config(**fields):
    return chat_from({"messages": HELLO, **fields}).requests[0].config


def fault(read, **fields):
    """The place that a refusal names."""
    with pytest.raises(RequestError) as caught:
        read(fields)
    failure = failure_of(caught.value)
    assert failure.status == 400
    assert failure.type == "invalid_request_error"
    assert "\n" not in failure.message
    return failure.param


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ({"max_tokens": 5.0}, "max_tokens", 5),
        ({"max_tokens": 10**18}, "max_tokens", 2**31),
        ({"temperature": 0}, "temperature", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"repeat_penalty": 1.1}, "repetition_penalty", 1.1),
        ({"seed": -1}, "seed", None),
        ({"seed": -2}, "seed", 2**64 - 2),
        ({"seed": 2**30}, "seed", 2**30),
        ({"stop": "a"}, "stop", ("a",)),
        ({"stop": ["a", "b"]}, "stop", ("a", "b")),
        ({"stop": []}, "stop", ()),
        ({"logit_bias": {"5": -100, "6": 1.5}}, "logit_bias", {5: -100, 6: 1.5}),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs", 3),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
    ],
)
def test_fields_reach_the_engine(fields, name, value):
    assert getattr(config(**fields), name) == value


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 9}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "web", "function": {"name": "a"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 1}}]}, "tools[0].function.parameters"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "must"}, "tool_choice"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"thinking_budget": -2}, "thinking_budget"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"model": 5}, "model"),
        # typos
        ({"temprature": 1}, "temprature"),
        ({"max_token": 5}, "max_token"),
        ({"max_new_tokens": 5}, "max_new_tokens"),
        ({"enable_thinkin": True}, "enable_thinkin"),
        # what would change the answer and is not there
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"grammar": "root ::= a"}, "grammar"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"n_discard": -1}, "n_discard"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"mirostat": 2}, "mirostat"),
        ({"json_schema": {"type": "object"}}, "json_schema"),
        ({"n_predict": 2}, "n_predict"),
        ({"stop_sequences": ["a"]}, "stop_sequences"),
        ({"top_a": 0.5}, "top_a"),
    ],
)
def test_what_cannot_be_used_is_named(fields, place):
    assert fault(chat_from, **{"messages": HELLO, **fields}) == place


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": ["a"] * 5, "n": 2}, "prompt"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "echo": True, "logprobs": 1}, "echo"),
        ({"prompt": [1], "echo": True}, "echo"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
    ],
)
def test_what_cannot_be_used_in_a_completion(fields, place):
    assert fault(text_from, **fields) == place


def test_null_is_not_given():
    nothing = dict.fromkeys([*CHAT, *REFUSED, *IGNORED]) | {"messages": HELLO}
    assert chat_from(nothing) == chat_from({"messages": HELLO})
    assert text_from({**dict.fromkeys(TEXT), "prompt": "a"}) == text_from({"prompt": "a"})
    named = chat_from({"messages": HELLO, "repetition_penalty": None, "repeat_penalty": 1.5})
    assert named == chat_from({"messages": HELLO, "repetition_penalty": 1.5})


def test_fields_that_ask_for_nothing_are_taken():
    assert chat_from({"messages": HELLO, **REFUSED}).ignored == ()
    assert chat_from({"messages": HELLO, **dict.fromkeys(IGNORED, "x")}).ignored == ()


def test_unknown_fields_are_reported_by_names_that_a_header_can_carry():
    asked = chat_from(
        {"messages": HELLO, "foo_bar": 1, "a\r\nb": 2, "½": 3, "字": 4, **{f"zz{i}": 1 for i in range(20)}}
    )
    assert asked.ignored[:2] == ("foo_bar", "zz0")
    assert len(asked.ignored) == 10
    assert fault(chat_from, **{"messages": HELLO, **{f"zz{i}": 1 for i in range(300)}}) == ""


def test_named_tools():
    tools = [{"type": "function", "function": {"name": name}} for name in ("add", "sub")]
    choice = {"type": "function", "function": {"name": "sub"}}
    (request,) = chat_from({"messages": HELLO, "tools": tools, "tool_choice": choice}).requests
    assert (request.tools, request.config.tool_choice) == (tuple(tools), choice)
    choice = {"type": "function", "function": {"name": "mul"}}
    assert fault(chat_from, messages=HELLO, tools=tools, tool_choice=choice) == "tool_choice"


# JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"1", b"\xff{}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 2}',
        b'{"a": "\\ud800"}', b'{"\\ud800": 1}', b'{"a": {"b": ["\\udfff"]}}', b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", b'{"a": ' + b"[" * 100000 + b"]" * 100000 + b"}",
        b'{"a": ' * 500 + b"1" + b"}" * 500, b'{"a": [' + b"{}," * 200_000 + b"{}]}",
        b'\xef\xbb\xbf{"a": 1}', b'{"a": 1}x', b"{'a': 1}",
    ],
)  # fmt: skip
def test_json_that_is_refused(raw):
    with pytest.raises(RequestError) as caught:
        parse_body(raw)
    failure = failure_of(caught.value)
    assert failure.status == 400
    assert len(failure.message) < 400
    json.loads(failure.body)


def test_the_place_of_a_lone_surrogate_is_named():
    raw = json.dumps({"messages": [{"role": "user", "content": "a\ud800"}], "x": {"k" * 10000: "\udc00"}}).encode()
    with pytest.raises(FieldError) as caught:
        parse_body(raw)
    assert caught.value.param == "messages[0].content" or len(caught.value.param) < 100
    assert parse_body(b'{"a": "\\ud83d\\ude42"}') == {"a": "🙂"}


def test_depth_is_bounded():
    assert parse_body(b'{"a": ' + b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2) + b"}")
    with pytest.raises(HttpError):
        parse_body(b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first draw, on a machine that is busy
@given(st.dictionaries(st.sampled_from([*CHAT, *TEXT, *REFUSED, "zz"]), json_values, max_size=8), st.booleans())
def test_any_json_is_read_or_refused(body, with_messages):
    """No body gets an exception past the reader that is not one of ours."""
    if with_messages:
        body = {**body, "messages": HELLO, "prompt": "a"}
    for read in (chat_from, text_from):
        try:
            asked = read(body)
        except RequestError as error:
            assert failure_of(error).status == 400  # noqa: PT017 - or it is read
        else:
            assert 1 <= len(asked.requests) <= 8


@pytest.mark.parametrize("schema", [*CHAT.values(), *TEXT.values()])
def test_every_schema_can_be_told_in_words(schema):
    text = words(schema)
    assert text
    assert "{" not in text


def test_checks_of_numbers():
    whole = {"type": "integer", "minimum": 1, "maximum": 5}
    for good in (1, 5, 2.0):
        check(good, whole, "a")
    for bad in (0, 6, 1.5, True, "1", None, 1e300, []):
        with pytest.raises(FieldError, match="a whole number from 1 to 5"):
            check(bad, whole, "a")
