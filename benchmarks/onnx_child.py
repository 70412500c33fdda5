"""One model in one engine, asked over stdin and answering over stdout, so that two engines can take turns.

    python -m benchmarks.onnx_child ARTIFACT [--threads N]              # edgeqwen on ONNX Runtime
    PEERS/venv-genai/bin/python benchmarks/onnx_child.py FOLDER --genai  # onnxruntime-genai on its own model

A line is a question: `decode`, `prompt`, `outside` or `memory`; the answer is one number in JSON. It needs nothing of
edgeqwen where it runs genai.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TOKENS, DEPTH = 128, 128  # decoded, behind so many
PROMPT = 512
CONTEXT = 4096
VOCABULARY = 150_000  # ids below this are text in every Qwen


def resident_bytes() -> int:
    """What this process holds of memory now."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


def ids(count: int) -> list[int]:
    """The same ids for both engines."""
    rng = random.Random(count)
    return [rng.randrange(VOCABULARY) for _ in range(count)]


def edgeqwen(artifact: Path, threads: int) -> dict[str, Callable[[], float]]:
    """The questions, answered by our engine behind its protocol."""
    from edgeqwen import load  # noqa: PLC0415 - not there where genai runs
    from edgeqwen.speed import append, decode_sample, prompt_sample  # noqa: PLC0415

    model = load(artifact, threads=threads, context_length=CONTEXT, engine="ort", parallel=1)
    backend = model.backend

    def decode() -> float:
        backend.truncate(0, 0)
        append(backend, ids(DEPTH))
        return TOKENS / decode_sample(backend, TOKENS, DEPTH).seconds

    def prompt() -> float:
        return PROMPT / prompt_sample(backend, PROMPT, 0).seconds

    def outside() -> float:
        backend.truncate(0, 0)
        started = time.perf_counter()
        options: dict[str, Any] = {"thinking": False, "temperature": 0.0, "max_tokens": TOKENS, "loop_guard": False}
        (*_, last) = model.stream("Tell me about rivers.", **options)
        return 1 - last.timings.engine_s / (time.perf_counter() - started) if last.timings else 1.0

    def memory() -> float:
        backend.truncate(0, 0)
        append(backend, ids(CONTEXT))
        return resident_bytes()

    return {"decode": decode, "prompt": prompt, "outside": outside, "memory": memory}


def genai(folder: Path, threads: int) -> dict[str, Callable[[], float]]:
    """The questions, answered by onnxruntime-genai; its threads are those of its genai_config.json."""
    import onnxruntime_genai as og  # noqa: PLC0415 - in the peers' environment alone

    config = folder / "genai_config.json"
    data = json.loads(config.read_text(encoding="utf-8"))
    data["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    config.write_text(json.dumps(data), encoding="utf-8")
    model = og.Model(str(folder))

    def generator(length: int) -> Any:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)  # it must not end early
        return og.Generator(model, params)

    def decode() -> float:
        running = generator(DEPTH + TOKENS + 8)
        running.append_tokens(ids(DEPTH))
        running.generate_next_token()
        started = time.perf_counter()
        for _ in range(TOKENS):
            running.generate_next_token()
        return TOKENS / (time.perf_counter() - started)

    def prompt() -> float:
        running = generator(PROMPT + 8)
        started = time.perf_counter()
        running.append_tokens(ids(PROMPT))
        running.generate_next_token()  # takes the id of the logits that the prompt ended with
        return PROMPT / (time.perf_counter() - started)

    def memory() -> float:
        running = generator(CONTEXT)
        running.append_tokens(ids(CONTEXT - 2))
        running.generate_next_token()
        return resident_bytes()

    return {"decode": decode, "prompt": prompt, "memory": memory}


def main() -> None:
    """Load, say so, answer until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--genai", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    questions = (genai if options.genai else edgeqwen)(options.model, options.threads)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(questions[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
