"""Builds llama.cpp's libraries with one CPU library for each generation of processors; it makes no wheel.

What is built depends on the source release and the compiler alone: no path, no clock, no git.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgeqwen import device
from edgeqwen.engine_platform import Platform
from edgeqwen.errors import EngineError, EngineMissingError, RequestError
from edgeqwen.native_engine import best_variant

Progress = Callable[[int, int, str], None]  # done, total, what is being done
BASE = ("ggml-base", "ggml/fast", "llama/fast")  # /fast: without ggml's dependency on every variant
NATIVE = "native"
LIBRARIES = ("llama", "ggml", "ggml-base")
_PERCENT = re.compile(r"\[ *(\d+)%\]")
# OpenMP would need a libgomp on the target; ggml has threads of its own (speeds: benchmarks/results/engine.json).
# The C++ library is linked in: what is left is glibc.
LINK = "-s -static-libstdc++ -static-libgcc -Wl,--exclude-libs,ALL"
SETTINGS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DCMAKE_PLATFORM_NO_VERSIONED_SONAME=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DGGML_BACKEND_DL=ON", "-DGGML_CPU_ALL_VARIANTS=ON", "-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF",
    "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_COMMON=OFF", "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_SERVER=OFF", "-DLLAMA_BUILD_TESTS=OFF",
    f"-DCMAKE_SHARED_LINKER_FLAGS={LINK}", f"-DCMAKE_MODULE_LINKER_FLAGS={LINK}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The programs that build for a platform."""

    cmake: str
    c: str
    cxx: str
    version: str  # of the compiler, as it names itself


@dataclass(frozen=True, slots=True)
class Built:
    """Libraries by name, and the variants that the compiler does not know."""

    libraries: dict[str, Path]
    left_out: tuple[str, ...]


def find_toolchain(platform: Platform) -> Toolchain:
    """EngineMissingError names the package of the first program that is missing."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(Path(sys.executable).parent))
    if cmake is None:
        raise EngineMissingError("building an engine needs cmake: pip install cmake")
    if shutil.which("make") is None:
        raise EngineMissingError("building an engine needs make: sudo apt install make")
    c, cxx = ("cc", "c++") if platform.native else (f"{platform.compiler}-gcc", f"{platform.compiler}-g++")
    for program in (c, cxx):
        if shutil.which(program) is None:
            package = "g++" if platform.native else platform.package
            raise EngineMissingError(f"building for {platform.name} needs {program}: sudo apt install {package}")
    told = subprocess.run([cxx, "--version"], capture_output=True, text=True, check=False).stdout
    return Toolchain(cmake, c, cxx, (told.splitlines() or [cxx])[0])


def choose_variants(platform: Platform, names: Sequence[str] | None, tools: Toolchain) -> tuple[list[str], list[str]]:
    """The variants to build, and those that the compiler does not know; RequestError lists what there is.

    The name `native` is that of the processor here.
    """
    if names is not None and NATIVE in names:
        names = [_native(platform, tools) if name == NATIVE else name for name in names]
    for name in names or ():
        if name not in platform.variants:
            raise RequestError(f"{platform.name} has no variant {name!r}; there are {', '.join(platform.variants)}")
    wanted = [name for name in platform.variants if names is None or name in names]
    unknown = [name for name in wanted if not _compiles(platform, name, tools)]
    return [name for name in wanted if name not in unknown], unknown


def _native(platform: Platform, tools: Toolchain) -> str:
    """The variant that ggml would take here of all that the compiler knows."""
    flags = device.cpu_flags() if platform.native else None
    known = {name: needs for name, needs in platform.variants.items() if _compiles(platform, name, tools)}
    best = best_variant(known, flags)
    if best is None:
        raise RequestError(f"what {NATIVE} is for {platform.name} is not known here: name variants")
    return best


def _compiles(platform: Platform, variant: str, tools: Toolchain) -> bool:
    return variant not in platform.newer or _knows(tools.c, platform.newer[variant])


def _knows(compiler: str, march: str) -> bool:
    command = [compiler, f"-march={march}", "-x", "c", "-E", os.devnull, "-o", os.devnull]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def build_libraries(
    source: Path,
    work: Path,
    platform: Platform,
    tools: Toolchain,
    variants: Sequence[str],
    jobs: int,
    progress: Progress,
) -> dict[str, Path]:
    """Compile; a folder that an interrupted build has left is continued. EngineError has the compiler's last words."""
    _configure(source / "vendor" / "llama.cpp", work, platform, tools)
    targets = [*BASE, *(f"ggml-cpu-{name}" for name in variants)]
    for number, target in enumerate(targets):
        label = f"{target.removesuffix('/fast')} ({number + 1} of {len(targets)})"
        command = [tools.cmake, "--build", str(work), "--target", target, "--parallel", str(jobs)]
        _run(command, partial(_tell, progress, label))
    names = [*LIBRARIES, *targets[len(BASE) :]]
    return {f"lib{name}.so": work / "bin" / f"lib{name}.so" for name in names}


def _tell(progress: Progress, label: str, percent: int) -> None:
    progress(percent, 100, label)


def _configure(source: Path, work: Path, platform: Platform, tools: Toolchain) -> None:
    mapped = f"-ffile-prefix-map={source}=."
    command = [
        tools.cmake, "-G", "Unix Makefiles", "-S", str(source), "-B", str(work), *SETTINGS,
        f"-DCMAKE_C_FLAGS={mapped}", f"-DCMAKE_CXX_FLAGS={mapped}",
    ]  # fmt: skip
    if not platform.native:
        command += [
            "-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_SYSTEM_PROCESSOR={platform.machine}",
            f"-DCMAKE_C_COMPILER={tools.c}", f"-DCMAKE_CXX_COMPILER={tools.cxx}",
        ]  # fmt: skip
    _run(command, lambda _: None)


def _run(command: list[str], on_percent: Callable[[int], None]) -> None:
    """Run a step to its end; Ctrl-C reaches it, too, for it is in our process group."""
    environment = {**os.environ, "GIT_DIR": os.devnull}  # a repository around the folder is none of its business
    last: deque[str] = deque(maxlen=12)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        for line in process.stdout or ():
            last.append(line.strip())
            if found := _PERCENT.match(line):
                on_percent(int(found[1]))
    if process.returncode:
        raise EngineError(f"{' '.join(command[:4])} failed: {' '.join(last)[-1500:]}")
