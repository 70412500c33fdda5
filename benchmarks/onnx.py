"""Export to ONNX and ONNX Runtime beside onnxruntime-genai's builder and runtime, in one sitting.

    python -m benchmarks.onnx --peers DIR --checkpoint DIR [--larger DIR] [--trained DIR] [--handbook DEB] [--work DIR]

DIR/venv-genai comes from `benchmarks/peers.sh DIR genai`. Speeds and memory are of --checkpoint's shape; of --larger
only the memory of exporting; errors (KL divergence to FP32) are of --trained: on the tests' corpus of many scripts,
and on the prose of a handbook, if its package is given (benchmarks/handbook.py). Both sides take turns, each in a
process of its own; medians go to benchmarks/results/onnx.json and, as tables, to stdout; onnx-avx512.json beside it is
of an earlier sitting on a processor with AVX-512 VNNI. Linux only: memory is from /proc.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.convert import EDGEQWEN, ROOT, warm, watch
from benchmarks.machine import machine
from benchmarks.onnx_error import compare
from edgeqwen.device import physical_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = ROOT / "benchmarks" / "results" / "onnx.json"
PLAIN, DEFAULT, FAST = "q4_0", "int4", "int4_fast"  # plain rounding; searched zero points; with a table of 4 bits, too
CALIBRATED = {f"{kind}-calibrated": kind for kind in (DEFAULT, FAST)}  # by the names of their folders


class Side:
    """One loaded model of benchmarks/onnx_child.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, question: str) -> float:
        """The answer to one of its questions."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


@contextmanager
def side(python: str | Path, model: Path, threads: int, *extra: str) -> Iterator[Side]:
    """A child with a model, ready."""
    words = [python, ROOT / "benchmarks/onnx_child.py", model, "--threads", threads, *extra]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "ORT_DISABLE_TELEMETRY": "1"}
    with subprocess.Popen(
        [str(word) for word in words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()).strip() != "ready":
                if not line:
                    raise SystemExit(f"{words} ended before it was ready")
            yield Side(process)
        finally:
            process.terminate()


def export(checkpoint: Path, kind: str, *extra: str, out: Path) -> tuple[float, int]:
    """Convert with edgeqwen, hashing and verification included: (wall seconds, peak anonymous bytes)."""
    shutil.rmtree(out, ignore_errors=True)
    return watch([*EDGEQWEN, "convert", checkpoint, "--to", "onnx", "--type", kind, "--out", out, *extra])


def build(peers: Path, checkpoint: Path, precision: str, out: Path) -> tuple[float, int]:
    """The same with genai's builder."""
    shutil.rmtree(out, ignore_errors=True)
    module = [peers / "venv-genai/bin/python", "-m", "onnxruntime_genai.models.builder"]
    return watch([*module, "-i", checkpoint, "-o", out, "-p", precision, "-e", "cpu", "-c", out.parent / "cache"])


def exports(settings: argparse.Namespace) -> dict[str, Any]:
    """Exporting to int4 in turns; then what the speeds need, once each, and the larger shape for its memory."""
    warm(settings.checkpoint)
    alone = f"{PLAIN}, not compared with exact activations"
    runs: dict[str, list[tuple[float, int]]] = {alone: [], PLAIN: [], DEFAULT: [], "genai": []}
    for _ in range(settings.runs):
        runs[alone].append(export(settings.checkpoint, PLAIN, "--no-compare", out=settings.work / alone))
        for kind in (PLAIN, DEFAULT):
            runs[kind].append(export(settings.checkpoint, kind, out=settings.work / kind))
        runs["genai"].append(build(settings.peers, settings.checkpoint, "int4", settings.work / "genai-int4"))
    export(settings.checkpoint, FAST, out=settings.work / FAST)
    export(settings.checkpoint, "int8", out=settings.work / "int8")
    build(settings.peers, settings.checkpoint, "int8", settings.work / "genai-int8")
    facts: dict[str, Any] = {
        name: {
            "wall_s": [round(wall, 2) for wall, _ in of],
            "median_s": round(statistics.median(wall for wall, _ in of), 2),
            "peak_anonymous_bytes": max(peak for _, peak in of),
            "bytes": folder_bytes(settings.work / ("genai-int4" if name == "genai" else name)),
        }
        for name, of in runs.items()
    }
    for name in (FAST, "int8", "genai-int8"):
        facts[name] = {"bytes": folder_bytes(settings.work / name)}
    for name in CALIBRATED:
        facts[name] = once(settings.checkpoint, name, settings.work / name)
        facts[name]["bytes"] = folder_bytes(settings.work / name)
    if settings.larger:
        for name in (PLAIN, DEFAULT, f"{DEFAULT}-calibrated"):
            facts[f"larger-{name}"] = once(settings.larger, name, settings.work / "larger")
        shutil.rmtree(settings.work / "larger")
    return facts


def once(checkpoint: Path, name: str, out: Path) -> dict[str, Any]:
    """What an export takes, one run."""
    wall, peak = export(checkpoint, *kind_of(name), out=out)
    return {"wall_s": round(wall, 2), "peak_anonymous_bytes": peak}


def kind_of(name: str) -> tuple[str, ...]:
    """Type and options of an export."""
    return (CALIBRATED[name], "--calibrate") if name in CALIBRATED else (name,)


