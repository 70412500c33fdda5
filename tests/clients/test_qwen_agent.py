"""Qwen-Agent, whose tools come in a system message or in histories that no other client writes."""

DRIVER, CLIENT = "drive_qwen_agent.py", "qwen-agent"


def test_thoughts_are_kept_apart(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    assert told("chat") == {"thinking": message["reasoning_content"], "content": message["content"]}
    assert "579" in message["content"]


def test_an_agent_calls_its_tool_and_tells_the_result(told):
    for mode in ("raw", "nous"):
        ran = told(mode)
        assert ran["calls"] == ["get_weather"]
        assert ran["asked"] == [{"city": "Paris"}]
        assert ran["roles"] == ["assistant", "function", "assistant"]
        assert "21" in ran["content"]
