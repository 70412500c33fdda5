"""What a model needs in memory and how it is loaded here; arithmetic over a shape and a device, no engine."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from edgeqwen.device import Device
from edgeqwen.engines import AUTO, ENGINES, Engine, engine_named
from edgeqwen.errors import ArtifactError, EngineMissingError, MemoryShortError, RequestError
from edgeqwen.types import ModelShape

CONTEXT_DEFAULT = 4096  # tokens: a chat of some pages; 448 MiB of KV cache for Qwen3-0.6B and 1.7B
KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of one value, block scales included
# Types that llama.cpp lays out anew at load time (ggml/src/ggml-cpu/repack.cpp).
REPACKED = {
    "x86_64": frozenset({"Q4_0", "Q4_K", "IQ4_NL"}),
    "aarch64": frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL"}),
}
REPACKED["amd64"], REPACKED["arm64"] = REPACKED["x86_64"], REPACKED["aarch64"]
PROCESS_BYTES = 130 << 20  # Python, numpy, the tokenizer of 151,669 tokens, llama.cpp's libraries
ASIDE_TOKENS = 256  # a piece of a prompt: larger ones are computed no faster, and smaller ones stopped sooner
STEP_ROWS = 32  # of logits that a step gives at most, one for every answer that runs in it
RESERVE = 0.9  # of the available memory; the rest is for everybody else


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model file's tensors: all of them, and by GGUF type those of the matrices in the blocks."""

    total_bytes: int
    matrix_bytes: Mapping[str, int]
    lookup_bytes: int = 0  # an embedding that is no head as well: a token reads one row of it

    @property
    def read_bytes(self) -> int:
        """Bytes that every generated token reads."""
        return self.total_bytes - self.lookup_bytes

    def repacked_bytes(self, machine: str) -> int:
        kinds = REPACKED.get(machine.lower(), frozenset())
        return sum(size for kind, size in self.matrix_bytes.items() if kind in kinds)


class Sized(Protocol):
    """A tensor of a file: its name and type are GGUF's."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


def weights_of(tensors: Iterable[Sized]) -> Weights:
    """Sum up a file's tensors."""
    matrices, sizes = dict[str, int](), dict[str, int]()
    for tensor in tensors:
        sizes[tensor.name] = tensor.nbytes
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            matrices[tensor.type] = matrices.get(tensor.type, 0) + tensor.nbytes
    tied = "output.weight" not in sizes
    return Weights(sum(sizes.values()), matrices, 0 if tied else sizes.get("token_embd.weight", 0))


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes at the peak. `weights_bytes` are a mapped file that can be dropped and read again; the rest is not."""

    weights_bytes: int
    repacked_bytes: int
    kv_bytes: int
    compute_bytes: int
    process_bytes: int = PROCESS_BYTES

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.repacked_bytes + self.kv_bytes + self.compute_bytes + self.process_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is loaded on a device, what that needs, and why it was chosen.

    Without `mmap` the file is read: weights that the engine lays out anew are then in memory once and not twice.
    `sequences` share `pool_tokens` of KV cache: a server's answers side by side, and prefixes that are kept.
    """

    engine: str  # of edgeqwen.backends.BACKENDS
    context_length: int
    threads: int
    kv_type: str
    mmap: bool
    gpu_layers: int
    need: MemoryNeed
    reasons: tuple[str, ...]
    sequences: int = 1
    pool_tokens: int | None = None  # None: context_length
    aside_threads: int = 0  # of `threads`, for prompts that are computed beside running answers


def kv_bytes_per_token(shape: ModelShape, kv_type: str = "f16") -> int:
    """Bytes of KV cache that one token takes: 112 KiB for Qwen3-0.6B and 1.7B in f16."""
    values = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
    return round(values * KV_BYTES[kv_type])


def memory_need(
    shape: ModelShape,
    weights: Weights,
    *,
    machine: str,
    context_length: int,
    kv_type: str = "f16",
    mmap: bool = True,
    step_tokens: int = 512,
    step_rows: int = STEP_ROWS,
) -> MemoryNeed:
    """Bytes that a model of this shape needs at a context length, with a mapped file or one that is read.

    For a server `context_length` is that of all its sequences together.
    """
    widest = 2 * shape.intermediate_size + 2 * shape.hidden_size + 2 * shape.num_attention_heads * shape.head_dim
    compute = 4 * step_tokens * widest + 4 * 2 * step_rows * shape.vocab_size
    if kv_type == "f32":  # no flash attention: the scores of a step stand in memory
        compute += 4 * step_tokens * context_length * shape.num_attention_heads
    return MemoryNeed(
        weights_bytes=weights.total_bytes,
        repacked_bytes=weights.repacked_bytes(machine) if mmap else 0,
        kv_bytes=context_length * kv_bytes_per_token(shape, kv_type),
        compute_bytes=compute,
    )


