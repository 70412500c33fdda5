"""The two wheels that bring llama.cpp into a pack: the engine of a platform, and llama-cpp-python without libraries."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeqwen.errors import RequestError
from edgeqwen.native_engine import BUILD_LINE, LLAMA_VERSION
from edgeqwen.pack_target import Target

BUILD_FOLDER = Path("dist")  # where `edgeqwen engine build` puts them
_ENGINE = re.compile(rf"edgeqwen_engine-{re.escape(LLAMA_VERSION)}-py3-none-manylinux_2_(\d{{1,3}})_(\w+)\.whl")
_PYTHON = f"llama_cpp_python-{LLAMA_VERSION}-py3-none-any.whl"


@dataclass(frozen=True, slots=True)
class EngineWheels:
    """Both wheels, and the glibc that the engine needs: 2.`glibc`."""

    engine: Path
    python: Path
    glibc: int


def find_engine(places: Sequence[Path], target: Target) -> EngineWheels | None:
    """Both wheels in what was named (files or folders), or where `engine build` puts them: None where they are not.

    RequestError where something was named and it does not hold both for the target.
    """
    named = bool(places)
    paths: list[Path] = []
    for place in places or [BUILD_FOLDER]:
        if place.is_dir():
            paths += sorted(place.glob("*.whl"))
        elif place.is_file():
            paths += [place, *place.parent.glob(_PYTHON)]
        elif named:
            raise RequestError(f"{place} is not there: {BUILD_LINE} --for {target.name} makes both wheels in dist/")
    pythons = [path for path in paths if path.name == _PYTHON]
    engines = [(path, found) for path in paths if (found := _ENGINE.fullmatch(path.name))]
    fitting = [(path, int(found[1])) for path, found in engines if found[2] == target.machine]
    if pythons and fitting:
        return EngineWheels(fitting[0][0], pythons[0], fitting[0][1])
    if not named:
        return None
    there = ", ".join(path.name for path in paths) or "no wheel"
    raise RequestError(
        f"{', '.join(map(str, places))} holds {there}; for {target.name} an edgeqwen_engine-{LLAMA_VERSION} wheel of "
        f"{target.machine} and {_PYTHON} are needed: {BUILD_LINE} --for {target.name}"
    )
