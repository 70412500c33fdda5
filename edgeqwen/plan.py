"""What a model needs in memory and how it is loaded here; arithmetic over a shape and a device, no engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from edgeqwen.device import Device
from edgeqwen.errors import MemoryShortError, RequestError
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
RESERVE = 0.9  # of the available memory; the rest is for everybody else


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model file's tensors: all of them, and by GGUF type those of the matrices in the blocks."""

    total_bytes: int
    matrix_bytes: Mapping[str, int]

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
    total, matrices = 0, dict[str, int]()
    for tensor in tensors:
        total += tensor.nbytes
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            matrices[tensor.type] = matrices.get(tensor.type, 0) + tensor.nbytes
    return Weights(total, matrices)


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
    """

    engine: str  # of edgeqwen.backends.BACKENDS
    context_length: int
    threads: int
    kv_type: str
    mmap: bool
    gpu_layers: int
    need: MemoryNeed
    reasons: tuple[str, ...]


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
    step_rows: int = 32,
) -> MemoryNeed:
    """Bytes that a model of this shape needs at a context length, with a mapped file or one that is read."""
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


def plan(
    shape: ModelShape,
    weights: Weights,
    device: Device,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    kv_type: str = "f16",
    gpu_layers: int = 0,
) -> Plan:
    """Choose what the caller left open; MemoryShortError, before anything is loaded, if it cannot fit."""
    if kv_type not in KV_BYTES:
        raise RequestError(f"kv_type {kv_type!r} is not one of {', '.join(KV_BYTES)}")
    whole_number("threads", threads, 1, 1024, f"; this machine has {device.physical_cores} fast cores")
    whole_number("gpu_layers", gpu_layers, -1, 1 << 16)
    longest = shape.max_position_embeddings
    wanted = min(CONTEXT_DEFAULT, longest) if context_length is None else context_length
    whole_number("context_length", wanted, 16, longest, ", what this model was made for")
    reasons = [f"{threads or device.physical_cores} threads: " + ("as asked" if threads else "the fast physical cores")]
    room = None if device.memory_available_bytes is None else int(RESERVE * device.memory_available_bytes)

    def need(*, mmap: bool) -> MemoryNeed:
        return memory_need(shape, weights, machine=device.machine, context_length=wanted, kv_type=kv_type, mmap=mmap)

    mmap = room is None or need(mmap=True).total_bytes <= room
    chosen = need(mmap=mmap)
    if not mmap:
        reasons.append("the file is read, not mapped: its weights would be in memory twice, and that is short")
    if room is not None and chosen.total_bytes > room:
        raise MemoryShortError(_too_large(chosen, room, shape, kv_type, wanted))
    return Plan(
        "llamacpp", wanted, threads or device.physical_cores, kv_type, mmap=mmap, gpu_layers=gpu_layers,
        need=chosen, reasons=tuple(reasons),
    )  # fmt: skip


def _too_large(need: MemoryNeed, room: int, shape: ModelShape, kv_type: str, wanted: int) -> str:
    """Say what does not fit and which context would."""
    left = room - (need.total_bytes - need.kv_bytes)
    fits = left // kv_bytes_per_token(shape, kv_type) // 256 * 256
    hint = f"context_length={fits} would fit" if fits >= 256 else "a smaller model or a smaller type is needed"
    if kv_type != "q8_0" and fits >= 256:
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
