"""A Qwen-Agent assistant that uses a tool of yours, over `edgeqwen serve`.

edgeqwen serve nano
python examples/qwen_agent_tools.py http://127.0.0.1:8000/v1 "What is the weather in Paris?"
"""

import json
import sys
from typing import Any

from qwen_agent.agents import Assistant
from qwen_agent.tools.base import BaseTool, register_tool


@register_tool("get_weather")
class GetWeather(BaseTool):  # type: ignore[misc]
    """Stands for what your device can do: read a sensor, switch a relay."""

    description = "Get the weather"
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}  # noqa: RUF012

    def call(self, params: str, **_others: Any) -> str:
        """`params` is what the model wrote, JSON of the schema above."""
        print(f"tool: get_weather({json.loads(params)['city']})")
        return json.dumps({"degrees": 21})


def assistant(base_url: str) -> Assistant:
    """`use_raw_api` lets the server write the tools into the prompt as Qwen3 was taught, and read the calls."""
    settings = {"temperature": 0, "use_raw_api": True, "extra_body": {"enable_thinking": False}}
    model = {
        "model": "Qwen3-0.6B", "model_type": "oai", "model_server": base_url, "api_key": "EMPTY",
        "generate_cfg": settings,
    }  # fmt: skip
    return Assistant(llm=model, function_list=["get_weather"])


if __name__ == "__main__":
    *_, messages = assistant(sys.argv[1]).run(messages=[{"role": "user", "content": sys.argv[2]}])
    print(f"answer: {messages[-1]['content']}")
