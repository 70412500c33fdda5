"""pydantic-ai's OpenAIChatModel."""

DRIVER, CLIENT = "drive_pydantic_ai.py", "openai"


def test_whole_and_streamed(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    assert told("run") == {"content": message["content"], "thinking": [message["reasoning_content"]]}
    assert told("stream") == told("run")
    assert "579" in message["content"]


def test_tools_and_typed_results(told):
    called = told("tools")
    assert called["calls"] == [["get_weather", {"city": "Paris"}]]
    assert "21" in called["content"]
    assert [list(person) for person in told("typed")] == [["name", "food", "job"]] * 2
