"""A pack on an emulated Raspberry Pi 5: a whole Debian arm64 without compiler and network, and install.sh run there.

Debian 12 with Python 3.11 and 13 with 3.13, as Raspberry Pi OS has them.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pack_kit import COUNT_PIECES, command_of, make_pack
from tiers import PACKS

ROOT = Path(__file__).resolve().parent.parent.parent
ARM = Path(os.environ.get("EDGEQWEN_ARM", "")).resolve()
BOARD, QEMU = ARM / "pi5", ARM / "qemu-aarch64-static"
PROCESSOR = {"QEMU_CPU": "cortex-a76"}
PLACES = (ARM / "wheels", ROOT / "dist")  # where an engine may have been built
ENGINES = [path for place in PLACES for path in sorted(place.glob("edgeqwen_engine-*_aarch64.whl"))]
EDGEQWEN, MODEL = "/home/pi/edgeqwen/venv/bin/edgeqwen", "/home/pi/edgeqwen/model"


class Board:
    """The board with a system that has a Python, a stick in it, and a home."""

    def __init__(self, python, stick, home):
        self.python, self.stick, self.home = python, stick, home

    def run(self, *words):
        """What words printed there; they begin on the stick."""
        places = (ARM / f"system-{self.python}", BOARD, QEMU, self.stick, self.home)
        enter = (shutil.which("unshare"), "-rmn", "sh", ROOT / "tests/arm/enter.sh", *places)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/home/pi", "LANG": "C.UTF-8", **PROCESSOR}
        done = subprocess.run(
            [*map(str, (*enter, *words))], env=environment, capture_output=True, text=True, check=False, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def stick(nano_artifact):
    """A pack for both systems."""
    if not (os.environ.get("EDGEQWEN_ARM") and BOARD.is_dir()):
        pytest.skip("EDGEQWEN_ARM names no folder with emulated boards (make arm)")
    mount = ("mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc")
    if subprocess.run(["unshare", "-rmn", *mount], check=False).returncode:
        pytest.skip("a namespace has no binfmt_misc of its own here; Linux 6.7 and later allow it")
    folder = Path(PACKS).resolve() / "stick"
    shutil.rmtree(folder, ignore_errors=True)
    artifact = nano_artifact("int4", "gguf", "onnx") if ENGINES else nano_artifact("int4", "onnx")
    make_pack(artifact, folder, "linux-aarch64", "3.11,3.13", ENGINES[:1])
    return folder


@pytest.fixture(scope="module", params=["3.11", "3.13"])
def board(request, stick):
    """What the one command of the pack's README has made there; `.answer` is what it printed."""
    home = Path(PACKS).resolve() / f"home-{request.param}"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    made = Board(request.param, stick, home)
    made.answer = made.run("sh", "-c", command_of(stick / "README.md"))
    return made


def test_the_system_is_a_raspberry_pi_without_a_compiler_and_a_network(board):
    assert board.run("uname", "-m") == "aarch64\n"
    assert "0xd0b" in board.run("cat", "/proc/cpuinfo")
    assert board.run("sh", "-c", "command -v cc gcc c++ g++ clang make; true") == ""
    code = "import socket\ntry: socket.create_connection(('192.0.2.1', 80), 5)\nexcept OSError as e: print(e)"
    assert "Network is unreachable" in board.run(f"python{board.python}", "-c", code)


def test_one_command_of_the_readme_ends_in_an_answer(board):
    assert "579" in board.answer.splitlines()[-1]


def test_the_answer_is_streamed(board):
    words = (EDGEQWEN, "run", MODEL, "What is the capital of France?", "--no-think")
    count, _, text = board.run(f"python{board.python}", "-c", COUNT_PIECES, *words).partition(" ")
    assert "Paris" in text
    assert int(count) > 1


@pytest.mark.parametrize("engine", ["ort", "llamacpp"])
def test_it_answers(board, engine):
    if engine == "llamacpp" and not ENGINES:
        pytest.skip("edgeqwen engine build --for linux-aarch64 has not run")
    assert "579" in board.run(EDGEQWEN, "run", MODEL, "What is 123 + 456?", "--engine", engine)


def test_everything_comes_from_the_pack(board):
    code = "import edgeqwen, numpy; print(edgeqwen.__file__, numpy.__file__)"
    files = board.run("/home/pi/edgeqwen/venv/bin/python", "-c", code).split()
    assert all(file.startswith(f"/home/pi/edgeqwen/venv/lib/python{board.python}/site-packages/") for file in files)


def test_the_doctor_knows_the_board_and_finds_nothing_wrong(board):
    data = json.loads(board.run(EDGEQWEN, "doctor", MODEL, "--json"))
    assert data["machine"]["board"].startswith("Raspberry Pi 5")
    assert (data["can_run"], data["wrong"]) == (True, False)
