"""LangChain's ChatOpenAI, as the project's first users have it: invoke, stream, tools, structured output."""

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from telling import CAPITAL, DEGREES, NO_THINK, SENTENCE, SUM, THINK, URL, WEATHER, tell

GREEDY = {"base_url": URL, "api_key": "EMPTY", "temperature": 0, "max_retries": 0}
thinking = ChatOpenAI(model="Qwen-0.6B", extra_body=THINK, streaming=True, stream_usage=True, **GREEDY)
direct = ChatOpenAI(model="Qwen/Qwen3-0.6B", extra_body=NO_THINK, **GREEDY)


class Person(BaseModel):
    """Somebody."""

    name: str
    food: str
    job: str


@tool
def get_weather(city: str) -> str:
    """Get the weather"""
    return DEGREES


def invoke():
    answer = thinking.invoke(SUM)
    return {"content": answer.content, "finish": answer.response_metadata["finish_reason"]}


def stream():
    """The usage is that of one answer, not the sum over its chunks."""
    chunks = list(thinking.stream(SUM))
    whole = sum(chunks[1:], chunks[0])
    details = whole.usage_metadata["output_token_details"]
    return {
        "content": whole.content,
        "pieces": len([chunk for chunk in chunks if chunk.content]),
        "finish": whole.response_metadata["finish_reason"],
        "usage": [whole.usage_metadata["output_tokens"], details["reasoning"]],
    }


def asked():
    answer = direct.invoke(CAPITAL, stop=["\n"], seed=3, max_tokens=50, logprobs=True, top_logprobs=2)
    return {"content": answer.content, "logprobs": len(answer.response_metadata["logprobs"]["content"]) > 0}


def parts():
    return direct.invoke([HumanMessage([{"type": "text", "text": CAPITAL}])]).content


def tools():
    bound = direct.bind_tools([get_weather])
    messages = [HumanMessage(WEATHER)]
    call = bound.invoke(messages)
    streamed = list(bound.stream(messages))
    together = sum(streamed[1:], streamed[0])
    messages += [call, *(get_weather.invoke(one) for one in call.tool_calls)]
    return {
        "calls": [[one["name"], one["args"]] for one in call.tool_calls],
        "streamed": [[one["name"], one["args"]] for one in together.tool_calls],
        "results": [isinstance(message, ToolMessage) for message in messages[2:]],
        "content": bound.invoke(messages).content,
    }


def chosen():
    bound = direct.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    return [[one["name"], list(one["args"])] for one in bound.invoke(WEATHER).tool_calls]


def structured():
    methods = ("json_schema", "function_calling")
    found = [direct.with_structured_output(Person, method=method).invoke(SENTENCE) for method in methods]
    found.append(thinking.with_structured_output(Person).invoke(SENTENCE))
    return [person.model_dump() for person in found]


def json_mode():
    return direct.with_structured_output(None, method="json_mode").invoke(SENTENCE)


tell(invoke, stream, asked, parts, tools, chosen, structured, json_mode)
