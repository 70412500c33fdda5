"""Measures conversion side by side with llama.cpp's tools in one sitting: time, anonymous memory, size of the file.

    python -m benchmarks.convert --peers DIR --checkpoint DIR [--types q8_0 q4_0 q4_k_m] [--runs 5]

DIR of the peers holds llama.cpp/convert_hf_to_gguf.py, venv/bin/python and bin/llama-quantize. Every run is a process
of its own, from start to exit, over files in the page cache; ours and theirs take turns. Linux only: memory is RssAnon.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "convert.json"
ONE_STEP = {"q8_0": "q8_0", "f16": "f16", "bf16": "bf16", "f32": "f32"}  # what convert_hf_to_gguf writes by itself
SAMPLE_S = 0.01
EDGEQWEN = (sys.executable, "-c", "from edgeqwen.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Run:
    """One conversion: wall time, the largest RssAnon seen, size of the GGUF file."""

    wall_s: float
    peak_anonymous_bytes: int
    file_bytes: int


def main() -> None:
    """Parse, measure, write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0", "q4_k_m"])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    rows, load = [], round(os.getloadavg()[0], 2)
    with tempfile.TemporaryDirectory(dir=settings.checkpoint.resolve().parent, prefix="convert-bench-") as scratch:
        for kind in settings.types:
            rows.append(measure(kind, settings, Path(scratch)))
            print(f"{kind}: ratio {rows[-1]['speedup']:.2f}", file=sys.stderr)
    data = {
        "machine": {**machine(), "load_average_1_min": load},
        "checkpoint": settings.checkpoint.name,
        "runs": settings.runs,
        "types": rows,
    }
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(table(data))


def measure(kind: str, settings: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run both in turn, once unmeasured to fill the page cache and then as often as asked."""
    warm(settings.checkpoint)
    ours, theirs = [], []
    for _ in range(settings.runs):
        ours.append(run_ours(kind, settings.checkpoint, scratch))
        theirs.append(run_theirs(kind, settings.checkpoint, settings.peers.resolve(), scratch))
    row: dict[str, Any] = {"type": kind, "steps_of_llama_cpp": 1 if kind in ONE_STEP else 2}
    for name, runs in (("edgeqwen", ours), ("llama.cpp", theirs)):
        row[name] = {
            "wall_s": [round(run.wall_s, 3) for run in runs],
            "median_s": round(statistics.median(run.wall_s for run in runs), 3),
            "peak_anonymous_bytes": max(run.peak_anonymous_bytes for run in runs),
            "file_bytes": runs[0].file_bytes,
        }
    row["speedup"] = round(row["llama.cpp"]["median_s"] / row["edgeqwen"]["median_s"], 2)
    return row


def warm(checkpoint: Path) -> None:
    """Read the weights once, so that every run finds them in the page cache."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def run_ours(kind: str, checkpoint: Path, scratch: Path) -> Run:
    """Convert with edgeqwen, hashing and verification included."""
    out = scratch / "ours"
    wall, peak = watch([*EDGEQWEN, "convert", checkpoint, "--type", kind, "--out", out])
    size = next(out.glob("*.gguf")).stat().st_size
    shutil.rmtree(out)
    return Run(wall, peak, size)


def run_theirs(kind: str, checkpoint: Path, peers: Path, scratch: Path) -> Run:
    """One step where their converter writes the type, else a BF16 file first and llama-quantize after."""
    first, second = scratch / "converted.gguf", scratch / "quantized.gguf"
    script = peers / "llama.cpp" / "convert_hf_to_gguf.py"
    command = [
        peers / "venv/bin/python",
        script,
        checkpoint,
        "--outtype",
        ONE_STEP.get(kind, "bf16"),
        "--outfile",
        first,
    ]
    wall, peak = watch(command)
    if kind not in ONE_STEP:
        more, peak_of_second = watch([peers / "bin/llama-quantize", first, second, kind.upper()])
        wall, peak = wall + more, max(peak, peak_of_second)
        first.unlink()
    file = first if kind in ONE_STEP else second
    size = file.stat().st_size
    file.unlink()
    return Run(wall, peak, size)


def watch(command: list[Any]) -> tuple[float, int]:
    """Run a command to its end; give its wall time and the largest RssAnon that was seen, in bytes."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, env=environment)
        peak = 0
        while True:
            try:
                process.wait(SAMPLE_S)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, anonymous_bytes(process.pid))
        wall = time.perf_counter() - began
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{command[0]} failed:\n{log.read().decode(errors='replace')[-2000:]}")
    return wall, peak


def anonymous_bytes(pid: int) -> int:
    """Read RssAnon of a process; 0 when it has just ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:  # it has just ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0)


def table(data: dict[str, Any]) -> str:
    """Write the results as a Markdown table."""
    lines = [
        f"{data['checkpoint']}, median of {data['runs']}, {data['machine']['cores']} cores, {data['machine']['cpu']}",
        "",
        "| type | edgeqwen s | llama.cpp s | ratio | anonymous MB | theirs MB | file MB | theirs MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in data["types"]:
        ours, theirs = row["edgeqwen"], row["llama.cpp"]
        lines.append(
            f"| {row['type']} | {ours['median_s']:.1f} | {theirs['median_s']:.1f} | {row['speedup']:.1f}x "
            f"| {ours['peak_anonymous_bytes'] / 1e6:.0f} | {theirs['peak_anonymous_bytes'] / 1e6:.0f} "
            f"| {ours['file_bytes'] / 1e6:.1f} | {theirs['file_bytes'] / 1e6:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
