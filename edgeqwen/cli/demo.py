"""The command `demo`: the whole way in a few seconds, on the embedded model and without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import harmless, json_text, styled

if TYPE_CHECKING:
    from edgeqwen.types import Completion

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
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: the conversion and the answers.")
def demo(kind: str, *, as_json: bool) -> None:
    """Convert the embedded model, ask it three questions and print the speeds."""
    from edgeqwen import catalog, load
    from edgeqwen.cli import answer, convert

    say = _nothing if as_json else click.echo
    with TemporaryDirectory(prefix="edgeqwen-demo-") as folder:
        formats = catalog.formats_of("auto")
        out = Path(folder) / catalog.artifact_name("nano", catalog.type_name(kind, formats), formats)
        to = "" if formats == ("gguf",) else f" --to {','.join(formats)}"
        say(styled(f"$ edgeqwen convert nano{to} --type {kind}", sys.stdout, bold=True))
        report = catalog.convert("nano", out, type=kind, formats=formats)
        say(convert.summary(report))
        answers = []
        with load(out) as model:
            for question, thinking, tools in QUESTIONS:
                switch = ("--think" if thinking else "--no-think") + (" --tools ..." if tools else "")
                say(styled(f'\n$ edgeqwen run nano "{question}" {switch}', sys.stdout, bold=True))
                completion = model.chat(question, thinking=thinking, tools=tools, seed=1)
                say(_shown(completion))
                answers.append({"question": question, **answer.facts(completion, model)})
    say("\nTalk with it: edgeqwen run nano    A real one: edgeqwen run Qwen/Qwen3-0.6B")
    if as_json:
        click.echo(json_text({"conversion": convert.facts(report), "answers": answers}))


def _nothing(_text: str) -> None:
    """What --json says before the end."""


def _shown(completion: Completion) -> str:
    """All of an answer, and its speed."""
    from edgeqwen.cli.answer import summary

    calls = (f"[tool call] {call.name} {call.arguments}" for call in completion.tool_calls)
    lines = [harmless(text, sys.stdout) for text in (completion.content, *calls) if text]
    if completion.thinking:
        lines.insert(0, styled(harmless(completion.thinking, sys.stdout), sys.stdout, dim=True))
    return "\n".join([*lines, styled(summary(completion), sys.stdout, dim=True)])
