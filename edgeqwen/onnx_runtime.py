"""Imports ONNX Runtime so that it tells nobody: its wheels collect what is run and send it to their maker."""

from __future__ import annotations

import os
from typing import Any

from edgeqwen.errors import EngineMissingError

_SILENT = "ORT_DISABLE_TELEMETRY"  # read once, when the library is loaded


def silence_onnxruntime() -> None:
    """Before anything imports onnxruntime: neither files of events in the user's cache nor requests to a server."""
    os.environ[_SILENT] = "1"


def import_onnxruntime() -> Any:
    """The module, or EngineMissingError with what brings it. What a program imported before us has begun to collect."""
    silence_onnxruntime()
    try:
        import onnxruntime  # noqa: PLC0415 - 0.2 s and 20 MB, for this engine alone
    except ImportError as error:
        raise EngineMissingError(f"ONNX Runtime is not there ({error}): pip install 'edgeqwen[onnx]'") from None
    onnxruntime.disable_telemetry_events()
    return onnxruntime
