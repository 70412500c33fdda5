"""That ONNX Runtime, whose wheels collect what is run and send it to their maker, collects nothing of ours."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from edgeqwen.catalog import NANO
from edgeqwen.errors import EngineMissingError
from edgeqwen.onnx_runtime import import_onnxruntime

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


@pytest.mark.parametrize(("version", "refused"), [("1.24.4", True), ("1.9.0", True), ("1.26.0", False), ("2.0", False)])
def test_releases_that_read_freed_memory_are_refused(monkeypatch, version, refused):
    calls = []
    module = SimpleNamespace(__version__=version, disable_telemetry_events=lambda: calls.append(version))
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    if refused:
        with pytest.raises(EngineMissingError, match=rf"{version} is installed, 1\.26 or later.*pip install --upgrade"):
            import_onnxruntime()
    else:
        assert import_onnxruntime() is module
    assert calls == ([] if refused else [version])


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
