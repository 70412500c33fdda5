"""The command `plan`: what a model would need on a device, before anything of it is downloaded or loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text

if TYPE_CHECKING:
    from edgeqwen.forecast import Forecast, Row

MIB = 1 << 20


@click.command(short_help="Say what of a model fits a device, before it is downloaded.")
@click.argument("model")
@click.option(
    "--device",
    default="this",
    show_default=True,
    metavar="NAME",
    help="this, pi5-8gb, pi5-4gb, pi4-4gb, pi4-2gb, pi-zero2, laptop, laptop-avx512, apple or cuda.",
)
@click.option("--context", "context_length", type=int, help="Tokens of prompt and answer together.  [default: 4096]")
@click.option("--parallel", type=click.IntRange(1, 32), help="Answers side by side, of a server.  [default: one]")
@click.option("--offline", is_flag=True, help="Never ask the network.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(
    model: str, *, device: str, context_length: int | None, parallel: int | None, offline: bool, as_json: bool
) -> None:
    """Say what MODEL needs on a device in every type and on every engine, which one to take, and why.

    MODEL is an artifact's folder, a GGUF file, a checkpoint's folder or its config.json, `nano`, a hub id (its
    config.json alone is fetched), or a published size such as 0.6b. Nothing is loaded. `run`, `serve` and `bench`
    refuse by the same arithmetic. The exit code is 0 where something fits and 1 where nothing does.

    \b
    edgeqwen plan Qwen/Qwen3-1.7B --device pi5-4gb
    edgeqwen plan ./qwen3-0.6b-q4_k_m --context 8192
    edgeqwen plan 0.6b --device pi-zero2 --json
    """
    from edgeqwen.forecast import forecast

    found = forecast(model, device=device, context_length=context_length, parallel=parallel, offline=offline)
    click.echo(json_text(found.as_dict()) if as_json else "\n".join(map(escaped, _lines(found))))
    click.get_current_context().exit(0 if found.recommended else 1)


def _lines(found: Forecast) -> list[str]:
    shape, target = found.model.shape, found.target
    available = target.device.memory_available_bytes
    memory = "memory unknown" if available is None else f"{available // MIB} MiB free"
    if target.assumed_system_bytes is not None:
        memory += f", assumed: its system takes {target.assumed_system_bytes // MIB}"
    answers = f", {found.parallel} answers side by side" if found.parallel else ""
    return [
        f"model      {found.model.name} ({found.model.source}), {shape.num_hidden_layers} layers of "
        f"{shape.hidden_size}, made for {shape.max_position_embeddings} tokens",
        f"device     {target.title}: {memory}",
        f"context    {found.context_length} tokens{answers}",
        "",
        *_table([_cells(row, found) for row in found.rows]),
        "",
        *_verdict(found),
    ]


HEADS = ("type", "engine", "file MB", "mapped MiB", "anonymous MiB", "peak MiB", "KV cache", "longest context", "")


def _cells(row: Row, found: Forecast) -> tuple[str, ...]:
    need = row.plan.need
    mark = "<- take this" if row is found.recommended else "" if row.fits else "does not fit"
    return (
        row.type, row.engine, f"{row.file_bytes / 1e6:.0f}", f"{need.mapped_bytes / MIB:.0f}",
        f"{need.anonymous_bytes / MIB:.0f}", f"{need.total_bytes / MIB:.0f}",
        f"{need.kv_bytes / MIB:.0f} MiB {row.plan.kv_type}", str(row.longest_context or "none"), mark,
    )  # fmt: skip


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as their widest cell; figures stand to the right."""
    widths = [max(len(row[i]) for row in (HEADS, *rows)) for i in range(len(HEADS))]
    lines = []
    for row in (HEADS, *rows):
        cells = [
            cell.ljust(width) if i in {0, 1, 8} else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _verdict(found: Forecast) -> list[str]:
    best = found.recommended
    if best is None:
        return [f"nothing    {found.reason}", *(f"give up    {line}" for line in found.give_up)]
    parts = ", ".join(f"{name} {size / MIB:.0f}" for name, size in best.plan.need.parts.items() if size)
    return [f"take       {best.type} on {best.engine}: {found.reason}", f"MiB        {parts}"]
