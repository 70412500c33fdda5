"""The command `bench`: how fast a model runs here, on each engine, and what memory it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeqwen.cli.terminal import complain, note

if TYPE_CHECKING:
    from edgeqwen.bench import BenchSettings
    from edgeqwen.bench_report import Report


def _numbers(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between them."""
    names = _names(_ctx, _option, text)
    try:
        return None if names is None else tuple(int(name) for name in names)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no whole number, nor such with commas between them") from None


def _names(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Words with commas between them, each once; a Chinese comma is one as well."""
    if text is None:
        return None
    parts = text.replace("\N{FULLWIDTH COMMA}", ",").split(",")
    return tuple(dict.fromkeys(part.strip() for part in parts))


@click.command(short_help="Measure speed, time to the first token, loading and memory.")
@click.argument("model")
@click.option("--preset", type=click.Choice(["standard", "short"]), default="standard", show_default=True,
              help="short: prompts of 2, 12 and 18 tokens. The options below change a preset.")  # fmt: skip
@click.option(
    "--prompt",
    "prompts",
    callback=_numbers,
    metavar="N,N",
    help="Tokens of the prompts; 0 for none.  [default: 128,512]",
)
@click.option("--generate", callback=_numbers, metavar="N,N", help="Tokens to generate; 0 for none.  [default: 128]")
@click.option(
    "--depth", "depths", callback=_numbers, metavar="N,N", help="Tokens of context in front.  [default: 0,1024]"
)
@click.option("--threads", callback=_numbers, metavar="N,N", help="[default: the fast physical cores]")
@click.option("--repeat", type=click.IntRange(1, 1000), help="Samples of each.  [default: 5]")
@click.option(
    "--engine",
    "engines",
    callback=_names,
    metavar="NAME,NAME",
    help="llamacpp, ort.  [default: all that can run MODEL]",
)
@click.option("--context", "context_length", type=int, help="Tokens of KV cache to reserve.  [default: what is needed]")
@click.option("--kv-type", type=click.Choice(["f16", "q8_0", "f32"]), help="[default: f16; on ort f32]")
@click.option("--gpu-layers", type=click.IntRange(min=-1), help="Layers on the GPU; -1 for all.")
@click.option("-o", "--output", "kind", type=click.Choice(["md", "json", "jsonl", "csv"]), default="md",
              show_default=True, help="What to print.")  # fmt: skip
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw the speeds: FILE.svg or FILE.png.")
@click.option(
    "--type", "quant", help="Type to convert to on first use of a hub id or nano.  [default: q4_k_m, for ort int4]"
)
@click.option("--offline", is_flag=True, help="Never ask the network.")
@click.option("--force", is_flag=True, help="Load what does not fit by the arithmetic of `edgeqwen plan`.")
@click.option("--trust-template", is_flag=True, help="Accept a chat template that edgeqwen does not know.")
def bench(model: str, *, preset: str, kind: str, plot: Path | None, **options: Any) -> None:
    """Measure how fast MODEL runs here, on every engine that can run it.

    Prompt and decode speed, time to the first token, time to load and peak memory; decoding also against the memory
    bandwidth of this machine, which limits it. MODEL is what `run` takes. Decoding at depth 0 with as many threads
    as `run` takes is remembered: `run` takes the faster engine. Ctrl-C prints what was measured so far.

    \b
    edgeqwen bench ./qwen3-0.6b-q4_k_m
    edgeqwen bench nano --preset short -o json > speeds.json
    edgeqwen bench ./qwen3-0.6b-q4_k_m --threads 1,2,4 --depth 0,2048 --plot speeds.svg
    """
    from edgeqwen.bench import bench as measure
    from edgeqwen.bench_plot import plot as drawn
    from edgeqwen.catalog import locate
    from edgeqwen.cli.bench_table import FORMATS
    from edgeqwen.cli.progress import Progress
    from edgeqwen.drawing import check_picture, write_picture

    settings = _settings(preset, options)
    if plot is not None:
        check_picture(plot)
    trust = options["trust_template"]
    with Progress() as progress:
        path = locate(
            model, type=options["quant"], engine=_engine(settings), offline=options["offline"], trust_template=trust,
            progress=progress,
        )  # fmt: skip
        report = measure(path, settings, trust_template=trust, force=options["force"], progress=progress)
    if report.runs:
        click.echo(FORMATS[kind](report))
    if report.runs and plot is not None:
        write_picture(drawn(report), plot)
        note(f"drawn to {plot}")
    _end(report)


def _engine(settings: BenchSettings) -> str:
    """The one that a hub id or nano is converted for: the only one to be measured, or the usual one."""
    from edgeqwen.bench import ALL
    from edgeqwen.engines import AUTO

    return settings.engines[0] if len(settings.engines) == 1 and settings.engines != (ALL,) else AUTO


def _settings(preset: str, options: dict[str, Any]) -> BenchSettings:
    """The preset with what was given on the command line; 0 tokens are none."""
    from edgeqwen.bench import PRESETS

    names = ("prompts", "generate", "depths", "threads", "repeat", "engines", "context_length", "kv_type", "gpu_layers")
    given = {name: options[name] for name in names if options[name] is not None}
    for name in ("prompts", "generate"):
        if name in given:
            given[name] = tuple(number for number in given[name] if number)
    return replace(PRESETS[preset], **given)


def _end(report: Report) -> None:
    """Exit with 130 where Ctrl-C came, with 1 where a run failed."""
    for failure in report.failures:
        complain(failure)
    if report.stopped:
        raise KeyboardInterrupt
    if report.failures:
        click.get_current_context().exit(1)
