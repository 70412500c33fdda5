"""Packs made with the real pip, which downloads, and installed where there is no network (make packs)."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tiers

HERE = Path(__file__).resolve().parent


def no_namespace():
    """Why an empty network namespace cannot be had here, or None."""
    if shutil.which("unshare") is None:
        return "there is no unshare here, which makes a network namespace"
    tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() or "unshare -rn fails" if tried.returncode else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    ours = [item for item in items if HERE in item.path.parents]
    reason = no_namespace() if ours and tiers.PACKS else "EDGEQWEN_PACKS names no folder for packs"
    tiers.mark(ours, HERE, "packs", reason)
