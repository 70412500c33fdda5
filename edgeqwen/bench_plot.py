"""A bench's report as a picture: a bar for every speed, its spread, and the limit that memory sets to decoding."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from edgeqwen.bench_report import Report, Row, Run, Spread
from edgeqwen.device import counted
from edgeqwen.drawing import Box, Drawing, Line, Text

# Okabe and Ito's palette, told apart by colour-blind people as well.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
GREY, LIGHT, LIMIT = "#666666", "#E4E4E4", "#B00020"
WIDTH, LEFT, RIGHT = 820, 190, 90  # units; bars lie between LEFT and WIDTH - RIGHT
BAR, GAP, PANEL = 16, 12, 64  # heights: a bar, between two groups of bars, a panel's title and axis


@dataclass(frozen=True, slots=True)
class Bar:
    """One median with its spread; `limit` is what memory would allow."""

    run: int  # its number in the report, which gives its colour
    figures: Spread
    limit: float | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """Groups of bars over one axis: label -> its bars."""

    title: str
    groups: dict[str, list[Bar]]

    @property
    def height(self) -> float:
        return PANEL + sum(GAP + BAR * len(bars) for bars in self.groups.values())

    @property
    def most(self) -> float:
        return max(max(bar.figures.most, bar.limit or 0) for bars in self.groups.values() for bar in bars)


def plot(report: Report) -> Drawing:
    """Draw prompt, decode and first token, each over its own axis, with a colour for every run."""
    shapes: list[Box | Line | Text] = [Text(20, 24, f"{report.model} on {report.machine['cpu']}", 16)]
    y = 50.0
    for number, run in enumerate(report.runs):
        shapes += [Box(20, y - 6, 12, 12, _colour(number)), Text(40, y, _name(run))]
        y += 20
    panels = _panels(report)
    if any(bar.limit for panel in panels for bars in panel.groups.values() for bar in bars):
        shapes += [Line(26, y - 7, 26, y + 7, LIMIT, 2), Text(40, y, "limit that the memory's bandwidth sets")]
        y += 20
    for panel in panels:
        shapes += _panel(panel, y + 10)
        y += 10 + panel.height
    return Drawing(WIDTH, y + 10, shapes)


def _name(run: Run) -> str:
    return f"{run.engine} {run.version or ''} {run.type}, {counted(run.threads, 'thread')}"


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _panels(report: Report) -> list[Panel]:
    prompt: dict[str, list[Bar]] = {}
    decode: dict[str, list[Bar]] = {}
    first: dict[str, list[Bar]] = {}
    for number, run in enumerate(report.runs):
        for row in run.rows:
            speed = row.tokens_per_s
            if speed is not None:
                group = prompt if row.test == "prompt" else decode
                group.setdefault(_label(row), []).append(Bar(number, speed, _limit(report, run, row)))
            elif row.test == "first_token":
                times = Spread(*(1e3 * s for s in (row.seconds.median, row.seconds.least, row.seconds.most)))
                first.setdefault(f"question of {row.tokens}", []).append(Bar(number, times))
    titles = ("Prompt, tokens/s", "Decode, tokens/s", "Time to the first token, ms")
    return [Panel(title, groups) for title, groups in zip(titles, (prompt, decode, first), strict=True) if groups]


def _label(row: Row) -> str:
    return f"{row.tokens} behind {row.depth}" if row.depth else f"{row.tokens}"


def _limit(report: Report, run: Run, row: Row) -> float | None:
    """Tokens/s at which decoding would take the whole bandwidth; none for weights that stay in the cache."""
    cached = report.cache_bytes is not None and report.weights_bytes[run.format] < report.cache_bytes
    return None if cached or row.bytes_per_token is None else run.bandwidth.bytes_per_s / row.bytes_per_token


def _panel(panel: Panel, top: float) -> Iterator[Box | Line | Text]:
    ticks = _ticks(panel.most)
    scale = (WIDTH - RIGHT - LEFT) / ticks[-1]
    bottom = top + panel.height - 30
    yield Text(20, top + 12, panel.title, 14)
    for tick in ticks:
        x = LEFT + tick * scale
        yield Line(x, top + 28, x, bottom, LIGHT)
        yield Text(x, bottom + 12, f"{tick:g}", 11, "middle", GREY)
    y = top + 28 + GAP / 2
    for label, bars in panel.groups.items():
        yield Text(LEFT - 10, y + BAR * len(bars) / 2, label, 12, "end")
        for bar in bars:
            yield from _bar(bar, y, scale)
            y += BAR
        y += GAP


def _bar(bar: Bar, y: float, scale: float) -> Iterator[Box | Line | Text]:
    """The bar, its whisker from the least to the most, the limit's mark and the median in figures."""
    figures, middle = bar.figures, y + BAR / 2
    least, most = (LEFT + value * scale for value in (figures.least, figures.most))
    yield Box(LEFT, y + 1, figures.median * scale, BAR - 2, _colour(bar.run))
    yield Line(least, middle, most, middle, "#000000")
    for x in (least, most):
        yield Line(x, middle - 3, x, middle + 3, "#000000")
    if bar.limit is not None:
        yield Line(LEFT + bar.limit * scale, y, LEFT + bar.limit * scale, y + BAR, LIMIT, 2)
    yield Text(most + 6, middle, f"{figures.median:.{0 if figures.median >= 100 else 1}f}", 11)


def _ticks(most: float) -> Sequence[float]:
    """Round numbers from 0 to the first that is not below `most`, four to eight of them."""
    step = 10.0 ** math.floor(math.log10(most))
    step *= next(part for part in (0.2, 0.5, 1, 2) if most / (step * part) <= 7)
    return [number * step for number in range(math.ceil(most / step) + 1)]
