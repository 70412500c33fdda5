"""Requests of every kind to the chat endpoint, and what a reader has in the end of a stream and of a whole answer."""

import random

from scripted_model import TOOLS


def asked(seed):
    """A request of any kind."""
    chance = random.Random(seed)
    body = {
        "messages": [{"role": "user", "content": f"{chance.random()}"}],
        "seed": seed,
        "temperature": chance.choice([0, 0.6, 1.5]),
        "max_tokens": chance.choice([1, 3, 20, 60]),
        "n": chance.choice([1, 1, 2, 3]),
        "enable_thinking": chance.choice([True, False, None]),
        "thinking_budget": chance.choice([None, 0, 5]),
        "stop": chance.choice([None, "stop", ["4 ", "天🙂", "ab"]]),
        "tools": chance.choice([None, TOOLS]),
        "logprobs": chance.choice([None, True]),
        "reasoning_format": chance.choice([None, "none", "hidden"]),
        "parallel_tool_calls": chance.choice([None, False]),
        "response_format": chance.choice([None, None, {"type": "json_object"}]),
    }
    return {name: value for name, value in body.items() if value is not None}


def deltas(chunks, index=0):
    return [c["delta"] for chunk in chunks for c in chunk["choices"] if c["index"] == index]


def joined(chunks, name, index=0):
    return "".join(delta.get(name) or "" for delta in deltas(chunks, index))


def folded(chunks, n):
    """What a client that adds up deltas has in the end."""
    choices = []
    for index in range(n):
        own = deltas(chunks, index)
        calls = {}
        for piece in (call for delta in own for call in delta.get("tool_calls", ())):
            call = calls.setdefault(piece["index"], {"id": "", "name": "", "arguments": ""})
            call["id"] += piece.get("id", "")
            for name in ("name", "arguments"):
                call[name] += piece["function"].get(name, "")
        ends = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        logprobs = [token for c in ends if c["logprobs"] for token in c["logprobs"]["content"]]
        reasons = [c["finish_reason"] for c in ends if c["finish_reason"]]
        choices.append(
            (joined(chunks, "reasoning_content", index), joined(chunks, "content", index), calls, logprobs, reasons)
        )
    return choices


def wholly(answer):
    choices = []
    for choice in answer["choices"]:
        message = choice["message"]
        calls = {i: {"id": call["id"], **call["function"]} for i, call in enumerate(message.get("tool_calls", ()))}
        choices.append((
            message.get("reasoning_content", ""), message["content"] or "", calls,
            (choice["logprobs"] or {"content": []})["content"], [choice["finish_reason"]],
        ))  # fmt: skip
    return choices
