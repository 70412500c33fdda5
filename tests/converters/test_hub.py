"""Downloads against a hub on the loopback interface that can be told to fail; asserted is what the hub saw."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from loopback_hub import COMMIT, MODEL, serving

from converters import hub as hub_module
from converters.checkpoint import open_checkpoint
from converters.hub import fetch, fetch_config
from edgeqwen.errors import DownloadError

WEIGHTS = "model.safetensors"
EXTRAS = {
    "pytorch_model.bin": b"pickle",
    "modeling.py": b"code",
    "sub/model.safetensors": b"x",
    "README.md": b"# Tiny\n",
}


@pytest.fixture
def hub(make_checkpoint, tmp_path, monkeypatch):
    folder = make_checkpoint(tmp_path / "source", hidden=64, intermediate=128, layers=1, head_dim=32)
    for variable in (
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    # 10 MB otherwise: what is written, and so kept, at once
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
    with serving({path.name: path.read_bytes() for path in folder.iterdir()} | EXTRAS) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.cache = tmp_path / "home" / "hub" / "models--Qwen--Qwen3-Tiny"
        yield hub


def refused(**settings) -> str:
    with pytest.raises(DownloadError) as caught:
        fetch(MODEL, **settings)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


def test_what_is_needed_comes_and_nothing_else(hub, capfd):
    steps = []
    folder = fetch(MODEL, progress=lambda done, total: steps.append((done, total)))
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.name == "Qwen3-Tiny"
    wanted = {name: raw for name, raw in hub.files.items() if name == "README.md" or name not in EXTRAS}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert sorted(request.path.rpartition("/")[2] for request in hub.asked()) == sorted(wanted)
    assert steps == sorted(steps)
    assert steps[-1] == (sum(map(len, wanted.values())),) * 2
    assert capfd.readouterr() == ("", "")  # a library does not print


def test_second_call_is_served_from_the_cache(hub):
    first = fetch(MODEL)
    hub.seen.clear()
    assert fetch(MODEL) == first
    assert [request.path for request in hub.seen] == [f"/api/models/{MODEL}/revision/main"]


def test_huggingface_hub_finds_what_came(hub):
    """The cache is shared: its own functions see the same files."""
    from huggingface_hub import hf_hub_download

    folder = fetch(MODEL)
    found = hf_hub_download(MODEL, WEIGHTS, cache_dir=hub.cache.parent, local_files_only=True)
    assert Path(found) == folder / WEIGHTS


def test_cut_connection_is_resumed_with_a_range(hub):
    hub.cuts[WEIGHTS] = 100_000
    folder = fetch(MODEL)
    assert [request.range for request in hub.asked(WEIGHTS)] == [None, "bytes=100000-"]
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_a_later_call_goes_on_where_the_first_ended(hub):
    hub.cuts[WEIGHTS] = 100_000
    steps = []

    def report(done, total):
        steps.append(done)
        if total - done < len(hub.files[WEIGHTS]) and WEIGHTS not in hub.cuts:
            hub.failing.add(WEIGHTS)

    text = refused(progress=report)
    assert "503" in text
    assert "what came is kept" in text
    hub.failing.clear()
    hub.seen.clear()
    folder = fetch(MODEL)
    assert [request.range for request in hub.asked()] == ["bytes=100000-"]
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    assert not list(hub.cache.rglob("*.incomplete"))


def test_interrupt_keeps_what_came(hub):
    def interrupt(done, total):
        if done == total - len(hub.files[WEIGHTS]) + 100_000:  # the weights come last
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(MODEL, progress=interrupt)
    assert [path.stat().st_size for path in hub.cache.rglob("*.incomplete")] == [100_000]
    hub.seen.clear()
    fetch(MODEL)
    assert [request.range for request in hub.asked()] == ["bytes=100000-"]


def test_shards_and_their_index(hub, make_checkpoint, tmp_path):
    folder = make_checkpoint(tmp_path / "two", hidden=64, intermediate=128, layers=1, head_dim=32, shards=2)
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()} | EXTRAS
    with open_checkpoint(fetch(MODEL)) as checkpoint:
        assert len({tensor.path for tensor in checkpoint.tensors.values()}) == 2
    next(iter(hub.cache.rglob("snapshots/*/model-00002-of-00002.safetensors"))).unlink()
    assert "no complete copy" in refused(offline=True)


def test_offline(hub, monkeypatch):
    assert "no complete copy of revision main" in refused(offline=True)
    folder = fetch(MODEL)
    hub.seen.clear()
    assert fetch(MODEL, offline=True) == folder
    assert fetch(MODEL, revision=COMMIT, offline=True) == folder
    assert "revision dev" in refused(revision="dev", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch(MODEL) == folder
    (folder / WEIGHTS).unlink()
    assert "no complete copy" in refused()
    assert hub.seen == []


def test_an_interrupted_download_is_no_offline_copy(hub):
    hub.failing.add(WEIGHTS)
    refused()
    assert "no complete copy" in refused(offline=True)


def test_cache_variables(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert fetch(MODEL).is_relative_to(tmp_path / "other" / "models--Qwen--Qwen3-Tiny")


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", ["not there", "404", "HF_TOKEN"]),
        (401, None, ["not there", "401", "HF_TOKEN"]),
        (401, "GatedRepo", ["gated", "accept its terms", "HF_TOKEN"]),
        (403, "GatedRepo", ["gated", "accept its terms", "HF_TOKEN"]),
        (403, None, ["403", "HF_TOKEN"]),
        (404, "RevisionNotFound", ["no revision main"]),
        (429, None, ["too many requests", "429"]),
        (500, None, ["500", "HF_ENDPOINT", "mirror"]),
    ],
)
def test_refusals_of_the_hub(hub, status, code, words):
    hub.status, hub.code = status, code or "Other"
    text = refused()
    assert [word for word in [MODEL, hub.endpoint, *words] if word not in text] == [], text


def test_unknown_revision(hub):
    assert "no revision dev" in refused(revision="dev")


def test_nobody_listens(hub, monkeypatch, tmp_path):
    folder = fetch(MODEL)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    text = refused()
    assert "http://127.0.0.1:1 cannot be reached" in text
    assert "work offline with the copy in" in text
    assert "HF_ENDPOINT" in text
    assert fetch(MODEL, offline=True) == folder
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert "work offline" not in refused()


def test_no_answer_in_time(hub, monkeypatch):
    hub.stall = threading.Event()
    monkeypatch.setattr(hub_module, "_TIMEOUT_S", 0.2)
    assert f"{hub.endpoint} did not answer in time" in refused()


@pytest.mark.parametrize("page", [b"<html>Welcome to our hotel</html>", b"[]", b"{}", b'{"id": 1}', b"null"])
def test_another_page_than_a_hub(hub, page):
    hub.page = page
    assert hub.endpoint in refused()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"size": 10**6}, "broke the transfer off"),
        ({"size": 1000}, "sends more than the 1,000 bytes"),
        ({"lfs": {"sha256": "0" * 64, "size": 1, "pointerSize": 1}}, "the bytes hash to"),
        ({"size": -1}, "the hub gives size -1"),
        ({"size": None}, "the hub gives size None"),
        ({"lfs": {"sha256": "../../../evil", "size": 1, "pointerSize": 1}}, "../../../evil"),
    ],
)
def test_wrong_size_or_hash(hub, override, words):
    hub.overrides[WEIGHTS] = override
    assert words in refused()
    hub.overrides.clear()
    folder = fetch(MODEL)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]


def test_small_files_are_verified_too(hub):
    hub.overrides["config.json"] = {"blobId": "0" * 40}
    assert "config.json: the bytes hash to" in refused()
    assert not (hub.cache / "snapshots" / COMMIT / "config.json").exists()


def test_commit_is_no_path(hub):
    hub.commit = "../../evil"
    assert "../../evil" in refused()
    assert hub.asked() == []


def test_repository_without_safetensors(hub):
    del hub.files[WEIGHTS]
    text = refused()
    assert "has no model.safetensors" in text
    assert "pytorch_model.bin" in text
    assert hub.asked() == []


def test_disk_space_is_asked_first(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_340_000))
    hub.overrides[WEIGHTS] = {"size": 1_500_000_000}
    text = refused()
    assert "1.50 GB are to come" in text
    assert "0.01 GB are free" in text
    assert hub.asked() == []


def test_disk_that_fills_up(hub, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("converters.hub_file._Partial.write", full)
    text = refused()
    assert os.strerror(errno.ENOSPC) in text
    assert str(hub.cache.parent) in text


def test_a_complete_cache_is_not_written(hub):
    def state():
        return {path: path.lstat().st_mtime_ns for path in (hub.cache, *hub.cache.rglob("*"))}

    fetch(MODEL)
    before = state()
    fetch(MODEL)
    assert state() == before


def test_where_links_are_not_allowed(hub, monkeypatch):
    def refuse(*_, **__):
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = fetch(MODEL)
    assert not any(path.is_symlink() for path in folder.iterdir())
    hub.seen.clear()
    assert fetch(MODEL) == folder
    assert hub.asked() == []
    open_checkpoint(folder).close()


def test_cache_that_cannot_be_written(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    assert str(tmp_path / "file") in refused()


def test_token_goes_where_it_belongs(hub, monkeypatch):
    """Stored by a login: to huggingface.co alone. HF_TOKEN: also to a mirror, but not over plain HTTP."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "stored")
    fetch(MODEL)
    assert {request.token for request in hub.seen} == {None}
    assert hub_module._token("https://huggingface.co") == "stored"
    assert hub_module._token("https://mirror.example") is False
    monkeypatch.setenv("HF_TOKEN", "mine")
    hub.seen.clear()
    hub.failing.add("config.json")
    shutil.rmtree(hub.cache)
    assert "mine" not in refused()
    assert {request.token for request in hub.seen} == {"Bearer mine"}
    assert hub_module._token("https://mirror.example") == "mine"
    assert hub_module._token("http://mirror.example") is False
    assert hub_module._token("http://huggingface.co") is False


