"""Tests that need more than the core suite: marked by folder, and skipped, with the reason, where that is missing."""

import os
from pathlib import Path

import pytest

PACKS = os.environ.get("EDGEQWEN_PACKS", "")  # the folder for packs, of make packs
CLIENTS_HERE = Path(__file__).resolve().parent / "clients"


def mark(items, folder, tier, reason):
    """Mark the items below `folder` as of a tier; `reason` why they cannot run, or nothing."""
    for item in items:
        if folder in item.path.parents:
            item.add_marker(getattr(pytest.mark, tier))
            item.add_marker(pytest.mark.timeout(600))
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
