"""One call from a platform's name to its two wheels: the engine, and llama-cpp-python without libraries."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from edgeqwen import device
from edgeqwen.engine_build import Progress, build_libraries, choose_variants, find_toolchain
from edgeqwen.engine_platform import THIS, platform_named
from edgeqwen.engine_source import fetch_source
from edgeqwen.engine_wheel import Wheel, write_engine_wheel, write_pure_wheel
from edgeqwen.errors import RequestError


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What was built."""

    platform: str
    engine: Wheel
    python: Wheel
    variants: tuple[str, ...]
    left_out: tuple[str, ...]  # the compiler does not know them
    compiler: str
    seconds: float


def make_engine(
    out: Path,
    platform_name: str = THIS,
    *,
    variants: Sequence[str] | None = None,
    source: Path | None = None,
    work: Path | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Build an engine and write its wheels into the folder `out`.

    `source`: the source release, where pip cannot fetch it. `work`: a folder that is kept, so that an interrupted build
    goes on where it was. Raises RequestError, EngineMissingError (a program is missing), DownloadError, EngineError.
    """
    started = time.monotonic()
    say = progress or _nothing
    platform = platform_named(platform_name)
    try:
        out.mkdir(parents=True, exist_ok=True)  # said before the compiler has run for minutes
    except OSError as error:
        raise RequestError(f"{out} cannot be made: {error.strerror}") from None
    tools = find_toolchain(platform)
    chosen, left_out = choose_variants(platform, variants, tools)
    with ExitStack() as stack:
        folder = work.absolute() if work else Path(stack.enter_context(TemporaryDirectory(prefix="edgeqwen-engine-")))
        say(0, 100, "fetching llama.cpp")
        release = fetch_source(folder / "source", source)
        build = folder / f"build-{platform.machine}"
        libraries = build_libraries(release, build, platform, tools, chosen, jobs or device.physical_cores(), say)
        licence = release / "vendor" / "llama.cpp" / "LICENSE"
        engine = write_engine_wheel(out, platform, libraries, chosen, tools.version, licence)
        python = write_pure_wheel(out, release)
    seconds = time.monotonic() - started
    return EngineReport(platform.name, engine, python, tuple(chosen), tuple(left_out), tools.version, seconds)


def _nothing(_done: int, _total: int, _label: str) -> None:
    """Nobody watches."""
