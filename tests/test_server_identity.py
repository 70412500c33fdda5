"""The commands of both engines on nano: whole, streamed, by either engine and beside others, the words are the same."""

import asyncio

import httpx
import pytest
from server_kit import CHAT, Command, events
from wire_answers import asked, folded, wholly

# What nano was taught, and what it was not: words differ, and so does where they end.
QUESTIONS = ["What is 123 + 456?", "Spell the word planet.", "你是谁?", "Tell me about rivers. " * 20]
FORMATS = {"llamacpp": "gguf", "ort": "onnx"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def commands(nano_artifact):
    """engine -> the command; over 32 bits a sum's order changes no word."""
    settings = ["--kv-type", "f32", "--threads", "1", "--queue", "64"]
    with (
        Command(str(nano_artifact("f32", "gguf")), "--engine", "llamacpp", *settings) as llamacpp,
        Command(str(nano_artifact("f32", "onnx")), "--engine", "ort", *settings) as ort,
    ):
        yield {"llamacpp": llamacpp, "ort": ort}


def body_of(seed, **fields):
    return {**asked(seed), "messages": [{"role": "user", "content": QUESTIONS[seed % len(QUESTIONS)]}], **fields}


def whole(command, body):
    response = command.client.post(CHAT, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def worded(choices):
    """All of them but the figures of their tokens: what came out of a batch or a cache is rounded differently."""
    return [(*rest, [token["token"] for token in tokens], ends) for *rest, tokens, ends in choices]


@pytest.mark.parametrize("engine", FORMATS)
def test_stream_and_whole_answer_of_nano_are_the_same_to_the_byte(commands, engine):
    for seed in range(16):
        body = body_of(seed)
        answer = whole(commands[engine], body)
        chunks = events(commands[engine].client.post(CHAT, json={**body, "stream": True}).text)
        assert worded(folded(chunks, len(answer["choices"]))) == worded(wholly(answer)), body


def test_both_engines_say_the_same(commands):
    for seed in range(16):
        body = body_of(seed, temperature=0)
        ours, theirs = (worded(wholly(whole(commands[engine], body))) for engine in FORMATS)
        assert ours == theirs, body


@pytest.mark.parametrize("engine", FORMATS)
def test_sixteen_clients_get_what_each_gets_alone(commands, engine):
    words = ("planet", "river", "moon", "bridge", "garden", "window", "letter", "summer")
    asked = [text for i, word in enumerate(words) for text in (f"What is {71 * i} + {100 + i}?", f"Spell {word}.")]
    bodies = [
        {"messages": [{"role": "user", "content": text}], "temperature": 0, "enable_thinking": i % 2 == 0}
        for i, text in enumerate(asked)
    ]
    alone = [whole(commands[engine], body)["choices"] for body in bodies]
    assert len({str(choices) for choices in alone}) > 12  # they differ: a mix-up would show

    async def together():
        async with httpx.AsyncClient(base_url=commands[engine].client.base_url, timeout=120) as client:
            answers = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
            return [answer.json()["choices"] for answer in answers]

    assert asyncio.run(together()) == alone
