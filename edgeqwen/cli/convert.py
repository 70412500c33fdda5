"""The command `convert`: a checkpoint in, an artifact out."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeqwen.cli.terminal import escaped, json_text
from edgeqwen.errors import RequestError

if TYPE_CHECKING:
    from converters.recipe import Recipe
    from converters.report import ConvertReport


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "to",
    help="gguf, onnx, or gguf,onnx: the same weights for both.  [default: gguf; onnx with --exporter]",
)
@click.option(
    "--type",
    "kind",
    help="For gguf q8_0 (int8), q4_k_m (int4), ...; for onnx int4, int4_fast, int8, fp32, and GGUF's grids q4_0, q8_0; "
    "for both int4 (Q4_0), int8 (Q8_0), fp32.",
)
@click.option(
    "--recipe", "recipe_name", metavar="NAME", help="Format and type of a device: edgeqwen recipes lists them."
)
@click.option("--exporter", help="optimum: other decoders than Qwen, traced by torch; onnx in fp32 alone.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder.  [default: ./NAME-TYPE]")
@click.option("--revision", help="Branch, tag or commit on the hub.")
@click.option("--offline", is_flag=True, help="Never ask the network: the hub's cache or an error.")
@click.option("--threads", type=click.IntRange(min=1), help="[default: the fast physical cores]")
@click.option("--trust-template", is_flag=True, help="Accept a chat template that edgeqwen does not know.")
@click.option(
    "--compare/--no-compare",
    default=True,
    help="Run a 4-bit ONNX graph to see what rounded activations spoil, and compute that exactly.  [default: compare]",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="Run an int4 ONNX graph over some text and round it so that its products change least: a smaller and faster "
    "model that loses little more; takes minutes, and all cores.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def convert(  # noqa: PLR0913 - its options
    model: str,
    *,
    to: str | None,
    kind: str | None,
    recipe_name: str | None,
    exporter: str | None,
    out: Path | None,
    revision: str | None,
    offline: bool,
    threads: int | None,
    trust_template: bool,
    compare: bool,
    calibrate: bool,
    as_json: bool,
) -> None:
    """Turn MODEL into an artifact that `run` opens.

    MODEL is a hub id (downloaded with resume; HF_ENDPOINT names a mirror), a folder with a checkpoint, or `nano`; for
    ONNX a GGUF file, too, whose Q4_0 and Q8_0 blocks are moved as they are. The folder is written whole or not at all;
    converting twice gives the same bytes, but for the seconds in measured.json, and with --calibrate on the same cores.

    \b
    edgeqwen convert Qwen/Qwen3-0.6B                    # -> ./qwen3-0.6b-q4_k_m/
    edgeqwen convert ./my-finetune --type q8_0 --out ./mine
    edgeqwen convert Qwen/Qwen3-0.6B --recipe pi5       # what was chosen for a Raspberry Pi 5
    edgeqwen convert Qwen/Qwen3-0.6B --to onnx          # for ONNX Runtime -> ./qwen3-0.6b-int4-onnx/
    edgeqwen convert Qwen/Qwen3-0.6B --to gguf,onnx     # both engines, bit for bit the same weights
    edgeqwen convert ./some-llama --exporter optimum    # needs edgeqwen[reference]; Qwen's tokenizer all the same
    HF_ENDPOINT=https://mirror.example edgeqwen convert Qwen/Qwen3-0.6B
    """
    from edgeqwen import catalog
    from edgeqwen.artifact import is_artifact
    from edgeqwen.cli.progress import Progress

    if model != "nano" and is_artifact(Path(model).expanduser()):
        raise RequestError(f"{model} is an artifact already; run it: {shlex.join(['edgeqwen', 'run', model])}")
    recipe = None if recipe_name is None else _recipe(recipe_name, to or kind or exporter)
    if recipe is not None:
        to, kind = ",".join(recipe.formats), recipe.type
    traced = exporter not in (None, catalog.OWN)
    formats = tuple(part.strip() for part in (("onnx" if traced else "gguf") if to is None else to).lower().split(","))
    if traced and formats == ("onnx",):
        kind = kind or "fp32"
    stem, suffix = Path(model).stem, kind or ""  # a GGUF file keeps its types where none is given
    if not Path(model).expanduser().is_file():
        stem, suffix = catalog.model_name(model), (kind := catalog.type_name(kind, formats))
    target = out or Path(catalog.artifact_name(stem, suffix, formats))
    with Progress() as progress:
        report = catalog.convert(
            model, target, type=kind, formats=formats, threads=threads, trust_template=trust_template,
            offline=offline, revision=revision, exporter=catalog.OWN if exporter is None else exporter, compare=compare,
            calibrate=calibrate, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json_text(facts(report) | ({"recipe": recipe.name} if recipe else {})))
    else:
        click.echo(_of_recipe(recipe) + summary(report, recipe.run_options if recipe else ""))


def _recipe(name: str, other: str | None) -> Recipe:
    """The recipe of this name; a usage error beside an option that it would set."""
    if other is not None:
        raise click.UsageError(f"--recipe sets the format and the type; leave out what sets {other}")
    from converters.recipe import find_recipe

    return find_recipe(name)


def _of_recipe(recipe: Recipe | None) -> str:
    """Which one a short name stood for."""
    return f"recipe {recipe.name}: {recipe.purpose} on {recipe.device}\n" if recipe else ""


def facts(report: ConvertReport) -> dict[str, Any]:
    """The report as plain JSON data."""
    return {**asdict(report), "path": str(report.path)}


def summary(report: ConvertReport, run_options: str = "") -> str:
    """Where it is, how large, how long it took, what quantizing changed, and how to run it."""
    from edgeqwen.artifact import open_artifact

    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.tensor_types.items()))
    errors = ", ".join(f"{kind} {100 * error:.2f} %" for kind, error in sorted(report.errors.items()) if error)
    if report.requantized:
        kinds += f"; rounded again from what they were stored in: {len(report.requantized)} tensors"
    lines = [
        f"{report.path}: {report.type}, {report.bytes_out / 1e6:.0f} MB of {report.bytes_in / 1e6:.0f} MB, "
        f"{report.seconds['total']:.1f} s, read back and verified",
        f"  tensors: {kinds}"
        + ("; the stored copy of the tied embedding was left out" * report.tied_duplicate_dropped),
    ]
    if report.bytes_out > 1.5 * report.bytes_in:  # 32 bits out of 16
        lines.append(f"  {report.type} has the source's values, in more bytes; in fewer: --type int8, or --type int4")
    if errors:
        lines.append(f"  rounding error (RMS, relative): {errors}")
    if report.calibrated_on is not None:
        lines.append(f"  calibrated on {report.calibrated_on} tokens of text")
    if report.guard is not None:
        lines.append(
            f"  against exact activations: KL divergence {report.guard['divergence']:.4f}, {report.guard['flips']} of "
            f"{report.guard['tokens']} tokens differ; {len(report.guard['lifted'])} products are computed exactly"
        )
    elif any(kind.startswith("int4/") for kind in report.tensor_types) and find_spec("onnxruntime") is None:
        lines.append("  not compared with exact activations: that runs the graph, pip install 'edgeqwen[onnx]'")
    if open_artifact(report.path).manifest.chat_template is None:
        lines.append("  to talk with it, give the checkpoint a chat_template.jinja and convert again: it has none")
    else:
        command = shlex.join(["edgeqwen", "run", str(report.path), *run_options.split()])
        lines.append(f'  run it: {command} "Hello"')
    return "\n".join(escaped(line) for line in lines)
