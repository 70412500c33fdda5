"""LiteLLM's openai/ provider."""

import json

DRIVER, CLIENT = "drive_litellm.py", "litellm"


def test_whole_and_streamed(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    assert told("create") == {"thinking": message["reasoning_content"], "content": message["content"]}
    assert told("stream") == told("create")
    assert "579" in message["content"]


def test_tools_and_structured_output(told):
    called = told("tools")
    assert called["call"] == ["get_weather", '{"city": "Paris"}']
    assert "21" in called["content"]
    assert list(json.loads(told("structured"))) == ["name", "food", "job"]
