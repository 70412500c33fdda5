"""Real clients, each in an environment of its own (make clients), and the servers that they ask."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import tiers
from server_kit import Command

HERE = Path(__file__).resolve().parent
CLIENTS = os.environ.get("EDGEQWEN_CLIENTS", "")
FORMATS = {"llamacpp": "gguf", "ort": "onnx"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    tiers.mark(items, HERE, "clients", "" if CLIENTS else "EDGEQWEN_CLIENTS names no folder with the clients")


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """What a client finds: an empty home, and nothing beyond the loopback."""
    home = tmp_path_factory.mktemp("home")
    (home / "reached.txt").touch()
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "PYTHONPATH": str(HERE / "offline"),
        "EDGEQWEN_REACHED": str(home / "reached.txt"), "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "PYTHONWARNINGS": "ignore",
    }  # fmt: skip


@pytest.fixture(scope="session")
def program(environment):
    """Run a client's Python, or node, with words; what it printed. Whatever it asked beyond the loopback fails it."""
    reached = Path(environment["EDGEQWEN_REACHED"])

    def run(client, *words, seconds=120, **others):
        folder = Path(CLIENTS).resolve() / client
        binary = folder / "bin/python"
        if client == "node":  # which looks for packages beside the script
            binary, words = "node", (shutil.copy(words[0], folder), *words[1:])
        done = subprocess.run(
            [binary, *map(str, words)],
            env=environment | others,
            cwd=folder,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not reached.read_text(), reached.read_text()
        return done.stdout

    return run


@pytest.fixture(scope="session")
def command(nano_artifact):
    """engine -> nano, served with it by the command; over 32 bits throughout both engines write the same words."""
    running = {}

    def serve(engine):
        if engine not in running:
            running[engine] = Command(
                str(nano_artifact("f32", FORMATS[engine])), "--engine", engine, "--kv-type", "f32", "--threads", "1",
                "--alias", "Qwen3-0.6B",
            )  # fmt: skip
        return running[engine]

    yield serve
    for one in running.values():
        with one:
            pass


@pytest.fixture(params=FORMATS)
def engine(request):
    return request.param


@pytest.fixture(scope="session")
def told_by(command, program):
    """(driver, client, engine) -> all that the driver got, by scene; it runs once."""
    told = {}

    def drive(driver, client, engine):
        if (driver, engine) not in told:
            url = f"{command(engine).client.base_url}/v1"
            told[driver, engine] = json.loads(program(client, HERE / "drivers" / driver, url).splitlines()[-1])
        return told[driver, engine]

    return drive


@pytest.fixture
def wire(command, engine):
    """The first choice of what the server says to a body, asked without any client."""

    def ask(**body):
        response = command(engine).client.post("/v1/chat/completions", json={"temperature": 0, **body})
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]

    return ask


@pytest.fixture
def told(request, told_by, engine):
    """scene -> what the driver of the test's file got there from one engine, which the other has to give as well."""
    driver, client = request.module.DRIVER, request.module.CLIENT
    both = [told_by(driver, client, name) for name in (engine, *(FORMATS.keys() - {engine}))]

    def scene(name):
        ours, others = (told[name] for told in both)
        assert "error" not in ours, ours["error"]
        assert ours == others
        return ours

    return scene
