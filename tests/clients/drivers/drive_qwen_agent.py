"""Qwen-Agent's Assistant with a tool, in its own prompt (nous) and in the API's fields (raw)."""

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
    *_, last = get_chat_model(model(THINK)).chat(messages=user(SUM), stream=True)
    return {"thinking": last[-1]["reasoning_content"], "content": last[-1]["content"]}


def agent(**settings):
    asked_for.clear()
    assistant = Assistant(llm=model(NO_THINK, **settings), function_list=["get_weather"])
    *_, messages = assistant.run(messages=user(WEATHER))
    calls = [message["function_call"]["name"] for message in messages if message.get("function_call")]
    return {"calls": calls, "asked": list(asked_for), "content": messages[-1]["content"],
            "roles": [message["role"] for message in messages]}  # fmt: skip


def nous():
    return agent()


def raw():
    return agent(use_raw_api=True)


tell(chat, nous, raw)
