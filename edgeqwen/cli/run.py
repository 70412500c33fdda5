"""The command `run`: one question and its answer, or a conversation."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from edgeqwen.cli.terminal import json_text, note

if TYPE_CHECKING:
    from edgeqwen.model import Model
    from edgeqwen.types import Delta

PROMPT_CHARACTERS_MAX = 4 << 20


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
@click.option("--engine", default="auto", show_default=True, help="llamacpp or ort; auto takes the best for MODEL.")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "f32"]), help="Of the cache.  [default: f16; ort: f32]")
@click.option(
    "--gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1 for all.  [default: what fits there]"
)
@click.option("--type", "quant", help="Type to convert to on first use of a hub id.  [default: q4_k_m, for ort int4]")
@click.option("--offline", is_flag=True, help="Never ask the network.")
@click.option("--verify", is_flag=True, help="Check every hash before loading.")
@click.option("--force", is_flag=True, help="Load what does not fit by the arithmetic of `edgeqwen plan`.")
@click.option("--trust-template", is_flag=True, help="Accept a chat template that edgeqwen does not know.")
@click.option("--show-thinking/--hide-thinking", "show", default=None, help="[default: shown on a terminal only]")
@click.option("--logprobs", type=click.IntRange(0, 20), help="With --json: as many of the likeliest tokens each time.")
@click.option("--verbose", is_flag=True, help="Say on stderr which engine runs the model, how, and why.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object when the answer is complete.")
def run(model: str, prompt: str | None, **options: Any) -> None:
    """Ask MODEL one question, or talk with it if there is no PROMPT.

    MODEL is an artifact's folder, a GGUF file, a hub id (converted on first use) or `nano`. A PROMPT of - is read
    from standard input; text that is piped in beside a PROMPT follows it. A PROMPT that begins with - stands behind
    the options and --.

    \b
    edgeqwen run ./qwen3-0.6b-q4_k_m "Why is the sky blue?" --thinking-budget 512
    edgeqwen run nano "What is 123 + 456?" --think --json
    edgeqwen run nano --no-think -- "-5 + 3"
    cat letter.txt | edgeqwen run ./qwen3-0.6b-q4_k_m "Sum this up:"
    """
    _check(model, options)
    question = _question(prompt)
    if question is None:
        for name in ("as_json", "tools"):
            if options[name]:
                raise click.UsageError(f"--{name.removeprefix('as_')} needs a PROMPT")
    tools = _tools(options["tools"])
    with _load(model, options) as loaded:
        if options["verbose"] and loaded.card.plan is not None:
            note("; ".join(loaded.card.plan.reasons), always=True)
        if question is None:
            from edgeqwen.cli.conversation import Conversation

            Conversation(loaded, _generation(options), options["system"], show=options["show"]).talk()
        else:
            _answer(loaded, question, tools, options)


def _check(model: str, options: dict[str, Any]) -> None:
    """Raise a usage error for options that contradict each other or would have no effect."""
    if options["thinking"] and options["thinking_budget"] == 0:
        raise click.UsageError("--think and --thinking-budget 0 contradict each other: 0 turns thinking off")
    if options["thinking"] is False and options["thinking_budget"]:
        raise click.UsageError("--no-think and --thinking-budget contradict each other: there is no thinking to limit")
    if options["logprobs"] is not None and not options["as_json"]:
        raise click.UsageError("--logprobs are shown in JSON only: add --json")
    path = Path(model).expanduser()
    is_gguf = model != "nano" and path.is_file()
    if options["verify"] and is_gguf:
        raise click.UsageError(f"--verify checks the hashes of an artifact; {model} is a plain GGUF file without any")
    typed = click.get_current_context().get_parameter_source("quant") is ParameterSource.COMMANDLINE
    if typed and (is_gguf or (model != "nano" and (path / "manifest.json").is_file())):
        kind = "a GGUF file" if is_gguf else "an artifact"
        raise click.UsageError(f"--type is for a hub id or nano, which are converted; {model} is {kind} already")


def _question(prompt: str | None) -> str | None:
    """The PROMPT with what is piped in; None where a conversation is wanted."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        text = _standard_input()
        if not text.strip():
            raise click.UsageError("there is no PROMPT: give one, or text on standard input")
        return text
    if prompt is None or not _is_piped():
        return prompt
    piped = _standard_input()
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


def _is_piped() -> bool:
    """Whether standard input is a file or a pipe, which end: nobody waits for a socket or a device."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):  # no file behind it
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode)


def _standard_input() -> str:
    text = sys.stdin.read(PROMPT_CHARACTERS_MAX + 1)
    if len(text) > PROMPT_CHARACTERS_MAX:
        raise click.UsageError(f"standard input is longer than {PROMPT_CHARACTERS_MAX} characters")
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
            engine=options["engine"],
            offline=options["offline"],
            verify=options["verify"],
            trust_template=options["trust_template"],
            force=options["force"],
            progress=progress,
        )


def _generation(options: dict[str, Any]) -> dict[str, Any]:
    """The options of one answer, those that were given."""
    names = ("thinking", "thinking_budget", "max_tokens", "temperature", "top_p", "top_k", "min_p",
             "presence_penalty", "seed", "stop", "logprobs")  # fmt: skip
    return {name: options[name] for name in names if options[name] not in (None, ())}


def _tools(path: Path | None) -> list[dict[str, Any]]:
    if path is None:
        return []
    try:
        tools = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise click.UsageError(f"--tools {path}: is not JSON: {error}") from error
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise click.UsageError(f"--tools {path}: must be a list of objects, as in OpenAI's `tools`")
    return tools


def _answer(model: Model, question: str, tools: list[dict[str, Any]], options: dict[str, Any]) -> None:
    from edgeqwen.cli.answer import Printer, Stopped, facts, play, tell_end
    from edgeqwen.model import fold

    messages = [{"role": "user", "content": question}]
    if options["system"]:
        messages.insert(0, {"role": "system", "content": options["system"]})
    stream = model.stream(messages, tools=tools, **_generation(options))
    printer = None if options["as_json"] else Printer(show_thinking=options["show"])
    try:
        deltas = play(model, stream, printer.show if printer else _nothing)
    except Stopped:
        if printer:
            printer.end()
        raise KeyboardInterrupt from None
    completion = fold(deltas)
    if printer:
        printer.end()
        tell_end(completion)
    else:
        click.echo(json_text(facts(completion, model)))


def _nothing(_delta: Delta) -> None:
    """What --json shows before the end."""