def folder_bytes(folder: Path) -> int:
    """Graph and data: what the weights take on disk."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".onnx", ".data"})


def speeds(settings: argparse.Namespace) -> dict[str, Any]:
    """Decoding, prompt and memory, the sides in turns."""
    theirs = settings.peers / "venv-genai/bin/python"
    models: dict[str, tuple[str | Path, Path, tuple[str, ...]]] = {
        kind: (sys.executable, settings.work / kind, ()) for kind in (DEFAULT, FAST, *CALIBRATED)
    }
    models["genai-int4"] = (theirs, settings.work / "genai-int4", ("--genai",))
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(side(python, model, settings.threads, *extra))
            for name, (python, model, extra) in models.items()
        }
        for run in range(settings.runs + 1):  # the first one warms up
            for question in ("decode", "prompt", "outside"):
                for name, of in sides.items():
                    if question == "outside" and name == "genai-int4":
                        continue
                    value = of.ask(question)
                    if run:
                        figures[name].setdefault(question, []).append(value)
    for name, (python, model, extra) in models.items():
        with side(python, model, settings.threads, *extra) as fresh:
            figures[name]["memory"] = [fresh.ask("memory")]
    medians = {name: {q: statistics.median(values) for q, values in of.items()} for name, of in figures.items()}
    ratios = {
        f"{name}/genai-int4": {
            q: statistics.median(a / b for a, b in zip(figures[name][q], figures["genai-int4"][q], strict=True))
            for q in ("decode", "prompt", "memory")
        }
        for name in (DEFAULT, FAST, *CALIBRATED)
    }
    return {"medians": medians, "ratios": ratios, "samples": figures}


def errors(settings: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """KL divergence to FP32 of everything, on the trained checkpoint; what was made before is taken as it is.

    By text: "corpus", and "prose" where there is a handbook.
    """
    folder = settings.work / "trained"
    models = []
    for name in ("fp32", PLAIN, DEFAULT, FAST, *CALIBRATED, "int8"):
        if not (folder / name / "manifest.json").exists():
            export(settings.trained, *kind_of(name), out=folder / name)
        models.append(folder / name)
    for precision in ("int4", "int8"):
        if not (folder / f"genai-{precision}" / "genai_config.json").exists():
            build(settings.peers, settings.trained, precision, folder / f"genai-{precision}")
        models.append(folder / f"genai-{precision}")
    texts = {"corpus": None} | ({"prose": settings.handbook} if settings.handbook else {})
    return {name: compare(models[0], models[1:], settings.threads, text) for name, text in texts.items()}


def table(data: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = []
    if "exports" in data:
        lines = ["| export | s | anonymous MB | file MB |", "|---|---:|---:|---:|"]
        for name, of in data["exports"].items():
            wall = of.get("median_s", of.get("wall_s", ""))
            lines.append(f"| {name} | {wall} | {megabytes(of, 'peak_anonymous_bytes')} | {megabytes(of, 'bytes')} |")
    if "speeds" in data:
        lines += ["", "| run | decode, tokens/s | prompt, tokens/s | MB at 4k | outside |", "|---|---:|---:|---:|---:|"]
        for name, of in data["speeds"]["medians"].items():
            outside = f"{100 * of['outside']:.2f} %" if "outside" in of else ""
            lines.append(f"| {name} | {of['decode']:.1f} | {of['prompt']:.0f} | {of['memory'] / 1e6:.0f} | {outside} |")
        for name, of in data["speeds"]["ratios"].items():
            lines.append(f"| {name} | {of['decode']:.2f}x | {of['prompt']:.2f}x | {of['memory']:.2f}x | |")
    for text, found in data.get("errors", {}).items():
        lines += ["", f"| error, {text} | KL divergence | other likeliest token |", "|---|---:|---:|"]
        lines += [f"| {of['model']} | {of['divergence']:.4f} | {100 * of['flipped_share']:.1f} % |" for of in found]
    return "\n".join(lines)


def megabytes(of: dict[str, Any], name: str) -> str:
    """A figure in MB, or nothing."""
    return f"{of[name] / 1e6:.0f}" if name in of else ""


def main() -> None:
    """Measure, print and keep: parts that are not asked for stay as they were in the file, each with its machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--larger", type=Path)
    parser.add_argument("--trained", type=Path)
    parser.add_argument("--handbook", type=Path)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "onnx-bench", help="where models are put")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--parts", nargs="+", default=["exports", "speeds", "errors"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    settings.peers, settings.work = settings.peers.resolve(), settings.work.resolve()
    settings.work.mkdir(parents=True, exist_ok=True)
    data = json.loads(settings.out.read_text(encoding="utf-8")) if settings.out.exists() else {}
    here = {**machine(), "threads": settings.threads, "runs": settings.runs}
    for part, measure in (("exports", exports), ("speeds", speeds), ("errors", errors)):
        if part in settings.parts and (part != "errors" or settings.trained):
            data[part] = measure(settings)
            data.setdefault("machines", {})[part] = here
            settings.out.parent.mkdir(parents=True, exist_ok=True)
            settings.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(table(data))


if __name__ == "__main__":
    main()
