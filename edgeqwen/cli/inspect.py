"""The command `inspect`: what is in an artifact, a GGUF file or a checkpoint, and what memory it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edgeqwen.cli.terminal import escaped, json_text

if TYPE_CHECKING:
    from edgeqwen.inspection import Inspection

MIB = 1 << 20


@click.command()
@click.argument("model")
@click.option("--verify", is_flag=True, help="Check every hash of an artifact.")
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, *, verify: bool, tensors: bool, as_json: bool) -> None:
    """Say what is in MODEL: an artifact's folder, a GGUF file, a checkpoint's folder, or `nano`.

    Nothing is loaded into an engine, and nothing in the file is trusted.
    """
    from edgeqwen.inspection import inspect as look

    found = look(model, verify=verify)
    if verify and found.kind != "artifact":
        raise click.UsageError(f"--verify checks the hashes of an artifact; {model} is a {found.kind} and has none")
    if as_json:
        click.echo(json_text(found.as_dict()))
    else:
        click.echo("\n".join(_lines(found, tensors=tensors)))


def _lines(found: Inspection, *, tensors: bool) -> list[str]:
    shape = found.shape
    rows = [
        ("model", f"{found.name} ({found.kind}, {shape.architecture})"),
        ("size", f"{found.size_bytes / 1e6:.1f} MB, {found.parameters / 1e6:.1f} M parameters"),
        (
            "shape",
            f"{shape.num_hidden_layers} layers, hidden {shape.hidden_size}, heads {shape.num_attention_heads}/"
            f"{shape.num_key_value_heads} of {shape.head_dim}, vocabulary {shape.vocab_size}, "
            f"context {shape.max_position_embeddings}",
        ),
        ("types", ", ".join(f"{kind}: {count} tensors, {size / 1e6:.1f} MB" for kind, count, size in found.types)),
        ("template", found.template),
        *found.notes,
        *((f"memory at {need.context}", _memory(need.parts)) for need in found.memory),
    ]
    lines = [f"{label:<15}{text}" for label, text in rows]
    if tensors:
        lines += [f"  {t.name:<50} {t.type:<6} {' x '.join(map(str, t.shape))}" for t in found.tensors]
    return [escaped(line) for line in lines]


def _memory(parts: dict[str, int]) -> str:
    total = sum(parts.values()) // MIB
    return f"{total} MiB: " + ", ".join(f"{name} {size / MIB:.0f}" for name, size in parts.items())
