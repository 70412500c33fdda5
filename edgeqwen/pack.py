"""An artifact -> one folder or tar file that installs it on a machine without a network; nothing is installed here.

What an interruption has left is kept beside the goal, and the next run goes on with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from edgeqwen.artifact import Artifact, is_artifact, open_artifact
from edgeqwen.errors import RequestError
from edgeqwen.file_hash import sha256_of
from edgeqwen.folder_lock import FolderLock
from edgeqwen.manifest import MANIFEST, MEASURED
from edgeqwen.native_engine import LLAMA_VERSION
from edgeqwen.own_wheel import write_own_wheel
from edgeqwen.pack_engine import EngineWheels
from edgeqwen.pack_target import GLIBC_LEAST, Target
from edgeqwen.pack_wheels import Needed, fetch_wheel, needed_wheels
from edgeqwen.pip import Pip, run_pip

FORMAT = 1
SUMS, DESCRIPTION = "SHA256SUMS", "pack.json"
TEXTS = ("install.sh", "edgeqwen.service", "README.md", "README.zh.md")
ENGINES = {"gguf": "GGUF, llama.cpp", "onnx": "ONNX, ONNX Runtime"}
OTHER_ARCHIVES = (".zip", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".7z")
FAT32_BYTES = (1 << 32) - 1  # the largest file on a stick as it is bought
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was packed; `fetched` wheels were not there before, `left_out` formats have no engine in the pack."""

    path: str
    target: str
    pythons: tuple[str, ...]
    glibc: str
    formats: tuple[str, ...]
    left_out: tuple[str, ...]
    bytes: int
    model_bytes: int
    wheels: tuple[str, ...]
    fetched: int
    largest_bytes: int


def pack(
    path: Path,
    target: Target,
    out: Path,
    *,
    engine: EngineWheels | None = None,
    pip: Pip | None = None,
    progress: Progress | None = None,
) -> PackReport:
    """Pack an artifact for a machine into `out`: a folder, or one file where the name ends in .tar.

    `engine` is needed for GGUF. RequestError, ArtifactError and DownloadError before `out` is there; it appears whole.
    """
    say, pip = progress or (lambda *_: None), pip or run_pip
    out = out.absolute()
    if out.exists():
        raise RequestError(f"{out} is there already: remove it, or give --out another name")
    if not is_artifact(path):
        raise RequestError(f"{path} is no artifact: edgeqwen convert makes one, which can be packed")
    if out.suffix in OTHER_ARCHIVES:
        raise RequestError(f"{out.name}: a pack is a folder or a .tar file, for wheels and weights do not get smaller")
    if out.resolve().is_relative_to(path.resolve()):
        raise RequestError(f"{out} is in the artifact itself: give --out a name outside of it")
    say(0, 1, "checking every byte of the model")
    artifact = open_artifact(path, verify="full")
    formats, left_out = _formats(artifact, engine, target)
    draft = draft_of(out)
    content = draft / out.name.removesuffix(".tar")
    (content / "wheels").mkdir(parents=True, exist_ok=True)
    lock = FolderLock(draft)
    try:
        wheels, fetched = _wheels(content / "wheels", target, formats, engine, pip, say)
        model_bytes = _copy_model(artifact, content / "model", say)
        glibc = max(GLIBC_LEAST, engine.glibc if engine else 0)
        facts = {
            "format": FORMAT, "edgeqwen": version("edgeqwen"), "model": artifact.manifest.name,
            "target": target.name, "pythons": target.pythons, "glibc": f"2.{glibc}", "formats": formats,
            "wheels": wheels,
        }  # fmt: skip
        _write(content / DESCRIPTION, json.dumps(facts, indent=1) + "\n")
        _texts(content, _words(artifact, target, formats, glibc))
        sizes = _sums(content, say)
        _finish(content, out, say)
    finally:
        lock.release()
    shutil.rmtree(draft)
    return PackReport(
        str(out), target.name, target.pythons, f"2.{glibc}", formats, left_out, sum(sizes.values()), model_bytes,
        tuple(wheels), fetched, max(sizes.values()),
    )  # fmt: skip


def draft_of(out: Path) -> Path:
    """Where a pack is made, and kept for the next time while it is not whole."""
    return out.with_name(f"{out.name}.partial")


