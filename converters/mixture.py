"""Decides which type each tensor of a file gets, exactly as llama.cpp's llama-quantize; it reads and writes nothing.

Source: src/llama-quant.cpp of llama.cpp (llama_tensor_get_type_impl, tensor_type_fallback) for dense models without an
importance matrix; what it says of experts, Falcon and other families is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from edgeqwen.errors import RequestError
from edgeqwen.gguf import GGML_TYPES

# (layer, layers) -> whether that layer's tensor gets the better type
Rule = Callable[[int, int], bool]


def _more_bits(layer: int, layers: int) -> bool:
    """Pick the first and the last eighth and each third layer between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _first_four(layer: int, layers: int) -> bool:
    return layer < min(4, layers)


def _first_eighth(layer: int, layers: int) -> bool:
    return layer < layers // 8


@dataclass(frozen=True, slots=True)
class FileType:
    """A mixture by its llama.cpp name: `id` of enum llama_ftype, the default type, and who gets `better`."""

    id: int
    default: str
    better: str = ""
    attn_v: Rule | None = None
    ffn_down: Rule | None = None

    @property
    def is_quantized(self) -> bool:
        return GGML_TYPES[self.default].block_size > 1


FILE_TYPES: Final[Mapping[str, FileType]] = MappingProxyType(
    {
        "F32": FileType(0, "F32"),
        "F16": FileType(1, "F16"),
        "BF16": FileType(32, "BF16"),
        "Q8_0": FileType(7, "Q8_0"),
        "Q6_K": FileType(18, "Q6_K"),
        "Q5_K_M": FileType(17, "Q5_K", "Q6_K", attn_v=_more_bits, ffn_down=_more_bits),
        "Q4_K_M": FileType(15, "Q4_K", "Q6_K", attn_v=_more_bits, ffn_down=_more_bits),
        "Q4_K_S": FileType(14, "Q4_K", "Q5_K", attn_v=_first_four, ffn_down=_first_eighth),
        "Q4_0": FileType(2, "Q4_0"),
    }
)
_ALIASES: Final = {"INT8": "Q8_0", "INT4": "Q4_K_M"}

# Rows that are no multiple of 256 (Qwen2.5-0.5B: 896) take a type of 32-blocks that is at least as good.
_FALLBACK: Final = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def find_file_type(name: str) -> str:
    """Give the canonical name of a file type; int8 and int4 are aliases. RequestError for an unknown one."""
    upper = name.upper()
    found = _ALIASES.get(upper, upper)
    if found not in FILE_TYPES:
        raise RequestError(f"the type {name!r} is not known; there are: {', '.join((*FILE_TYPES, *_ALIASES)).lower()}")
    return found


def sort_key(name: str) -> tuple[int, bytes]:
    """Order tensors as llama-quantize writes them: those outside of the layers, then layer by layer, by name."""
    head, _, rest = name.partition(".")
    layer = int(rest.partition(".")[0]) if head == "blk" else -1
    return layer, name.encode()


def choose_types(shapes: Mapping[str, tuple[int, ...]], file_type: str) -> dict[str, str]:
    """Give the type of each tensor, by GGUF name and in the order of the file; shapes are [n_out, n_in] or [n]."""
    layers = sum(name.endswith(".attn_v.weight") for name in shapes)
    tied = "output.weight" not in shapes
    plan = {}
    for name in sorted(shapes, key=sort_key):
        shape = shapes[name]
        plan[name] = "F32" if len(shape) < 2 else _choose(name, shape[-1], FILE_TYPES[file_type], layers, tied=tied)
    return plan


def _choose(name: str, width: int, mix: FileType, layers: int, *, tied: bool) -> str:
    """Give the type of a matrix with rows of `width` values."""
    if not mix.is_quantized:
        return mix.default
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        kind = _head_type(width, mix.default)
    else:
        kind = mix.better if _is_better(name, mix, layers) else mix.default
    if width % GGML_TYPES[kind].block_size:
        kind = _FALLBACK.get(kind, kind)
    return "F16" if width % GGML_TYPES[kind].block_size else kind


def _head_type(width: int, default: str) -> str:
    """Choose for the output matrix, or the embedding that serves as one."""
    return "Q8_0" if default == "Q8_0" or width % GGML_TYPES[default].block_size else "Q6_K"


def _is_better(name: str, mix: FileType, layers: int) -> bool:
    layer = sort_key(name)[0]
    if name.endswith(".attn_v.weight"):
        return mix.attn_v is not None and mix.attn_v(layer, layers)
    if name.endswith(".ffn_down.weight"):
        return mix.ffn_down is not None and mix.ffn_down(layer, layers)
    return False
