"""The engines behind one protocol; each is a file of its own and is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeqwen.backends.base import Backend
    from edgeqwen.plan import Plan

# To add an engine: a file with a class that keeps the protocol of base.py and has `open`, and a line here.
BACKENDS = {
    "llamacpp": "edgeqwen.backends.llamacpp:LlamaCppBackend",
    "ort": "edgeqwen.backends.ort:OrtBackend",
    "reference": "edgeqwen.backends.reference:ReferenceBackend",  # an oracle: of a checkpoint, and never chosen
}


def open_backend(path: Path, plan: Plan, progress: Callable[[float], None] | None = None) -> Backend:
    """Load the weights at `path` into the engine that the plan names; `progress` gets 0..1."""
    module, _, name = BACKENDS[plan.engine].partition(":")
    engine: Any = getattr(importlib.import_module(module), name)
    backend: Backend = engine.open(path, plan, progress)
    return backend