def _formats(
    artifact: Artifact, engine: EngineWheels | None, target: Target
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The formats that will run there, and those that have no engine; RequestError where none will."""
    there = tuple(artifact.manifest.formats)
    runs = tuple(name for name in there if name == "onnx" or (name == "gguf" and engine is not None))
    if not runs:
        raise RequestError(
            f"{artifact.path} is there as {', '.join(there)}, and llama.cpp has no wheels to download: "
            f"edgeqwen engine build --for {target.name}, then pack with --engine-wheel dist; or convert with --to onnx"
        )
    return runs, tuple(name for name in there if name not in runs)


def _wheels(
    folder: Path, target: Target, formats: Sequence[str], engine: EngineWheels | None, pip: Pip, say: Progress
) -> tuple[list[str], int]:
    """Bring every wheel into a folder, and no other; their names, and how many had to be fetched."""
    own = write_own_wheel(folder)
    extras = ["serve", *(["onnx"] if "onnx" in formats else []), *(["llama"] if "gguf" in formats else [])]
    roots = ["pip", f"edgeqwen[{','.join(extras)}] @ {own.as_uri()}"]
    local = [own]
    if "gguf" in formats and engine is not None:
        local += [Path(shutil.copy(path, folder)) for path in (engine.engine, engine.python)]
        roots.append(f"llama-cpp-python @ {local[-1].as_uri()}")
    needed: dict[str, Needed] = {}
    for number, python in enumerate(target.pythons):
        say(number, len(target.pythons), f"asking what Python {python} needs")
        needed |= {wheel.file: wheel for wheel in needed_wheels(roots, target, python, pip) if not wheel.local}
    fetched = 0
    for number, wheel in enumerate(needed.values()):
        say(number, len(needed), f"fetching {len(needed)} wheels")
        fetched += fetch_wheel(wheel, folder, target, pip)
    names = sorted({*needed, *(path.name for path in local)})
    _only(folder, names)
    return names, fetched


def _copy_model(artifact: Artifact, folder: Path, say: Progress) -> int:
    """Copy what the manifest names, and what was measured; files that are there with the right hash stay."""
    folder.mkdir(exist_ok=True)
    payloads = artifact.manifest.files
    done, total = 0, sum(payload.size for payload in payloads.values())
    for name, payload in payloads.items():
        say(done, max(1, total), "copying the model")
        copy = folder / name
        if not (copy.is_file() and copy.stat().st_size == payload.size and sha256_of(copy) == payload.sha256):
            shutil.copyfile(artifact.path / name, copy)
        done += payload.size
    others = [name for name in (MANIFEST, MEASURED) if (artifact.path / name).is_file()]
    for name in others:
        shutil.copyfile(artifact.path / name, folder / name)
    _only(folder, [*payloads, *others])
    open_artifact(folder, verify="full")  # a source that changed meanwhile, or a stick that is full of holes
    return total


def _only(folder: Path, names: Sequence[str]) -> None:
    """Remove what an earlier run has left."""
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()


def _words(artifact: Artifact, target: Target, formats: Sequence[str], glibc: int) -> dict[str, str]:
    """What the texts say of this pack; the model's name is somebody else's: nothing but letters and few signs."""
    extras = ",".join(["serve", *({"gguf": "llama", "onnx": "onnx"}[name] for name in formats)])
    requirements = [f"'edgeqwen[{extras}]=={version('edgeqwen')}'"]
    if "gguf" in formats:
        requirements.append(f"'edgeqwen-engine=={LLAMA_VERSION}'")
    return {
        "MODEL": re.sub(r"[^\w.+ -]", "_", artifact.manifest.name)[:100],
        "PLATFORM": target.name,
        "MACHINE": target.machine,
        "PYTHONS": " ".join(target.pythons),
        "GLIBC": str(glibc),
        "VERSION": version("edgeqwen"),
        "ENGINES": "; ".join(ENGINES[name] for name in formats),
        "REQUIREMENTS": " ".join(requirements),
    }


def _texts(content: Path, words: Mapping[str, str]) -> None:
    """install.sh, the unit and the READMEs; @FOLDER@ and @USER@ are for install.sh to fill in."""
    for name in TEXTS:
        text = (files("edgeqwen") / "pack_files" / name).read_text(encoding="utf-8")
        for word, value in words.items():
            text = text.replace(f"@{word}@", value)
        _write(content / name, text)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _sums(content: Path, say: Progress) -> dict[str, int]:
    """Write SHA256SUMS over all other files, and everything through to the disk; the sizes."""
    (content / SUMS).unlink(missing_ok=True)
    paths = sorted(path for path in content.rglob("*") if path.is_file())
    lines = []
    for number, path in enumerate(paths):
        say(number, len(paths), "writing checksums")
        lines.append(f"{sha256_of(path)}  {path.relative_to(content).as_posix()}\n")
    _write(content / SUMS, "".join(lines))
    for path in (*paths, content / SUMS):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    return {str(path): path.stat().st_size for path in (*paths, content / SUMS)}


def _finish(content: Path, out: Path, say: Progress) -> None:
    """Give the pack its name, as the last step; a tar file has no owner and no time."""
    if out.suffix != ".tar":
        content.rename(out)
        return
    say(0, 1, "writing the tar file")
    draft = content.with_name(out.name)

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = ""
        member.mode = 0o755 if member.isdir() or member.name.endswith("install.sh") else 0o644
        return member

    with draft.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in (content, *sorted(content.rglob("*"))):
                archive.add(path, path.relative_to(content.parent).as_posix(), recursive=False, filter=plain)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(out)


def facts_of(report: PackReport) -> dict[str, object]:
    """The report as plain JSON data."""
    return asdict(report)
