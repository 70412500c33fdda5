"""The process that measures one engine with one number of threads: a JSON request as argument, JSON lines out.

Each configuration gets its own: the peaks of memory are those of a whole process, and an engine that dies takes
nothing with it.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from edgeqwen import errors
from edgeqwen.errors import EdgeqwenError, EngineError
from edgeqwen.model import Model, load
from edgeqwen.process_memory import Memory, MemoryWatch
from edgeqwen.speed import Sample, measure

WORDS_CHARS = 300  # of what a process that died said last


@dataclass(frozen=True, slots=True)
class Request:
    """What one process measures; BenchSettings for one engine and one number of threads."""

    path: str
    engine: str
    threads: int
    prompts: tuple[int, ...]
    generate: tuple[int, ...]
    depths: tuple[int, ...]
    repeat: int
    context_length: int
    kv_type: str
    gpu_layers: int
    trust_template: bool
    force: bool = False


def samples(request: Request) -> Iterator[Sample | Memory]:
    """Every sample as it comes, and the peaks of memory so far; errors are those of `load`, or of a dead process."""
    command = [sys.executable, "-P", "-X", "utf8", "-m", "edgeqwen.bench_process", json.dumps(asdict(request))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with TemporaryFile() as complaints:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=complaints, env=environment,
            encoding="utf-8",
        )  # fmt: skip
        try:
            yield from map(_answer, process.stdout or ())
            process.wait()
        finally:  # also where the caller stops early
            process.kill()
            process.communicate()
        if process.returncode:
            raise EngineError(_death(request.engine, process.returncode, complaints))


def _answer(line: str) -> Sample | Memory:
    """What one line of the process says; its error is raised."""
    kind, value = json.loads(line)
    if kind == "error":
        raise _error(*value)
    return Memory(**value) if kind == "memory" else Sample(**value)


def _error(name: str, text: str) -> EdgeqwenError:
    """The error of this name, as far as a text is enough to make it."""
    try:
        error: EdgeqwenError = getattr(errors, name)(text)
    except TypeError:
        return EngineError(text)
    return error


def _death(engine: str, code: int, complaints: IO[bytes]) -> str:
    """Say how the process ended, and its last words."""
    complaints.seek(0)
    lines = complaints.read().decode("utf-8", "replace").strip().splitlines()
    words = lines[-1][:WORDS_CHARS] if lines else "it said nothing"
    if code >= 0:
        return f"the process that measured {engine} ended with {code}: {words}"
    name = signal.Signals(-code).name
    hints = {"SIGKILL": "memory was probably too short", "SIGILL": "it was built for another processor"}
    return f"the process that measured {engine} was ended by {name}: {hints.get(name, words)}"


def main() -> None:
    """Take the request, measure, write a JSON line for each thing that is known."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    request = Request(**json.loads(sys.argv[1]))
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", buffering=1) as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever an engine prints goes elsewhere
        try:
            for kind, value in _measure(request):
                out.write(json.dumps([kind, value]) + "\n")
        except EdgeqwenError as error:
            out.write(json.dumps(["error", [type(error).__name__, str(error)]]) + "\n")


def _measure(request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    """The first loading and every test, each with the peaks of memory so far; then loadings, for their spread."""
    with MemoryWatch() as watch:
        model, loading = _load(request)
        with model:
            tests = measure(
                model, prompts=request.prompts, generate=request.generate, depths=request.depths, repeat=request.repeat
            )
            for sample in itertools.chain([loading], tests):
                yield "sample", asdict(sample)
                yield "memory", asdict(watch.memory)
    for _ in range(request.repeat - 1):
        model, sample = _load(request)
        model.close()
        yield "sample", asdict(sample)


def _load(request: Request) -> tuple[Model, Sample]:
    started = time.perf_counter()
    model = load(
        request.path,
        context_length=request.context_length,
        threads=request.threads,
        kv_type=request.kv_type,
        gpu_layers=request.gpu_layers,
        engine=request.engine,
        offline=True,
        trust_template=request.trust_template,
        force=request.force,
    )
    return model, Sample("load", 0, 0, time.perf_counter() - started)


if __name__ == "__main__":
    main()
