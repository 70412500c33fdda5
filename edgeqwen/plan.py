"""How a model is loaded on a device: engine, context, cache type, layout of the weights, threads; and why so."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from edgeqwen.device import Device, counted
from edgeqwen.engines import AUTO, ENGINES, Engine, engine_named
from edgeqwen.errors import ArtifactError, EngineMissingError, MemoryShortError, RequestError
from edgeqwen.memory_need import (
    AS_STORED,
    KV_BYTES,
    MIB,
    ONCE,
    STEP_ROWS,
    SWAP_TOKENS,
    TWICE,
    Layout,
    MemoryNeed,
    Weights,
    kv_bytes_per_token,
    memory_need,
    with_aside,
    with_swap,
)
from edgeqwen.types import ModelShape

CONTEXT_DEFAULT = 4096  # tokens: a chat of some pages; 448 MiB of KV cache for Qwen3-0.6B and 1.7B
GPU_FIXED_BYTES = 700 * MIB  # an assumption: CUDA's own, and a step with its logits
CONTEXT_STEP = 256  # tokens, in which the longest context that fits is told
RESERVE = 0.9  # of the available memory; the rest is for everybody else


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is loaded on a device, what that needs, and why it was chosen.

    Without `mmap` the file is read: weights that the engine lays out anew are then in memory once and not twice.
    Without `repack` none is laid out anew: prompts are slower, and all weights stay pages of the file.
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
    swap_tokens: int = 0  # of kept prefixes that may stand outside of the pool, where they slow no answer down
    repack: bool = True
    fits: bool = True  # False where it was forced


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
        caches = "; ".join(f"{e.name} has {', '.join(e.kv_types)}" for e in readers) if kv_type else ""
        raise RequestError(
            f"{asked} is nothing for {', '.join(e.name for e in readers)}, which would run this model"
            + (f": {caches}" if caches else "")
        )
    usable = [engine for engine in able if engine.name in installed]
    if not usable:
        lines = ", or ".join(f"{engine.pip_line} (it reads {engine.format})" for engine in able)
        others = (ENGINES[name] for name in installed if ENGINES[name].format not in formats)
        instead = "".join(f", or edgeqwen convert MODEL --to {e.format} for {e.name}, which is there" for e in others)
        raise EngineMissingError(f"no engine that runs this model is installed: {lines}{instead}")
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
            f"leave the choice to auto, or convert it anew: edgeqwen convert MODEL --to {engine.format}"
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


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One way to load, and what it needs."""

    layout: Layout
    kv_type: str
    pool_tokens: int
    need: MemoryNeed
    aside: bool = False

    def fits(self, available: int | None) -> bool:
        if available is None:
            return True
        if self.layout is AS_STORED:
            return self.need.anonymous_bytes <= RESERVE * available and self.need.total_bytes <= available
        return self.need.total_bytes <= RESERVE * available


