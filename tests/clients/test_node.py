"""openai-node and Vercel's AI SDK, on Node."""

DRIVER, CLIENT = "drive_node.mjs", "node"


def test_openai_on_node(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    created = told("openai_create")
    assert created == {"thinking": message["reasoning_content"], "content": message["content"], "finish": "stop"}
    assert told("openai_stream") == created
    assert told("openai_helper") == {"content": created["content"], "finish": "stop"}
    assert "579" in created["content"]


def test_the_ai_sdk_keeps_thoughts(told):
    created, generated, streamed = told("openai_create"), told("ai_generate"), told("ai_stream")
    tokens = streamed["tokens"]
    assert streamed == {**generated, "tokens": tokens}
    assert generated == created
    assert 0 < tokens[1] < tokens[0]


def test_the_ai_sdk_calls_a_tool_and_tells_the_result(told):
    called = told("ai_tools")
    assert called["asked"] == [{"city": "Paris"}]
    assert called["steps"] == 2
    assert "21" in called["content"]
