"""The folder that edgeqwen keeps things in on this machine; it knows nothing of what is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Where converted models and engines are kept: $EDGEQWEN_HOME, or the system's folder for caches."""
    if home := os.environ.get("EDGEQWEN_HOME"):
        return Path(home)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local")) / "edgeqwen"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/edgeqwen"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeqwen"
