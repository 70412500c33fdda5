"""The engines that this machine has for llama.cpp, which one is taken, and how another one is chosen."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgeqwen import device
from edgeqwen.elf import elf_machine
from edgeqwen.engine_wheel import check_files, unpack_engine
from edgeqwen.errors import EdgeqwenError, RequestError
from edgeqwen.folders import cache_folder
from edgeqwen.native_engine import (
    OVERRIDE,
    PACKAGE,
    NativeEngine,
    best_variant,
    check_engine,
    choice_file,
    chosen_folder,
    compiled_folder,
    cut_short,
    engine_fault,
    installed_engine,
    library_name,
    read_engine,
)

AUTO = "auto"
Origin = Literal["environment", "chosen", "wheel", "compiled"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One folder of libraries: `variant` is what this processor gets of it, `fault` why it cannot be used here."""

    origin: Origin
    folder: str
    used: bool
    version: str | None = None
    machine: str | None = None
    glibc: str | None = None
    variants: tuple[str, ...] = ()
    variant: str | None = None
    fault: str | None = None


def list_engines() -> list[Listed]:
    """Every engine here in the order in which they are looked for: the first is used, even where it cannot be."""
    record, named, compiled = choice_file(), os.environ.get(OVERRIDE), compiled_folder()
    found: list[tuple[Origin, Path, Callable[[], NativeEngine | None]]] = []
    if named:
        found.append(("environment", Path(named), lambda: None))
    if record.is_file():
        found.append(("chosen", record, lambda: read_engine(chosen_folder(record))))
    found.append(("wheel", Path(PACKAGE), installed_engine))
    if compiled is not None and (compiled / library_name("llama")).is_file():
        found.append(("compiled", compiled, lambda: None))
    listed: list[Listed] = []
    for origin, where, probe in found:
        one = _listed(origin, where, probe, used=not listed)
        if one is not None:
            listed.append(one)
    return listed


def _listed(origin: Origin, where: Path, probe: Callable[[], NativeEngine | None], *, used: bool) -> Listed | None:
    try:
        engine = probe()
    except EdgeqwenError as error:
        return Listed(origin, str(where), used, fault=str(error))
    if engine is not None:
        flags = device.cpu_flags()
        return Listed(
            origin, str(engine.folder), used, engine.version, engine.machine, engine.glibc, tuple(engine.variants),
            best_variant(engine.variants, flags), engine_fault(engine, flags),
        )  # fmt: skip
    if origin == "wheel":  # none is installed
        return None
    library = where / library_name("llama")
    if not library.is_file():
        return Listed(origin, str(where), used, fault=f"lacks {library.name}")
    if (damaged := cut_short(where)) is not None:
        return Listed(origin, str(where), used, machine=elf_machine(library), fault=f"holds {damaged.name} cut short")
    return Listed(origin, str(where), used, machine=elf_machine(library))


def use_engine(path: Path) -> NativeEngine:
    """Take the engine of a wheel (unpacked into the cache folder) or of a folder from now on.

    Every file is checked against its hash, and an engine that cannot run here is refused.
    """
    if path.is_file():
        engine = unpack_engine(path, cache_folder() / "engines")
    elif path.is_dir():
        engine = read_engine(path.absolute())
    else:
        raise RequestError(f"{path} is neither an engine wheel nor a folder with an engine; edgeqwen engine list")
    check_engine(engine)
    check_files(engine)
    record = choice_file()
    record.parent.mkdir(parents=True, exist_ok=True)
    draft = record.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps({"folder": str(engine.folder)}) + "\n", encoding="utf-8")
    draft.replace(record)
    return engine


def forget_engine() -> None:
    """Go back to the wheel that is installed, or to what pip compiled."""
    choice_file().unlink(missing_ok=True)
