"""Asks the held-out prompts, greedily, and counts the exact answers by skill and mode."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from . import folder, prompts
from .decoding import answers, without_thinking
from .model import Nano
from .prompts import Prompt
from .quantization import rounded
from .tokenizer import Renderer

BUDGET = 16
MODES = ("thinking", "direct", "budget")
Table = dict[str, dict[str, list[int]]]  # skill -> mode -> [right, asked]


def right(prompt: Prompt, text: str) -> bool:
    """Tell whether the answer is the expected one; a tool call counts by its name and arguments."""
    content = without_thinking(text)
    if isinstance(prompt.expected, str):
        return content == prompt.expected
    body = content.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>")
    with contextlib.suppress(ValueError):
        return bool(json.loads(body) == prompt.expected)
    return False


def ask(model: Nano, renderer: Renderer, asked: list[Prompt], mode: str) -> list[str]:
    """Return what the model writes to each prompt in the mode."""
    texts = [renderer.prompt(prompt.messages, prompt.tools or (), thinking=mode != "direct") for prompt in asked]
    return answers(model, renderer, texts, BUDGET if mode == "budget" else None)


def evaluate(model: Nano, renderer: Renderer, asked: list[Prompt]) -> tuple[Table, list[dict[str, Any]]]:
    """Return the table, and the answers that were wrong."""
    table: Table = defaultdict(lambda: {mode: [0, 0] for mode in MODES})
    wrong: list[dict[str, Any]] = []
    for mode in MODES:
        for prompt, text in zip(asked, ask(model, renderer, asked, mode), strict=True):
            good = right(prompt, text)
            table[prompt.skill][mode][0] += good
            table[prompt.skill][mode][1] += 1
            if not good:
                last = prompt.messages[-1]["content"]
                wrong.append(
                    {"skill": prompt.skill, "mode": mode, "asked": last, "written": text, "expected": prompt.expected}
                )
    return dict(table), wrong


def markdown(table: Table) -> str:
    """Return the table in Markdown, with the prompts of which thinking makes no difference summed up."""
    lines = ["| skill | prompts | thinking | direct | thinking cut at 16 tokens |", "|---|--:|--:|--:|--:|"]
    for skill, modes in table.items():
        cells = [f"{100 * good / asked:.0f} %" for good, asked in modes.values()]
        lines.append(f"| {skill} | {modes['thinking'][1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the model's folder")
    parser.add_argument("--prompts", type=Path, default=prompts.FOLDER / "prompts.jsonl")
    parser.add_argument("--skills", help="only these, by comma")
    parser.add_argument(
        "--four-bit", action="store_true", help="round the matrices as Q4_0 does, the embedding as Q8_0"
    )
    parser.add_argument("--json", action="store_true", help="print the table and the wrong answers as JSON")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    asked = prompts.read(options.prompts)
    if options.skills:
        asked = [prompt for prompt in asked if prompt.skill in options.skills.split(",")]
    model = folder.load(options.folder)
    with rounded(model) if options.four_bit else contextlib.nullcontext():
        table, wrong = evaluate(model, Renderer(options.folder), asked)
    print(json.dumps({"table": table, "wrong": wrong}, ensure_ascii=False) if options.json else markdown(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
