"""The engines behind one protocol; each is a file of its own and is imported when it is used."""

from __future__ import annotations

import importlib

# To add an engine: a file with a class that keeps the protocol of base.py, and a line here.
BACKENDS = {
    "llamacpp": "edgeqwen.backends.llamacpp:LlamaCppBackend",
    "scripted": "edgeqwen.backends.scripted:ScriptedBackend",
}


def backend_class(name: str) -> type:
    """The class behind an engine's name; KeyError for a name that is not in BACKENDS."""
    module, _, attribute = BACKENDS[name].partition(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found
