"""Packs: what goes in, what is refused, what an interruption leaves; the index is a stand-in."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from pack_kit import Index

from edgeqwen import pack as pack_module
from edgeqwen.cli import edgeqwen
from edgeqwen.errors import ArtifactBusyError, ArtifactError, DownloadError, RequestError
from edgeqwen.folder_lock import FolderLock
from edgeqwen.native_engine import LLAMA_VERSION
from edgeqwen.own_wheel import write_own_wheel
from edgeqwen.pack import pack
from edgeqwen.pack_engine import find_engine
from edgeqwen.pack_target import target_of
from edgeqwen.pack_wheels import needed_wheels

ARM = target_of("linux-aarch64", "3.11,3.13")
ROOTS = {
    "edgeqwen": [
        "numpy>=1", 'onnxruntime; extra == "onnx"', 'starlette; extra == "serve"',
        'llama-cpp-python; extra == "llama"',
    ],
    "numpy": [],
    "onnxruntime": ['typing-extensions; python_version < "3.13"', 'winonly; sys_platform == "win32"'],
    "starlette": ["anyio[trio]>=3"],
    "anyio": [
        'only-x86; platform_machine == "x86_64"', 'only-arm; platform_machine == "aarch64"', 'trio; extra == "trio"',
    ],
    "typing-extensions": [],
    "only-x86": [],
    "only-arm": [],
    "trio": [],
    "llama-cpp-python": ["diskcache"],
    "diskcache": [],
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_wheel(monkeypatch):
    """Our own wheel is made once, below; elsewhere a small file stands in for it."""

    def write(folder):
        path = folder / "edgeqwen-1.0-py3-none-any.whl"
        path.write_bytes(b"our own wheel")
        return path

    monkeypatch.setattr(pack_module, "write_own_wheel", write)


@pytest.fixture
def index():
    return Index(**ROOTS)


@pytest.fixture(scope="session")
def onnx(nano_artifact):
    return nano_artifact("q4_0", "onnx")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def engine_wheels(folder, machine="aarch64", glibc=36):
    folder.mkdir()
    name = f"edgeqwen_engine-{LLAMA_VERSION}-py3-none-manylinux_2_{glibc}_{machine}.whl"
    for path in (folder / name, folder / f"llama_cpp_python-{LLAMA_VERSION}-py3-none-any.whl"):
        path.write_bytes(path.name.encode())
    return folder


# Which wheels.


def test_what_the_target_needs_and_nothing_else(index):
    """pip runs on Python 3.13 and x86-64 here: it leaves out what older Pythons and ARM need, and brings only-x86."""
    names = {wheel.name for wheel in needed_wheels(["pip", "onnxruntime", "starlette"], ARM, "3.11", index)}
    assert names == {"pip", "onnxruntime", "starlette", "anyio", "trio", "only-arm", "typing-extensions"}
    assert "typing-extensions" not in {wheel.name for wheel in needed_wheels(["onnxruntime"], ARM, "3.13", index)}
    x86 = target_of("linux-x86_64", "3.13")
    names = {wheel.name for wheel in needed_wheels(["anyio"], x86, "3.13", index)}
    assert names == {"anyio", "only-x86"}, "an extra that nobody asked for stays away"


def test_a_wheel_that_does_not_exist_is_an_error(index):
    with pytest.raises(DownloadError, match="no matching distribution found for quantum"):
        needed_wheels(["quantum"], ARM, "3.11", index)


@pytest.mark.parametrize(
    "report",
    ["", "[]", "{}", '{"install": [{}]}', '{"install": 3}'],
)
def test_a_report_that_makes_no_sense_is_an_error(report):
    with pytest.raises(DownloadError, match="report cannot be read"):
        needed_wheels(["pip"], ARM, "3.11", lambda _: report)


@pytest.mark.parametrize("file", ["x.tar.gz", "", "..", "a%20b.whl", "a%00.whl"])
def test_a_report_cannot_name_a_file_elsewhere(file):
    info = {"url": f"https://index.invalid/{file}", "archive_info": {"hashes": {"sha256": "a" * 64}}}
    report = {"install": [{"metadata": {"name": "pip", "version": "1"}, "download_info": info}]}
    with pytest.raises(DownloadError, match="no wheel that can be checked"):
        needed_wheels(["pip"], ARM, "3.11", lambda _: json.dumps(report))
    info["url"] = "https://index.invalid/%2e%2e%2f..%2fx-1-py3-none-any.whl"
    (wheel,) = needed_wheels(["pip"], ARM, "3.11", lambda _: json.dumps(report))
    assert wheel.file == "x-1-py3-none-any.whl"


# For whom.


@pytest.mark.parametrize("name", ["linux-armv7l", "linux-armv6l", "armhf", "linux-i686", "win32"])
def test_32_bit_systems_are_refused_with_the_reason(name):
    with pytest.raises(RequestError, match=r"32-bit system: neither llama\.cpp's engine nor onnxruntime is built"):
        target_of(name, "3.11")


def test_other_targets_are_refused_with_what_there_is():
    with pytest.raises(RequestError, match="there are linux-x86_64, linux-aarch64"):
        target_of("linux-riscv64", "3.11")
    for pythons in ("2.7", "3.10", "3", "", "3.11;3.12", "3.-1"):
        with pytest.raises(RequestError, match=r"there are 3\.11 to"):
            target_of("linux-aarch64", pythons)
    assert target_of("linux-aarch64", "3.13, 3.11,3.13").pythons == ("3.13", "3.11")


def test_tags_are_those_of_old_systems_only():
    assert "manylinux_2_28_aarch64" in ARM.tags
    assert "manylinux2014_aarch64" in ARM.tags
    assert not [tag for tag in ARM.tags if "x86" in tag or tag.startswith(("manylinux_2_29", "manylinux_2_3"))]


# The pack.


def test_a_pack_has_all_of_it_and_checksums(index, onnx, tmp_path):
    report = pack(onnx, ARM, tmp_path / "nano-arm", pip=index)
    found = contents(tmp_path / "nano-arm")
    sums = dict(reversed(line.split("  ")) for line in found["SHA256SUMS"].decode().splitlines())
    assert sums == {name: hashlib.sha256(data).hexdigest() for name, data in found.items() if name != "SHA256SUMS"}
    assert {name for name in found if "/" not in name} == {
        "README.md", "README.zh.md", "install.sh", "edgeqwen.service", "pack.json", "SHA256SUMS",
    }  # fmt: skip
    assert contents(tmp_path / "nano-arm" / "model").keys() == {
        name for name in contents(onnx) if not name.startswith(".")
    }
    assert {name.removeprefix("wheels/").split("-")[0] for name in found if name.startswith("wheels/")} == {
        "edgeqwen", "pip", "numpy", "onnxruntime", "starlette", "anyio", "trio", "only_arm", "typing_extensions",
    }  # fmt: skip
    assert report.fetched == 8
    assert report.formats == ("onnx",)
    assert report.bytes == sum(map(len, found.values()))
    assert json.loads(found["pack.json"])["target"] == "linux-aarch64"
    assert [path.name for path in tmp_path.iterdir()] == ["nano-arm"], "nothing else is left"


def test_texts_are_filled_in(index, onnx, tmp_path):
    pack(onnx, ARM, tmp_path / "p", pip=index)
    for name in ("README.md", "README.zh.md", "install.sh"):
        text = (tmp_path / "p" / name).read_text("utf-8")
        assert not set(re.findall(r"@([A-Z]+)@", text)) - {"FOLDER", "USER"}, name
        assert "3.11 3.13" in text
    script = (tmp_path / "p/install.sh").read_text()
    assert f"'edgeqwen[serve,onnx]=={pack_module.version('edgeqwen')}'" in script
    assert "GLIBC='28'" in script
    assert "edgeqwen-engine" not in script


def test_gguf_needs_the_engine(index, nano_artifact, onnx, tmp_path):
    gguf, both = nano_artifact("q8_0"), nano_artifact("int8", "gguf", "onnx")
    with pytest.raises(RequestError, match="edgeqwen engine build --for linux-aarch64"):
        pack(gguf, ARM, tmp_path / "no", pip=index)
    assert not list(tmp_path.iterdir())
    assert pack(both, ARM, tmp_path / "half", pip=index).left_out == ("gguf",)
    engine = find_engine([engine_wheels(tmp_path / "dist")], ARM)
    report = pack(gguf, ARM, tmp_path / "yes", engine=engine, pip=index)
    assert (report.formats, report.glibc) == (("gguf",), "2.36")
    assert {engine.engine.name, engine.python.name, "diskcache-1.0-py3-none-any.whl"} <= set(report.wheels)
    assert not [name for name in report.wheels if name.startswith("onnxruntime")]
    script = (tmp_path / "yes/install.sh").read_text()
    assert f"'edgeqwen-engine=={LLAMA_VERSION}'" in script
    assert "GLIBC='36'" in script


def test_an_engine_for_another_machine_is_refused(tmp_path, monkeypatch):
    folder = engine_wheels(tmp_path / "dist", "x86_64")
    with pytest.raises(RequestError, match="are needed: edgeqwen engine build --for linux-aarch64"):
        find_engine([folder], ARM)
    with pytest.raises(RequestError, match="is not there"):
        find_engine([tmp_path / "absent"], ARM)
    (wheel,) = folder.glob("edgeqwen_engine-*")
    found = find_engine([wheel], target_of("linux-x86_64", "3.11"))
    assert found.python.parent == folder, "the other wheel lies beside it"
    monkeypatch.chdir(tmp_path)
    assert find_engine([], ARM) is None
    assert find_engine([], target_of("linux-x86_64", "3.11")).glibc == 36


def test_what_was_fetched_is_kept(index, onnx, tmp_path):
    index.breaks_at = 5
    with pytest.raises(DownloadError, match="connection was lost"):
        pack(onnx, ARM, tmp_path / "p", pip=index)
    assert not (tmp_path / "p").exists()
    index.breaks_at = None
    assert pack(onnx, ARM, tmp_path / "p", pip=index).fetched == 8 - 5
    assert len(index.fetched) == len(set(index.fetched)) == 8


def test_it_appears_whole_wherever_it_is_stopped(index, onnx, tmp_path):
    labels = []
    pack(onnx, ARM, tmp_path / "whole.tar", pip=index, progress=lambda done, total, label: labels.append((label, done)))
    assert len({label for label, _ in labels}) >= 6
    whole = (tmp_path / "whole.tar").read_bytes()
    for stop in range(0, len(labels), 3):
        calls = iter(range(len(labels)))

        def stopping(*_, stop=stop, calls=calls):
            if next(calls) == stop:
                raise KeyboardInterrupt

        out = tmp_path / "again" / "whole.tar"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        with pytest.raises(KeyboardInterrupt):
            pack(onnx, ARM, out, pip=index, progress=stopping)
        assert not out.exists()
    pack(onnx, ARM, out, pip=index)
    assert out.read_bytes() == whole, "after an interruption it is the same, to the byte"


def test_leftovers_of_another_run_do_not_get_in(index, onnx, tmp_path):
    for name in ("wheels/old-1.0-py3-none-any.whl", "model/old.gguf"):
        path = tmp_path / "p.partial/p" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"old")
    bad = tmp_path / "p.partial/p/wheels" / index.file("numpy")
    bad.write_bytes(b"half of i")
    pack(onnx, ARM, tmp_path / "p", pip=index)
    assert not [name for name in contents(tmp_path / "p") if "old" in name]
    assert (tmp_path / "p/wheels" / bad.name).read_bytes() == index.data("numpy")


def test_other_bytes_than_the_index_promised_are_refused(index, onnx, tmp_path):
    index.forged = {"numpy"}
    with pytest.raises(DownloadError, match=r"numpy-1\.0.*the index gave"):
        pack(onnx, ARM, tmp_path / "p", pip=index)


def test_what_is_there_is_never_overwritten_and_two_do_not_mix(index, onnx, tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(RequestError, match="is there already"):
        pack(onnx, ARM, tmp_path / "p", pip=index)
    with pytest.raises(RequestError, match=r"a folder or a \.tar file"):
        pack(onnx, ARM, tmp_path / "p.zip", pip=index)
    with pytest.raises(RequestError, match="in the artifact itself"):
        pack(onnx, ARM, onnx / "p", pip=index)
    (tmp_path / "q.partial").mkdir()
    lock = FolderLock(tmp_path / "q.partial")
    with pytest.raises(ArtifactBusyError):
        pack(onnx, ARM, tmp_path / "q", pip=index)
    lock.release()
    pack(onnx, ARM, tmp_path / "q", pip=index)


def test_a_damaged_model_is_not_packed(index, onnx, tmp_path):
    folder = shutil.copytree(onnx, tmp_path / "nano")
    (weights,) = folder.glob("*.data")
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        pack(folder, ARM, tmp_path / "p", pip=index)
    with pytest.raises(RequestError, match="is no artifact"):
        pack(tmp_path, ARM, tmp_path / "p", pip=index)


def test_a_models_name_commands_nothing(index, onnx, tmp_path):
    folder = shutil.copytree(onnx, tmp_path / "nano")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["name"] = "x\nExecStartPre=/bin/false `id` $(id)"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    pack(folder, ARM, tmp_path / "p", pip=index)
    unit = (tmp_path / "p/edgeqwen.service").read_text()
    assert not [line for line in unit.splitlines() if line.startswith("ExecStartPre")]
    assert not re.search(r"[`$(]", unit)


def test_the_tar_file_has_neither_owner_nor_time(index, onnx, tmp_path):
    pack(onnx, ARM, tmp_path / "p.tar", pip=index)
    with tarfile.open(tmp_path / "p.tar") as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "out", filter="data")
    assert {(m.uid, m.gid, m.mtime, m.uname) for m in members} == {(0, 0, 0, "")}
    assert {m.name.split("/")[0] for m in members} == {"p"}
    pack(onnx, ARM, tmp_path / "folder/p", pip=index)
    assert contents(tmp_path / "out/p") == contents(tmp_path / "folder/p")


def test_our_own_wheel_is_one(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    path = write_own_wheel(tmp_path / "a")
    assert path.read_bytes() == write_own_wheel(tmp_path / "b").read_bytes()
    words = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", tmp_path / "there", path]
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    for name in (
        "edgeqwen/py.typed",
        "edgeqwen/nano/model.safetensors",
        "edgeqwen/pack_files/install.sh",
        "converters",
    ):
        assert (tmp_path / "there" / name).exists(), name
    assert (tmp_path / "there/bin/edgeqwen").exists()
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if "__pycache__" in name]
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


# install.sh, as far as it comes without wheels.


@pytest.fixture
def stick(index, onnx, tmp_path):
    """A pack for ARM, and a runner of its install.sh in which programs stand in for those of a board."""
    pack(onnx, target_of("linux-aarch64", "3.11"), tmp_path / "p", pip=index)

    def run(*words, machine="aarch64", bits="64", libc="glibc 2.36", python="3.11", user="1000", **others):
        bin_folder = tmp_path / "bin"
        bin_folder.mkdir(exist_ok=True)
        answers = {
            "uname": f'[ "$1" = -s ] && echo Linux || echo {machine}',
            "getconf": f'[ "$1" = LONG_BIT ] && echo {bits} && exit; ' + (f"echo {libc}" if libc else "exit 1"),
            "id": f"echo {user}",
            "python3": f"echo {python}",
            "python3.11": f"echo {python}",
        }
        for name, body in answers.items():
            (bin_folder / name).write_text(f"#!/bin/sh\n{body}\n")
            (bin_folder / name).chmod(0o755)
        return subprocess.run(
            ["sh", tmp_path / "p/install.sh", *map(str, words)],
            env={"PATH": f"{bin_folder}{os.pathsep}/usr/bin:/bin", "HOME": str(tmp_path / "home"), **others},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="install.sh is for Linux, where sha256sum is")
class TestInstall:
    """Programs of the test stand in for uname, getconf and python3 of boards that are not here."""

    @pytest.mark.parametrize(
        ("board", "told"),
        [
            ({"bits": "32"}, "32-bit system, for which no engine is built: install the 64-bit system"),
            ({"machine": "x86_64"}, "for aarch64, and this is x86_64: pack again with --for linux-x86_64"),
            ({"libc": "glibc 2.24"}, "has glibc 2.24, and the wheels need glibc 2.28"),
            ({"libc": ""}, "has no glibc"),
            ({"python": "3.12"}, "no Python here is one of 3.11: pack again with --python 3.12"),
        ],
    )
    def test_a_machine_that_does_not_fit_is_told_why(self, stick, tmp_path, board, told):
        done = stick(**board)
        assert done.returncode == 1
        assert told in done.stderr
        assert not (tmp_path / "home").exists(), "nothing was installed"

    def test_a_damaged_pack_is_not_installed(self, stick, tmp_path):
        (tmp_path / "p/wheels/numpy-1.0-py3-none-any.whl").write_bytes(b"half")
        done = stick()
        assert done.returncode == 1
        assert "the pack is damaged: copy it again" in done.stderr
        assert "numpy" in done.stdout + done.stderr

    def test_options_are_checked_and_help_helps(self, stick):
        assert "--nonsense is no option; there are --to FOLDER" in stick("--nonsense").stderr
        assert "--to needs a value" in stick("--to").stderr
        assert "without spaces" in stick("--to", "/tmp/a b; id").stderr
        assert "sh install.sh [--to FOLDER]" in stick("--help").stdout

    @pytest.mark.parametrize("name", ["venv", "model", "venv.new", "model.new"])
    def test_what_it_did_not_install_stays(self, stick, tmp_path, name):
        mine = tmp_path / "home" / name / "mine.txt"
        mine.parent.mkdir(parents=True)
        mine.touch()
        done = stick("--to", tmp_path / "home")
        assert done.returncode == 1
        assert f"home holds a {name} that this did not install: give --to a new folder" in done.stderr
        assert mine.exists()
        (tmp_path / "home/.edgeqwen-installed").touch()
        assert "installing into" in stick("--to", tmp_path / "home").stdout

    def test_a_service_asks_for_root_before_anything_is_done(self, stick, tmp_path):
        done = stick("--service")
        assert done.stderr == "install.sh: --service needs root: sudo sh install.sh --service\n"
        assert not (tmp_path / "home").exists()


# The command.


def test_the_command(index, onnx, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "run_pip", index)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(edgeqwen, ["pack", str(onnx), "--python", "3.11", "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert Path(data["path"]) == tmp_path / f"{onnx.name}-linux-aarch64"
    assert data["fetched"] == len(data["wheels"]) - 1 == 8
    result = CliRunner().invoke(edgeqwen, ["pack", str(onnx), "--python", "3.11", "-o", "x.tar"])
    assert "on the machine: tar xf x.tar, and there: sh install.sh" in result.stdout
    assert result.stderr == ""
    index.fetched.clear()
    index.breaks_at = 3
    result = CliRunner().invoke(edgeqwen, ["pack", str(onnx), "--python", "3.11", "-o", "y"])
    assert "y.partial keeps what is there so far: pack again to go on, or remove it" in result.stderr
    result = CliRunner().invoke(edgeqwen, ["pack", str(onnx), "--for", "linux-armv7l"], standalone_mode=False)
    assert isinstance(result.exception, RequestError)
