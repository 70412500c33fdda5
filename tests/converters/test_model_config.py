"""config.json: published files give their known figures, both spellings agree, the unsupported is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from converters.architectures import expected_tensors, is_harmless
from converters.model_config import check_defaults, read_shape
from edgeqwen.errors import CheckpointError

# As published with Qwen3-0.6B (transformers 4.51).
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# As published with Qwen2.5-0.5B-Instruct: no head_dim; sliding_window is set, but not used.
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def parameters(config) -> int:
    return sum(math.prod(dims) for _, dims in expected_tensors(read_shape(config, "x")).values())


def test_published_sizes():
    """Parameter counts of Qwen3-0.6B, Qwen2.5-0.5B and Qwen3-1.7B, 4B and 8B."""
    assert parameters(QWEN3) == 596_049_920
    assert parameters(QWEN2) == 494_032_768
    bigger = {"hidden_size": 2048, "intermediate_size": 6144}
    assert parameters(QWEN3 | bigger) == 1_720_574_976
    heads = {"num_attention_heads": 32, "num_hidden_layers": 36}
    assert parameters(QWEN3 | heads | {"hidden_size": 2560, "intermediate_size": 9728}) == 4_022_468_096
    eight = {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
    assert parameters(QWEN3 | heads | eight) == 8_190_735_360


def test_head_dim_is_its_own_key():
    assert read_shape(QWEN3, "x").head_dim == 128
    assert read_shape(QWEN2, "x").head_dim == 64
    assert read_shape(QWEN2 | {"head_dim": 96}, "x").head_dim == 96
    assert read_shape(QWEN2 | {"head_dim": None}, "x").head_dim == 64


def test_both_spellings_of_rope_agree():
    four = read_shape(QWEN3, "x")
    bare = {key: value for key, value in QWEN3.items() if key not in {"rope_theta", "rope_scaling", "torch_dtype"}}
    default = {"rope_theta": 1000000, "rope_type": "default"}
    assert read_shape(bare | {"dtype": "bfloat16", "rope_parameters": default}, "x") == four
    stretched = replace(four, rope_scaling=YARN)
    assert read_shape(QWEN3 | {"rope_scaling": YARN}, "x") == stretched
    assert read_shape(bare | {"rope_parameters": YARN | {"rope_theta": 1000000}}, "x") == stretched
    old = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}
    assert read_shape(QWEN3 | {"rope_scaling": old}, "x") == stretched
    assert read_shape(QWEN3 | {"rope_scaling": YARN | {"beta_fast": 16}}, "x").rope_scaling == YARN | {
        "beta_fast": 16.0
    }


def test_unknown_keys_are_ignored_and_absent_tie_is_false():
    config = {key: value for key, value in QWEN3.items() if key != "tie_word_embeddings"}
    assert read_shape(config | {"new_key": {"x": 1}}, "x") == replace(read_shape(QWEN3, "x"), tie_word_embeddings=False)


REFUSED = {
    "other-family": (QWEN3, {"model_type": "llama"}, ["'llama'", "qwen2", "qwen3 (Qwen3ForCausalLM)"]),
    "qwen3-next": (QWEN3, {"model_type": "qwen3_next"}, ["qwen3_next", "supported are dense"]),
    "mixture": (QWEN3, {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}, ["Qwen3MoeForCausalLM"]),
    "other-class": (QWEN3, {"architectures": ["Qwen3ForSequenceClassification"]}, ["Qwen3ForSequenceClassification"]),
    "class-of-other-family": (QWEN3, {"architectures": ["Qwen2ForCausalLM"]}, ["Qwen2ForCausalLM", "qwen3"]),
    "no-type": (QWEN3, {"model_type": None}, ["model_type None"]),
    "type-list": (QWEN3, {"model_type": ["qwen3"]}, ["['qwen3']"]),
    "code": (QWEN3, {"auto_map": {"AutoModel": "modeling.Mine"}}, ["auto_map", "code", "remove the key"]),
    "experts": (QWEN3, {"num_experts": 8}, ["num_experts is 8"]),
    "window": (QWEN2, {"use_sliding_window": True}, ["use_sliding_window is True"]),
    "window-by-layer": (QWEN3, {"layer_types": ["full_attention", "sliding_attention"]}, ["sliding_attention"]),
    "activation": (QWEN3, {"hidden_act": "gelu"}, ["'gelu'", "'silu'"]),
    "bias": (QWEN3, {"attention_bias": True}, ["attention_bias is True", "qwen2"]),
    "mlp-bias": (QWEN3, {"mlp_bias": True}, ["mlp_bias"]),
    "quantized": (QWEN3, {"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "gptq"]),
    "partial-rotation": (QWEN3, {"partial_rotary_factor": 0.25}, ["partial_rotary_factor", "0.25"]),
    "size-bool": (QWEN3, {"num_hidden_layers": True}, ["num_hidden_layers is True", "integer"]),
    "size-float": (QWEN3, {"hidden_size": 1024.0}, ["hidden_size is 1024.0"]),
    "size-text": (QWEN3, {"hidden_size": "1024"}, ["hidden_size is '1024'"]),
    "size-null": (QWEN3, {"vocab_size": None}, ["vocab_size is None"]),
    "size-negative": (QWEN3, {"vocab_size": -1}, ["vocab_size is -1", "1048576"]),
    "size-zero": (QWEN3, {"num_key_value_heads": 0}, ["num_key_value_heads is 0"]),
    "size-huge": (QWEN3, {"hidden_size": 10**4000}, ["hidden_size is an integer of 13288 bits", "65536"]),
    "heads-odd": (QWEN3, {"num_key_value_heads": 3}, ["16", "multiple", "3"]),
    "head-dim-odd": (QWEN3, {"head_dim": 127}, ["head_dim 127 is odd"]),
    "head-dim-missing": (QWEN3, {"head_dim": None}, ["head_dim is None"]),
    "head-dim-broken": (QWEN2, {"num_attention_heads": 6, "num_key_value_heads": 2}, ["896", "no multiple", "6"]),
    "eps-nan": (QWEN3, {"rms_norm_eps": math.nan}, ["rms_norm_eps is nan"]),
    "eps-bool": (QWEN3, {"rms_norm_eps": False}, ["rms_norm_eps is False"]),
    "eps-infinite": (QWEN3, {"rms_norm_eps": math.inf}, ["rms_norm_eps is inf"]),
    "eps-zero": (QWEN3, {"rms_norm_eps": 0}, ["rms_norm_eps is 0", "1e-12"]),
    "theta-text": (QWEN3, {"rope_theta": "1e6"}, ["rope_theta is '1e6'"]),
    "theta-null": (QWEN3, {"rope_theta": None}, ["rope_theta is None"]),
    "tie-text": (QWEN3, {"tie_word_embeddings": "true"}, ["tie_word_embeddings is 'true'", "true or false"]),
    "rope-list": (QWEN3, {"rope_scaling": []}, ["rope_scaling is []"]),
    "rope-unknown": (QWEN3, {"rope_scaling": {"rope_type": "longrope"}}, ["'longrope'", "default and yarn"]),
    "rope-dynamic": (QWEN3, {"rope_scaling": {"type": "dynamic", "factor": 2}}, ["'dynamic'", "default and yarn"]),
    "rope-key": (QWEN3, {"rope_scaling": YARN | {"mscale": 1}}, ["mscale", "yarn"]),
    "rope-by-layer": (QWEN3, {"rope_parameters": {"full_attention": {"rope_theta": 1}}}, ["full_attention"]),
    "yarn-no-factor": (QWEN3, {"rope_scaling": {k: v for k, v in YARN.items() if k != "factor"}}, ["without factor"]),
    "yarn-no-original": (QWEN3, {"rope_scaling": {"type": "yarn", "factor": 4}}, ["original_max_position_embeddings"]),
    "yarn-factor-zero": (QWEN3, {"rope_scaling": YARN | {"factor": 0}}, ["factor is 0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case):
    base, change, words = REFUSED[case]
    with pytest.raises(CheckpointError, match=r"^FILE: ") as caught:
        read_shape(base | change, "FILE")
    text = str(caught.value)
    assert "\n" not in text
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("key", ["hidden_size", "num_key_value_heads", "rms_norm_eps", "rope_theta", "head_dim"])
def test_missing_key_is_named(key):
    config = {name: value for name, value in QWEN3.items() if name != key}
    with pytest.raises(CheckpointError, match=rf"x: .*{key} is missing"):
        read_shape(config, "x")


@pytest.mark.parametrize("value", [-1, 10, True, "1", [1, 10], {}, 1.0])
def test_token_ids_are_rows_of_the_embedding(value):
    with pytest.raises(CheckpointError, match=r"eos_token_id is .* rows 0 to 9"):
        check_defaults({"eos_token_id": value}, 10, "x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1),
        ("temperature", True),
        ("temperature", "0.6"),
        ("temperature", math.inf),
        ("top_k", 10**400),
        ("top_p", 1.5),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
    ],
)
def test_sampling_numbers_have_bounds(key, value):
    with pytest.raises(CheckpointError, match=rf"x: {key} is .*; expected a number from"):
        check_defaults({key: value}, 10, "x")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"eos_token_id": None, "top_p": None},
        {"eos_token_id": 9, "top_k": 0},
        {"eos_token_id": [0, 9], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True},
    ],
)
def test_sound_defaults_pass(config):
    check_defaults(config, 10, "x")


def test_only_rotation_buffers_are_harmless():
    assert is_harmless("model.layers.7.self_attn.rotary_emb.inv_freq")
    assert is_harmless("model.rotary_emb.inv_freq")
    assert not is_harmless("model.layers.7.self_attn.rotary_emb.inv_freq.weight")
    assert not is_harmless("xmodel.rotary_emb.inv_freq")
