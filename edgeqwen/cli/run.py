"""The command `run`: one question and its answer, or a conversation."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeqwen.model import Model

PROMPT_BYTES_MAX = 4 << 20


@click.command(short_help="Ask a model one question, or talk with it.")
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--think/--no-think", "thinking", default=None, help="Think before answering.  [default: where it can]")
@click.option("--thinking-budget", type=click.IntRange(min=0), help="Tokens of thinking; then the answer is forced.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of the whole answer.")
@click.option("--system", help="A system message.")
@click.option("--tools", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON list of tools.")
@click.option("--temperature", type=float, help="0 is greedy.  [default: Qwen's own for the mode]")
@click.option("--top-p", type=float)
@click.option("--top-k", type=int)
@click.option("--min-p", type=float)
@click.option("--presence-penalty", type=float, help="Up to 2 against repetitions.")
@click.option("--seed", type=int, help="Equal seeds give equal answers.")
@click.option("--stop", multiple=True, help="End the answer at this text; may be given several times.")
@click.option("--context", "context_length", type=int, help="Tokens of prompt and answer together.  [default: 4096]")
@click.option("--threads", type=int, help="[default: the fast physical cores]")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "f32"]), default="f16", show_default=True)
@click.option("--gpu-layers", type=int, default=0, show_default=True, help="Layers on the GPU; -1 for all.")
@click.option("--type", "quant", help="Type to convert to on first use of a hub id.  [default: q4_k_m]")
@click.option("--offline", is_flag=True, help="Never ask the network.")
@click.option("--verify", is_flag=True, help="Check every hash before loading.")
@click.option("--trust-template", is_flag=True, help="Accept a chat template that edgeqwen does not know.")
@click.option("--hide-thinking", is_flag=True, help="Do not show the thinking.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
def run(model: str, prompt: str | None, **options: Any) -> None:
    """Ask MODEL one question, or talk with it if there is no PROMPT.

    MODEL is an artifact's folder, a GGUF file, a hub id (converted on first use) or `nano`. A PROMPT of - is read
    from standard input.

    \b
    edgeqwen run ./qwen3-0.6b-q4_k_m "Why is the sky blue?" --thinking-budget 512
    edgeqwen run nano "What is 123 + 456?" --think --json
    cat letter.txt | edgeqwen run ./qwen3-0.6b-q4_k_m -
    """
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        prompt = _standard_input()
    if prompt is None and options["as_json"]:
        raise click.UsageError("--json needs a PROMPT")
    with _load(model, options) as loaded:
        if prompt is None:
            from edgeqwen.cli.conversation import Conversation

            Conversation(loaded, _generation(options), options["system"], show=not options["hide_thinking"]).talk()
        else:
            _answer(loaded, prompt, options)


def _standard_input() -> str:
    text = sys.stdin.read(PROMPT_BYTES_MAX + 1)
    if len(text) > PROMPT_BYTES_MAX:
        raise click.UsageError(f"standard input is longer than {PROMPT_BYTES_MAX} characters")
    if not text.strip():
        raise click.UsageError("there is no PROMPT: give one, or text on standard input")
    return text


def _load(name: str, options: dict[str, Any]) -> Model:
    from edgeqwen import load
    from edgeqwen.cli.progress import Progress

    with Progress() as progress:
        return load(
            name,
            type=options["quant"],
            context_length=options["context_length"],
            threads=options["threads"],
            kv_type=options["kv_type"],
            gpu_layers=options["gpu_layers"],
            offline=options["offline"],
            verify=options["verify"],
            trust_template=options["trust_template"],
            progress=progress,
        )


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """The options of one answer, those that were given."""
    names = ("thinking", "thinking_budget", "max_tokens", "temperature", "top_p", "top_k", "min_p",
             "presence_penalty", "seed", "stop")  # fmt: skip
    return {name: options[name] for name in names if options[name] not in (None, ())}


def _tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--tools {path}: is not JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise click.UsageError(f"--tools {path}: must be a list of objects, as in OpenAI's `tools`")
    return tools


def _answer(model: Model, prompt: str, options: dict[str, Any]) -> None:
    from edgeqwen.cli.answer import Printer, Stopped, as_json, note, play, summary
    from edgeqwen.model import fold

    messages = [{"role": "user", "content": prompt}]
    if options["system"]:
        messages.insert(0, {"role": "system", "content": options["system"]})
    stream = model.stream(messages, tools=_tools(options["tools"]), **_generation(options))
    printer = Printer(show_thinking=not options["hide_thinking"])
    show = (lambda _: None) if options["as_json"] else printer.show
    try:
        deltas = play(model, stream, show)
    except Stopped:
        printer.end()
        raise KeyboardInterrupt from None
    completion = fold(deltas)
    if options["as_json"]:
        click.echo(as_json(completion, model))
    else:
        printer.end()
        note(summary(completion))
