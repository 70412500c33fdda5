"""Oracle: llama.cpp's own llama_model_quantize, called through llama-cpp-python on files of many shapes."""

from __future__ import annotations

import ctypes

import pytest

from converters.gguf_writer import Field, plan_layout
from converters.mixture import FILE_TYPES, choose_types, find_file_type, sort_key
from edgeqwen.backends.llamacpp_library import load_llama
from edgeqwen.errors import RequestError
from edgeqwen.gguf import open_gguf

llama_cpp = load_llama()


def shapes(layers: int, hidden: int, intermediate: int, *, tied: bool) -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        table["output.weight"] = (64, hidden)
    for n in range(layers):
        block = f"blk.{n}."
        table |= {block + f"{norm}.weight": (hidden,) for norm in ("attn_norm", "ffn_norm")}
        table |= {block + f"attn_{part}.weight": (hidden, hidden) for part in ("q", "output")}
        table |= {block + f"attn_{part}.weight": (64, hidden) for part in ("k", "v")}
        table |= {block + f"attn_{part}.bias": (64,) for part in ("k", "v")}
        table |= {block + f"ffn_{part}.weight": (intermediate, hidden) for part in ("gate", "up")}
        table[block + "ffn_down.weight"] = (hidden, intermediate)
    return table


def types_by_llama_cpp(table, layers: int, file_type: str, folder) -> dict[str, str]:
    """Write the shapes as a file of zeros, quantize it with llama.cpp and read which types came out, in which order."""
    names = sorted(table, key=lambda name: name[::-1])  # any order but the right one
    width = table["token_embd.weight"][1]
    fields = [
        Field("general.architecture", "str", "qwen2"),
        Field("qwen2.block_count", "u32", layers),
        Field("qwen2.context_length", "u32", 64),
        Field("qwen2.embedding_length", "u32", width),
        Field("qwen2.feed_forward_length", "u32", table["blk.0.ffn_down.weight"][1]),
        Field("qwen2.attention.head_count", "u32", width // 32),
        Field("qwen2.attention.head_count_kv", "u32", 2),
        Field("qwen2.attention.layer_norm_rms_epsilon", "f32", 1e-6),
    ]
    layout = plan_layout(fields, [(n, "F32" if len(table[n]) == 1 else "BF16", table[n]) for n in names])
    source, target = folder / "in.gguf", folder / "out.gguf"
    source.write_bytes(layout.header + bytes(layout.size - len(layout.header)))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[file_type].id, 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    with open_gguf(target) as file:
        return {tensor.name: tensor.type for tensor in file.tensors.values()}


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize(
    ("layers", "hidden", "intermediate", "tied"),
    [
        (28, 256, 256, True),
        (13, 256, 512, False),
        (3, 224, 256, True),
        (9, 224, 256, False),
        (2, 256, 96, True),
        (1, 160, 96, False),
    ],
)
def test_types_and_order_are_llama_cpps(file_type, layers, hidden, intermediate, tied, tmp_path, capfd) -> None:
    table = shapes(layers, hidden, intermediate, tied=tied)
    expected = types_by_llama_cpp(table, layers, file_type, tmp_path)
    assert list(choose_types(table, file_type).items()) == list(expected.items())


def test_rows_no_block_fits_become_f16() -> None:
    chosen = choose_types(shapes(1, 48, 80, tied=True), "Q4_K_M")
    assert {kind for name, kind in chosen.items() if name.endswith("weight") and "norm" not in name} == {"F16"}


def test_names_and_aliases_are_found_in_any_case() -> None:
    assert find_file_type("q4_k_m") == find_file_type("INT4") == "Q4_K_M"
    assert find_file_type("Q8_0") == find_file_type("int8") == "Q8_0"
    assert {find_file_type(name.lower()) for name in FILE_TYPES} == set(FILE_TYPES)


def test_an_unknown_type_is_told_what_there_is() -> None:
    with pytest.raises(RequestError, match=r"'q9_x' is not known; there are: .*q8_0.*q4_k_m.*int8, int4"):
        find_file_type("q9_x")


def test_layers_are_ordered_by_number() -> None:
    names = ["blk.10.a.weight", "token_embd.weight", "blk.2.b.weight", "blk.2.a.weight", "output_norm.weight"]
    assert sorted(names, key=sort_key) == [
        "output_norm.weight", "token_embd.weight", "blk.2.a.weight", "blk.2.b.weight", "blk.10.a.weight",
    ]  # fmt: skip
