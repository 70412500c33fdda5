"""Shared fixtures: converted nano models, one load each a session."""

from pathlib import Path

import pytest

from edgeqwen.catalog import convert


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory):
    """type -> the folder of nano converted to it, once a session."""
    folder = tmp_path_factory.mktemp("nano")
    made: dict[str, Path] = {}

    def artifact(kind: str) -> Path:
        if kind not in made:
            made[kind] = convert("nano", folder / f"nano-{kind}", type=kind).path
        return made[kind]

    return artifact


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees or changes the user's cache, and none finds a hub."""
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "edgeqwen-home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
