"""Shared fixtures: converted nano models, one load each a session."""

from pathlib import Path

import pytest

from edgeqwen.catalog import convert


@pytest.fixture(scope="session")
def nano_artifact(tmp_path_factory):
    """type and formats -> the folder of nano converted to them, once a session."""
    folder = tmp_path_factory.mktemp("nano")
    made: dict[tuple[str, ...], Path] = {}

    def artifact(kind: str, *formats: str) -> Path:
        key = (kind, *(formats or ("gguf",)))
        if key not in made:
            made[key] = convert("nano", folder / "-".join(("nano", *key)), type=kind, formats=key[1:]).path
        return made[key]

    return artifact


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test sees or changes the user's cache, and none finds a hub."""
    monkeypatch.setenv("EDGEQWEN_HOME", str(tmp_path / "edgeqwen-home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
