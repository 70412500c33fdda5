"""What `edgeqwen plan` says of memory beside what a process takes, each measurement in a process of its own.

    python -m benchmarks.memory ARTIFACT [ARTIFACT ...]

Rows go to benchmarks/results/memory.json beside those of other artifacts that are there; a row that is measured again
replaces the old one. The table of all rows goes to stdout; the exit code is 1 where one is off by more than 10 % or
40 MB, whichever is more, of the peak, of its mapped or of its anonymous part.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.memory_child import LAYOUTS, Request
from edgeqwen.device import Device, cpu_features
from edgeqwen.memory_need import MemoryNeed, memory_need
from edgeqwen.outline import Outline, outline
from edgeqwen.plan import EngineChoice, plan
from edgeqwen.prospect import prospect
from edgeqwen.published import PUBLISHED

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
RELATIVE, ABSOLUTE = 0.10, 40e6  # the larger of the two may be between plan and measurement
FIGURES = ("peak_bytes", "mapped_bytes", "anonymous_bytes")
# Contexts, KV types, answers side by side and layouts, for each engine.
CONFIGURATIONS: dict[str, list[dict[str, Any]]] = {
    "llamacpp": [
        {"context": 512},
        {"context": 4096},
        {"context": 4096, "kv_type": "q8_0"},
        {"context": 16384},
        {"context": 1024, "kv_type": "f32"},
        {"context": 2048, "layout": "once"},
        {"context": 2048, "layout": "as stored"},
        {"context": 1024, "parallel": 4},
    ],
    "ort": [{"context": 512}, {"context": 2048}, {"context": 4096}, {"context": 1024, "parallel": 3}],
}


def measured(request: Request) -> dict[str, Any]:
    """The answer of a process of its own."""
    words = [sys.executable, "-m", "benchmarks.memory_child", json.dumps(asdict(request))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *filter(None, sys.path)))}
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def expected(row: dict[str, Any], facts: dict[str, Any]) -> MemoryNeed:
    """What today's arithmetic says of a row, of the shape alone: neither the artifact nor its machine is needed."""
    name = next((known for known in PUBLISHED if known.endswith(row["model"])), row["model"])
    model = prospect(name)
    option = next(one for one in model.options if one.type == row["type"])
    device = Device(facts["architecture"], 2, None, tuple(facts["features"] or ()))
    choice = EngineChoice(row["engine"], "")
    found = plan(
        model.shape, option.weights, device,
        engine=choice, context_length=row["context"], kv_type=row["kv_type"], parallel=row.get("parallel"),
    )  # fmt: skip
    if row.get("layout", "twice") == "twice":
        return found.need
    return memory_need(
        model.shape, option.weights, machine=device.machine, features=device.features, context_length=row["context"],
        engine=row["engine"], kv_type=row["kv_type"], layout=LAYOUTS[row["layout"]],
    )  # fmt: skip


def errors(row: dict[str, Any]) -> dict[str, float]:
    """Of each figure plan minus measurement, as a share of what may be between the two."""
    found = {}
    for name in FIGURES:
        plan, seen = row["planned"][name], row["measured"][name]
        found[name] = (plan - seen) / max(ABSOLUTE, RELATIVE * seen)
    return found


def rows_of(artifact: Path, only: str | None) -> Iterator[dict[str, Any]]:
    """Every configuration of the engines that can run the artifact, as it is measured."""
    model = outline(artifact)
    for kind in model.weights:
        engine = {"gguf": "llamacpp", "onnx": "ort"}[kind]
        for configuration in CONFIGURATIONS[engine]:
            if only is not None and only not in json.dumps(configuration):
                continue
            request = Request(str(artifact.absolute()), engine, **configuration)
            if request.context > model.shape.max_position_embeddings:
                continue
            facts = {"model": _name(model), "type": model.types[kind], "engine": engine, **configuration}
            row = {**facts, **measured(request)}
            print(line(row), file=sys.stderr, flush=True)
            yield row


def _name(model: Outline) -> str:
    """The published model of this shape, whatever its weights; else the artifact's own name."""
    same = (name for name, shape in PUBLISHED.items() if shape == model.shape)
    return next(same, model.name).removeprefix("Qwen/")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells two rows apart."""
    names = ("model", "type", "engine", "context", "kv_type", "parallel", "layout")
    return tuple(str(row.get(name)) for name in names)


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    figures = " | ".join(f"{row['planned'][name] / 1e6:.0f} / {row['measured'][name] / 1e6:.0f}" for name in FIGURES)
    worst = max(errors(row).values(), key=abs)
    return (
        f"| {row['model']} | {row['type']} | {row['engine']} | {row['context']} | {row['kv_type']} "
        f"| {row.get('parallel') or 1} | {row.get('layout', 'twice')} | {figures} | {100 * worst:+.0f} % |"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """All rows as Markdown; the last column is the worst error as a share of what is allowed."""
    heads = (
        "| model | type | engine | context | KV | answers | weights | peak MB, plan / measured | mapped | anonymous "
        "| of what is allowed |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    )
    return "\n".join([*heads, *map(line, rows)])


def main() -> None:
    """Measure, keep, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--only", help="configurations whose JSON holds this text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    known = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.exists() else []
    rows = {key(row): row for row in known}
    for artifact in options.artifacts:
        for row in rows_of(artifact, options.only):
            rows[key(row)] = row
            here = {**machine(), "architecture": platform.machine(), "features": cpu_features()}
            facts = {"machine": here, "rows": sorted(rows.values(), key=key)}
            options.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table(sorted(rows.values(), key=key)))
    wrong = [row for row in rows.values() if max(map(abs, errors(row).values())) > 1]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
