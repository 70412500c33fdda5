"""A pack for this machine, installed in a network namespace without any interface: not even a loopback that is up."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pack_kit import COUNT_PIECES, command_of, make_pack
from tiers import PACKS

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ENGINES = sorted((ROOT / "dist").glob(f"edgeqwen_engine-*_{platform.machine()}.whl"))
KINDS = [
    "onnx",
    pytest.param("gguf", marks=pytest.mark.skipif(not ENGINES, reason="edgeqwen engine build has not run")),
]


def inside(home, *words):
    """Run a command where there is no network, and no setting of ours but a path with this Python in it."""
    path = os.pathsep.join([str(home / "bin"), "/usr/local/bin:/usr/bin:/bin"])
    return subprocess.run(
        ["unshare", "-rn", *map(str, words)],
        env={"HOME": str(home), "PATH": path, "LANG": "C.UTF-8"}, cwd=home.parent / "pack",
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def home(request, nano_artifact):
    """A home into which the README's command has installed a pack of nano; `.answer` is what it printed."""
    folder = Path(PACKS).resolve() / request.param
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "home/bin").mkdir(parents=True)
    (folder / "home/bin" / f"python{PYTHON}").symlink_to(sys.base_prefix + f"/bin/python{PYTHON}")
    artifact = nano_artifact("int4", "onnx") if request.param == "onnx" else nano_artifact("q8_0")
    engines = ENGINES[:1] if request.param == "gguf" else []
    make_pack(artifact, folder / "pack", "this", PYTHON, engines)
    done = inside(folder / "home", "sh", "-c", command_of(folder / "pack/README.md"))
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "home/answer").write_text(done.stdout)
    return folder / "home"


def test_there_is_no_network_in_there(home):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 5)"
    assert "Network is unreachable" in inside(home, f"python{PYTHON}", "-c", code).stderr


def test_one_command_of_the_readme_ends_in_an_answer(home):
    assert "579" in (home / "answer").read_text().splitlines()[-1]
    assert command_of(home.parent / "pack/README.zh.md").startswith("sh install.sh && ")


def test_the_answer_is_streamed(home):
    program, model = home / "edgeqwen/venv/bin/edgeqwen", home / "edgeqwen/model"
    words = [program, "run", model, "What is the capital of France?", "--no-think"]
    count, _, text = inside(home, f"python{PYTHON}", "-c", COUNT_PIECES, *words).stdout.partition(" ")
    assert "Paris" in text
    assert int(count) > 1


def test_the_doctor_finds_nothing_wrong(home):
    done = inside(home, home / "edgeqwen/venv/bin/edgeqwen", "doctor", home / "edgeqwen/model", "--json")
    data = json.loads(done.stdout)
    assert [check for check in data["checks"] if check["status"] == "fail"] == []
    assert (done.returncode, data["can_run"]) == (0, True)


def test_it_can_be_installed_again_and_elsewhere(home):
    for words in ((), ("--to", home / "else/where", "--python", f"python{PYTHON}")):
        done = inside(home, "sh", "install.sh", *words)
        assert done.returncode == 0, done.stderr
    assert (
        "579"
        in inside(home, home / "else/where/venv/bin/edgeqwen", "run", home / "else/where/model", "123 + 456?").stdout
    )


def test_what_the_unit_starts_serves(home):
    """On the loopback, which is down in the namespace: outside of it."""
    unit = (home / "edgeqwen/edgeqwen.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    assert f"ReadWritePaths={home}/edgeqwen/home" in unit
    with subprocess.Popen(
        [*line.split(), "--port", "0"],
        env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            url = re.match(r"base_url: (http://\S+)/v1 ", server.stdout.readline())[1]
            body = {"messages": [{"role": "user", "content": "What is 123 + 456?"}], "temperature": 0}
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                answer = client.post("/v1/chat/completions", json=body).json()
            assert "579" in answer["choices"][0]["message"]["content"]
        finally:
            server.terminate()
