"""A pack for linux-aarch64, installed from its wheels alone and run on an emulated Raspberry Pi."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pack_kit import install_words, make_pack
from tiers import PACKS

ROOT = Path(__file__).resolve().parent.parent.parent
ARM = os.environ.get("EDGEQWEN_ARM", "")
PYTHON = Path(ARM).resolve() / "pi5-python"  # qemu with the processor of a Pi 5, and Debian's Python 3.11
PLACES = (Path(ARM).resolve() / "wheels", ROOT / "dist")  # where an engine may have been built
ENGINES = [path for place in PLACES for path in sorted(place.glob("edgeqwen_engine-*_aarch64.whl"))]
COMMAND = "from edgeqwen.cli import main; main()"

pytestmark = pytest.mark.skipif(
    not (ARM and PYTHON.exists()), reason="EDGEQWEN_ARM names no folder with an emulated Pi"
)


@pytest.fixture(scope="module")
def board(nano_artifact):
    """Run words on the board in an empty network namespace, with what the pack has brought and nothing else of ours."""
    folder = Path(PACKS).resolve() / "board"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "home").mkdir(parents=True)
    artifact = nano_artifact("int4", "gguf", "onnx") if ENGINES else nano_artifact("int4", "onnx")
    make_pack(artifact, folder / "pack", "linux-aarch64", "3.11", ENGINES[:1])

    def run(*words):
        guest = ROOT / "tests/arm/guest"  # lets a process there start another one through qemu
        environment = {
            "PATH": "", "HOME": str(folder / "home"), "PYTHONPATH": os.pathsep.join(map(str, (guest, folder / "site"))),
            "EDGEQWEN_BOARD_PYTHON": str(PYTHON), "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1",
        }  # fmt: skip
        done = subprocess.run(
            [shutil.which("unshare"), "-rn", PYTHON, *map(str, words)], env=environment, cwd=folder / "pack",
            capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(*install_words(folder / "pack", folder / "site"))
    return run


@pytest.mark.parametrize("engine", ["ort", "llamacpp"])
def test_it_answers(board, engine):
    if engine == "llamacpp" and not ENGINES:
        pytest.skip("edgeqwen engine build --for linux-aarch64 has not run")
    assert "579" in board("-c", COMMAND, "run", "model", "What is 123 + 456?", "--engine", engine)


def test_everything_comes_from_the_pack(board):
    files = json.loads(
        board("-c", "import edgeqwen, numpy, json; print(json.dumps([edgeqwen.__file__, numpy.__file__]))")
    )
    assert all(file.startswith(str(Path(PACKS).resolve())) for file in files)


def test_the_doctor_knows_the_board_and_finds_nothing_wrong(board):
    data = json.loads(board("-c", COMMAND, "doctor", "model", "--json"))
    assert data["machine"]["board"].startswith("Raspberry Pi 5")
    assert (data["can_run"], data["wrong"]) == (True, False)
