"""The runtime beside llama-bench in one sitting: speeds, time outside the engine, prefix reuse, start-up.

    python -m benchmarks.runtime --peers DIR ARTIFACT [ARTIFACT ...]

DIR/bin/llama-bench comes from benchmarks/peers.sh. Both sides run in turn on the same file with the same threads;
medians and spreads go to benchmarks/results/runtime.json and, as a table, to stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from edgeqwen import load
from edgeqwen.artifact import open_artifact
from edgeqwen.device import physical_cores
from edgeqwen.model import Model
from edgeqwen.speed import decode_sample, prompt_sample
from edgeqwen.types import Message

RESULTS = Path(__file__).parent / "results" / "runtime.json"
TOKENS = 128
PROMPT = 512


def llama_bench(peers: Path, gguf: Path, threads: int) -> dict[str, float]:
    """Tokens/s of llama-bench: a prompt of PROMPT, then TOKENS one by one; one repetition behind its own warm-up."""
    words = [
        peers / "bin/llama-bench", "-m", gguf, "-p", PROMPT, "-n", TOKENS, "-t", threads, "-r", "1", "-o", "json",
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    prompt, generated = (float(row["avg_ts"]) for row in json.loads(done.stdout))
    return {"llama_bench_prompt_tokens_per_s": prompt, "llama_bench_tokens_per_s": generated}


def engine(model: Model) -> dict[str, float]:
    """Tokens/s of the engine behind the protocol, as `edgeqwen bench` measures it: no sampling, no text."""
    prompt = prompt_sample(model.backend, PROMPT, 0)
    generated = decode_sample(model.backend, TOKENS, 0)
    return {
        "engine_prompt_tokens_per_s": PROMPT / prompt.seconds,
        "engine_tokens_per_s": TOKENS / generated.seconds,
    }


def decode(model: Model) -> dict[str, float]:
    """Decode tokens/s of a stream, greedy, and the share of its wall time outside the engine's native calls."""
    model.backend.truncate(0, 0)
    started = time.perf_counter()
    (*_, last) = model.stream(
        "Tell me about rivers.", thinking=False, temperature=0.0, max_tokens=TOKENS, loop_guard=False
    )
    wall_s = time.perf_counter() - started
    assert last.timings is not None
    assert last.usage is not None
    assert last.usage.completion_tokens == TOKENS, "the model ended its answer: the comparison would be unfair"
    return {
        "tokens_per_s": last.timings.decode_tokens_per_s,
        "outside_share": 1 - last.timings.engine_s / wall_s,
    }


def first_token_s(model: Model, messages: list[Message]) -> float:
    """Seconds until the first delta of an answer."""
    started = time.perf_counter()
    stream = model.stream(messages, thinking=False, seed=1, max_tokens=4)
    for delta in stream:
        if delta.content or delta.finish_reason:
            break
    took = time.perf_counter() - started
    stream.close()
    return took


def second_turn(model: Model) -> dict[str, float]:
    """Time to the first token of a second turn after 1,000 tokens of history: with reuse, prepared, and without."""
    text = "word"
    while model.count_tokens(text, thinking=False) < 1000:
        text += " word"
    history = [Message("user", text)]
    model.backend.truncate(0, 0)
    answer = model.chat(history, thinking=False, seed=1, max_tokens=12)
    turn = [*history, answer.message, Message("user", "And why?")]
    reused_s = first_token_s(model, turn)
    model.chat(history, thinking=False, seed=1, max_tokens=12)
    model.prepare(turn[:-1])
    prepared_s = first_token_s(model, turn)
    model.backend.truncate(0, 0)
    return {"reused_s": reused_s, "prepared_s": prepared_s, "cold_s": first_token_s(model, turn)}


def start_up(runs: int) -> dict[str, float]:
    """Wall seconds of `edgeqwen --help`, `import edgeqwen` and Python alone: medians."""
    commands = {
        "help_s": [Path(sys.executable).parent / "edgeqwen", "--help"],
        "import_s": [sys.executable, "-c", "import edgeqwen"],
        "python_s": [sys.executable, "-c", "pass"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(artifact: Path, peers: Path, threads: int, runs: int) -> dict[str, Any]:
    """Everything for one artifact: the two sides in turn."""
    gguf = open_artifact(artifact).file("gguf")
    with load(artifact, threads=threads) as model:
        decode(model)  # warm: pages read, threads started
        rows = [{**decode(model), **engine(model), **llama_bench(peers, gguf, threads)} for _ in range(runs)]
        turns = [second_turn(model) for _ in range(runs)]
    ratios = {
        name: [row[ours] / row[theirs] for row in rows]
        for name, ours, theirs in (
            ("ratio", "tokens_per_s", "llama_bench_tokens_per_s"),
            ("engine_ratio", "engine_tokens_per_s", "llama_bench_tokens_per_s"),
            ("engine_prompt_ratio", "engine_prompt_tokens_per_s", "llama_bench_prompt_tokens_per_s"),
        )
    }
    return {
        "artifact": artifact.name,
        "threads": threads,
        "runs": runs,
        **medians(rows),
        **{name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in ratios.items()},
        "second_turn": medians(turns),
        "reuse_speedup": statistics.median(turn["cold_s"] / turn["reused_s"] for turn in turns),
        "prepared_speedup": statistics.median(turn["cold_s"] / turn["prepared_s"] for turn in turns),
    }


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """The median of every figure."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def table(results: list[dict[str, Any]], started: dict[str, float]) -> str:
    """The figures as Markdown."""
    lines = [
        "| artifact | tokens/s | llama-bench | ratio (min-max) | engine alone, ratio | prompt, ratio "
        "| outside the engine | first token of a 2nd turn | prepared | no reuse | faster |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ratio, turn = r["ratio"], r["second_turn"]
        lines.append(
            f"| {r['artifact']} | {r['tokens_per_s']:.1f} | {r['llama_bench_tokens_per_s']:.1f} "
            f"| {ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f}) "
            f"| {r['engine_tokens_per_s']:.1f}, {r['engine_ratio']['median']:.3f} "
            f"| {r['engine_prompt_tokens_per_s']:.0f}, {r['engine_prompt_ratio']['median']:.3f} "
            f"| {100 * r['outside_share']:.2f} % "
            f"| {turn['reused_s']:.3f} s | {turn['prepared_s']:.3f} s | {turn['cold_s']:.2f} s "
            f"| {r['reuse_speedup']:.1f}x, {r['prepared_speedup']:.1f}x |"
        )
    lines.append("\n" + ", ".join(f"{name} {value:.3f}" for name, value in started.items()))
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of benchmarks/peers.sh")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    options = parser.parse_args()
    results = [compare(path, options.peers, options.threads, options.runs) for path in options.artifacts]
    started = start_up(max(9, options.runs))
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"machine": machine(), "start_up": started, "results": results}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table(results, started))


if __name__ == "__main__":
    main()
