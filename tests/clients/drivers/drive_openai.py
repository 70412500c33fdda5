"""openai-python: create, stream, the `.stream()` helper, tools, several at a time."""

import asyncio

import openai
import pydantic
from telling import CAPITAL, DEGREES, MODEL, NO_THINK, SENTENCE, SUM, THINK, TOOL, URL, WEATHER, tell, user

client = openai.OpenAI(base_url=URL, api_key="EMPTY", max_retries=0)
GREEDY = {"model": MODEL, "temperature": 0}


def create():
    answer = client.chat.completions.create(messages=user(SUM), extra_body=THINK, **GREEDY)
    choice = answer.choices[0]
    return {
        "thinking": choice.message.reasoning_content,
        "content": choice.message.content,
        "finish": choice.finish_reason,
        "usage": [answer.usage.completion_tokens, answer.usage.completion_tokens_details.reasoning_tokens],
    }


def stream():
    chunks = client.chat.completions.create(
        messages=user(SUM), extra_body=THINK, stream=True, stream_options={"include_usage": True}, **GREEDY
    )
    thinking = content = ""
    finish = usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            thinking += getattr(choice.delta, "reasoning_content", None) or ""
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
    usage = [usage.completion_tokens, usage.completion_tokens_details.reasoning_tokens]
    return {"thinking": thinking, "content": content, "finish": finish, "usage": usage}


def helper():
    """The strictest reader of chunks that there is."""
    with client.chat.completions.stream(messages=user(SUM), extra_body=THINK, **GREEDY) as events:
        pieces = [event.delta for event in events if event.type == "content.delta"]
        final = events.get_final_completion().choices[0]
    return {"pieces": "".join(pieces), "content": final.message.content, "role": final.message.role,
            "finish": final.finish_reason}  # fmt: skip


def calls_of(message):
    return [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]


def tools():
    """A call, its result and the answer; the history as the client itself writes it."""
    messages = user(WEATHER)
    ask = {"tools": [TOOL], "extra_body": NO_THINK, **GREEDY}
    first = client.chat.completions.create(messages=messages, **ask).choices[0]
    call = first.message.tool_calls[0]
    messages += [first.message, {"role": "tool", "tool_call_id": call.id, "content": DEGREES}]
    second = client.chat.completions.create(messages=messages, **ask).choices[0]
    return {"calls": calls_of(first.message), "finish": first.finish_reason, "content": second.message.content}


def helper_tools():
    with client.chat.completions.stream(messages=user(WEATHER), tools=[TOOL], extra_body=NO_THINK, **GREEDY) as events:
        done = [event.name for event in events if event.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion().choices[0]
    return {"done": done, "calls": calls_of(final.message), "finish": final.finish_reason}


def names():
    """What answers, by each name that clients are configured with; and what is said of others."""
    ask = {"messages": user(CAPITAL), "extra_body": NO_THINK, "temperature": 0}
    found = [
        client.chat.completions.create(model=name, **ask).choices[0].message.content
        for name in ("Qwen-0.6B", "Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    ]
    try:
        client.chat.completions.create(model="gpt-4o", **ask)
    except openai.NotFoundError as error:
        refused = error.code
    try:
        client.chat.completions.create(model=MODEL, messages=user(CAPITAL), extra_body={"thinking_budgett": 5})
    except openai.BadRequestError as error:
        typo = error.param
    return {"found": found, "refused": refused, "typo": typo, "listed": [model.id for model in client.models.list()]}


def completion():
    answer = client.completions.create(prompt="Hello", max_tokens=5, **GREEDY)
    chunks = client.completions.create(prompt="Hello", max_tokens=5, stream=True, **GREEDY)
    streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    return {"whole": answer.choices[0].text, "streamed": streamed, "finish": answer.choices[0].finish_reason}


class Person(pydantic.BaseModel):
    name: str
    food: str
    job: str


def parse():
    """With and without thinking before it."""
    ask = {"messages": user(SENTENCE), "response_format": Person, **GREEDY}
    choices = [
        client.chat.completions.parse(extra_body=thinking, **ask).choices[0].message for thinking in (THINK, NO_THINK)
    ]
    return [
        {"parsed": message.parsed.model_dump(), "thought": bool(message.model_extra.get("reasoning_content"))}
        for message in choices
    ]


def helper_parse():
    with client.chat.completions.stream(
        messages=user(SENTENCE), response_format=Person, extra_body=THINK, **GREEDY
    ) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0].message.parsed.model_dump()


def chosen():
    """tool_choice: no tool, left to the model, any, or that one, which the model does not choose by itself."""
    clock = {**TOOL, "function": {**TOOL["function"], "name": "get_time", "description": "Get the local time"}}
    ask = {"messages": user(WEATHER), "tools": [TOOL, clock], "extra_body": NO_THINK, **GREEDY}

    def calls(choice):
        return calls_of(client.chat.completions.create(tool_choice=choice, **ask).choices[0].message)

    none, auto, required = map(calls, ("none", "auto", "required"))
    (other,) = {"get_weather", "get_time"} - {name for name, _ in auto}
    return [none, auto, required, calls({"type": "function", "function": {"name": other}})]


async def together():
    async with openai.AsyncOpenAI(base_url=URL, api_key="EMPTY", max_retries=0) as several:
        asked = [several.chat.completions.create(messages=user(SUM), extra_body=THINK, **GREEDY) for _ in range(8)]
        return [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]


tell(create, stream, helper, tools, helper_tools, names, completion, parse, helper_parse, chosen, together)
