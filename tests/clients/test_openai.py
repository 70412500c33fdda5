"""openai-python, the client that all others are measured by."""

import json

DRIVER, CLIENT = "drive_openai.py", "openai"
THOUGHT = {"messages": [{"role": "user", "content": "What is 123 + 456?"}], "enable_thinking": True}


def test_create_and_stream_say_what_the_wire_says(told, wire):
    choice = wire(**THOUGHT)
    created = told("create")
    assert created == told("stream")
    assert created["thinking"] == choice["message"]["reasoning_content"] != ""
    assert created["content"] == choice["message"]["content"]
    assert "579" in created["content"]
    assert created["finish"] == "stop"
    assert 0 < created["usage"][1] < created["usage"][0]


def test_the_strict_helper(told):
    final = told("helper")
    assert final["pieces"] == final["content"] == told("create")["content"]
    assert (final["role"], final["finish"]) == ("assistant", "stop")


def test_a_tool_is_called_and_its_result_told(told):
    called = told("tools")
    assert called["calls"] == [["get_weather", '{"city": "Paris"}']]
    assert called["finish"] == "tool_calls"
    assert "21" in called["content"]


def test_the_helper_adds_up_calls(told):
    called = told("helper_tools")
    assert called == {"done": ["get_weather"], "calls": told("tools")["calls"], "finish": "tool_calls"}


def test_names_and_errors(told):
    named = told("names")
    assert len(named["listed"]) == 1
    assert len(set(named["found"])) == 1
    assert "Paris" in named["found"][0]
    assert (named["refused"], named["typo"]) == ("model_not_found", "thinking_budgett")


def test_completions(told):
    completed = told("completion")
    assert completed["whole"] == completed["streamed"]
    assert completed["finish"] in {"length", "stop"}


def test_parse_gives_an_object_with_and_without_thinking(told):
    parsed = told("parse")
    assert [list(one["parsed"]) for one in parsed] == [["name", "food", "job"]] * 2
    assert [one["thought"] for one in parsed] == [True, False]
    assert told("helper_parse") == parsed[0]["parsed"]


def test_the_choice_of_a_tool(told):
    none, auto, required, named = told("chosen")
    assert none == []
    assert len(required) == len(named) == 1
    assert required == auto  # which of the two is nano's own choice, and it is no good judge
    assert {required[0][0], named[0][0]} == {"get_weather", "get_time"}
    assert [list(json.loads(arguments)) for _, arguments in (*required, *named)] == [["city"], ["city"]]


def test_eight_at_a_time_get_what_one_gets(told):
    assert told("together") == [told("create")["content"]] * 8
