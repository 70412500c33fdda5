"""Imports ONNX Runtime so that it tells nobody: its wheels collect what is run and send it to their maker."""

from __future__ import annotations

import os
from typing import Any

from edgeqwen.errors import EngineMissingError

# Before it, arrays that a session gave are read after free once the session is gone, and positions and group indices of
# a hostile graph are not checked.
LEAST = (1, 26)
NEEDED = f"{'.'.join(map(str, LEAST))} or later is needed"
UPGRADE_LINE = "pip install --upgrade 'edgeqwen[onnx]'"
_SILENT = "ORT_DISABLE_TELEMETRY"  # read once, when the library is loaded


def silence_onnxruntime() -> None:
    """Before anything imports onnxruntime: neither files of events in the user's cache nor requests to a server."""
    os.environ[_SILENT] = "1"


def is_too_old(version: str) -> bool:
    """Whether a version of ONNX Runtime comes before LEAST."""
    return tuple(int(part) for part in version.split(".")[:2]) < LEAST


def import_onnxruntime() -> Any:
    """The module, or EngineMissingError with what brings it. What a program imported before us has begun to collect."""
    silence_onnxruntime()
    try:
        import onnxruntime  # noqa: PLC0415 - 0.2 s and 20 MB, for this engine alone
    except ImportError as error:
        raise EngineMissingError(f"ONNX Runtime is not there ({error}): pip install 'edgeqwen[onnx]'") from None
    if is_too_old(onnxruntime.__version__):
        raise EngineMissingError(f"ONNX Runtime {onnxruntime.__version__} is installed, {NEEDED}: {UPGRADE_LINE}")
    onnxruntime.disable_telemetry_events()
    return onnxruntime
