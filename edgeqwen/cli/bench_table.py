"""A bench's report as text: Markdown for people, JSON, JSON lines and CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from edgeqwen.bench_report import COLUMNS, Report, Row, Run, Spread, as_dict, flat_rows
from edgeqwen.cli.terminal import escaped, json_text
from edgeqwen.device import counted

MIB = 1 << 20
COLUMNS_WIDE = 79  # of the lines of text; a report on one run fits an 80-column terminal
TITLES = {"load": "load", "first_token": "first token", "prompt": "prompt", "decode": "decode"}
RIGHT = {"threads", "depth", "context", "median", "min - max", "peak", "mapped", "anonymous"}
ONE_RUN = ("engine", "type", "threads")  # columns that a report on one run has in its heading


def markdown(report: Report) -> str:
    """Two aligned tables, speed and memory, and how their figures came about."""
    speeds = [_speed(report, run, row) for run in report.runs for row in run.rows]
    blocks = ["\n".join(_wrapped(_heading(report))), _table(report, speeds)]
    if any(run.memory for run in report.runs):
        blocks.append(_table(report, [_memory(run) for run in report.runs if run.memory]))
    blocks.append("\n".join(_wrapped(_notes(report))))
    return _printable("\n\n".join(blocks))


def _heading(report: Report) -> Iterator[str]:
    machine = report.machine
    memory = "" if machine["memory_bytes"] is None else f", {machine['memory_bytes'] / (1 << 30):.1f} GiB"
    where = ", ".join(str(machine[key]) for key in ("board", "cpu") if machine[key])
    system = f"{machine['system']}, Python {machine['python']}"
    yield f"{report.model} on {where}: {machine['cores']} cores{memory}; {system}"
    if len(report.runs) == 1:
        (run,) = report.runs
        yield f"{run.engine} {run.version or ''}, {run.type}, {counted(run.threads, 'thread')}"


def _run(run: Run) -> dict[str, str]:
    return {"engine": run.engine, "type": run.type, "threads": str(run.threads)}


def _speed(report: Report, run: Run, row: Row) -> dict[str, str]:
    speed, part = row.tokens_per_s, run.bandwidth_share(row)
    median, between = _speeds(speed) if speed else _times(row.seconds)
    share = ""
    if part is not None:
        cached = report.cache_bytes is not None and report.weights_bytes[run.format] < report.cache_bytes
        share = f"{100 * part:.0f} % of {run.bandwidth.bytes_per_s / 1e9:.1f} GB/s" + " *" * cached
    return _run(run) | {
        "test": f"{TITLES[row.test]} {row.tokens or ''}".strip() + " !" * bool(row.slowed),
        "depth": str(row.depth) if row.tokens else "",
        "median": median,
        "min - max": between * (len(row.samples) > 1),
        "memory bandwidth": share,
    }


def _speeds(figures: Spread) -> tuple[str, str]:
    return f"{_rounded(figures.median)} tokens/s", f"{_rounded(figures.least)} - {_rounded(figures.most)}"


def _times(figures: Spread) -> tuple[str, str]:
    unit, factor = ("s", 1.0) if figures.median >= 1 else ("ms", 1e3)
    least, most = figures.least * factor, figures.most * factor
    return f"{_rounded(figures.median * factor)} {unit}", f"{_rounded(least)} - {_rounded(most)}"


def _rounded(value: float) -> str:
    """Three digits, all those before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}" if value < 1 else f"{value:.{1 if value >= 10 else 2}f}"


def _memory(run: Run) -> dict[str, str]:
    taken = run.memory
    sizes = (taken.peak_bytes, taken.mapped_bytes, taken.anonymous_bytes) if taken else ()
    texts = ["unknown" if size is None else f"{size / MIB:.0f} MiB" for size in sizes]
    parts = dict(zip(("peak", "mapped", "anonymous"), texts, strict=True))
    return _run(run) | {"context": str(run.context_length), "KV cache": run.kv_type} | parts


def _notes(report: Report) -> Iterator[str]:
    """What the figures mean: one line each, as far as it concerns them."""
    count = f"median, least and most of {report.repeat}" if report.repeat > 1 else "measured once"
    versions = ", ".join(dict.fromkeys(f"{run.engine} {run.version or '(unknown version)'}" for run in report.runs))
    if report.stopped:
        count = f"stopped before the end: median, least and most of up to {report.repeat}"
    yield f"- {count}; {versions}; edgeqwen {report.machine['edgeqwen']}"
    yield (
        "- prompt 128: 128 tokens at once, behind `depth` tokens of context; decode 128: 128 tokens, one by one; "
        "first token 128: from a question of 128 tokens to the first of its answer, template and sampling included"
    )
    for run in {run.engine: run for run in report.runs if run.of("decode")}.values():
        size, each = report.weights_bytes[run.format] / 1e6, report.kv_bytes_per_token[run.engine] / 1024
        outside = max(row.outside_share or 0 for row in run.of("decode"))
        yield (
            f"- {run.engine}: a token reads {size:.1f} MB of weights, and {each:.0f} KiB of cache for each before it; "
            f"{100 * outside:.1f} % of the time of decoding is spent outside the engine"
        )
    for run in {run.threads: run for run in report.runs}.values():
        yield f"- memory bandwidth: {run.bandwidth.bytes_per_s / 1e9:.1f} GB/s: {run.bandwidth.method}"
    if any(report.cache_bytes and size < report.cache_bytes for size in report.weights_bytes.values()):
        yield "- * these weights fit into the processor's cache: memory does not limit them"
    yield from _power(report)
    if any(run.memory for run in report.runs):
        yield (
            "- memory: peaks of the whole process, in all and of the parts, which peak at different times; "
            "mapped pages of files can be dropped, anonymous ones cannot; cache that no test filled may not count"
        )


def _power(report: Report) -> Iterator[str]:
    """Heat and clock over all samples, and whether something held the machine back."""
    taken = [taken for run in report.runs for row in run.rows for taken in row.samples]
    heat = [t for one in taken if (t := one.power.temperature_c) is not None]
    clock = [f / 1e6 for one in taken if (f := one.power.frequency_hz) is not None]
    most = max((f / 1e6 for one in taken if (f := one.power.frequency_max_hz) is not None), default=0)
    parts = [f"{min(heat):.0f} to {max(heat):.0f} °C"] if heat else []
    if clock:
        parts.append(f"{min(clock):.0f} to {max(clock):.0f} of {most:.0f} MHz")
    yield f"- heat and clock: {', '.join(parts) or 'this system does not tell them'}"
    if report.slowed:
        count = sum(bool(one.slowed) for one in taken)
        yield (
            f"- ! the machine was held back in {count} of {len(taken)} samples ({', '.join(report.slowed)}): "
            "it can do better; edgeqwen doctor says what mends it"
        )


def _wrapped(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, COLUMNS_WIDE, subsequent_indent="  ")


def _table(report: Report, rows: Sequence[dict[str, str]]) -> str:
    """An aligned Markdown table, numbers at the right, without columns that are empty or in the heading."""
    known = ONE_RUN if len(report.runs) == 1 else ()
    columns = [name for name in rows[0] if name not in known and any(row[name] for row in rows)]
    widths = [max(_width(text) for text in (name, *(row[name] for row in rows))) for name in columns]
    rights = [name in RIGHT for name in columns]
    rule = ["-" * (width - 1) + (":" if right else "-") for width, right in zip(widths, rights, strict=True)]
    lines = [columns, rule, *([row[name] for name in columns] for row in rows)]
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
