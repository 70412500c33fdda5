"""The artifact on disk: what is written opens again, what is damaged or foreign is refused and left alone."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import random
import shutil

import pytest

from edgeqwen import artifact_writer
from edgeqwen.artifact import (
    Artifact,
    ArtifactWriter,
    Format,
    Manifest,
    Source,
    SourceFile,
    open_artifact,
    write_measured,
)
from edgeqwen.errors import ArtifactError, RequestError
from edgeqwen.folder_lock import FolderLock
from edgeqwen.manifest import dump_manifest, parse_manifest
from edgeqwen.types import ModelShape

SHAPE = ModelShape(
    architecture="qwen3", hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, vocab_size=100, max_position_embeddings=128, rms_norm_eps=1e-6,
    rope_theta=1e6, tie_word_embeddings=True,
    rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
)  # fmt: skip
MODEL = b"GGUF" + bytes(range(256)) * 20


def fill(writer: ArtifactWriter, model: bytes = MODEL) -> Manifest:
    draft = writer.create("model", "gguf")
    draft.file.write(model)
    weights = writer.seal(draft, hashlib.sha256(model).hexdigest())
    tokenizer = writer.add("tokenizer", "json", b"{}")
    config = writer.add("tokenizer_config", "json", b'{"a": 1}')
    template = writer.add("chat_template", "jinja", "{{ 'ü' }}".encode())
    return Manifest(
        name="Qwen3-ü", architecture="qwen3", shape=SHAPE, formats={"gguf": Format(weights, "Q8_0")},
        tokenizer=tokenizer, tokenizer_config=config, chat_template=template, trusted_template=False, end_ids=(7, 8),
        special_ids={"<|im_end|>": 7}, context_length=128, sampling={"temperature": 0.6, "top_k": 20.0},
        source=Source("Qwen3-ü", {"config.json": SourceFile(10, "a" * 64), "model.safetensors": SourceFile(99, None)}),
        versions={"llama-cpp-python": "0"}, files=dict(writer.files),
    )  # fmt: skip


def make(folder, model: bytes = MODEL) -> Artifact:
    with ArtifactWriter(folder) as writer:
        writer.commit(fill(writer, model), {"seconds": 1.5})
    return open_artifact(folder, verify="full")


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_is_written_opens_again(tmp_path) -> None:
    made = make(tmp_path / "new" / "artifact")
    assert made.manifest.shape == SHAPE
    assert made.manifest.end_ids == (7, 8)
    assert made.file("gguf").read_bytes() == MODEL
    assert made.file("chat_template").read_text("utf-8") == "{{ 'ü' }}"
    assert made.measured()["seconds"] == 1.5
    assert open_artifact(str(made.path)) == made
    for name, payload in made.manifest.files.items():
        raw = (made.path / name).read_bytes()
        assert (len(raw), hashlib.sha256(raw).hexdigest()) == (payload.size, payload.sha256)
        assert payload.sha256[:12] in name
    assert names(made.path) == {*made.manifest.files, "manifest.json", "measured.json"}


def test_the_same_content_is_the_same_bytes(tmp_path) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two")
    for name in {*one.manifest.files, "manifest.json"}:
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()
    assert str(tmp_path) not in (one.path / "manifest.json").read_text("utf-8")


def test_another_one_replaces_it_and_nothing_stays_behind(tmp_path) -> None:
    old = make(tmp_path / "a")
    new = make(tmp_path / "a", model=b"GGUF another")
    assert not old.file("gguf").exists()
    assert names(new.path) == {*new.manifest.files, "manifest.json", "measured.json"}
    assert make(tmp_path / "a", model=b"GGUF another") == new


def interrupt(folder) -> None:
    with ArtifactWriter(folder) as writer:
        fill(writer, b"GGUF other")
        raise KeyboardInterrupt


def test_an_error_before_the_commit_leaves_nothing(tmp_path) -> None:
    for folder in (tmp_path / "x" / "y", tmp_path / "old"):
        if folder.name == "old":
            make(folder)
        before = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None
        with pytest.raises(KeyboardInterrupt):
            interrupt(folder)
        assert before == ({path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else None)
    assert not (tmp_path / "x").exists()


def test_a_kind_that_is_not_there_is_told_what_is(tmp_path) -> None:
    with pytest.raises(RequestError, match="has no 'onnx'; it has gguf, tokenizer, tokenizer_config, chat_template"):
        make(tmp_path / "a").file("onnx")


def test_measurements_belong_to_one_manifest(tmp_path) -> None:
    made = make(tmp_path / "a")
    write_measured(made.path, b"another manifest", {"seconds": 9})
    assert made.measured() == {}
    write_measured(made.path, (made.path / "manifest.json").read_bytes(), {"seconds": 2})
    assert made.measured()["seconds"] == 2
    (made.path / "measured.json").unlink()
    assert made.measured() == {}
    assert open_artifact(made.path, verify="full") == made


def damage_size(folder, payload) -> None:
    with (folder / payload).open("ab") as file:
        file.write(b"x")


def damage_link(folder, payload) -> None:
    (folder / payload).rename(folder.parent / "elsewhere")
    (folder / payload).symlink_to(folder.parent / "elsewhere")


def damage_folder(folder, payload) -> None:
    (folder / payload).unlink()
    (folder / payload).mkdir()


def damage_absent(folder, payload) -> None:
    (folder / payload).unlink()


def damage_head(folder, payload) -> None:
    raw = (folder / payload).read_bytes()
    (folder / payload).write_bytes(b"FUGG" + raw[4:])


@pytest.mark.parametrize("damage", [damage_size, damage_link, damage_folder, damage_absent, damage_head])
def test_quick_verification_finds(damage, tmp_path) -> None:
    made = make(tmp_path / "a")
    damage(made.path, made.file("gguf").name)
    with pytest.raises(ArtifactError, match=made.file("gguf").name):
        open_artifact(made.path)


def test_full_verification_finds_every_flipped_bit(tmp_path) -> None:
    made = make(tmp_path / "a")
    for name in made.manifest.files:
        raw = bytearray((made.path / name).read_bytes())
        raw[-1] ^= 1
        (made.path / name).write_bytes(raw)
        assert open_artifact(made.path)
        with pytest.raises(ArtifactError, match=f"{name} has the sha256 .* damaged"):
            open_artifact(made.path, verify="full")
        raw[-1] ^= 1
        (made.path / name).write_bytes(raw)


ENTRY = {"size": 1, "sha256": "a" * 64}


def no_hashes(manifest):
    return manifest | {"files": {name: entry | {"sha256": "x"} for name, entry in manifest["files"].items()}}


CHANGES = {
    "unknown key": (lambda m: m | {"extra": 1}, "extra is a key"),
    "unknown key in the shape": (lambda m: m | {"shape": m["shape"] | {"sliding": 1}}, "shape.sliding is a key"),
    "missing key": (lambda m: {k: v for k, v in m.items() if k != "end_ids"}, "end_ids is missing"),
    "another version": (lambda m: m | {"format_version": 2}, "format_version is 2"),
    "version as a bool": (lambda m: m | {"format_version": True}, "format_version"),
    "name is a number": (lambda m: m | {"name": 3}, "name is 3; str"),
    "flag is a number": (lambda m: m | {"trusted_template": 1}, "trusted_template is 1; bool"),
    "size is a bool": (lambda m: m | {"shape": m["shape"] | {"hidden_size": True}}, "shape.hidden_size is True; int"),
    "size is a float": (lambda m: m | {"shape": m["shape"] | {"hidden_size": 1.0}}, "shape.hidden_size is 1.0; int"),
    "negative size": (lambda m: m | {"shape": m["shape"] | {"hidden_size": -1}}, "not positive"),
    "huge size": (lambda m: m | {"shape": m["shape"] | {"vocab_size": 2**40}}, "too large"),
    "context of 0": (lambda m: m | {"context_length": 0}, "not positive"),
    "another architecture": (lambda m: m | {"architecture": "qwen2"}, "architecture 'qwen2'"),
    "no format": (lambda m: m | {"formats": {}}, "formats is empty"),
    "format is a list": (lambda m: m | {"formats": []}, "formats is .*; Mapping"),
    "no end id": (lambda m: m | {"end_ids": []}, "end_ids is empty"),
    "end id outside": (lambda m: m | {"end_ids": [100]}, "outside"),
    "end id as text": (lambda m: m | {"end_ids": ["7"]}, "end_ids is '7'; int"),
    "special id outside": (lambda m: m | {"special_ids": {"<x>": -1}}, "outside"),
    "sampling is text": (lambda m: m | {"sampling": {"top_p": "1"}}, "sampling.top_p is '1'; float"),
    "path as a file name": (lambda m: m | {"files": m["files"] | {"../x": ENTRY}}, "plain"),
    "absolute file name": (lambda m: m | {"files": m["files"] | {"/x": ENTRY}}, "plain"),
    "manifest in files": (lambda m: m | {"files": m["files"] | {"manifest.json": ENTRY}}, "plain"),
    "hash that is none": (no_hashes, "impossible"),
    "unlisted tokenizer": (lambda m: m | {"tokenizer": "other.json"}, "'other.json', which is not in files"),
    "unlisted weights": (lambda m: m | {"formats": {"gguf": {"file": "x.gguf", "type": "Q8_0"}}}, "'x.gguf', which"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_manifests_that_are_refused_name_the_key(change, message, tmp_path) -> None:
    path = make(tmp_path / "a").path / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text("utf-8")))), "utf-8")
    with pytest.raises(ArtifactError, match=message):
        open_artifact(tmp_path / "a")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"format_version": NaN}',
        b"\xff",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 9999 + b"}",
    ],
    ids=["empty", "list", "cut", "twice", "NaN", "no UTF-8", "deep", "long number"],
)
def test_manifests_that_are_no_json_objects(raw: bytes, tmp_path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_artifact(tmp_path)


def test_a_manifest_that_is_too_long_or_no_file_is_not_read(tmp_path) -> None:
    (tmp_path / "manifest.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(ArtifactError, match="2097152 bytes"):
        open_artifact(tmp_path)
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(ArtifactError, match="no regular file"):
        open_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="no folder"):
        open_artifact(tmp_path / "absent")


def test_mutated_manifests_end_in_an_artifact_error(tmp_path) -> None:
    raw = (make(tmp_path / "a").path / "manifest.json").read_bytes()
    rng = random.Random(3)
    for _ in range(3000):
        changed = bytearray(raw)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed))
            changed[at : at + rng.randint(0, 4)] = rng.choice(
                [b"", b"0", b"-", b'"', b"{", b"[", b"null", b"\xff", b"1e999"]
            )
        with contextlib.suppress(ArtifactError):
            parse_manifest(bytes(changed), "manifest.json")


def test_a_manifest_is_one_text(tmp_path) -> None:
    manifest = make(tmp_path / "a").manifest
    assert parse_manifest(dump_manifest(manifest), "x") == manifest
    reordered = dataclasses.replace(manifest, files=dict(reversed(manifest.files.items())))
    assert dump_manifest(reordered) == dump_manifest(manifest)


def test_targets_that_are_refused_are_left_alone(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"name": "another program"}')
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    for name, message in {
        "file": "is a file", "full": "thesis.txt", "foreign": "manifest.json", "checkpoint": "checkpoint's own",
        "link": "symbolic link",
    }.items():  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        with (
            pytest.raises(ArtifactError, match=message),
            ArtifactWriter(tmp_path / name, source=tmp_path / "checkpoint"),
        ):
            raise AssertionError("not to be reached")
        assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(
        artifact_writer.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 12_345)
    )
    with (
        pytest.raises(ArtifactError, match="needs 12,346 bytes and the disk has 12,345 free"),
        ArtifactWriter(tmp_path / "a") as w,
    ):
        w.reserve(12_346)
    assert names(tmp_path) == set()
    with ArtifactWriter(tmp_path / "a") as writer:
        writer.reserve(12_345)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_is_an_artifact_error_and_the_old_one_stays(number, tmp_path, monkeypatch) -> None:
    old = make(tmp_path / "a")

    def fail(handle) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(artifact_writer.os, "fsync", fail)
    with pytest.raises(ArtifactError, match=os.strerror(number)):
        make(tmp_path / "a", model=b"GGUF new")
    monkeypatch.undo()
    assert open_artifact(tmp_path / "a", verify="full") == old
    assert names(old.path) == {*old.manifest.files, "manifest.json", "measured.json"}


def test_two_writers_do_not_meet(tmp_path) -> None:
    with ArtifactWriter(tmp_path / "a") as first:
        with pytest.raises(ArtifactError, match="another run"), ArtifactWriter(tmp_path / "a"):
            raise AssertionError("not to be reached")
        first.commit(fill(first), {})
    assert open_artifact(tmp_path / "a", verify="full").path == tmp_path / "a"


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path) -> None:
    first = FolderLock(tmp_path)
    (tmp_path / FolderLock.NAME).unlink()
    second = FolderLock(tmp_path)
    second.release()
    first.release()
    assert names(tmp_path) == set()


def test_leftovers_of_a_killed_run_are_removed_and_nothing_else(tmp_path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / ".edgeqwen-model.tmp").write_bytes(b"half")
    (folder / ".edgeqwen.lock").touch()
    orphan = f"model-{'0' * 12}.gguf"
    (folder / orphan).write_bytes(b"renamed, and then killed")
    (folder / ".edgeqwen-switch.tmp").write_text(json.dumps({orphan: ""}))
    made = make(folder)
    mine = {"notes-0123456789ab.json", f"model-{'1' * 12}.gguf"}  # somebody's, whatever it looks like
    for name in mine:
        (folder / name).write_text("mine")
    (folder / ".edgeqwen-tokenizer.tmp").write_bytes(b"half")
    again = make(folder, model=b"GGUF new")
    assert names(folder) == {*again.manifest.files, "manifest.json", "measured.json", *mine}
    assert made.manifest.files != again.manifest.files


@pytest.mark.parametrize("switch", [None, "", "[]", '{"model-000000000000.gguf": ', '{"../model": 1}'])
def test_a_file_that_looks_like_a_payload_makes_a_folder_somebodys(tmp_path, switch) -> None:
    """Where no list of a switch names it, or one that was cut off before anything was renamed."""
    name = f"model-{'0' * 12}.gguf"
    (tmp_path / name).write_text("mine")
    if switch is not None:
        (tmp_path / ".edgeqwen-switch.tmp").write_text(switch)
    with pytest.raises(ArtifactError, match=f"not empty.*{name}"):
        make(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_payload_that_a_later_run_would_not_recognize_is_refused(tmp_path) -> None:
    with ArtifactWriter(tmp_path / "a") as writer, pytest.raises(ValueError, match="recognize"):
        writer.create("notes", "txt")


def test_permissions_follow_the_umask(tmp_path) -> None:
    old = os.umask(0o027)
    try:
        made = make(tmp_path / "a")
    finally:
        os.umask(old)
    assert {made.file("gguf").stat().st_mode & 0o777, (made.path / "manifest.json").stat().st_mode & 0o777} == {0o640}