def test_another_host_serves_the_files(hub, monkeypatch):
    """As a hub's large files are: the range goes there, the token does not; nor is the signed address repeated."""
    hub.cdn = hub.endpoint.replace("127.0.0.1", "localhost")
    hub.cuts[WEIGHTS] = 100_000
    monkeypatch.setenv("HF_TOKEN", "mine")
    monkeypatch.setenv("NO_PROXY", "*")
    folder = fetch(MODEL)
    assert (folder / WEIGHTS).read_bytes() == hub.files[WEIGHTS]
    asked = [(request.host, request.token, request.range) for request in hub.asked(WEIGHTS)]
    here, there = (urlsplit(address).netloc for address in (hub.endpoint, hub.cdn))
    assert asked == [
        (here, "Bearer mine", None),
        (there, None, None),
        (here, "Bearer mine", "bytes=100000-"),
        (there, None, "bytes=100000-"),
    ]
    shutil.rmtree(hub.cache)
    hub.overrides[WEIGHTS] = {"size": 10**6}
    assert "secret" not in refused()


def test_user_agent_says_no_more_than_versions(hub):
    fetch(MODEL)
    assert all("edgeqwen" in request.agent for request in hub.asked())
    assert not any("torch" in request.agent for request in hub.seen)


@pytest.mark.parametrize(
    "model_id", ["", "..", "../x", "a/b/c", "a b", "/a", "a/", "a\n", "a/b?x", "a--b/c", "é/x", "a" * 300]
)
def test_ids_that_are_none(model_id):
    with pytest.raises(DownloadError, match="is no model id"):
        fetch(model_id, offline=True)


