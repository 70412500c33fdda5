"""`edgeqwen serve` beside llama-server in one sitting: speed alone and together, first token, longest gap.

    python -m benchmarks.serve --peers DIR ARTIFACT [ARTIFACT ...]

DIR/bin/llama-server comes from benchmarks/peers.sh. Each engine that reads a file of the artifact stands loaded with
the same threads and is asked in turn, over HTTP, with the same bodies; medians go to benchmarks/results/serve.json
and, as a table, to stdout. llama-server reads the GGUF file that our llamacpp reads; ort has nobody beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from edgeqwen.artifact import open_artifact
from edgeqwen.catalog import find
from edgeqwen.device import physical_cores

RESULTS = Path(__file__).parent / "results" / "serve.json"
PARALLEL, TOKENS, CONTEXT = 4, 128, 4096
CHAT, QUESTION, LONG = 24, 500, 2000  # tokens of prompts
QUIET = 48  # tokens of the running chat before the long prompt comes
WORDS = 300  # tokens that answers are made of: the most that logit_bias takes
FORMATS = {"llamacpp": "gguf", "ort": "onnx"}


@dataclass(frozen=True)
class Asker:
    """A server's address, and the tokens that prompts and answers are made of."""

    port: int
    words: Sequence[int]

    async def answer(self, seed: int, prompt: int, tokens: int, times: list[float]) -> int:
        """Read an answer of `tokens` to a prompt of so many; when each piece came goes to `times`; its tokens.

        The answer is drawn from plain words alone: it never ends by itself, never repeats itself for long, and each
        of its tokens is a text that a server can show at once.
        """
        chance = random.Random(seed)
        body = {
            "prompt": [chance.choice(self.words) for _ in range(prompt)], "max_tokens": tokens, "seed": seed,
            "temperature": 5.0, "top_k": 40, "top_p": 1.0, "min_p": 0.0,
            "logit_bias": {str(word): 100 for word in self.words[:WORDS]},
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with contextlib.aclosing(events(self.port, "/v1/completions", body)) as stream:
            async for event in stream:
                if any(choice["text"] for choice in event["choices"]):
                    times.append(time.perf_counter())
                if event.get("usage"):
                    return int(event["usage"]["completion_tokens"])
        raise ConnectionError(f"the server on port {self.port} ended a stream early")


async def measure(asker: Asker, seed: int) -> dict[str, float]:
    """All figures once."""
    started = time.perf_counter()
    one = await asker.answer(seed, CHAT, TOKENS, [])
    one_s, started = time.perf_counter() - started, time.perf_counter()
    four = await asyncio.gather(*(asker.answer(seed + i, CHAT, TOKENS, []) for i in range(1, 1 + PARALLEL)))
    together_s, started = time.perf_counter() - started, time.perf_counter()
    assert [one, *four] == [TOKENS] * (1 + PARALLEL), "an answer ended early: the comparison would be unfair"
    first: list[float] = []
    await asker.answer(seed + 5, QUESTION, 1, first)
    return {
        "one_tokens_per_s": one / one_s,
        "together_tokens_per_s": sum(four) / together_s,
        "first_token_s": first[0] - started,
        **await disturbed(asker, seed + 6),
    }


async def disturbed(asker: Asker, seed: int) -> dict[str, float]:
    """The gaps between a running chat's tokens, before a long prompt comes in and while it does."""
    times: list[float] = []
    chat = asyncio.create_task(asker.answer(seed, CHAT, CONTEXT - 2 * CHAT, times))
    while len(times) < QUIET and not chat.done():  # noqa: ASYNC110 - the reader tells nobody
        await asyncio.sleep(0.01)
    quiet = gaps(times[8:])
    asked, long = time.perf_counter(), list[float]()
    await asker.answer(seed + 1, LONG, 1, long)
    assert not chat.done(), f"the running chat ended behind {len(times)} tokens, before the long prompt was read"
    chat.cancel()
    await asyncio.gather(chat, return_exceptions=True)
    meanwhile = gaps([moment for moment in times if moment <= long[0]], since=asked)
    return {
        "median_gap_s": statistics.median(quiet),
        "longest_gap_s": max(meanwhile),
        "longest_gap_ratio": max(meanwhile) / statistics.median(quiet),
        "disturbed_median_gap_s": statistics.median(meanwhile),
        "long_first_token_s": long[0] - asked,
    }


def gaps(times: Sequence[float], since: float = 0.0) -> list[float]:
    """Seconds between two moments each, of those that end behind `since`."""
    return [b - a for a, b in pairwise(times) if b > since]


def words_of(artifact: Path) -> list[int]:
    """Ids of tokens that are a space and letters, in an order that is always the same."""
    tokenizer = find(artifact, format=next(iter(open_artifact(artifact).manifest.formats))).tokenizer
    texts = {token: tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
    words = [token for token, text in texts.items() if text[:1] == b" " and text[1:].isalpha()]
    random.Random(0).shuffle(words)
    return words


def commands(artifact: Path, peers: Path, threads: int, port: int) -> dict[str, list[str]]:
    """Who can serve the artifact, and how it is started."""
    ours = [
        sys.executable, "-c", "from edgeqwen.cli import main; main()", "serve", artifact, "--port", port,
        "--threads", threads, "--parallel", PARALLEL, "--context", CONTEXT, "--offline",
    ]  # fmt: skip
    formats = open_artifact(artifact).manifest.formats
    by = {f"edgeqwen, {name}": [*ours, "--engine", name] for name, kind in FORMATS.items() if kind in formats}
    if "gguf" in formats:
        by["llama-server"] = [
            peers / "bin/llama-server", "-m", open_artifact(artifact).file("gguf"), "--port", port, "-t", threads,
            "-np", PARALLEL, "-c", CONTEXT * PARALLEL,
        ]  # fmt: skip
    return {name: [*map(str, words)] for name, words in by.items()}


@contextlib.asynccontextmanager
async def running(command: list[str], port: int) -> AsyncIterator[int]:
    """The port of a server while it runs."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        while not await healthy(port):
            if process.returncode is not None:
                raise ChildProcessError(f"{' '.join(command)} ended with {process.returncode}")
            await asyncio.sleep(0.1)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def healthy(port: int) -> bool:
    """Whether /health says 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    with contextlib.closing(writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        return b" 200 " in await reader.readline()


async def events(port: int, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event of one POST."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    with contextlib.closing(writer):
        writer.write(f"{head}\r\n\r\n".encode() + data)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ConnectionError(f"{status!r}: {await reader.read(2000)!r}")
        while line := await reader.readline():
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


async def compare(artifact: Path, peers: Path, threads: int, runs: int, alone: str | None) -> dict[str, Any]:
    """All servers in turn, or the one that is asked for, `runs` times, behind one run that warms up."""
    words = words_of(artifact)
    rows: dict[str, list[dict[str, float]]] = {}
    async with contextlib.AsyncExitStack() as stack:
        askers = {}
        for name in [alone] if alone else commands(artifact, peers, threads, 0):
            port = free_port()
            command = commands(artifact, peers, threads, port)[name]
            askers[name] = Asker(await stack.enter_async_context(running(command, port)), words)
        for run in range(runs + 1):
            for name, asker in askers.items():
                row = await measure(asker, 10 * run)
                if run:
                    rows.setdefault(name, []).append(row)
                    print(name, {key: round(value, 3) for key, value in row.items()}, file=sys.stderr, flush=True)
    medians = {
        name: {key: statistics.median(row[key] for row in measured) for key in measured[0]}
        for name, measured in rows.items()
    }
    return {"artifact": artifact.name, "threads": threads, "runs": runs, "medians": medians, "rows": rows}


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def table(results: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        f"| artifact | by | one chat, tokens/s | {PARALLEL} together | first token of {QUESTION} | median gap "
        f"| longest gap while {LONG} come in | of the median | first token of {LONG} |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for name, r in result["medians"].items():
            lines.append(
                f"| {result['artifact']} | {name} | {r['one_tokens_per_s']:.1f} | {r['together_tokens_per_s']:.1f} "
                f"| {r['first_token_s']:.2f} s | {1e3 * r['median_gap_s']:.1f} ms | {1e3 * r['longest_gap_s']:.1f} ms "
                f"| {r['longest_gap_ratio']:.1f}x | {r['long_first_token_s']:.2f} s |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--peers", type=Path, required=True, help="the folder of benchmarks/peers.sh")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--alone", help='only this one, such as "edgeqwen, ort"; the others\' figures stay')
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args()

    async def run() -> list[dict[str, Any]]:
        return [
            await compare(path, options.peers, options.threads, options.runs, options.alone)
            for path in options.artifacts
        ]

    results = asyncio.run(run())
    if options.alone:
        for result, kept in zip(results, json.loads(options.out.read_text(encoding="utf-8"))["results"], strict=True):
            for part in ("medians", "rows"):
                result[part] = kept[part] | result[part]
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
