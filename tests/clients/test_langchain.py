"""langchain-openai's ChatOpenAI, which drops thoughts by design: they may not turn up in the content."""

DRIVER, CLIENT = "drive_langchain.py", "langchain"
FIELDS = ["name", "food", "job"]


def test_thinking_beside_the_content(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    invoked, streamed = told("invoke"), told("stream")
    assert invoked["content"] == streamed["content"] == message["content"]
    assert "579" in invoked["content"]
    assert invoked["finish"] == streamed["finish"] == "stop"
    assert streamed["pieces"] > 1
    assert 0 < streamed["usage"][1] < streamed["usage"][0] < 1000


def test_what_it_sends_is_understood(told):
    asked = told("asked")
    assert "Paris" in asked["content"]
    assert asked["logprobs"]
    assert told("parts") == asked["content"]


def test_tools(told):
    called = told("tools")
    assert called["calls"] == called["streamed"] == [["get_weather", {"city": "Paris"}]]
    assert called["results"] == [True]
    assert "21" in called["content"]
    assert told("chosen") == [["get_weather", ["city"]]]


def test_structured_output(told):
    assert [list(person) for person in told("structured")] == [FIELDS] * 3
    assert isinstance(told("json_mode"), dict)
