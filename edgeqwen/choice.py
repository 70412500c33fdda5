"""Which engine runs a model here and how it is loaded: headers, installed engines and this machine -> a plan."""

from __future__ import annotations

from dataclasses import replace

from edgeqwen.device import Device, this_device
from edgeqwen.engines import AUTO, ENGINES, has_gpu_library, installed_engines
from edgeqwen.errors import MemoryShortError
from edgeqwen.outline import Outline
from edgeqwen.plan import EngineChoice, Plan, choose_engines, plan
from edgeqwen.speed_record import decode_speeds


def choose(
    model: Outline,
    *,
    engine: str = AUTO,
    context_length: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    gpu_layers: int | None = 0,
    parallel: int | None = None,
    device: Device | None = None,
    force: bool = False,
) -> Plan:
    """The plan of the best engine that fits into memory, with its reasons; the errors are those of `edgeqwen.plan`."""
    choices = choose_engines(
        tuple(model.weights), installed_engines(),
        wanted=engine, kv_type=kv_type, gpu_layers=gpu_layers or 0, speeds=decode_speeds(model.digest),
    )  # fmt: skip
    here = device or this_device()
    if device is None and here.gpu_free_bytes is not None and not has_gpu_library():
        here = replace(here, gpu_free_bytes=None)
    short: dict[str, MemoryShortError] = {}
    for best in choices:
        skipped = f"{best.engine}: there is not enough memory for {', '.join(short)}"
        choice = EngineChoice(best.engine, skipped) if short else best
        try:
            return plan(
                model.shape, model.weights[ENGINES[choice.engine].format], here,
                engine=choice, context_length=context_length, threads=threads, kv_type=kv_type, gpu_layers=gpu_layers,
                parallel=parallel, force=force and best is choices[-1],
            )  # fmt: skip
        except MemoryShortError as error:
            short[choice.engine] = error
    raise next(iter(short.values()))
