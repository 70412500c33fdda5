"""Where llama.cpp's libraries are on this machine, and whether its processor can run them; none is loaded here.

They come in an engine wheel (the package `edgeqwen_engine`, `edgeqwen engine build`), which holds one CPU library for
each generation of processors, or compiled by pip inside of llama_cpp.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeqwen import device
from edgeqwen.elf import elf_is_whole
from edgeqwen.errors import EngineError, EngineMissingError
from edgeqwen.folders import cache_folder
from edgeqwen.strict_json import parse_object, shown

LLAMA_VERSION = "0.3.36"  # of llama-cpp-python, whose Python half is a C struct layout: pyproject.toml pins the same
PACKAGE = "edgeqwen_engine"
DESCRIPTION = "engine.json"
FORMAT = 1
OVERRIDE = "LLAMA_CPP_LIB_PATH"  # llama_cpp's own word for another folder of libraries
BUILD_LINE = "edgeqwen engine build"
_MAX_BYTES = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}")
_GLIBC = re.compile(r"2\.\d{1,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class NativeEngine:
    """A folder of libraries with its description."""

    folder: Path
    version: str  # of llama-cpp-python
    machine: str  # platform.machine()
    glibc: str | None  # the oldest that it runs on; None: it asks for none
    variants: Mapping[str, tuple[str, ...]]  # name -> what its processor must have, in the kernel's words
    files: Mapping[str, str]  # name -> sha256


def library_name(stem: str) -> str:
    """`llama` -> what the file is called on this system: libllama.so."""
    if sys.platform == "win32":
        return f"{stem}.dll"
    return f"lib{stem}.dylib" if sys.platform == "darwin" else f"lib{stem}.so"


def cut_short(folder: Path) -> Path | None:
    """A library here that lacks some of its bytes, as far as its headers tell: running it would end the process."""
    if sys.platform != "linux":
        return None
    libraries = sorted(path for path in folder.glob("lib*.so*") if path.is_file())
    return next((path for path in libraries if not elf_is_whole(path)), None)


def library_folder() -> Path | None:
    """The folder with llama.cpp's libraries, the first of $LLAMA_CPP_LIB_PATH, `engine use`, the wheel, pip's own.

    None where there is none; EngineMissingError or EngineError where the chosen one cannot be run here.
    """
    if named := os.environ.get(OVERRIDE):
        return Path(named)
    if (engine := chosen_engine()) is not None:
        check_engine(engine)
        return engine.folder
    folder = compiled_folder()
    return folder if folder is not None and (folder / library_name("llama")).is_file() else None


def chosen_engine() -> NativeEngine | None:
    """The engine that `engine use` named, else the installed wheel's; None: what pip compiled."""
    record = choice_file()
    if record.is_file():
        return read_engine(chosen_folder(record))
    return installed_engine()


def chosen_folder(record: Path) -> Path:
    """What `engine use` wrote down."""
    data = parse_object(_read(record), str(record), EngineError)
    folder = data.get("folder")
    if not isinstance(folder, str) or not Path(folder).is_dir():
        raise EngineMissingError(
            f"{record}: the engine {shown(folder)} is not there any more: edgeqwen engine use auto forgets it"
        )
    return Path(folder)


def choice_file() -> Path:
    """Where `engine use` keeps what was chosen."""
    return cache_folder() / "engine.json"


def installed_engine() -> NativeEngine | None:
    """The engine wheel that pip has installed, if there is one."""
    folder = _package_folder(PACKAGE)
    return None if folder is None else read_engine(folder / "lib")


def compiled_folder() -> Path | None:
    """Where pip puts what it compiles; None without llama_cpp."""
    folder = _package_folder("llama_cpp")
    return None if folder is None else folder / "lib"


def _package_folder(name: str) -> Path | None:
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):  # a broken entry of sys.modules or sys.path
        return None
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def read_engine(folder: Path) -> NativeEngine:
    """Read the description of a folder of libraries; EngineError where it is not one."""
    where = folder / DESCRIPTION
    if not where.is_file():
        raise EngineError(f"{folder} is no engine: {DESCRIPTION} is missing; {BUILD_LINE} makes one")
    return engine_of(parse_object(_read(where), str(where), EngineError), folder)


def engine_of(data: Mapping[str, Any], folder: Path) -> NativeEngine:
    """The engine that a parsed description speaks of, checked."""
    where = folder / DESCRIPTION
    if data.get("format") != FORMAT:
        raise EngineError(f"{where}: format {shown(data.get('format'))}; this edgeqwen reads {FORMAT}: {BUILD_LINE}")
    version, machine, glibc = (data.get(key) for key in ("llama_cpp_python", "machine", "glibc"))
    try:
        variants = {_word(name): tuple(map(_word, _list(needs))) for name, needs in data["variants"].items()}
        files = {_word(name): _word(digest, _SHA256) for name, digest in data["files"].items()}
        minor = None if glibc is None else _word(glibc, _GLIBC)
        return NativeEngine(folder, _word(version), _word(machine), minor, variants, files)
    except (KeyError, TypeError, AttributeError, ValueError):
        again = f"build the engine again ({BUILD_LINE}) or copy it again"
        raise EngineError(f"{where} is damaged: {again}") from None


def _word(value: Any, shape: re.Pattern[str] = _NAME) -> str:
    """A text of this shape; ValueError or TypeError else."""
    if not shape.fullmatch(value):
        raise ValueError(value)
    return str(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value


def engine_fault(engine: NativeEngine, flags: Collection[str] | None) -> str | None:
    """Why a machine with these CPU flags cannot use an engine, and what would work; None where it can."""
    here, libc = platform.machine(), device.libc_name() or ""
    if engine.machine != here:
        return f"is built for {engine.machine}, and this is {here}: {BUILD_LINE} --for linux-{here} makes one"
    if engine.version != LLAMA_VERSION:
        return f"is of llama-cpp-python {engine.version}; this edgeqwen works with {LLAMA_VERSION}: {BUILD_LINE}"
    if engine.glibc is not None and libc.startswith("glibc ") and _glibc(libc[6:]) < _glibc(engine.glibc):
        return f"needs glibc {engine.glibc}, and this system has {libc[6:]}: build it on this system ({BUILD_LINE})"
    if flags is not None and best_variant(engine.variants, flags) is None:
        lacking = min((sorted(set(needs) - set(flags)) for needs in engine.variants.values()), default=())
        return (
            f"holds nothing that the processor here ({device.cpu_name()}) can run, only {', '.join(engine.variants)}, "
            f"of which the least needs {' '.join(lacking)}: {BUILD_LINE} makes one for every processor"
        )
    return None


def check_engine(engine: NativeEngine) -> None:
    """EngineMissingError where it cannot be used here: said before an instruction of it has run."""
    if fault := engine_fault(engine, device.cpu_flags()):
        raise EngineMissingError(f"the engine in {engine.folder} {fault}")


def best_variant(variants: Mapping[str, tuple[str, ...]], flags: Collection[str] | None) -> str | None:
    """The variant that ggml takes on a processor with these flags; they stand in the order of its own score."""
    fitting = [name for name, needs in variants.items() if flags is not None and set(needs) <= set(flags)]
    return fitting[-1] if fitting else None


def _glibc(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _read(path: Path) -> bytes:
    """A small file, whole; EngineError where it is not small."""
    with path.open("rb") as file:
        raw = file.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise EngineError(f"{path} has over {_MAX_BYTES} bytes: it is no description of an engine")
    return raw
