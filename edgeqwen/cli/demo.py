"""The command `demo`: the whole way in a few seconds, on the embedded model and without a network."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgeqwen.model import Model
    from edgeqwen.types import Tool

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTIONS = (
    ("What is 123 + 456?", True, ()),
    ("What is the capital of France?", False, ()),
    ("What is the weather in Paris?", False, (WEATHER,)),
)


@click.command()
@click.option("--type", "kind", default="q8_0", show_default=True, help="The type to convert nano to.")
def demo(kind: str) -> None:
    """Convert the embedded model, ask it three questions and print the speeds."""
    from edgeqwen import catalog, load
    from edgeqwen.cli.convert import summary as converted

    with TemporaryDirectory(prefix="edgeqwen-demo-") as folder:
        out = Path(folder) / catalog.artifact_name("nano", catalog.type_name(kind))
        click.echo(click.style(f"$ edgeqwen convert nano --type {kind}", bold=True))
        click.echo(converted(catalog.convert("nano", out, type=kind)))
        with load(out) as model:
            for question, thinking, tools in QUESTIONS:
                _ask(model, question, thinking=thinking, tools=tools)
    click.echo("\nTalk with it: edgeqwen run nano    A real one: edgeqwen run Qwen/Qwen3-0.6B")


def _ask(model: Model, question: str, *, thinking: bool, tools: tuple[Tool, ...]) -> None:
    """One question with all of its answer on stdout, and its speed."""
    from edgeqwen.cli.answer import summary

    switch = "--think" if thinking else "--no-think"
    click.echo(
        click.style(f'\n$ edgeqwen run nano "{question}" {switch}', bold=True) + (" --tools ..." if tools else "")
    )
    answer = model.chat(question, thinking=thinking, tools=tools, seed=1)
    if answer.thinking:
        click.echo(click.style(answer.thinking, dim=True))
    if answer.content:
        click.echo(answer.content)
    for call in answer.tool_calls:
        click.echo(f"[tool call] {call.name} {call.arguments}")
    click.echo(click.style(summary(answer), dim=True))
