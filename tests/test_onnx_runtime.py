"""That ONNX Runtime, whose wheels collect what is run and send it to their maker, collects nothing of ours."""

import os
import subprocess
import sys

import pytest

from edgeqwen.catalog import NANO

RUN = """
from edgeqwen import load
with load({artifact!r}, engine="ort") as model:
    model.chat("2 + 3 = ?", thinking=False, max_tokens=4)
"""
CONVERT = """
from pathlib import Path
from edgeqwen.catalog import convert
report = convert({checkpoint!r}, Path({out!r}), type="int4", formats=("onnx",))
assert report.guard is not None
"""


@pytest.mark.parametrize("program", [RUN, CONVERT], ids=["running", "comparing"])
def test_nothing_is_collected(nano_artifact, tmp_path, program):
    """Where it keeps what it is going to send, among the user's folders, is nothing after it ran."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
    facts = {"artifact": str(nano_artifact("int4", "onnx")), "checkpoint": str(NANO), "out": str(tmp_path / "out")}
    subprocess.run([sys.executable, "-c", program.format(**facts)], check=True, env=environment)
    assert [path.name for path in home.rglob("*") if "onnxruntime" in path.name] == []
