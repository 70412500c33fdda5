"""Which engine runs a model here and how it is loaded: headers, installed engines and this machine -> a plan."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from edgeqwen.device import Device, this_device
from edgeqwen.engines import AUTO, ENGINES, installed_engines
from edgeqwen.errors import EngineError, MemoryShortError, RequestError
from edgeqwen.native_engine import library_folder
from edgeqwen.outline import Outline
from edgeqwen.plan import EngineChoice, Plan, choose_engines, plan
from edgeqwen.speed_record import decode_speeds

_FOR_GPUS: Final = re.compile("ggml-(?:cuda|metal|vulkan|hip|sycl|musa|cann|opencl)")


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
    if device is None and (here.gpu_free_bytes is not None or gpu_layers):
        libraries = library_names()
        if not any("ggml-cuda" in name for name in libraries):
            here = replace(here, gpu_free_bytes=None)
        if gpu_layers and choices[0].engine == "llamacpp":
            _check_gpu(gpu_layers, libraries)
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


def library_names() -> list[str]:
    """Names of the libraries of llama.cpp that would be loaded, libggml-cuda.so among them or not; none is loaded here.

    Empty where they cannot be run: loading says why, and another engine needs none of them.
    """
    try:
        folder = library_folder()
    except EngineError:
        return []
    return [] if folder is None else [library.name for library in folder.glob("*ggml*")]


def _check_gpu(gpu_layers: int, libraries: Sequence[str]) -> None:
    """llama.cpp says nothing where it was built for no GPU, and computes on the processor."""
    if libraries and not any(map(_FOR_GPUS.search, libraries)):
        raise RequestError(
            f"gpu_layers={gpu_layers}: the llama.cpp that is installed was built without a GPU; leave it out, or "
            "install one that has it: CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir "
            "llama-cpp-python, and no engine wheel, which would go before it (pip uninstall edgeqwen-engine)"
        )
