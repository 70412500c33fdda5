"""The command `doctor`: what this machine has, what it lacks, and the line that mends it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text, styled

if TYPE_CHECKING:
    from edgeqwen.doctor import Check, Diagnosis

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command(short_help="Say what this machine has and lacks for running models.")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(model: str | None, *, as_json: bool) -> None:
    """Say what this machine has and lacks for running models, or for running MODEL.

    No engine is loaded and nothing is changed. The exit code is 0 where something (MODEL, if it is given) can run,
    and 1 where not.

    \b
    edgeqwen doctor
    edgeqwen doctor ./qwen3-0.6b-q4_k_m --json
    """
    from edgeqwen.catalog import locate_converted
    from edgeqwen.device import machine_facts
    from edgeqwen.doctor import diagnose

    diagnosis = diagnose(None if model is None else locate_converted(model))
    if as_json:
        click.echo(json_text({"machine": machine_facts(), **asdict(diagnosis)}))
    else:
        click.echo("\n".join(_lines(diagnosis, model)))
    click.get_current_context().exit(0 if diagnosis.can_run else 1)


def _lines(diagnosis: Diagnosis, model: str | None) -> list[str]:
    lines = [line for check in diagnosis.checks for line in _check(check)]
    what = "Models" if model is None else escaped(model)
    end = f"{what} can run here." if diagnosis.can_run else f"{what} cannot run here: mend what says fail."
    return [*lines, "", styled(end, sys.stdout, bold=True)]


def _check(check: Check) -> list[str]:
    status = styled(f"{check.status:<5}", sys.stdout, fg=COLOURS[check.status], bold=check.status != "ok")
    lines = [f"{status} {check.name:<10} {escaped(check.found)}"]
    return [*lines, f"{'':<16} -> {escaped(check.mend)}"] if check.mend else lines
