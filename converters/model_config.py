"""config.json as data: an allow-list of keys in, a ModelShape out; it runs and imports nothing that the file names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from converters.architectures import ARCHITECTURES, SUPPORTED
from edgeqwen.errors import CheckpointError
from edgeqwen.strict_json import shown
from edgeqwen.types import ModelShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from converters.architectures import Architecture

# Inclusive bounds; the largest dense Qwen has hidden_size 8192, 80 layers and 152,064 rows.
_INTEGERS: dict[str, tuple[int, int]] = {
    "hidden_size": (1, 1 << 16),
    "intermediate_size": (1, 1 << 18),
    "num_hidden_layers": (1, 400),
    "num_attention_heads": (1, 1 << 10),
    "num_key_value_heads": (1, 1 << 10),
    "vocab_size": (1, 1 << 20),
    "max_position_embeddings": (16, 1 << 24),  # 16: the shortest context that is opened
}
_HEAD_DIM = (2, 1 << 10)
_RMS_NORM_EPS = (1e-12, 1e-1)
_ROPE_THETA = (1.0, 1e12)

# Keys that change what a model computes -> the values that mean "not used".
_UNUSED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", None),
    "use_sliding_window": (False, None),
    "mlp_bias": (False, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1, None),
}
# YaRN: number keys that llama.cpp's converter carries over -> inclusive bounds
_YARN: dict[str, tuple[float, float]] = {
    "factor": (1.0, 1e4),
    "attention_factor": (1e-3, 1e3),
    "beta_fast": (1e-3, 1e6),
    "beta_slow": (1e-3, 1e6),
}
# generation_config.json: inclusive bounds; top_k -1 and 0 mean no limit
_SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_k": (-1.0, 1 << 20),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-3, 1e3),
    "presence_penalty": (-10.0, 10.0),
    "frequency_penalty": (-10.0, 10.0),
}


def read_shape(config: Mapping[str, Any], where: str) -> ModelShape:
    """Return the figures of `config`, each checked for type and bounds.

    CheckpointError, starting with `where`, for a family or a feature that is not supported.
    """
    architecture = _architecture(config, where)
    _check_features(config, architecture, where)
    integers = {key: _integer(config, key, bounds, where) for key, bounds in _INTEGERS.items()}
    heads, kv_heads = integers["num_attention_heads"], integers["num_key_value_heads"]
    if heads % kv_heads:
        raise CheckpointError(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    rope_theta, rope_scaling = _rope(config, where)
    return ModelShape(
        architecture=architecture.name,
        **integers,
        head_dim=_head_dim(config, architecture, where),
        rms_norm_eps=_number(config, "rms_norm_eps", _RMS_NORM_EPS, where),
        rope_theta=rope_theta,
        tie_word_embeddings=_flag(config, "tie_word_embeddings", where),
        rope_scaling=rope_scaling,
    )


def check_defaults(config: Mapping[str, Any], vocab_size: int, where: str) -> None:
    """Refuse token ids that are not rows of the embedding, and sampling numbers out of any sense; null is allowed."""
    for key in (key for key in config if key.endswith("_token_id") and config[key] is not None):
        ids = config[key] if isinstance(config[key], list) else [config[key]]
        if not all(type(item) is int and 0 <= item < vocab_size for item in ids):
            raise CheckpointError(
                f"{where}: {key} is {shown(config[key])}; the embedding has rows 0 to {vocab_size - 1}"
            )
    for key, bounds in _SAMPLING.items():
        if config.get(key) is not None:
            _number(config, key, bounds, where)


def _architecture(config: Mapping[str, Any], where: str) -> Architecture:
    found = config.get("model_type")
    architecture = ARCHITECTURES.get(found) if isinstance(found, str) else None
    classes = config.get("architectures")
    if architecture is None or (classes is not None and classes != [architecture.model_class]):
        raise CheckpointError(
            f"{where}: model_type {shown(found)} with architectures {shown(classes)} is not supported; "
            f"supported are dense {SUPPORTED}"
        )
    if config.get("auto_map"):
        raise CheckpointError(
            f"{where}: auto_map names code to run, which is never done here, so what the model computes is unknown; "
            f"remove the key if it is a plain {architecture.model_class}"
        )
    return architecture


def _check_features(config: Mapping[str, Any], architecture: Architecture, where: str) -> None:
    for key, unused in _UNUSED.items():
        if key in config and config[key] not in unused:
            raise CheckpointError(
                f"{where}: {key} is {shown(config[key])}, which is not supported; supported are dense {SUPPORTED} "
                f"with {key} {shown(unused[0])} or absent"
            )
    if architecture.name == "qwen3" and config.get("attention_bias") not in (False, None):
        raise CheckpointError(
            f"{where}: attention_bias is {shown(config['attention_bias'])}; supported are qwen3 without biases "
            "and qwen2 with them"
        )
    layer_types = config.get("layer_types")  # transformers >= 4.53 writes one per layer
    if layer_types is not None and (
        not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types)
    ):
        raise CheckpointError(f"{where}: layer_types is {shown(layer_types)}; supported is full_attention only")


def _head_dim(config: Mapping[str, Any], architecture: Architecture, where: str) -> int:
    if config.get("head_dim") is None and not architecture.has_head_dim:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])  # both checked already
        head_dim, rest = divmod(hidden, heads)
        if rest:
            raise CheckpointError(
                f"{where}: hidden_size {hidden} is no multiple of num_attention_heads {heads}, and there is no head_dim"
            )
    else:
        head_dim = _integer(config, "head_dim", _HEAD_DIM, where)
    if head_dim % 2:
        raise CheckpointError(f"{where}: head_dim {head_dim} is odd; rotary embeddings need pairs")
    return head_dim


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, Mapping[str, Any] | None]:
    """rope_theta and rope_scaling of transformers 4, or both in the rope_parameters of transformers 5."""
    parameters = config.get("rope_parameters")
    key = "rope_parameters" if parameters is not None else "rope_scaling"
    scaling = config.get(key)
    if scaling is None:
        return _number(config, "rope_theta", _ROPE_THETA, where), None
    if not isinstance(scaling, dict):
        raise CheckpointError(f"{where}: {key} is {shown(scaling)}, not an object")
    inside = f"{where}: {key}"
    theta = _number(scaling if "rope_theta" in scaling else config, "rope_theta", _ROPE_THETA, inside)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "yarn"):
        raise CheckpointError(f"{inside}: rope_type {shown(kind)} is not supported; supported are default and yarn")
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    if kind == "yarn":
        known |= {*_YARN, "original_max_position_embeddings"}
    if unknown := sorted(scaling.keys() - known):
        raise CheckpointError(f"{inside}: {shown(unknown)} not supported with rope_type {kind}")
    if scaling.get("partial_rotary_factor") not in _UNUSED["partial_rotary_factor"]:
        raise CheckpointError(
            f"{inside}: partial_rotary_factor {shown(scaling['partial_rotary_factor'])}; supported is 1"
        )
    return theta, _yarn(scaling, inside) if kind == "yarn" else None


def _yarn(scaling: Mapping[str, Any], where: str) -> dict[str, Any]:
    numbers = {
        key: _number(scaling, key, bounds, where) for key, bounds in _YARN.items() if scaling.get(key) is not None
    }
    if "factor" not in numbers:
        raise CheckpointError(f"{where}: yarn without factor")
    key = "original_max_position_embeddings"
    return {"rope_type": "yarn", key: _integer(scaling, key, _INTEGERS["max_position_embeddings"], where), **numbers}


def _integer(config: Mapping[str, Any], key: str, bounds: tuple[int, int], where: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not bounds[0] <= value <= bounds[1]:
        raise CheckpointError(f"{where}: {_found(config, key)}; expected an integer from {bounds[0]} to {bounds[1]}")
    return value


def _number(config: Mapping[str, Any], key: str, bounds: tuple[float, float], where: str) -> float:
    value = config.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not bounds[0] <= value <= bounds[1]:
        raise CheckpointError(f"{where}: {_found(config, key)}; expected a number from {bounds[0]:g} to {bounds[1]:g}")
    return float(value)


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    """Absent means False, as in transformers' classes for these families."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {_found(config, key)}; expected true or false")
    return value


def _found(config: Mapping[str, Any], key: str) -> str:
    return f"{key} is {shown(config[key])}" if key in config else f"{key} is missing"
