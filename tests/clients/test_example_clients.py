"""The examples that need clients of their own, run as they stand on nano."""

import json
import os

import pytest
from tiers import CLIENTS_HERE as HERE

ROOT = HERE.parent.parent
EXAMPLES = ROOT / "examples"


def test_the_langchain_chain(program, command, engine):
    url = f"{command(engine).client.base_url}/v1"
    lines = program("langchain", EXAMPLES / "langchain_chain.py", url, "France", "Japan").splitlines()
    assert len(lines) == 3
    assert lines[0] == lines[1], "streamed as in a batch"
    assert "Paris" in lines[1]
    assert "Tokyo" in lines[2]


def test_the_qwen_agent_tool_user(program, command, engine):
    url = f"{command(engine).client.base_url}/v1"
    words = [EXAMPLES / "qwen_agent_tools.py", url, "What is the weather in Paris?"]
    *_, tool, answer = program("qwen-agent", *words).splitlines()
    assert tool == "tool: get_weather(Paris)"
    assert answer.startswith("answer: ")
    assert "21" in answer


@pytest.fixture(scope="module")
def fastapi(program, nano_artifact):
    """What examples fastapi_app.py gave, by scene; edgeqwen runs on ONNX Runtime, which needs no compiler."""
    path = os.pathsep.join(map(str, (HERE / "offline", HERE / "drivers", ROOT)))
    words = [HERE / "drivers/drive_fastapi.py", "", EXAMPLES]
    settings = {"PYTHONPATH": path, "EDGEQWEN_MODEL": str(nano_artifact("q8_0", "onnx"))}
    return json.loads(program("fastapi", *words, **settings).splitlines()[-1])


def test_fastapi_streams_thinking_and_content(fastapi):
    answer = fastapi["answer"]
    assert "579" in answer["content"]
    assert answer["thinking"]
    assert answer["finish"] == "stop"
    assert answer["pieces"] > 10
    assert not answer["error"]


def test_fastapi_ends_the_answer_of_a_client_that_leaves(fastapi):
    assert fastapi["left"] == {"ended": True, "content": fastapi["answer"]["content"]}


def test_fastapi_says_what_it_cannot_answer(fastapi):
    assert fastapi["refused"] == [422, 422, 422]
    assert "tokens" in fastapi["too_long"]["error"], fastapi["too_long"]
