"""The command `doctor`: what this machine has, what it lacks, and the line that mends it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text, styled

if TYPE_CHECKING:
    from edgeqwen.doctor import Check, Diagnosis

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(short_help="Say what this machine has and lacks for running models.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Where serve is to listen."
)
@click.option("--quick", is_flag=True, help="Do not try the engines and do not hash MODEL.")
@click.option("--strict", is_flag=True, help="Exit with 1 for warnings, too.")
def doctor(model: str | None, *, as_json: bool, port: int, quick: bool, strict: bool) -> None:
    """Say what this machine has and lacks for running models, or for running MODEL, and the line that mends it.

    Nothing is changed. Each engine that is installed is tried in a process of its own, and every byte of MODEL is held
    against its manifest. The exit code is 1 where something fails or nothing (or not MODEL) can run, else 0.

    \b
    edgeqwen doctor
    edgeqwen doctor ./qwen3-0.6b-q4_k_m --json
    edgeqwen doctor --strict || echo "something is to be mended"
    """
    from edgeqwen.cli.progress import Progress
    from edgeqwen.device import machine_facts
    from edgeqwen.doctor import diagnose

    path = None if model is None else _path(model)
    with Progress() as progress:
        diagnosis = diagnose(path, port=port, quick=quick, tell=lambda label: progress(0, 1, label))
    if as_json:
        facts = {"machine": machine_facts(), **asdict(diagnosis), "wrong": diagnosis.wrong(strict=strict)}
        click.echo(json_text(facts))
    else:
        click.echo("\n".join(_lines(diagnosis, model)))
    click.get_current_context().exit(1 if diagnosis.wrong(strict=strict) else 0)


def _path(model: str) -> Path:
    """Where it is; a folder without a manifest is one with a fault, which is looked at with the rest."""
    from edgeqwen.catalog import locate_converted

    folder = Path(model).expanduser()
    return folder if folder.is_dir() and not (folder / "config.json").is_file() else locate_converted(model)


def _lines(diagnosis: Diagnosis, model: str | None) -> list[str]:
    lines = [line for check in diagnosis.checks for line in _check(check)]
    what = "Models" if model is None else escaped(model)
    end = f"{what} cannot run here: mend what says fail."
    if diagnosis.can_run:
        end = f"{what} can run here" + (", but something fails: mend it." if diagnosis.wrong() else ".")
    return [*lines, "", styled(end, sys.stdout, bold=True)]


def _check(check: Check) -> list[str]:
    status = styled(f"{check.status:<5}", sys.stdout, fg=COLOURS[check.status], bold=check.status != "ok")
    lines = [f"{status} {check.name:<10} {escaped(check.found)}"]
    return [*lines, f"{'':<16} -> {escaped(check.mend)}"] if check.mend else lines
