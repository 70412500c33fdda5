"""Qwen-Agent's Assistant with a tool, in its own prompt (nous) and in the API's fields (raw)."""

import sys

import json5
from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model
from qwen_agent.tools.base import BaseTool, register_tool
from telling import DEGREES, MODEL, NO_THINK, SUM, THINK, URL, WEATHER, tell, user

asked_for = []


@register_tool("get_weather")
class GetWeather(BaseTool):
    description = "Get the weather"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}  # noqa: RUF012

    def call(self, params, **_others):
        asked_for.append(json5.loads(params))
        return DEGREES


def model(thinking, **settings):
    return {
        "model": MODEL, "model_server": URL, "api_key": "EMPTY", "model_type": "oai",
        "generate_cfg": {"temperature": 0, "max_retries": 0, "extra_body": thinking, **settings},
    }  # fmt: skip


def chat():
    """The last state of a stream: thoughts and content are messages of their own."""
    *_, last = get_chat_model(model(THINK)).chat(messages=user(SUM), stream=True)
    return {
        "thinking": "".join(message.get("reasoning_content") or "" for message in last),
        "content": "".join(message["content"] for message in last),
    }


def called():
    """The tools are told in a system message, and the call has to come in the content."""
    tools = [{"name": "get_weather", "description": GetWeather.description, "parameters": GetWeather.parameters}]
    *_, last = get_chat_model(model(NO_THINK)).chat(messages=user(WEATHER), functions=tools, stream=True)
    return last[-1]["function_call"]


def agent(**settings):
    asked_for.clear()
    assistant = Assistant(llm=model(NO_THINK, **settings), function_list=["get_weather"])
    *_, messages = assistant.run(messages=user(WEATHER))
    roles = [message["role"] for message in messages]
    return {"roles": roles, "asked": list(asked_for), "content": messages[-1]["content"]}


def raw():
    return agent(use_raw_api=True)


def nous():
    return agent()


if sys.argv[2:] == ["agent"]:  # over a model that understands tools whose tags are text
    tell(raw, nous)
else:
    tell(chat, called, raw)
