"""LangChain's own tests of chat models: all of them over a model that obeys, and over nano what nano can do."""

import re

import pytest
from obedient import obedient
from server_kit import scripted, serving
from tiers import CLIENTS_HERE as HERE

DRIVERS = HERE / "drivers"
KINDS = ["TestChatOpenAI", "TestChatQwen"]


def run(program, kind, url, model, *words):
    asked = ["-m", "pytest", "-c", DRIVERS / "pytest.ini", f"{DRIVERS / 'standard_langchain.py'}::{kind}", *words]
    printed = program("langchain", *asked, seconds=280, EDGEQWEN_URL=url, EDGEQWEN_MODEL=model)
    # 43 passed, 7 skipped in 20.1s
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", printed.splitlines()[-1])}, printed


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_obeys_passes_all(program, kind):
    with serving(scripted(obedient), names=["Qwen3-0.6B"]) as server:
        counts, printed = run(program, kind, f"{server.url}/v1", "scripted")
    assert counts == {"passed": 43, "skipped": 7}, printed


def test_nano_passes_what_needs_no_obedience(program, command, engine):
    """Not: to call a tool by force, or to write what was not taught in a shape."""
    client = command(engine).client
    model = client.get("/v1/models").json()["data"][0]["id"]
    words = ["-k", "not tool and not structured and not json"]
    counts, printed = run(program, "TestChatOpenAI", f"{client.base_url}/v1", model, *words)
    assert counts.keys() == {"passed", "skipped", "deselected"}, printed
    assert counts["passed"] >= 20, printed
