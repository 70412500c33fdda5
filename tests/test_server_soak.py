"""The real command on nano under many clients: aborted, simultaneous, side by side, and with its engine killed."""

import asyncio
import random
from collections import Counter

import httpx
import psutil
import pytest
from scripted_model import NO_END
from server_kit import CHAT, Command, wait_until

QUESTION = [{"role": "user", "content": "What is 123 + 456?"}]
GREEDY = {"messages": QUESTION, "temperature": 0}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(nano_artifact):
    with Command(str(nano_artifact("f32")), "--parallel", "4", "--queue", "64", "--threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def alone(command):
    """What a client gets that has the server for itself."""
    return command.client.post(CHAT, json=GREEDY).json()["choices"]


def together(command, ask, count):
    """`ask(client, number)` for all numbers at a time; what they returned."""

    async def everybody():
        limits = httpx.Limits(max_connections=count)
        async with httpx.AsyncClient(base_url=command.client.base_url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(count)))

    return asyncio.run(everybody())


async def answered(client, _number):
    response = await client.post(CHAT, json=GREEDY)
    return response.status_code, response.json().get("choices"), response.headers.get("retry-after")


def gauge(command, name):
    lines = command.client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"edgeqwen_{name}{{")).split()[-1])


def test_16_clients_get_what_they_get_alone(command, alone):
    assert together(command, answered, 16) == [(200, alone, None)] * 16


def test_500_clients_at_a_time_get_an_answer_or_a_time_to_come_back(command, alone):
    answers = together(command, answered, 500)
    statuses = Counter(status for status, _, _ in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 68  # four run, 64 wait
    assert all(choices == alone for status, choices, _ in answers if status == 200)
    assert all(int(wait) >= 1 for status, _, wait in answers if status == 429)
    assert command.client.post(CHAT, json=GREEDY).json()["choices"] == alone


def test_1000_aborted_streams_leave_nothing(command, alone):
    process = psutil.Process(command.process.pid)
    child = process.children()[0]
    memory = []

    async def abort(client, number):
        body = {
            "messages": [{"role": "user", "content": f"Tell {number}"}],
            "stream": True,
            "max_tokens": 400,
            "logit_bias": {str(token): bias for token, bias in NO_END.items()},
        }
        left = random.Random(number).randrange(60)
        async with client.stream("POST", CHAT, json=body) as response:
            lines = response.aiter_lines()
            async for _ in lines:
                left -= 1
                if left < 0:
                    break
            await lines.aclose()

    for _ in range(25):
        together(command, abort, 40)
        memory.append(process.memory_info().rss + child.memory_info().rss)
    wait_until(lambda: gauge(command, "running_answers") == gauge(command, "queued_requests") == 0)
    assert gauge(command, "cancelled_answers_total") > 990
    assert memory[-1] - memory[4] < 8 << 20
    assert process.num_fds() < 60
    assert command.client.post(CHAT, json=GREEDY).json()["choices"] == alone


def test_a_killed_engine_is_told_and_started_again(command, alone):
    body = {**GREEDY, "stream": True, "max_tokens": 3000, "logit_bias": {}}
    with command.client.stream("POST", CHAT, json={**body, "messages": QUESTION * 50}) as response:
        lines = response.iter_lines()
        next(lines)
        psutil.Process(command.process.pid).children()[0].kill()
        rest = list(lines)
    assert '"engine_down"' in rest[-2] or '"engine_down"' in rest[-1]
    health = command.client.get("/health")
    assert health.status_code == 503
    refused = command.client.post(CHAT, json=GREEDY)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    wait_until(lambda: command.client.get("/ready").status_code == 200, 20)
    assert command.client.post(CHAT, json=GREEDY).json()["choices"] == alone
    assert gauge(command, "engine_restarts_total") == 1
