"""A bench's report as text: Markdown for people, JSON, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from edgeqwen.bench_report import COLUMNS, Report, Row, Run, Spread, as_dict, flat_rows
from edgeqwen.cli.terminal import escaped, json_text

MIB = 1 << 20
TITLES = {"load": "load", "first_token": "first token", "prompt": "prompt", "decode": "decode"}
RIGHT = {"threads", "tokens", "depth", "context", "median", "min - max", "peak", "mapped", "anonymous"}


def markdown(report: Report) -> str:
    """Two aligned tables, speed and memory, and how their figures came about."""
    machine = report.machine
    memory = "" if machine["memory_bytes"] is None else f", {machine['memory_bytes'] / (1 << 30):.1f} GiB"
    where = ", ".join(str(machine[key]) for key in ("board", "cpu") if machine[key])
    blocks = [
        f"{report.model} on {where}: {machine['cores']} cores{memory}; {machine['system']}, Python {machine['python']}",
        _table(
            ("engine", "type", "threads", "test", "tokens", "depth", "median", "min - max", "memory bandwidth"),
            [_speed(report, run, row) for run in report.runs for row in run.rows],
        ),
    ]
    if any(run.memory for run in report.runs):
        columns = ("engine", "type", "threads", "context", "KV cache", "peak", "mapped", "anonymous")
        blocks.append(_table(columns, [_memory(run) for run in report.runs if run.memory]))
    blocks.append("\n".join(_notes(report)))
    return _printable("\n\n".join(blocks))


def _speed(report: Report, run: Run, row: Row) -> list[str]:
    speed = row.tokens_per_s
    median, between = _speeds(speed) if speed else _times(row.seconds)
    tokens, depth = (str(row.tokens), str(row.depth)) if row.tokens else ("", "")
    share = ""
    if row.bandwidth_share is not None and row.bytes_per_token is not None:
        cached = report.cache_bytes is not None and report.weights_bytes[run.format] < report.cache_bytes
        share = f"{100 * row.bandwidth_share:.0f} % of {run.bandwidth.bytes_per_s / 1e9:.1f} GB/s" + " *" * cached
    between *= len(row.samples) > 1
    return [run.engine, run.type, str(run.threads), TITLES[row.test], tokens, depth, median, between, share]


def _speeds(figures: Spread) -> tuple[str, str]:
    return f"{_rounded(figures.median)} tokens/s", f"{_rounded(figures.least)} - {_rounded(figures.most)}"


def _times(figures: Spread) -> tuple[str, str]:
    unit, factor = ("s", 1.0) if figures.median >= 1 else ("ms", 1e3)
    least, most = figures.least * factor, figures.most * factor
    return f"{_rounded(figures.median * factor)} {unit}", f"{_rounded(least)} - {_rounded(most)}"


def _rounded(value: float) -> str:
    """Three digits, all those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.{1 if value >= 10 else 2}f}"


def _memory(run: Run) -> list[str]:
    taken = run.memory
    parts = (taken.peak_bytes, taken.mapped_bytes, taken.anonymous_bytes) if taken else ()
    sizes = ["unknown" if size is None else f"{size / MIB:.0f} MiB" for size in parts]
    return [run.engine, run.type, str(run.threads), str(run.context_length), run.kv_type, *sizes]


def _notes(report: Report) -> Iterator[str]:
    """What the figures mean: one line each, as far as it concerns them."""
    count = f"median, least and most of {report.repeat}" if report.repeat > 1 else "measured once"
    versions = ", ".join(dict.fromkeys(f"{run.engine} {run.version or '(unknown version)'}" for run in report.runs))
    if report.stopped:
        count = f"stopped before the end: median, least and most of up to {report.repeat}"
    yield f"- {count}; {versions}; edgeqwen {report.machine['edgeqwen']}"
    yield "- prompt: so many tokens behind depth tokens of context, at once; decode: so many, one by one;"
    yield "  first token: from a question of so many tokens to the first of its answer, template and sampling included"
    for run in {run.engine: run for run in report.runs if run.of("decode")}.values():
        size, each = report.weights_bytes[run.format] / 1e6, report.kv_bytes_per_token[run.engine] / 1024
        outside = max(row.outside_share or 0 for row in run.of("decode"))
        yield f"- {run.engine}: a token reads {size:.1f} MB of weights, and {each:.0f} KiB of cache for each before it;"
        yield f"  {100 * outside:.1f} % of the time of decoding is spent outside the engine"
    for run in {run.threads: run for run in report.runs}.values():
        yield f"- memory bandwidth: {run.bandwidth.bytes_per_s / 1e9:.1f} GB/s: {run.bandwidth.method}"
    if any(report.cache_bytes and size < report.cache_bytes for size in report.weights_bytes.values()):
        yield "- * these weights fit into the processor's cache: memory does not limit them"
    if any(run.memory for run in report.runs):
        yield "- memory: of the whole process; mapped pages of files can be dropped, anonymous ones cannot"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; empty columns are left out, numbers stand at the right."""
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(kept))]
    rights = [columns[i] in RIGHT for i in kept]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, rights, strict=True)]
    lines.insert(1, rule)
    return "\n".join("| " + " | ".join(map(_padded, line, widths, rights)) + " |" for line in lines)


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _width(text))
    return blank + text if right else text + blank


def _width(text: str) -> int:
    """Columns on a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def json_lines(report: Report) -> str:
    """A flat object for every row, on a line of its own."""
    return "\n".join(json.dumps(row) for row in flat_rows(report))


def csv_table(report: Report) -> str:
    """A line for every row, under a line with the columns' names."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat_rows(report))
    return _printable(out.getvalue().rstrip("\n"))


def _printable(text: str) -> str:
    return "\n".join(escaped(line) for line in text.split("\n"))


FORMATS: dict[str, Callable[[Report], str]] = {
    "md": markdown, "json": lambda report: json_text(as_dict(report)), "jsonl": json_lines, "csv": csv_table,
}  # fmt: skip
