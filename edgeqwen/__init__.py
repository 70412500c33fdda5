"""Run Qwen models on small devices: `load` a model, then `stream` or `chat`. This is the public API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeqwen.errors import (
    ArtifactBusyError,
    ArtifactError,
    CheckpointError,
    ContextOverflowError,
    DownloadError,
    EdgeqwenError,
    EngineError,
    EngineMissingError,
    InterruptedForwardError,
    MemoryShortError,
    NoRoomError,
    RequestError,
    TemplateError,
)
from edgeqwen.types import (
    Completion,
    Delta,
    GenerationConfig,
    Message,
    Timings,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)

if TYPE_CHECKING:
    from edgeqwen.model import Model, fold, load

__all__ = [
    "ArtifactBusyError",
    "ArtifactError",
    "CheckpointError",
    "Completion",
    "ContextOverflowError",
    "Delta",
    "DownloadError",
    "EdgeqwenError",
    "EngineError",
    "EngineMissingError",
    "GenerationConfig",
    "InterruptedForwardError",
    "MemoryShortError",
    "Message",
    "Model",
    "NoRoomError",
    "RequestError",
    "TemplateError",
    "Timings",
    "TokenLogprob",
    "ToolCall",
    "ToolCallDelta",
    "Usage",
    "fold",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import what needs numpy and a tokenizer when it is first asked for: `import edgeqwen` stays fast."""
    if name in {"Model", "fold", "load"}:
        from edgeqwen import model  # noqa: PLC0415

        return getattr(model, name)
    raise AttributeError(f"module 'edgeqwen' has no attribute {name!r}")
