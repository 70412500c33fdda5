"""The command `engine`: llama.cpp for machines without a compiler."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text

if TYPE_CHECKING:
    from edgeqwen.engine_choice import Listed
    from edgeqwen.engine_maker import EngineReport


@click.group(short_help="Build, list and choose llama.cpp engines that need no compiler.")
def engine() -> None:
    """Build, list and choose llama.cpp engines that need no compiler.

    An engine is a wheel with llama.cpp's libraries for every processor of a platform; the right one is picked when a
    model is loaded. Beside it comes llama-cpp-python without libraries.

    \b
    edgeqwen engine build --for linux-aarch64           # for a Raspberry Pi -> ./dist/
    pip install dist/edgeqwen_engine-*.whl dist/llama_cpp_python-*.whl
    edgeqwen engine list
    """


@engine.command()
@click.option("--for", "platform_name", default="this", show_default=True, help="linux-x86_64 or linux-aarch64.")
@click.option(
    "--out", default="dist", show_default=True, type=click.Path(file_okay=False, path_type=Path), help="Folder."
)
@click.option(
    "--variants",
    help="Only these processors: armv8.0_1,armv8.2_2, or native, the one here.  [default: all that the compiler knows]",
)
@click.option(
    "--source", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The source release, without a net."
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the build here; continue it when interrupted.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Compilers at a time.  [default: the fast physical cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def build(
    *,
    platform_name: str,
    out: Path,
    variants: str | None,
    source: Path | None,
    work: Path | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Compile llama.cpp for all processors of a platform, and put it into a wheel.

    It needs cmake, make and g++, for another platform its cross compiler (Debian: g++-aarch64-linux-gnu). The source
    release is the one that llama-cpp-python is pinned to, fetched by pip and checked.
    """
    from edgeqwen.cli.progress import Progress
    from edgeqwen.engine_maker import make_engine

    names = None if variants is None else [name.strip() for name in variants.split(",")]
    with Progress() as progress:
        report = make_engine(
            out, platform_name, variants=names, source=source, work=work, jobs=jobs, progress=progress
        )  # fmt: skip
    click.echo(json_text(_facts(report)) if as_json else _summary(report))


@engine.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_(*, as_json: bool) -> None:
    """List the engines that are here, the one that is used first; nothing is loaded."""
    from edgeqwen.engine_choice import list_engines

    engines = list_engines()
    if as_json:
        click.echo(json_text({"engines": [asdict(one) for one in engines]}))
    else:
        click.echo("\n".join(map(_line, engines)) or "no engine is here: edgeqwen engine build makes one")


@engine.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def use(path: Path, *, as_json: bool) -> None:
    """Use the engine of PATH, a wheel or a folder, from now on; `auto` goes back to what pip has installed."""
    from edgeqwen.engine_choice import AUTO, forget_engine, list_engines, use_engine

    if str(path) == AUTO:
        forget_engine()
    else:
        use_engine(path.expanduser())
    engines = list_engines()
    if as_json:
        click.echo(json_text({"engines": [asdict(one) for one in engines]}))
    else:
        click.echo(_line(engines[0]) if engines else "no engine is here: edgeqwen engine build makes one")


def _line(one: Listed) -> str:
    """One engine: where it comes from, what it is, what this processor gets of it."""
    facts = [one.origin, one.folder]
    if one.version:
        facts.append(f"llama-cpp-python {one.version}")
    if one.machine:
        facts.append(one.machine + (f", glibc {one.glibc} or later" if one.glibc else ""))
    if one.variants:
        facts.append(f"{one.variant or 'none'} of {len(one.variants)} variants")
    line = escaped(f"{'*' if one.used else ' '} {'; '.join(facts)}")
    return f"{line}\n    cannot be used: it {escaped(one.fault)}" if one.fault else line


def _facts(report: EngineReport) -> dict[str, object]:
    facts = asdict(report)
    for kind in ("engine", "python"):
        facts[kind]["path"] = str(facts[kind]["path"])
    return facts


def _summary(report: EngineReport) -> str:
    engine_wheel, python_wheel = report.engine, report.python
    lines = [
        f"{engine_wheel.path}: {engine_wheel.bytes / 1e6:.0f} MB for {', '.join(report.variants)}",
        f"{python_wheel.path}: llama-cpp-python without libraries",
        f"  {report.seconds:.0f} s with {report.compiler}",
        f"  install both: pip install {engine_wheel.path} {python_wheel.path}",
    ]
    if report.left_out:
        lines.insert(2, f"  left out, for the compiler does not know them: {', '.join(report.left_out)}")
    return "\n".join(map(escaped, lines))
