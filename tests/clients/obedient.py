"""A model that does what LangChain's tests ask of one: it reads the prompt, and calls the first tool as it is asked."""

import functools
import json
import re

from scripted_model import TOKENIZER, TURN, script, segments

EMPTY = TOKENIZER.encode_segments(segments("<think>\n\n</think>\n\n"))
SAID = "Hello to you."
JOKE = json.dumps({"setup": "Why do cats sit?", "punchline": "They cannot stand it."})


@functools.cache
def written(prompt, thinks):
    """The whole answer to a prompt, as a script."""
    question = prompt.rsplit("<|im_start|>user\n", 1)[-1].split("<|im_end|>")[0]
    tools = re.search(r"<tools>\n(.*?)\n</tools>", prompt, re.DOTALL)
    if tools and "<tool_response>" not in question:
        said = call(json.loads(tools[1].splitlines()[0])["function"], question)
    else:
        said = JOKE if "joke" in question else SAID
    return script(f"<think>\nSo be it.\n</think>\n\n{said}" if thinks else said)


def call(function, question):
    """Numbers of the question for what has to be a number; for the rest what it quotes, or its last name."""
    words = re.findall(r"'(.*?)'", question) or re.findall(r"\b[A-Z]\w+", question)[-1:] or [question]
    numbers = iter([*re.findall(r"-?\d+", question), "1"])
    properties = function["parameters"].get("properties", {})
    arguments = {
        name: int(next(numbers, "1")) if schema.get("type") == "integer" else words[0]
        for name, schema in properties.items()
    }
    said = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{said}\n</tool_call>"


def obedient(ids):
    """An engine's script."""
    ids = list(ids)
    start = next(i for i in range(len(ids) - len(TURN), -1, -1) if ids[i : i + len(TURN)] == TURN)
    thinks = ids[start + len(TURN) :][: len(EMPTY)] != EMPTY
    return written(b"".join(map(TOKENIZER.token_bytes, ids[:start])).decode(errors="replace"), thinks)(ids)
