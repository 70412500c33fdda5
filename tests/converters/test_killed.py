"""Conversions killed at random moments and around every fsync, rename and removal: the old artifact or the new one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
DRIVER = Path(__file__).with_name("killed_driver.py")


def trials(checkpoint, folder, mode: str, format: str = "gguf") -> list[str]:
    done = subprocess.run(
        [sys.executable, DRIVER, checkpoint, folder, mode, format], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["left"] == []  # the run after the last kill cleaned up
    return told["results"]


def test_killed_at_random_moments(qwen3_tiny, tmp_path) -> None:
    results = trials(qwen3_tiny, tmp_path, "moments")
    assert len(results) == 50
    assert set(results) == {"old", "new"}


@pytest.mark.parametrize("format", ["gguf", "onnx"])
def test_killed_around_every_call_that_changes_the_disk(qwen3_tiny, tmp_path, format) -> None:
    results = trials(qwen3_tiny, tmp_path, "calls", format)
    assert len(results) >= 30
    assert set(results) == {"old", "new"}
    switch = results.index("new")
    assert set(results[:switch]) == {"old"}  # one call is the switch
    assert set(results[switch:]) == {"new"}
