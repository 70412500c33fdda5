"""What a model needs in memory on each engine: arithmetic over sizes and shapes; it asks no machine and no engine.

The figures that cannot be derived are fitted to benchmarks/results/memory.json, which benchmarks/memory.py measures.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from edgeqwen.types import ModelShape

KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # of one value, block scales included
MIB = 1 << 20
STEP_TOKENS = 512  # of a prompt that are computed at once
SCORE_STEP_TOKENS = (64, 128)  # least and most where the scores of a step stand in memory; more are computed no faster
SCORE_BYTES = 64 * MIB  # that they take, as far as the least allows
ASIDE_TOKENS = 256  # a piece of a prompt: larger ones are computed no faster, and smaller ones stopped sooner
SWAP_TOKENS = 128  # a piece of a kept prefix that is moved out of the cache, or back, at once
STEP_ROWS = 32  # of logits that a step gives at most, one for every answer that runs in it
ANSWER_ROWS = 1  # of logits that one answer takes
# Python with numpy, the tokenizer and ours, before a model is looked at; then for each token of the vocabulary the
# tokenizer, and llama.cpp's own.
PYTHON_BYTES, PYTHON_MAPPED_BYTES = 22 * MIB, 27 * MIB
TOKEN_BYTES = 310


@dataclass(frozen=True, slots=True)
class Overhead:
    """What an engine takes beside weights, cache and step: its library, mapped, and its own bookkeeping."""

    library_bytes: int
    fixed_bytes: int
    token_bytes: int = 0  # for each token of the vocabulary
    ffn_values: float = 0.0  # of a step, float32, that are kept for each of a layer's hidden and intermediate values
    q_values: float = 0.0  # and for each value of its queries


OVERHEADS = {
    "llamacpp": Overhead(6 * MIB, 12 * MIB, token_bytes=450, ffn_values=3.0),
    "ort": Overhead(18 * MIB, 13 * MIB, token_bytes=210, ffn_values=3.5, q_values=11.0),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of a model file's tensors: all of them, and by GGUF type those of the matrices that are multiplied with."""

    total_bytes: int
    matrix_bytes: Mapping[str, int]
    lookup_bytes: int = 0  # of which a token reads one row: an embedding that is no head as well, rotary tables
    blocks: int = 0  # of ONNX's grids: the engine adds a sum to each
    kept_bytes: int = 0  # of ONNX's embedding and scales, which stay mapped beside what is made of them

    @property
    def read_bytes(self) -> int:
        """Bytes that every generated token reads."""
        return self.total_bytes - self.lookup_bytes

    def repacked_bytes(self, machine: str, features: Collection[str] | None = None) -> int:
        """Bytes of the matrices that llama.cpp lays out anew on a processor with these instruction sets."""
        kinds = repacked_types(machine, features)
        return sum(size for kind, size in self.matrix_bytes.items() if kind in kinds)


def repacked_types(machine: str, features: Collection[str] | None) -> frozenset[str]:
    """Types that llama.cpp lays out anew (ggml/src/ggml-cpu/repack.cpp); of an unknown processor the most there are.

    Not counted: the AMX tiles of some servers' processors.
    """
    kind = machine.lower()
    if kind in {"x86_64", "amd64"} and (features is None or "avx2" in features):
        return frozenset({"Q4_0", "Q4_K", "IQ4_NL"})
    if kind in {"aarch64", "arm64"} and (features is None or "dotprod" in features):
        return frozenset({"Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_NL"})
    return frozenset()


def keeps_scores(machine: str) -> bool:
    """Whether a step's attention scores stand in memory under ONNX Runtime here (backends/ort.py says why)."""
    return machine.lower() in {"x86_64", "amd64"}


