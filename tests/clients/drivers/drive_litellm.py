"""LiteLLM, through which many gateways and agents speak."""

import litellm
from telling import DEGREES, MODEL, NO_THINK, SENTENCE, SUM, THINK, TOOL, URL, WEATHER, tell, user

litellm.telemetry = False
GREEDY = {"model": f"openai/{MODEL}", "api_base": URL, "api_key": "EMPTY", "temperature": 0, "num_retries": 0}
PERSON = {
    "type": "object",
    "properties": {name: {"type": "string"} for name in ("name", "food", "job")},
    "required": ["name", "food", "job"],
    "additionalProperties": False,
}


def create():
    choice = litellm.completion(messages=user(SUM), extra_body=THINK, **GREEDY).choices[0]
    return {"thinking": choice.message.reasoning_content, "content": choice.message.content}


def stream():
    thinking = content = ""
    for chunk in litellm.completion(messages=user(SUM), extra_body=THINK, stream=True, **GREEDY):
        delta = chunk.choices[0].delta
        thinking += getattr(delta, "reasoning_content", None) or ""
        content += delta.content or ""
    return {"thinking": thinking, "content": content}


def tools():
    messages = user(WEATHER)
    ask = {"tools": [TOOL], "extra_body": NO_THINK, **GREEDY}
    message = litellm.completion(messages=messages, **ask).choices[0].message
    (call,) = message.tool_calls
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": DEGREES}]
    content = litellm.completion(messages=messages, **ask).choices[0].message.content
    return {"call": [call.function.name, call.function.arguments], "content": content}


def structured():
    form = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": PERSON}}
    answer = litellm.completion(messages=user(SENTENCE), response_format=form, extra_body=NO_THINK, **GREEDY)
    return answer.choices[0].message.content


tell(create, stream, tools, structured)
