"""The header's keys. Oracle for names: gguf-py's Metadata; whole headers are compared in test_peers.py."""

from __future__ import annotations

from gguf import Metadata
from gguf.utility import size_label as gguf_size_label
from hypothesis import given, settings
from hypothesis import strategies as st

from converters.checkpoint import open_checkpoint
from converters.gguf_metadata import header_fields
from converters.model_name import make_title, size_label, split_name

WORDS = (
    *("", "Qwen3", "qwen2.5", "0.6B", "1.7b", "7B", "A3B", "8x7B", "128K", "1M", "small", "large", "Instruct", "chat"),
    *("v1", "2", "1.5", "iter3", "Q4_K_M", "bf16", "Base", "Coder", "Thinking", "2507", "lora", "7b1", "Math", "3_5B"),
)
names = st.builds("-".join, st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))


@settings(max_examples=300, deadline=None)
@given(
    name=names,
    organization=st.sampled_from(["", "Qwen/", "some-org/", "./"]),
    parameters=st.sampled_from([0, 600_000_000, 7_000_000_000]),
)
def test_names_are_taken_apart_as_gguf_py_does(name, organization, parameters) -> None:
    full, org, basename, finetune, version, size = Metadata.get_model_id_components(organization + name, parameters)
    mine = split_name(organization + name, parameters)
    assert (mine.full, mine.organization, mine.basename, mine.finetune, mine.version, mine.size_label) == (
        full, org, basename, finetune, version, size,
    )  # fmt: skip
    assert make_title(name) == Metadata.id_to_title(name)


@given(st.integers(1, 10**13))
def test_sizes_are_rounded_as_gguf_py_does(parameters) -> None:
    assert size_label(parameters) == gguf_size_label(parameters, 0, 0, 0)


def test_keys_are_there_once_and_in_a_fixed_order(qwen3_tiny) -> None:
    with open_checkpoint(qwen3_tiny) as checkpoint:
        fields = header_fields(checkpoint, 15)
    keys = [field.key for field in fields]
    assert len(keys) == len(set(keys))
    assert keys[0] == "general.architecture"
    assert keys[-2:] == ["general.quantization_version", "general.file_type"]
    values = {field.key: field.value for field in fields}
    assert len(values["tokenizer.ggml.tokens"]) == len(values["tokenizer.ggml.token_type"]) == 4160
    assert values["tokenizer.ggml.tokens"][-1] == "[PAD4159]"
    assert set(values["tokenizer.ggml.token_type"]) == {1, 3, 4, 5}
