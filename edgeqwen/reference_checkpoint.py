"""Opens a checkpoint with transformers: the one file that imports torch; nothing that a checkpoint names is run.

config.json is read here, strictly, and handed over as data: reading it with transformers has run foreign code
(CVE-2026-4372: keys with an underscore, with trust_remote_code=False, in 4.56 to 5.2). Weights come from safetensors.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from edgeqwen.errors import CheckpointError, EngineMissingError
from edgeqwen.strict_json import CONFIG_BYTES_MAX, parse_object, shown

# transformers changes the process while it loads (the default type, torch's initializers): two at once leave torch
# without a type for its automatic casts, for good ("unsupported scalarType", transformers 4.57 with torch 2.13).
_LOADING = threading.Lock()
# Keys that choose code, not figures; a checkpoint says them of itself and none of them changes what it computes.
_DROPPED = frozenset({"attn_implementation", "experts_implementation", "transformers_version", "dtype", "torch_dtype"})


def import_torch() -> tuple[Any, Any]:
    """Both modules, torch first; EngineMissingError carries the pip line."""
    try:
        import torch  # noqa: PLC0415 - a gigabyte, for the reference alone
        import transformers  # noqa: PLC0415
    except ImportError as error:
        raise EngineMissingError(f"the reference is not there ({error}): pip install 'edgeqwen[reference]'") from None
    return torch, transformers


def open_reference_checkpoint(folder: Path) -> Any:
    """The decoder in `folder` (config.json, safetensors) as a float32 module on the CPU with eager attention.

    CheckpointError for one that asks for code of its own, is quantized or cannot be loaded.
    """
    torch, transformers = import_torch()
    data = read_config(folder / "config.json")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.for_model(**data)
        with _LOADING:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, config=config, torch_dtype=torch.float32, attn_implementation="eager", use_safetensors=True,
                trust_remote_code=False, local_files_only=True,
            )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: transformers cannot open it: {shown(str(error))}") from None
    return model.eval()


def read_config(path: Path) -> dict[str, Any]:
    """The keys of config.json that are figures; CheckpointError where one of them names code."""
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise CheckpointError(f"{path}: has more than {CONFIG_BYTES_MAX} bytes; a config.json is shorter")
    data = parse_object(raw, str(path), CheckpointError)
    for key in ("auto_map", "quantization_config"):
        if data.get(key):
            raise CheckpointError(f"{path}: {key} is {shown(data[key])}; a plain checkpoint in safetensors is expected")
    if not isinstance(data.get("model_type"), str):
        raise CheckpointError(f"{path}: model_type is {shown(data.get('model_type'))}; a text is expected")
    figures: dict[str, Any] = _figures(data)
    return figures


def _figures(value: Any) -> Any:
    """Without keys that begin with an underscore or choose an implementation, at any depth."""
    if isinstance(value, dict):
        return {k: _figures(v) for k, v in value.items() if not k.startswith("_") and k not in _DROPPED}
    return [_figures(item) for item in value] if isinstance(value, list) else value
