"""langchain-qwq's ChatQwen: thoughts in additional_kwargs, thinking on and off, structured output."""

from langchain_core.tools import tool
from langchain_qwq import ChatQwen
from pydantic import BaseModel
from telling import DEGREES, MODEL, SENTENCE, SUM, URL, WEATHER, tell

GREEDY = {"model": MODEL, "base_url": URL, "api_key": "EMPTY", "temperature": 0, "max_retries": 0}
thinking = ChatQwen(enable_thinking=True, thinking_budget=512, **GREEDY)
direct = ChatQwen(enable_thinking=False, **GREEDY)


class Person(BaseModel):
    """Somebody."""

    name: str
    food: str
    job: str


@tool
def get_weather(city: str) -> str:
    """Get the weather"""
    return DEGREES


def said(answer):
    return {"content": answer.content, "thinking": answer.additional_kwargs.get("reasoning_content")}


def invoke():
    return said(thinking.invoke(SUM))


def stream():
    chunks = list(thinking.stream(SUM))
    whole = sum(chunks[1:], chunks[0])
    return {**said(whole), "usage": whole.usage_metadata["output_tokens"]}


def off():
    return said(direct.invoke(SUM))


def tools():
    call = direct.bind_tools([get_weather]).invoke(WEATHER)
    return [[one["name"], one["args"]] for one in call.tool_calls]


def structured():
    methods = ("function_calling", "json_mode", "json_schema")
    found = [thinking.with_structured_output(Person, method=method).invoke(SENTENCE) for method in methods]
    return [person.model_dump() for person in found]


tell(invoke, stream, off, tools, structured)