@dataclass(frozen=True, slots=True)
class _Wish:
    """What is to be loaded, and where."""

    shape: ModelShape
    weights: Weights
    device: Device
    engine: Engine
    context_length: int
    parallel: int | None
    aside: bool  # whether prompts may have a place of their own

    def attempts(self, kv_types: Collection[str]) -> Iterator[_Attempt]:
        """Every way to load it, the best first; the last one needs least."""
        full = self.context_length * (self.parallel or 1)
        fast = (TWICE, ONCE) if self.repacked else (TWICE,)
        for kv_type in kv_types:
            if self.aside:
                yield self._attempt(TWICE, kv_type, full, aside=True)
            for layout in fast:
                yield self._attempt(layout, kv_type, full)
            if full > self.context_length:
                yield self._attempt(fast[-1], kv_type, self._pool(fast[-1], kv_type, full))
        last = AS_STORED if self.engine.name == "llamacpp" else TWICE
        for kv_type in kv_types:
            yield self._attempt(last, kv_type, self.context_length)

    @property
    def repacked(self) -> bool:
        """Whether the engine would lay weights out anew, beside those of the file."""
        device = self.device
        return self.engine.name == "llamacpp" and self.weights.repacked_bytes(device.machine, device.features) > 0

    def _attempt(self, layout: Layout, kv_type: str, pool: int, *, aside: bool = False) -> _Attempt:
        need = memory_need(
            self.shape, self.weights,
            machine=self.device.machine, features=self.device.features, context_length=pool,
            engine=self.engine.name, kv_type=kv_type, layout=layout, slots=self.context_length,
            rows=self.parallel or 1,
        )  # fmt: skip
        if aside:
            need = with_aside(need, self.shape, self.context_length, kv_type)
        return _Attempt(layout, kv_type, pool, need, aside)

    def _pool(self, layout: Layout, kv_type: str, full: int) -> int:
        """Tokens of cache that memory holds, from one answer's context to that of all."""
        one = self._attempt(layout, kv_type, self.context_length).need
        left = int(RESERVE * (self.device.memory_available_bytes or 0)) - one.total_bytes + one.kv_bytes
        return max(self.context_length, min(full, left // kv_bytes_per_token(self.shape, kv_type) // 256 * 256))

    def swap_tokens(self, found: _Attempt) -> int:
        """Tokens that may be kept outside of a server's pool: as many as in it, in half of what memory is left."""
        if self.parallel is None or not self.engine.pooled:
            return 0
        if self.device.memory_available_bytes is None:
            return found.pool_tokens
        left = int(RESERVE * self.device.memory_available_bytes) - found.need.total_bytes
        tokens = left // 2 // kv_bytes_per_token(self.shape, found.kv_type) // SWAP_TOKENS * SWAP_TOKENS
        return max(0, min(found.pool_tokens, tokens))


def plan(
    shape: ModelShape,
    weights: Weights,
    device: Device,
    *,
    engine: EngineChoice | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    gpu_layers: int | None = 0,
    parallel: int | None = None,
    force: bool = False,
) -> Plan:
    """Choose what the caller left open; MemoryShortError, before anything is loaded, if it cannot fit.

    `gpu_layers` None puts as many on a GPU as its free memory holds. `parallel` answers run side by side in a server,
    each with the whole context if memory allows; None: one. With `force` what does not fit is planned all the same, in
    the way that needs least.
    """
    chosen = engine or EngineChoice("llamacpp", "llamacpp: as asked")
    kind = engine_named(chosen.engine)
    if kv_type is not None and kv_type not in kind.kv_types:
        raise RequestError(f"kv_type {kv_type!r} is not one of {kind.name}'s: {', '.join(kind.kv_types)}")
    whole_number("threads", threads, 1, 1024, f"; this machine has {device.physical_cores} fast cores")
    whole_number("gpu_layers", gpu_layers, -1, 1 << 16)
    whole_number("parallel", parallel, 1, STEP_ROWS)
    if gpu_layers and not kind.gpu:
        raise RequestError(f"gpu_layers={gpu_layers}: {kind.name} computes on the processor alone")
    longest = shape.max_position_embeddings
    wanted = min(CONTEXT_DEFAULT, longest) if context_length is None else context_length
    whole_number("context_length", wanted, 16, longest, ", what this model was made for")
    count = threads or device.physical_cores
    layers = layers_on_gpu(shape, weights, device, kind, wanted * (parallel or 1)) if gpu_layers is None else gpu_layers
    aside = kind.aside and parallel is not None and count > 1 and not layers
    wish = _Wish(shape, weights, device, kind, wanted, parallel, aside)
    kv_types = _kv_types(kind, shape, kv_type)
    attempts = list(wish.attempts(kv_types))
    available = device.memory_available_bytes
    best = next((attempt for attempt in attempts if attempt.fits(available)), None)
    if best is None and not force:
        raise MemoryShortError(_too_large(attempts[-1], available or 0, wish, kv_type))
    found = best or attempts[-1]
    reasons = [chosen.reason, f"{counted(count, 'thread')}: {'as asked' if threads else 'the fast physical cores'}"]
    reasons += _concessions(found, wish, kv_types[0])
    if gpu_layers is None and layers:
        which = "all" if layers < 0 else layers
        reasons.append(f"{which} layers on the GPU, as its {(device.gpu_free_bytes or 0) // MIB} free MiB hold")
    if best is None:
        reasons.append(f"forced: {_sizes(found.need, wanted)} and {(available or 0) // MIB} MiB are available")
    swap = 0 if layers else wish.swap_tokens(found)
    need = with_swap(found.need, shape, swap, found.kv_type) if swap else found.need
    return Plan(
        kind.name, wanted, count, found.kv_type, mmap=found.layout.mmap, gpu_layers=layers, need=need,
        reasons=tuple(reasons), sequences=kind.sequences(parallel), pool_tokens=found.pool_tokens,
        aside_threads=count // 2 if found.aside else 0, swap_tokens=swap, repack=found.layout.repack,
        fits=best is not None,
    )  # fmt: skip


def layers_on_gpu(shape: ModelShape, weights: Weights, device: Device, engine: Engine, tokens: int) -> int:
    """How many layers, each with its part of an f16 cache of so many tokens, free memory of a GPU holds; -1: all.

    By arithmetic alone: no GPU was at hand. The head and the step take what is counted as GPU_FIXED_BYTES.
    """
    if device.gpu_free_bytes is None or not engine.gpu:
        return 0
    each = (weights.read_bytes + tokens * kv_bytes_per_token(shape)) // shape.num_hidden_layers
    count = (int(RESERVE * device.gpu_free_bytes) - GPU_FIXED_BYTES) // each
    return -1 if count >= shape.num_hidden_layers else max(0, count)


def _kv_types(kind: Engine, shape: ModelShape, asked: str | None) -> tuple[str, ...]:
    """What was asked for, or an engine's default, and smaller ones that a head's values fit into."""
    if asked is not None:
        return (asked,)
    default = KV_BYTES[kind.kv_types[0]]
    smaller = [name for name in kind.kv_types[1:] if KV_BYTES[name] < default and shape.head_dim % 32 == 0]
    return (kind.kv_types[0], *smaller)


def _concessions(found: _Attempt, wish: _Wish, kv_type: str) -> list[str]:
    """What was given up for memory."""
    said = []
    if wish.aside and not found.aside:
        said.append("prompts are computed within the answers' steps: memory for a place of their own is short")
    if found.layout is AS_STORED and not wish.repacked:
        said.append("the weights, mapped, reach into the last tenth of memory: the system can drop them")
    elif found.layout.reason:
        said.append(found.layout.reason)
    if found.kv_type != kv_type:
        said.append(f"the cache is of {found.kv_type}: in {kv_type} it would not fit")
    if found.pool_tokens < wish.context_length * (wish.parallel or 1):
        said.append(f"{wish.parallel} answers share a KV cache of {found.pool_tokens} tokens: all that memory allows")
    return said


def _sizes(need: MemoryNeed, context_length: int) -> str:
    weights = need.weights_bytes + need.repacked_bytes
    return (
        f"this needs {-(-need.total_bytes // MIB)} MiB (weights {weights // MIB}, KV cache of {context_length} tokens "
        f"{need.kv_bytes // MIB}, the rest {(need.total_bytes - weights - need.kv_bytes) // MIB})"
    )


def _too_large(least: _Attempt, available: int, wish: _Wish, kv_type: str | None) -> str:
    """Say what does not fit and which context would, with the cache that was asked for, if any was."""
    room = available if least.layout is AS_STORED else int(RESERVE * available)
    fits = longest_context(wish.shape, wish.weights, wish.device, wish.engine, kv_type=kv_type, parallel=wish.parallel)
    hint = f"context_length={fits} would fit" if fits else "a smaller model or a smaller type is needed"
    if kv_type == "f16" and fits:
        hint += ", and kv_type='q8_0' takes about half of the cache"
    sizes = _sizes(least.need, wish.context_length)
    return f"{sizes} and {room // MIB} MiB may be used: {hint}; --force loads it all the same"


def longest_context(
    shape: ModelShape,
    weights: Weights,
    device: Device,
    engine: Engine,
    *,
    kv_type: str | None = None,
    parallel: int | None = None,
) -> int:
    """Tokens of context for which there is memory, in steps of 256 to all that the model was made for; 0: none."""
    most = shape.max_position_embeddings
    contexts = [*range(CONTEXT_STEP, most, CONTEXT_STEP), most]
    kv_types = _kv_types(engine, shape, kv_type)

    def too_long(tokens: int) -> bool:
        wish = _Wish(shape, weights, device, engine, tokens, parallel, aside=False)  # which takes more than without
        return not any(attempt.fits(device.memory_available_bytes) for attempt in wish.attempts(kv_types))

    count = bisect_left(contexts, True, key=too_long)  # noqa: FBT003 - the first that is too long
    return contexts[count - 1] if count else 0


def whole_number(name: str, value: object, low: int, high: int, hint: str = "") -> None:
    """RequestError unless `value` is None or a whole number from `low` to `high`."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise RequestError(f"{name}={value!r} must be a whole number, {low}..{high}{hint}")
