"""Emulated Raspberry Pis (make arm): programs that run there, in a home of their own and without a PATH."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from boards import ARM, BOARDS  # noqa: E402 - beside this file

COMMAND = "from edgeqwen.cli import main; main()"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tiers.mark(items, HERE, "arm", "" if ARM else "EDGEQWEN_ARM names no folder with emulated boards")


class Emulated:
    """A board: `python` and `edgeqwen` give (exit code, stdout, stderr)."""

    def __init__(self, board, home):
        self.board = board
        self.home = home
        self._out = Path(ARM).resolve()

    def python(self, *words, seconds=500, **environment):
        command = [self._out / f"{self.board.name}-python", *words]
        whole = {
            "PATH": "", "HOME": str(self.home), "EDGEQWEN_HOME": str(self.home / "cache"), "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(map(str, (HERE / "guest", self._out / "site", HERE.parent))),
            "EDGEQWEN_BOARD_PYTHON": str(command[0]), "OPENBLAS_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        done = subprocess.run(
            [*map(str, command)], env={**whole, **environment}, cwd=self.home, timeout=seconds,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def edgeqwen(self, *words, **environment):
        return self.python("-c", COMMAND, *words, **environment)

    def told(self, *words, **environment):
        """What a command that must succeed printed as JSON."""
        code, out, err = self.edgeqwen(*words, **environment)
        assert code == 0, out + err
        return json.loads(out)

    def drive(self, *words, **environment):
        """What tests/arm/driver.py printed there."""
        code, out, err = self.python(HERE / "driver.py", *words, **environment)
        assert code == 0, out + err
        return json.loads(out.splitlines()[-1])

    def nano(self, kind, *formats):
        """nano, converted there once."""
        folder = self.home / "-".join(("nano", kind, *formats))
        if not folder.exists():
            self.told("convert", "nano", "--type", kind, "--to", ",".join(formats), "--out", folder, "--json")
        return folder


@pytest.fixture(scope="session", params=BOARDS)
def pi(request, tmp_path_factory):
    """One board after the other."""
    return Emulated(BOARDS[request.param], tmp_path_factory.mktemp(request.param))
