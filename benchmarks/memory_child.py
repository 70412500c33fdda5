"""One model in one process: loads it as planned, fills its context, and says what memory that took at its peak.

    python -m benchmarks.memory_child '{"path": "ARTIFACT", "engine": "ort", "context": 4096}'

It answers with one JSON object: bytes that were planned and bytes that were measured.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgeqwen.backends import open_backend
from edgeqwen.backends.base import Chunk
from edgeqwen.backends.ort import OrtBackend
from edgeqwen.catalog import find
from edgeqwen.choice import choose
from edgeqwen.device import this_device
from edgeqwen.engines import ENGINES
from edgeqwen.language import ModelCard
from edgeqwen.memory_need import AS_STORED, ONCE, STEP_TOKENS, SWAP_TOKENS, TWICE, memory_need
from edgeqwen.model import Model
from edgeqwen.outline import outline
from edgeqwen.plan import Plan
from edgeqwen.process_memory import MemoryWatch
from edgeqwen.speed import append, random_ids
from edgeqwen.types import GenerationConfig

LAYOUTS = {"twice": TWICE, "once": ONCE, "as stored": AS_STORED}
DECODED = 4  # tokens behind the last step


@dataclass(frozen=True)
class Request:
    """What is measured."""

    path: str
    engine: str
    context: int
    kv_type: str | None = None
    parallel: int | None = None
    layout: str = "twice"


def planned(request: Request) -> Plan:
    """As `load` plans it, but for a layout that is asked for."""
    model = outline(Path(request.path))
    plan = choose(
        model, engine=request.engine, context_length=request.context, kv_type=request.kv_type,
        parallel=request.parallel,
    )  # fmt: skip
    if request.layout == "twice":
        return plan
    layout, device = LAYOUTS[request.layout], this_device()
    need = memory_need(
        model.shape, model.weights[ENGINES[request.engine].format], machine=device.machine, features=device.features,
        context_length=request.context, engine=request.engine, kv_type=plan.kv_type, layout=layout,
    )  # fmt: skip
    return replace(plan, mmap=layout.mmap, repack=layout.repack, need=need)


def fill(backend: Any, plan: Plan) -> tuple[int, list[Any]]:
    """Fill every answer's context, and what may be kept beside it; how many tokens were computed, and what is kept.

    What costs memory is done for real, and what does not is not waited for. llama.cpp writes its whole cache when it is
    made, and with flash attention a step takes the same at any depth: two steps are computed. ONNX Runtime's cache is
    memory once it is written: zeros are written, and the last step is computed behind them.
    """
    room = backend.context_length - DECODED - 1
    if not isinstance(backend, OrtBackend):
        flash = plan.kv_type != "f32"
        count = min(room, 2 * STEP_TOKENS) if flash else room
        append(backend, random_ids(backend, count))
        pieces = backend.swap.tokens // SWAP_TOKENS if backend.swap else 0
        return count, [backend.swap.take_out(0, 0, SWAP_TOKENS) for _ in range(pieces)]
    slab = backend._check_open()  # noqa: SLF001 - the point is what it holds of memory
    behind = max(0, room - STEP_TOKENS)
    for sequence in range(backend.sequences):
        slab.array[:, :, sequence, :, :behind] = 0.0
    backend._ledger.append(0, random_ids(backend, behind))  # noqa: SLF001
    append(backend, random_ids(backend, room - behind))
    for sequence in range(1, backend.sequences):
        slab.array[:, :, sequence] = 0.0
    return room - behind, []


def measure(request: Request) -> dict[str, Any]:
    """Load, fill, decode; peaks of this process."""
    with MemoryWatch() as watch:
        plan = planned(request)
        found = find(Path(request.path), format=ENGINES[plan.engine].format)
        backend = open_backend(found.weights_path, plan)
        card = ModelCard(found.name, found.shape, found.end_ids, GenerationConfig(), plan)
        model = Model(backend, found.tokenizer, found.template, card)
        computed, kept = fill(backend, plan)
        for _ in range(DECODED):
            backend.forward([Chunk(0, (1,))])
        memory = watch.memory
        kept.clear()
        model.close()
    need = plan.need
    return {
        "kv_type": plan.kv_type,
        "computed_tokens": computed,
        "planned": {
            "peak_bytes": need.total_bytes, "mapped_bytes": need.mapped_bytes, "anonymous_bytes": need.anonymous_bytes,
        },
        "measured": {
            "peak_bytes": memory.peak_bytes, "mapped_bytes": memory.mapped_bytes,
            "anonymous_bytes": memory.anonymous_bytes,
        },
    }  # fmt: skip


def main() -> None:
    """Take the request, answer on stdout."""
    print(json.dumps(measure(Request(**json.loads(sys.argv[1])))))


if __name__ == "__main__":
    main()
