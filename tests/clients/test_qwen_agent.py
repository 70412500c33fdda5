"""Qwen-Agent, whose tools come in a system message or in histories that no other client writes."""

import json

from obedient import SAID, obedient
from server_kit import scripted, serving
from tiers import CLIENTS_HERE as HERE

DRIVER, CLIENT = "drive_qwen_agent.py", "qwen-agent"


def test_thoughts_are_kept_apart(told, wire):
    message = wire(messages=[{"role": "user", "content": "What is 123 + 456?"}], enable_thinking=True)["message"]
    assert told("chat") == {"thinking": message["reasoning_content"], "content": message["content"]}
    assert "579" in message["content"]


def test_an_agent_calls_its_tool_and_tells_the_result(told):
    ran = told("raw")
    assert ran["roles"] == ["assistant", "function", "assistant"]
    assert ran["asked"] == [{"city": "Paris"}]
    assert "21" in ran["content"]


def test_tags_of_a_call_stay_in_the_content_where_no_tools_were_sent(told):
    call = told("called")
    assert (call["name"], json.loads(call["arguments"])) == ("get_weather", {"city": "Paris"})


def test_both_kinds_of_agent_over_a_model_that_obeys(program):
    with serving(scripted(obedient), names=["Qwen3-0.6B"]) as server:
        told = json.loads(program(CLIENT, HERE / "drivers" / DRIVER, f"{server.url}/v1", "agent").splitlines()[-1])
    assert told["raw"] == told["nous"]
    assert told["nous"] == {
        "roles": ["assistant", "function", "assistant"], "asked": [{"city": "Paris"}], "content": SAID,
    }  # fmt: skip
