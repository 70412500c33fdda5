"""What all drivers do: ask for what is listed, and print what came as JSON."""

import asyncio
import inspect
import json
import sys
import traceback

URL = sys.argv[1]
MODEL = "Qwen3-0.6B"
SUM = "What is 123 + 456?"
CAPITAL = "What is the capital of France?"
WEATHER = "What is the weather in Paris?"
DEGREES = '{"degrees": 21}'
SENTENCE = "Paul likes to eat sushi and works as a cook. Extract name, food and job as JSON."
THINK = {"enable_thinking": True, "return_reasoning": True}
NO_THINK = {"enable_thinking": False}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def user(text):
    return [{"role": "user", "content": text}]


def tell(*scenes):
    """Print {name: what it returned, or the error that it raised} of each function."""
    told = {}
    for scene in scenes:
        try:
            result = scene()
            told[scene.__name__] = asyncio.run(result) if inspect.iscoroutine(result) else result
        except Exception:  # noqa: BLE001 - the test shows it
            told[scene.__name__] = {"error": traceback.format_exc()}
    print("\n" + json.dumps(told))  # noqa: T201 - clients print lines of their own
