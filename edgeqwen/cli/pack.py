"""The command `pack`: an artifact with all that another machine needs to run it, for a USB stick."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text, note

if TYPE_CHECKING:
    from edgeqwen.pack import PackReport


@click.command(short_help="Put a model and all it needs on a stick, for a machine without a network.")
@click.argument("artifact")
@click.option("--for", "platform_name", default="linux-aarch64", show_default=True,
              help="linux-aarch64 (Raspberry Pi, ARM boards), linux-x86_64, or this.")  # fmt: skip
@click.option("--python", "pythons", default="3.11,3.13", show_default=True, metavar="3.X,3.Y",
              help="The Pythons that may be there: Raspberry Pi OS 12 has 3.11, 13 has 3.13.")  # fmt: skip
@click.option("-o", "--out", type=click.Path(path_type=Path),
              help="A folder, or one file: NAME.tar.  [default: ./ARTIFACT-PLATFORM]")  # fmt: skip
@click.option("--engine-wheel", "engine_wheels", multiple=True, type=click.Path(path_type=Path), metavar="PATH",
              help="llama.cpp's engine for GGUF, a wheel or the folder of both.  [default: ./dist]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def pack(
    artifact: str,
    *,
    platform_name: str,
    pythons: str,
    out: Path | None,
    engine_wheels: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Pack ARTIFACT with everything that another machine needs to run it: no network and no compiler there.

    The model, the wheels of that platform, edgeqwen itself, install.sh, a systemd unit, checksums and a README. It
    needs the network here, and pip. Interrupted, it goes on where it was; the pack appears whole or not at all.

    \b
    edgeqwen convert Qwen/Qwen3-0.6B --to onnx
    edgeqwen pack ./qwen3-0.6b-int4-onnx -o /media/stick/qwen
    edgeqwen engine build --for linux-aarch64 && edgeqwen pack ./qwen3-0.6b-q4_k_m -o qwen.tar
    """
    from edgeqwen.catalog import locate
    from edgeqwen.cli.progress import Progress
    from edgeqwen.pack import draft_of, facts_of
    from edgeqwen.pack import pack as make
    from edgeqwen.pack_engine import find_engine
    from edgeqwen.pack_target import target_of

    target = target_of(platform_name, pythons)
    engine = find_engine([place.expanduser() for place in engine_wheels], target)
    with Progress() as progress:
        path = locate(artifact, progress=progress)
        goal = (out or Path(f"{path.resolve().name}-{target.name}")).expanduser()
        draft = draft_of(goal)
        try:
            report = make(path, target, goal, engine=engine, progress=progress)
        finally:
            if draft.exists():
                note(f"{draft} keeps what is there so far: pack again to go on, or remove it", always=True)
    click.echo(json_text(facts_of(report)) if as_json else _summary(report))


def _summary(report: PackReport) -> str:
    from edgeqwen.pack import ENGINES, FAT32_BYTES

    lines = [
        f"{report.path}: {report.bytes / 1e6:.0f} MB for {report.target}, Python {' and '.join(report.pythons)}, "
        f"glibc {report.glibc} or later",
        f"  model {report.model_bytes / 1e6:.0f} MB ({'; '.join(ENGINES[name] for name in report.formats)}), "
        f"{len(report.wheels)} wheels, {report.fetched} of them fetched now",
    ]
    if report.left_out:
        lines.append(
            f"  no engine for {', '.join(report.left_out)} in it: edgeqwen engine build --for {report.target}, "
            "then --engine-wheel dist"
        )
    if report.largest_bytes > FAT32_BYTES:
        lines.append("  a file has over 4 GiB: a stick with FAT32 cannot hold it, format it with exFAT or ext4")
    first = f"tar xf {shlex.quote(Path(report.path).name)}, and there: " if report.path.endswith(".tar") else ""
    lines.append(f"  on the machine: {first}sh install.sh")
    return "\n".join(map(escaped, lines))