def onnx_step_tokens(shape: ModelShape, slots: int, machine: str) -> int:
    """Tokens of a prompt that ONNX Runtime computes at once where a sequence has so many slots."""
    if not keeps_scores(machine):
        return STEP_TOKENS
    least, most = SCORE_STEP_TOKENS
    return min(most, max(least, SCORE_BYTES // (4 * shape.num_attention_heads * slots)))


def _onnx_score_bytes(shape: ModelShape, slots: int, machine: str) -> int:
    """Bytes of the scores of a step under ONNX Runtime, whose arena has as much over; 0 where it keeps none."""
    if not keeps_scores(machine):
        return 0
    return 2 * 4 * min(onnx_step_tokens(shape, slots, machine), slots) * slots * shape.num_attention_heads


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
    """Sum up a GGUF file's tensors. The head is multiplied with: an output.weight, or the embedding that is tied."""
    matrices, sizes, kinds = dict[str, int](), dict[str, int](), dict[str, str]()
    for tensor in tensors:
        sizes[tensor.name], kinds[tensor.name] = tensor.nbytes, tensor.type
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            matrices[tensor.type] = matrices.get(tensor.type, 0) + tensor.nbytes
    tied = "output.weight" not in sizes
    head = "token_embd.weight" if tied else "output.weight"
    if head in sizes:
        matrices[kinds[head]] = matrices.get(kinds[head], 0) + sizes[head]
    return Weights(sum(sizes.values()), matrices, 0 if tied else sizes.get("token_embd.weight", 0))


class Placed(Protocol):
    """A tensor of an ONNX graph's data file."""

    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


def onnx_weights(tensors: Iterable[Placed]) -> Weights:
    """Sum up the tensors of one of our graphs; of another exporter's all is taken as matrices."""
    sizes = {tensor.name: tensor.nbytes for tensor in tensors}
    rotary = sum(sizes.get(name, 0) for name in ("cos", "sin"))
    scales = sum(size for name, size in sizes.items() if name.endswith(".scales"))  # float32, one a block
    kept = sum(size for name, size in sizes.items() if name.startswith("table.") or name.endswith(".scales"))
    return Weights(sum(sizes.values()), {}, lookup_bytes=rotary, blocks=scales // 4, kept_bytes=kept)


@dataclass(frozen=True, slots=True)
class Layout:
    """How weights stand in memory, and what to say of it where it is not the first choice."""

    mmap: bool = True
    repack: bool = True
    reason: str = ""


TWICE = Layout()
ONCE = Layout(
    mmap=False, reason="the file is read, not mapped: its weights would be in memory twice, and that is short"
)
# Nothing but cache and step is anonymous then, so the last tenth of memory may hold weights: the system can drop them.
AS_STORED = Layout(
    repack=False, reason="the weights stay as they are in the file, mapped: memory for a faster layout is short"
)


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes at the peak, by what they are for.

    Pages of a mapped file are dropped by the system where memory is short and read again; the rest is anonymous: it
    stays, or the kernel kills.
    """

    weights_bytes: int
    repacked_bytes: int  # laid out anew for speed, beside the file's own
    kv_bytes: int
    compute_bytes: int
    logits_bytes: int = 0
    process_bytes: int = 0  # Python, the tokenizer, the engine's own
    library_bytes: int = 0  # mapped: Python's and the engine's
    weights_mapped: bool = True

    @property
    def mapped_bytes(self) -> int:
        return self.library_bytes + (self.weights_bytes if self.weights_mapped else 0)

    @property
    def anonymous_bytes(self) -> int:
        return self.total_bytes - self.mapped_bytes

    @property
    def total_bytes(self) -> int:
        held = self.weights_bytes + self.repacked_bytes + self.kv_bytes + self.compute_bytes
        return held + self.logits_bytes + self.process_bytes + self.library_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by what they are for, in words."""
        return {
            "weights": self.weights_bytes,
            "repacked": self.repacked_bytes,
            "KV cache": self.kv_bytes,
            "compute": self.compute_bytes,
            "logits": self.logits_bytes,
            "process": self.process_bytes + self.library_bytes,
        }


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
    features: Collection[str] | None = None,
    engine: str = "llamacpp",
    kv_type: str | None = None,
    layout: Layout = TWICE,
    slots: int | None = None,
    rows: int = ANSWER_ROWS,
) -> MemoryNeed:
    """Bytes that a model of this shape needs at a context length, in one of the layouts.

    For a server `context_length` is that of all its sequences together, `slots` that of each of them, and `rows` how
    many answers it has in a step.
    """
    kv = kv_type or ("f32" if engine == "ort" else "f16")
    overhead = OVERHEADS[engine]
    if engine == "ort":
        each = slots or context_length
        compute = _activations(shape, min(onnx_step_tokens(shape, each, machine), context_length), overhead)
        compute += _onnx_score_bytes(shape, each, machine)
    else:
        compute = _llama_step_bytes(shape, min(STEP_TOKENS, context_length), context_length, kv)
    need = MemoryNeed(
        weights_bytes=weights.total_bytes,
        repacked_bytes=0,
        kv_bytes=context_length * kv_bytes_per_token(shape, kv),
        compute_bytes=compute,
        logits_bytes=4 * 2 * rows * shape.vocab_size,
        process_bytes=PYTHON_BYTES + overhead.fixed_bytes + (TOKEN_BYTES + overhead.token_bytes) * shape.vocab_size,
        library_bytes=PYTHON_MAPPED_BYTES + overhead.library_bytes,
        weights_mapped=layout.mmap,
    )
    if engine == "ort":
        return _of_onnx(need, weights)
    if not layout.mmap or not layout.repack:
        return need
    return replace(need, repacked_bytes=weights.repacked_bytes(machine, features))


def _llama_step_bytes(shape: ModelShape, tokens: int, context_length: int, kv_type: str) -> int:
    """Bytes of a step of llama.cpp; in f32 there is no flash attention, and the scores stand in memory."""
    scores = 4 * tokens * context_length * shape.num_attention_heads if kv_type == "f32" else 0
    return _activations(shape, tokens, OVERHEADS["llamacpp"]) + scores


def _activations(shape: ModelShape, tokens: int, overhead: Overhead) -> int:
    """Bytes of a layer's values for so many tokens: of llama.cpp gate, up, their product; residual, norm and sum."""
    ffn = overhead.ffn_values * (shape.intermediate_size + shape.hidden_size)
    return round(4 * tokens * (ffn + overhead.q_values * shape.num_attention_heads * shape.head_dim))


def _of_onnx(need: MemoryNeed, weights: Weights) -> MemoryNeed:
    """ONNX Runtime packs every matrix into memory of its own and lets go of the file, but for the table and scales."""
    return replace(
        need,
        weights_bytes=weights.kept_bytes,
        repacked_bytes=weights.total_bytes - weights.lookup_bytes + 4 * weights.blocks,
        weights_mapped=True,
    )


def with_aside(need: MemoryNeed, shape: ModelShape, context_length: int, kv_type: str) -> MemoryNeed:
    """And a second context, of one sequence, that computes prompts in pieces of ASIDE_TOKENS."""
    per_token = kv_bytes_per_token(shape, kv_type)
    step = _llama_step_bytes(shape, min(ASIDE_TOKENS, context_length), context_length, kv_type)
    return replace(
        need,
        kv_bytes=need.kv_bytes + context_length * per_token,
        compute_bytes=need.compute_bytes + step + 2 * ASIDE_TOKENS * per_token,
        logits_bytes=need.logits_bytes + 4 * 2 * 2 * shape.vocab_size,
    )


def with_swap(need: MemoryNeed, shape: ModelShape, tokens: int, kv_type: str) -> MemoryNeed:
    """And so many tokens kept outside of the cache, and a piece of them on its way."""
    kept = (tokens + SWAP_TOKENS) * kv_bytes_per_token(shape, kv_type)
    return replace(need, kv_bytes=need.kv_bytes + kept)
