"""The engine wheel's libraries against those that pip compiles for this machine: the same ids, and how fast each is.

python -m benchmarks.engine COMPILED WHEEL ARTIFACT... [--runs 5] [--out benchmarks/results/engine.json]

COMPILED and WHEEL are folders of libraries. Every sample is a process of its own, both sides in turn; run it alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from edgeqwen import load
from edgeqwen.speed import decode_sample, prompt_sample

PROMPT, DECODE, THREADS = 512, 128, 2
QUESTIONS = ("What is 123 + 456?", "What is the capital of France?", "Why is the sky blue?")


def sample(artifact: Path) -> dict[str, Any]:
    """One process: prompt and decode speed, and what nano says with the same libraries."""
    with load(artifact, engine="llamacpp", threads=THREADS, context_length=PROMPT + DECODE) as model:
        prompt_sample(model.backend, PROMPT, 0)
        prompt = prompt_sample(model.backend, PROMPT, 0)
        decode_sample(model.backend, 8, 0)
        decode = decode_sample(model.backend, DECODE, 0)
    said = []
    with load("nano", engine="llamacpp", threads=THREADS) as model:
        for question in QUESTIONS:
            answer = model.chat(question, thinking=True, temperature=0.0, max_tokens=160)
            said.append([answer.thinking, answer.content])
    return {
        "prompt_tokens_per_s": PROMPT / prompt.seconds,
        "decode_tokens_per_s": DECODE / decode.seconds,
        "said": said,
    }


def ask(folder: Path, artifact: Path) -> dict[str, Any]:
    """The sample of a process that takes its libraries from `folder`."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engine", "--sample", str(artifact)]
    environment = {**os.environ, "LLAMA_CPP_LIB_PATH": str(folder)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def compare(sides: dict[str, Path], artifact: Path, runs: int) -> dict[str, Any]:
    """Both sides in turn: medians, and the ratio of each pair."""
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, folder in sides.items():
            told[name].append(ask(folder, artifact))
    result: dict[str, Any] = {"artifact": artifact.name, "threads": THREADS, "runs": runs}
    said = {json.dumps(one["said"]) for each in told.values() for one in each}
    result["nano_says_the_same"] = len(said) == 1
    for test in ("prompt_tokens_per_s", "decode_tokens_per_s"):
        medians = {name: statistics.median(one[test] for one in each) for name, each in told.items()}
        pairs = [wheel[test] / compiled[test] for compiled, wheel in zip(told["compiled"], told["wheel"], strict=True)]
        ratio = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
        result[test] = {**medians, "wheel_to_compiled": ratio}
    return result


def main() -> None:
    """Compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--sample", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.sample:
        print(json.dumps(sample(arguments.sample)))
        return
    compiled, wheel, *artifacts = arguments.paths
    sides = {"compiled": compiled, "wheel": wheel}
    results = [compare(sides, artifact, arguments.runs) for artifact in artifacts]
    text = json.dumps({"machine": machine(), "results": results}, indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
