"""One product of one row and a stored matrix in ONNX Runtime, by grid: what decoding can gain from a grid here.

    python -m benchmarks.products [--runs 9] [--threads N] [--out benchmarks/results/products.json]

Two matrices in rows of 2,048 weights: one far larger than any cache, whose weights come from memory as those of a model
do, and one that stays in the cache. What a grid takes in the cache is the kernel's; where the larger one is slower, it
is memory's, whose own speed is measured beside it. All grids take turns; run it alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.convert import ROOT
from benchmarks.machine import machine
from edgeqwen.bandwidth import read_bandwidth
from edgeqwen.device import physical_cores
from edgeqwen.huge_pages import on_huge_pages
from edgeqwen.onnx_runtime import import_onnxruntime

RESULTS = ROOT / "benchmarks" / "results" / "products.json"
WIDTH = 2048
ROWS = {"memory": 76_000, "cache": 4096}  # 80 MB and 4 MB at 4 bits
WEIGHTS_PER_SAMPLE = 1 << 31  # of one sample: about 60 ms at 35 weights/ns
ACCURACY_LEVEL = 4  # as our graphs and genai's say


@dataclass(frozen=True, slots=True)
class Stored:
    """A grid as MatMulNBits takes it."""

    bits: int
    block_size: int
    zeros: bool

    @property
    def name(self) -> str:
        """Bits, block, and whether it has zero points of its own."""
        return f"{self.bits} bits, blocks of {self.block_size}{', zero points' if self.zeros else ''}"

    @property
    def bytes_per_weight(self) -> float:
        """Levels, float32 scales and zero points."""
        return self.bits / 8 + (4 + self.zeros * self.bits / 8) / self.block_size


GRIDS = (
    Stored(4, 32, zeros=False),  # genai's default
    *(Stored(4, block, zeros) for block in (64, 128, 256) for zeros in (True, False)),
    Stored(8, 32, zeros=False),
    Stored(8, 128, zeros=False),
)


def product(stored: Stored, rows: int, threads: int) -> Callable[[], float]:
    """A graph of one MatMulNBits; a call runs it some times, in a session of its own, and gives weights/ns."""
    rng = np.random.default_rng(0)
    blocks = WIDTH // stored.block_size
    arrays = {
        "levels": rng.integers(0, 256, (rows, blocks, stored.block_size * stored.bits // 8), dtype=np.uint8),
        "scales": rng.random((rows, blocks), np.float32),
    }
    if stored.zeros:
        arrays["zeros"] = rng.integers(0, 256, (rows, (blocks * stored.bits + 7) // 8), dtype=np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft",
        K=WIDTH, N=rows, bits=stored.bits, block_size=stored.block_size, accuracy_level=ACCURACY_LEVEL,
    )  # fmt: skip
    floats = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "product", [floats("x", TensorProto.FLOAT, [1, WIDTH])], [floats("y", TensorProto.FLOAT, [1, rows])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    serialized = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    given = {"x": rng.standard_normal((1, WIDTH)).astype(np.float32)}
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    calls = max(1, WEIGHTS_PER_SAMPLE // (rows * WIDTH))

    def sample() -> float:
        with on_huge_pages():
            session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        session.run(None, given)  # wakes the threads and warms the cache
        started = time.perf_counter()
        for _ in range(calls):
            session.run(None, given)
        return calls * rows * WIDTH / (time.perf_counter() - started) / 1e9

    return sample


def measure(runs: int, threads: int) -> dict[str, Any]:
    """All grids, in turn: medians and samples of weights/ns, and what memory gives."""
    bandwidths: list[float] = []
    found: dict[str, Any] = {stored.name: {"bytes_per_weight": stored.bytes_per_weight} for stored in GRIDS}
    for place, rows in ROWS.items():
        sides = {stored.name: product(stored, rows, threads) for stored in GRIDS}
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(runs):
            bandwidths.append(read_bandwidth(threads).bytes_per_s / 1e9)
            for name, sample in sides.items():
                samples[name].append(round(sample(), 2))
        for name, values in samples.items():
            found[name][place] = {"weights_per_ns": statistics.median(values), "samples": values}
    return {"memory_gb_per_s": [round(value, 1) for value in bandwidths], "grids": found}


def table(data: dict[str, Any]) -> str:
    """The figures as Markdown."""
    reads = data["memory_gb_per_s"]
    lines = [
        f"Memory reads {statistics.median(reads):.1f} GB/s (best {max(reads):.1f}).", "",
        "| grid | bytes a weight | weights/ns from memory | GB/s | weights/ns from the cache |",
        "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, of in data["grids"].items():
        size, (memory, cache) = of["bytes_per_weight"], (of[place]["weights_per_ns"] for place in ROWS)
        lines.append(f"| {name} | {size:.3f} | {memory:.1f} | {memory * size:.1f} | {cache:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=RESULTS)
    settings = parser.parse_args()
    data = {"machine": machine(), "threads": settings.threads, "runs": settings.runs}
    data |= measure(settings.runs, settings.threads)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(table(data))


if __name__ == "__main__":
    main()
