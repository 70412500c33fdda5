"""Wheels that hold an engine: written byte for byte the same from the same libraries, and unpacked within limits."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from edgeqwen.elf import elf_machine, glibc_needed
from edgeqwen.engine_platform import Platform
from edgeqwen.engine_source import SHA256
from edgeqwen.errors import EngineError
from edgeqwen.file_hash import sha256_of
from edgeqwen.native_engine import DESCRIPTION, FORMAT, LLAMA_VERSION, PACKAGE, NativeEngine, read_engine
from edgeqwen.strict_json import shown
from edgeqwen.wheel_file import write_wheel

INSIDE = f"{PACKAGE}/lib/"  # of the wheel
MAX_BYTES = 1 << 29  # unpacked: 25 MB for the 14 processors of x86-64
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was written."""

    path: Path
    bytes: int
    sha256: str


def write_engine_wheel(
    out: Path, platform: Platform, libraries: Mapping[str, Path], variants: list[str], compiler: str, licence: Path
) -> Wheel:
    """Put libraries (name -> file) and their description into one wheel in the folder `out`."""
    minor = max(glibc_needed(path) or 0 for path in libraries.values())
    glibc = f"2.{max(minor, 17)}"  # the oldest that wheels are tagged for on both platforms
    description = {
        "format": FORMAT, "llama_cpp_python": LLAMA_VERSION, "source_sha256": SHA256, "machine": platform.machine,
        "glibc": glibc, "compiler": compiler, "openmp": False,
        "variants": {name: list(platform.variants[name]) for name in variants},
        "files": {name: sha256_of(path) for name, path in sorted(libraries.items())},
    }  # fmt: skip
    init = f'"""llama.cpp\'s libraries for {platform.name}; edgeqwen finds them here, there is no code."""\n'
    members = {
        f"{PACKAGE}/__init__.py": init.encode(),
        f"{INSIDE}{DESCRIPTION}": (json.dumps(description, indent=1) + "\n").encode(),
        **{f"{INSIDE}{name}": path.read_bytes() for name, path in sorted(libraries.items())},
    }
    metadata = (
        f"Metadata-Version: 2.4\nName: edgeqwen-engine\nVersion: {LLAMA_VERSION}\n"
        f"Summary: llama.cpp's libraries of llama-cpp-python {LLAMA_VERSION} for every processor of {platform.name}\n"
        "License-Expression: MIT\nLicense-File: LICENSE\nRequires-Python: >=3.11\n"
    )
    tag = f"py3-none-manylinux_{glibc.replace('.', '_')}_{platform.machine}"
    return _write(out, PACKAGE, tag, members, metadata, licence.read_bytes())


def write_pure_wheel(out: Path, source: Path) -> Wheel:
    """llama-cpp-python without libraries, its Python as the source release has it: the same for every platform."""
    package = source / "llama_cpp"
    files = (path for path in sorted(package.rglob("*")) if path.is_file() and path.suffix in {".py", ".typed"})
    members = {path.relative_to(source).as_posix(): path.read_bytes() for path in files}
    metadata = (source / "PKG-INFO").read_text(encoding="utf-8")
    licence = (source / "LICENSE.md").read_bytes()
    return _write(out, "llama_cpp_python", "py3-none-any", members, metadata, licence)


def _write(out: Path, name: str, tag: str, members: Mapping[str, bytes], metadata: str, licence: bytes) -> Wheel:
    information = {"METADATA": metadata.encode(), "licenses/LICENSE": licence}
    path = write_wheel(out, name, LLAMA_VERSION, tag, members, information)
    return Wheel(path, path.stat().st_size, sha256_of(path))


def unpack_engine(wheel: Path, home: Path) -> NativeEngine:
    """Unpack an engine wheel beside others of its kind, under its own hash; EngineError where it is none."""
    if wheel.stat().st_size > MAX_BYTES:
        raise EngineError(f"{wheel} has over {MAX_BYTES} bytes: it is no engine wheel")
    target = home / f"{PACKAGE}-{sha256_of(wheel)[:32]}"
    if not target.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=home, prefix=".engine-") as folder:
            draft = Path(folder) / "lib"
            draft.mkdir()
            _extract(wheel, draft)
            check_files(read_engine(draft))
            draft.rename(target)
    return read_engine(target)


def _extract(wheel: Path, folder: Path) -> None:
    """The members of one flat folder, no others, however long they say they are."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [entry for entry in archive.infolist() if entry.filename.startswith(INSIDE)]
            if sum(entry.file_size for entry in members) > MAX_BYTES:
                raise EngineError(f"{wheel} unpacks to over {MAX_BYTES} bytes: it is no engine wheel")
            for entry in members:
                _copy(archive, entry, folder / _flat(entry.filename, wheel))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise EngineError(f"{wheel} is no wheel, or damaged: {error}") from None


def _flat(member: str, wheel: Path) -> str:
    """A file's name, where a member's name is no more than that."""
    name = member.removeprefix(INSIDE)
    if name in {"", ".", ".."} or PurePosixPath(name).name != name or "\\" in name:
        raise EngineError(f"{wheel}: {shown(member)} is not the name of a library")
    return name


def _copy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(entry) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file, _CHUNK)


def check_files(engine: NativeEngine) -> None:
    """EngineError where a library is missing, is not the one that was built, or is for another processor."""
    for name, digest in engine.files.items():
        path = engine.folder / name
        if not path.is_file():
            raise EngineError(f"{path} is missing: copy the engine again")
        found = sha256_of(path)
        if found != digest:
            raise EngineError(f"{path} is damaged: its sha256 is {found}, {DESCRIPTION} says {digest}; copy it again")
        if (machine := elf_machine(path)) != engine.machine:
            raise EngineError(f"{path} is for {machine or 'another system'}, {DESCRIPTION} says {engine.machine}")