def with_aside(need: MemoryNeed, shape: ModelShape, context_length: int, kv_type: str) -> MemoryNeed:
    """And a second context, of one sequence, that computes prompts in pieces of ASIDE_TOKENS."""
    second = memory_need(
        shape, Weights(0, {}), machine="",
        context_length=context_length, kv_type=kv_type, step_tokens=ASIDE_TOKENS, step_rows=2,
    )  # fmt: skip
    handed_over = ASIDE_TOKENS * kv_bytes_per_token(shape, kv_type)
    return replace(
        need,
        kv_bytes=need.kv_bytes + second.kv_bytes,
        compute_bytes=need.compute_bytes + second.compute_bytes + 2 * handed_over,
    )


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine that can run a model, and why it stands at its place among those that can."""

    engine: str
    reason: str


def choose_engines(
    formats: Collection[str],
    installed: Collection[str],
    *,
    wanted: str = AUTO,
    kv_type: str | None = None,
    gpu_layers: int = 0,
    speeds: Mapping[str, float] | None = None,
) -> tuple[EngineChoice, ...]:
    """Engines for a model that is there in `formats`, the best first; one alone where it was asked for.

    `speeds` are tokens/s of decoding, measured on this machine with this model. EngineMissingError has the pip line.
    """
    readers = [engine for engine in ENGINES.values() if engine.format in formats]
    if not readers:
        raise ArtifactError(f"this model is there as {', '.join(formats)}, and no engine reads that")
    if wanted != AUTO:
        return (EngineChoice(_asked(wanted, formats, installed).name, f"{wanted}: as asked"),)
    able = [e for e in readers if kv_type in (None, *e.kv_types) and (e.gpu or not gpu_layers)]
    if not able:
        asked = f"kv_type={kv_type!r}" if kv_type else f"gpu_layers={gpu_layers}"
        raise RequestError(f"{asked} is nothing for {', '.join(e.name for e in readers)}, which would run this model")
    usable = [engine for engine in able if engine.name in installed]
    if not usable:
        lines = ", or ".join(f"{engine.pip_line} (it reads {engine.format})" for engine in able)
        raise EngineMissingError(f"no engine that runs this model is installed: {lines}")
    measured = {engine.name: speeds[engine.name] for engine in usable if speeds and engine.name in speeds}
    if len(measured) == len(usable) > 1:
        usable.sort(key=lambda engine: -measured[engine.name])
        said = ", ".join(f"{engine.name} {measured[engine.name]:.1f}" for engine in usable)
        return tuple(EngineChoice(engine.name, f"{engine.name}: measured here, tokens/s: {said}") for engine in usable)
    why = _why(readers, able, usable)
    return tuple(EngineChoice(engine.name, f"{engine.name}: {why}") for engine in usable)


def _asked(wanted: str, formats: Collection[str], installed: Collection[str]) -> Engine:
    """The engine of this name, if it can run the model."""
    engine = engine_named(wanted)
    if engine.format not in formats:
        raise RequestError(
            f"{wanted} reads {engine.format}, and this model is there as {', '.join(formats)}: "
            "leave the choice to auto, or convert it anew"
        )
    if wanted not in installed:
        raise EngineMissingError(f"{wanted} is not installed: {engine.pip_line}")
    return engine


def _why(readers: list[Engine], able: list[Engine], usable: list[Engine]) -> str:
    """What decided, where no measurement did."""
    if len(readers) == 1:
        return f"the one that reads {readers[0].format}, all that this model is there as"
    if len(able) == 1:
        return "the one that can do what was asked of cache and GPU"
    if len(usable) == 1:
        others = (f"{engine.name} ({engine.pip_line})" for engine in able if engine not in usable)
        return f"the one that is installed; this model could also run on {', '.join(others)}"
    return "the usual one; edgeqwen bench measures all that can run this model, and then the fastest is taken"


def plan(
    shape: ModelShape,
    weights: Weights,
    device: Device,
    *,
    engine: EngineChoice | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    gpu_layers: int = 0,
    parallel: int | None = None,
) -> Plan:
    """Choose what the caller left open; MemoryShortError, before anything is loaded, if it cannot fit.

    `parallel` answers run side by side in a server, each with the whole context if memory allows; None: one.
    """
    chosen_engine = engine or EngineChoice("llamacpp", "llamacpp: as asked")
    kind = engine_named(chosen_engine.engine)
    kv = kind.kv_types[0] if kv_type is None else kv_type
    if kv not in kind.kv_types:
        raise RequestError(f"kv_type {kv!r} is not one of {kind.name}'s: {', '.join(kind.kv_types)}")
    whole_number("threads", threads, 1, 1024, f"; this machine has {device.physical_cores} fast cores")
    whole_number("gpu_layers", gpu_layers, -1, 1 << 16)
    if gpu_layers and not kind.gpu:
        raise RequestError(f"gpu_layers={gpu_layers}: {kind.name} computes on the processor alone")
    longest = shape.max_position_embeddings
    wanted = min(CONTEXT_DEFAULT, longest) if context_length is None else context_length
    whole_number("context_length", wanted, 16, longest, ", what this model was made for")
    count = threads or device.physical_cores
    reasons = [chosen_engine.reason, f"{count} threads: " + ("as asked" if threads else "the fast physical cores")]
    whole_number("parallel", parallel, 1, STEP_ROWS)
    room = None if device.memory_available_bytes is None else int(RESERVE * device.memory_available_bytes)

    def need(pool: int, *, mmap: bool, aside: bool = False) -> MemoryNeed:
        one = memory_need(shape, weights, machine=device.machine, context_length=pool, kv_type=kv, mmap=mmap)
        return with_aside(one, shape, wanted, kv) if aside else one

    pool = wanted * (parallel or 1)
    aside = kind.aside and parallel is not None and count > 1 and not gpu_layers
    if aside and room is not None and need(pool, mmap=True, aside=True).total_bytes > room:
        aside = False
        reasons.append("prompts are computed within the answers' steps: memory for a place of their own is short")
    mmap = room is None or need(pool, mmap=True, aside=aside).total_bytes <= room
    if not mmap:
        reasons.append("the file is read, not mapped: its weights would be in memory twice, and that is short")
    if room is not None and pool > wanted and need(pool, mmap=mmap).total_bytes > room:
        left = room - need(0, mmap=mmap).total_bytes
        pool = max(wanted, min(pool, left // kv_bytes_per_token(shape, kv) // 256 * 256))
        reasons.append(f"{parallel} answers share a KV cache of {pool} tokens: all that memory allows")
    chosen = need(pool, mmap=mmap, aside=aside)
    if room is not None and chosen.total_bytes > room:
        raise MemoryShortError(_too_large(chosen, room, shape, kv, wanted))
    return Plan(
        kind.name, wanted, count, kv, mmap=mmap, gpu_layers=gpu_layers, need=chosen, reasons=tuple(reasons),
        sequences=kind.sequences(parallel), pool_tokens=pool, aside_threads=count // 2 if aside else 0,
    )  # fmt: skip


def _too_large(need: MemoryNeed, room: int, shape: ModelShape, kv_type: str, wanted: int) -> str:
    """Say what does not fit and which context would."""
    left = room - (need.total_bytes - need.kv_bytes)
    fits = left // kv_bytes_per_token(shape, kv_type) // 256 * 256
    hint = f"context_length={fits} would fit" if fits >= 256 else "a smaller model or a smaller type is needed"
    if kv_type == "f16" and fits >= 256:
        hint += ", and kv_type='q8_0' takes about half of the cache"
    mib = 1 << 20
    return (
        f"this needs {need.total_bytes // mib} MiB (weights {need.weights_bytes // mib}, KV cache of {wanted} tokens "
        f"{need.kv_bytes // mib}, the rest {(need.compute_bytes + need.process_bytes) // mib}) "
        f"and {room // mib} MiB may be used: {hint}"
    )


def whole_number(name: str, value: object, low: int, high: int, hint: str = "") -> None:
    """RequestError unless `value` is None or a whole number from `low` to `high`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise RequestError(f"{name}={value!r} must be a whole number, {low}..{high}{hint}")