@pytest.mark.parametrize("revision", ["..", "../main", "a/../b", "-x", "a b", "main\n", "r" * 300])
def test_revisions_that_are_none(revision):
    with pytest.raises(DownloadError, match="is no revision"):
        fetch(MODEL, revision=revision, offline=True)


@pytest.mark.parametrize("endpoint", ["ftp://x", "huggingface.co", "https://me:secret@x", "http://"])
def test_endpoints_that_are_none(monkeypatch, endpoint):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(DownloadError, match="HF_ENDPOINT") as caught:
        fetch(MODEL)
    assert "secret" not in str(caught.value)


def test_a_config_is_fetched_alone(hub):
    path = fetch_config(MODEL)
    assert path.read_bytes() == hub.files["config.json"]
    assert [request.path.rpartition("/")[2] for request in hub.asked()] == ["config.json"]
    before = len(hub.seen)
    assert fetch_config(MODEL, offline=True) == path
    assert len(hub.seen) == before
    with pytest.raises(DownloadError, match="no complete copy"):  # a config is no checkpoint
        fetch(MODEL, offline=True)


def test_a_config_that_cannot_be_had(hub):
    with pytest.raises(DownloadError, match=r"no config\.json .* offline"):
        fetch_config(MODEL, offline=True)
    hub.overrides["config.json"] = {"size": 5 << 20}
    with pytest.raises(DownloadError, match="at most"):
        fetch_config(MODEL)
    del hub.files["config.json"]
    with pytest.raises(DownloadError, match=r"has no config\.json"):
        fetch_config(MODEL)
    hub.status = 404
    with pytest.raises(DownloadError, match="no revision main"):
        fetch_config(MODEL)


def test_a_hub_id_is_planned_for_without_its_weights(hub):
    from edgeqwen.prospect import prospect

    found = prospect(MODEL)
    assert (found.source, found.shape.num_hidden_layers) == ("config.json of the hub", 1)
    assert [request.path.rpartition("/")[2] for request in hub.asked()] == ["config.json"]
