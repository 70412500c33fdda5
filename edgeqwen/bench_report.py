"""What a bench measured, as data: samples, their medians and spreads, and the memory they took; no text, no picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edgeqwen.bandwidth import Bandwidth
from edgeqwen.power import NOT_READ, Power
from edgeqwen.process_memory import Memory
from edgeqwen.speed import Sample, Test


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, the least and the most of them."""

    median: float
    least: float
    most: float


def spread(figures: list[float]) -> Spread:
    """The spread of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Taken:
    """A sample beside heat and clock at its end; `slowed`: what held the machine back while it was measured."""

    sample: Sample
    power: Power = NOT_READ
    slowed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One test of one run, with all its samples."""

    test: Test
    tokens: int
    depth: int
    samples: tuple[Taken, ...]
    bytes_per_token: float | None = None  # of weights and cache, that decoding reads

    @property
    def seconds(self) -> Spread:
        return spread([taken.sample.seconds for taken in self.samples])

    @property
    def tokens_per_s(self) -> Spread | None:
        """None for what is a time and no speed."""
        if self.test not in {"prompt", "decode"}:
            return None
        return spread([self.tokens / taken.sample.seconds for taken in self.samples])

    @property
    def outside_share(self) -> float | None:
        """The part of the time outside the engine's native code."""
        samples = [taken.sample for taken in self.samples]
        shares = [1 - sample.native_s / sample.seconds for sample in samples if sample.native_s]
        return statistics.median(shares) if shares else None

    @property
    def slowed(self) -> tuple[str, ...]:
        """What held the machine back during any of the samples."""
        return tuple(dict.fromkeys(name for taken in self.samples for name in taken.slowed))

    @property
    def temperature_c(self) -> float | None:
        """The highest."""
        return max((t for taken in self.samples if (t := taken.power.temperature_c) is not None), default=None)

    @property
    def frequency_hz(self) -> int | None:
        """The lowest."""
        return min((f for taken in self.samples if (f := taken.power.frequency_hz) is not None), default=None)


@dataclass(frozen=True, slots=True)
class Run:
    """One engine with one number of threads, measured in a process of its own."""

    engine: str
    version: str | None
    format: str
    type: str
    threads: int
    kv_type: str
    context_length: int
    bandwidth: Bandwidth  # the best that was seen with as many threads
    memory: Memory | None  # None: stopped before the first loading was done
    rows: tuple[Row, ...]

    def bandwidth_share(self, row: Row) -> float | None:
        """The part of the memory's bandwidth that a row takes at its median speed."""
        if row.bytes_per_token is None or row.tokens_per_s is None:
            return None
        return row.bytes_per_token * row.tokens_per_s.median / self.bandwidth.bytes_per_s

    def of(self, test: Test) -> list[Row]:
        """The rows of one test."""
        return [row for row in self.rows if row.test == test]


@dataclass(frozen=True, slots=True)
class Report:
    """All that was measured; `failures` has a line for each run that failed, `stopped` says that Ctrl-C ended it."""

    model: str
    machine: Mapping[str, Any]
    cache_bytes: int | None  # of the processor's largest cache
    repeat: int
    weights_bytes: Mapping[str, int]  # by format: what every generated token reads
    kv_bytes_per_token: Mapping[str, int]  # by engine: what it reads besides for each token of context
    runs: tuple[Run, ...] = ()
    failures: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def slowed(self) -> tuple[str, ...]:
        """What held the machine back during any of the samples: empty where the figures are the machine's own."""
        return tuple(dict.fromkeys(name for run in self.runs for row in run.rows for name in row.slowed))


def as_dict(report: Report) -> dict[str, Any]:
    """Everything as plain JSON data, every sample included."""
    runs = [{**asdict(run), "rows": [_row(run, row) for row in run.rows]} for run in report.runs]
    for data, run in zip(runs, report.runs, strict=True):
        data["bandwidth"]["method"] = run.bandwidth.method
    return {**asdict(report), "slowed": report.slowed, "runs": runs}


def _row(run: Run, row: Row) -> dict[str, Any]:
    speeds = row.tokens_per_s
    return {
        "test": row.test,
        "tokens": row.tokens,
        "depth": row.depth,
        "seconds": asdict(row.seconds),
        "tokens_per_s": asdict(speeds) if speeds else None,
        "bytes_per_token": row.bytes_per_token,
        "bandwidth_share": run.bandwidth_share(row),
        "outside_share": row.outside_share,
        "samples_s": [taken.sample.seconds for taken in row.samples],
        "samples_temperature_c": [taken.power.temperature_c for taken in row.samples],
        "samples_frequency_hz": [taken.power.frequency_hz for taken in row.samples],
        "samples_slowed": [taken.slowed for taken in row.samples],
    }


Column = Callable[[Report, Run, Row], Any]
# The columns of a flat row: jsonl and csv.
COLUMNS: dict[str, Column] = {
    "model": lambda report, _run, _row: report.model,
    "cpu": lambda report, _run, _row: report.machine["cpu"],
    "engine": lambda _report, run, _row: run.engine,
    "engine_version": lambda _report, run, _row: run.version,
    "type": lambda _report, run, _row: run.type,
    "threads": lambda _report, run, _row: run.threads,
    "kv_type": lambda _report, run, _row: run.kv_type,
    "context_length": lambda _report, run, _row: run.context_length,
    "test": lambda _report, _run, row: row.test,
    "tokens": lambda _report, _run, row: row.tokens,
    "depth": lambda _report, _run, row: row.depth,
    "repeat": lambda _report, _run, row: len(row.samples),
    "seconds": lambda _report, _run, row: row.seconds.median,
    "seconds_least": lambda _report, _run, row: row.seconds.least,
    "seconds_most": lambda _report, _run, row: row.seconds.most,
    "tokens_per_s": lambda _report, _run, row: row.tokens_per_s and row.tokens_per_s.median,
    "tokens_per_s_least": lambda _report, _run, row: row.tokens_per_s and row.tokens_per_s.least,
    "tokens_per_s_most": lambda _report, _run, row: row.tokens_per_s and row.tokens_per_s.most,
    "bytes_per_token": lambda _report, _run, row: row.bytes_per_token,
    "bandwidth_bytes_per_s": lambda _report, run, _row: run.bandwidth.bytes_per_s,
    "bandwidth_share": lambda _report, run, row: run.bandwidth_share(row),
    "outside_share": lambda _report, _run, row: row.outside_share,
    "peak_bytes": lambda _report, run, _row: run.memory and run.memory.peak_bytes,
    "mapped_bytes": lambda _report, run, _row: run.memory and run.memory.mapped_bytes,
    "anonymous_bytes": lambda _report, run, _row: run.memory and run.memory.anonymous_bytes,
    "temperature_c": lambda _report, _run, row: row.temperature_c,
    "frequency_hz": lambda _report, _run, row: row.frequency_hz,
    "slowed": lambda _report, _run, row: " ".join(row.slowed),
}


def flat_rows(report: Report) -> Iterator[dict[str, Any]]:
    """One flat dict for every row of every run."""
    for run in report.runs:
        for row in run.rows:
            yield {name: column(report, run, row) for name, column in COLUMNS.items()}
