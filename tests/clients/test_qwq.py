"""langchain-qwq's ChatQwen, which speaks DashScope's dialect: enable_thinking beside the model."""

DRIVER, CLIENT = "drive_qwq.py", "langchain"
QUESTION = [{"role": "user", "content": "What is 123 + 456?"}]


def test_thoughts_are_kept_apart(told, wire):
    message = wire(messages=QUESTION)["message"]
    invoked, streamed = told("invoke"), told("stream")
    assert invoked == {"content": message["content"], "thinking": message["reasoning_content"]}
    assert (streamed["content"], streamed["thinking"]) == (invoked["content"], invoked["thinking"])
    assert "579" in invoked["content"]
    assert streamed["usage"] > 0


def test_thinking_off(told, wire):
    off = told("off")
    assert off["content"] == wire(messages=QUESTION, enable_thinking=False)["message"]["content"]
    assert not off["thinking"]


def test_tools_and_structured_output(told):
    assert told("tools") == [["get_weather", {"city": "Paris"}]]
    assert [list(person) for person in told("structured")] == [["name", "food", "job"]] * 3
