"""Writes the held-out prompts with their answers, one JSON object a line."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from . import dialogues, skills, tools
from .sample import Sample

FOLDER = Path(__file__).parent
COUNTS = {
    "addition": 50,
    "capitals": 40,
    "spelling": 40,
    "extraction": 40,
    "tools": 50,
    "tool_result": 25,
    "follow_up": 40,
    "follow_up_addition": 10,
    "identity": 10,
    "talk": 8,
    "unknown": 12,
    "other_topic": 40,
    "other_topic_addition": 10,
}
SEED = 2024


@dataclass(frozen=True)
class Prompt:
    """A chat, the tools offered, and the one right answer; a tool call is given as name and arguments."""

    skill: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    expected: str | dict[str, Any]
    thinking_matters: bool

    @classmethod
    def of(cls, sample: Sample) -> Prompt:
        """Return what a test needs of a sample."""
        expected = sample.call or sample.content
        return cls(sample.skill, list(sample.messages), list(sample.tools) or None, expected, sample.guess is not None)


def addition(random: Random) -> Sample:
    """Return a sum of which thinking makes a difference: of twenty or more, and not a round one."""
    while True:
        sample = skills.addition(random)
        if sample.guess != sample.content:
            return sample


def draw(skill: str, random: Random) -> Sample:
    """Return a held-out sample of the skill; small talk has none."""
    makers = {
        "addition": addition,
        "capitals": skills.capital,
        "spelling": dialogues.noun,
        "extraction": skills.extraction,
        "tools": tools.tool_call,
        "tool_result": tools.tool_result,
        "identity": skills.identity,
        "talk": skills.talk,
        "unknown": skills.unknown,
        "other_topic": dialogues.other_topic,
        "other_topic_addition": dialogues.other_topic,
    }
    make = makers.get(skill, dialogues.follow_up)
    while True:
        sample = make(random)
        if sample.skill == skill and (sample.held_out or sample.key in {"talk", "unknown"}):
            return sample


def generate(seed: int) -> list[Prompt]:
    """Return the prompts of all skills, none twice."""
    random = Random(seed)
    prompts: list[Prompt] = []
    for skill, count in COUNTS.items():
        seen: set[str] = set()
        while len(seen) < count:
            prompt = Prompt.of(draw(skill, random))
            text = json.dumps(prompt.messages, ensure_ascii=False)
            if text not in seen:
                seen.add(text)
                prompts.append(prompt)
    return prompts


def read(path: Path) -> list[Prompt]:
    """Return the prompts in a file."""
    return [Prompt(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER / "prompts.jsonl")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    lines = [json.dumps(prompt.__dict__, ensure_ascii=False) for prompt in generate(options.seed)]
    options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
