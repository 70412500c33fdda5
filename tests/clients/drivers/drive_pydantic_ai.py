"""pydantic-ai: an agent with a tool, its thoughts, and a typed result, which asks for a tool by force."""

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.messages import ThinkingPart, ToolCallPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from telling import DEGREES, MODEL, NO_THINK, SENTENCE, SUM, THINK, URL, WEATHER, tell

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key="EMPTY"))
thinking = {"temperature": 0, "extra_body": THINK}
direct = {"temperature": 0, "extra_body": NO_THINK}


class Person(BaseModel):
    """Somebody."""

    name: str
    food: str
    job: str


def parts(result, kind):
    return [part for message in result.all_messages() for part in message.parts if isinstance(part, kind)]


def run():
    result = Agent(model, model_settings=thinking).run_sync(SUM)
    return {"content": result.output, "thinking": [part.content for part in parts(result, ThinkingPart)]}


async def stream():
    async with Agent(model, model_settings=thinking).run_stream(SUM) as result:
        content = await result.get_output()
        return {"content": content, "thinking": [part.content for part in parts(result, ThinkingPart)]}


def tools():
    """With thinking: the history that goes back has thoughts, and content that is null."""
    agent = Agent(model, model_settings=thinking)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather"""
        return DEGREES if city == "Paris" else "{}"

    result = agent.run_sync(WEATHER)
    calls = [[part.tool_name, part.args_as_dict()] for part in parts(result, ToolCallPart)]
    return {"calls": calls, "content": result.output}


def typed():
    kinds = (Person, NativeOutput(Person))  # by a tool that must be called, by response_format
    return [
        Agent(model, output_type=kind, model_settings=direct).run_sync(SENTENCE).output.model_dump() for kind in kinds
    ]


tell(run, stream, tools, typed)
