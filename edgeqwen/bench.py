"""Measures engines on a model: speed, time to the first token, loading and memory; it prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path

from edgeqwen.bandwidth import Bandwidth, read_bandwidth
from edgeqwen.bench_process import Request, samples
from edgeqwen.bench_report import Report, Row, Run, Taken
from edgeqwen.device import (
    counted,
    cpu_name,
    largest_cache_bytes,
    machine_facts,
    memory_available_bytes,
    physical_cores,
)
from edgeqwen.engines import AUTO, ENGINES, Engine, installed_engines
from edgeqwen.errors import EdgeqwenError, RequestError
from edgeqwen.memory_need import kv_bytes_per_token
from edgeqwen.outline import Outline, outline
from edgeqwen.plan import choose_engines, whole_number
from edgeqwen.power import Power, read_power
from edgeqwen.process_memory import Memory
from edgeqwen.speed import Sample
from edgeqwen.speed_record import Speed, decode_speeds, keep_speeds

ALL = "all"
TEMPLATE_TOKENS = 128  # that a chat template may put around a question
TOKENS_MAX = 1 << 24
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured: prompts and generated lengths at every depth, for each engine and number of threads."""

    prompts: tuple[int, ...] = (128, 512)  # tokens of a prompt, and of a question whose first token is waited for
    generate: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0, 1024)  # tokens of context in front
    threads: tuple[int, ...] = ()  # none: the fast physical cores
    engines: tuple[str, ...] = (ALL,)
    repeat: int = 5
    context_length: int | None = None  # None: as long as the tests need
    kv_type: str | None = None
    gpu_layers: int = 0


PRESETS = {
    "standard": BenchSettings(),
    "short": BenchSettings(prompts=(2, 12, 18), generate=(64,), depths=(0,)),
}


def bench(
    path: Path,
    settings: BenchSettings,
    *,
    trust_template: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure what `catalog.locate` found, and remember the speeds for the next choice of engine.

    RequestError for what cannot be measured. Where several configurations are asked for, one that fails is a line of
    the report and the others go on. Ctrl-C ends the measuring; the report has what was measured before it.
    """
    model = outline(path)
    context_length = _context_length(settings, model)
    configurations = list(product(_engines(settings, model), settings.threads or (physical_cores(),)))
    report = Report(
        model.name, {**machine_facts(), "edgeqwen": version("edgeqwen")}, largest_cache_bytes(), settings.repeat,
        {engine.format: model.weights[engine.format].read_bytes for engine, _ in configurations},
        {engine.name: kv_bytes_per_token(model.shape, _kv_type(settings, engine)) for engine, _ in configurations},
    )  # fmt: skip
    for engine, threads in configurations:
        request = Request(
            str(path), engine.name, threads, settings.prompts, settings.generate, settings.depths, settings.repeat,
            context_length, _kv_type(settings, engine), settings.gpu_layers, trust_template, force,
        )  # fmt: skip
        measuring = _Measuring(request, progress)
        try:
            measuring.go()
        except EdgeqwenError as error:
            if len(configurations) == 1:
                raise
            failure = f"{engine.name}, {counted(threads, 'thread')}: {error}"
            report = replace(report, failures=(*report.failures, failure))
        except KeyboardInterrupt:
            report = replace(report, stopped=True)
        if measuring.samples:
            report = replace(report, runs=(*report.runs, measuring.run(model)))
        if report.stopped:
            break
    report = replace(report, runs=_at_the_best_bandwidth(report.runs))
    _remember(model, settings, report)
    return report


def _context_length(settings: BenchSettings, model: Outline) -> int:
    """Check the settings; tokens of context that the tests need, or as many as were asked for."""
    for name, values, low, high in (
        ("prompts", settings.prompts, 1, TOKENS_MAX),
        ("generate", settings.generate, 1, TOKENS_MAX),
        ("depths", settings.depths, 0, TOKENS_MAX),
        ("threads", settings.threads, 1, 1024),
        ("repeat", (settings.repeat,), 1, 1000),
    ):
        for value in values:
            whole_number(name, value, low, high)
    if not (settings.prompts or settings.generate) or not settings.depths:
        raise RequestError("there is nothing to measure: no prompt and nothing to generate, or no depth")
    deepest, longest = max(settings.depths), max((*settings.prompts, *settings.generate))
    need, most = deepest + longest, model.shape.max_position_embeddings
    if need > most:
        raise RequestError(f"{longest} tokens behind {deepest} are {need}: this model was made for {most}")
    wanted = settings.context_length
    whole_number("context_length", wanted, need, most, f": the tests need {need} and this model was made for {most}")
    roomy = max(need, max(settings.prompts, default=0) + TEMPLATE_TOKENS)
    return wanted or min(most, -(-roomy // 256) * 256)


def _engines(settings: BenchSettings, model: Outline) -> list[Engine]:
    """The engines to measure; EngineMissingError and RequestError for one that cannot run this model."""
    formats, installed = tuple(model.weights), installed_engines()
    found: dict[str, Engine] = {}
    for name in settings.engines:
        choices = choose_engines(
            formats, installed,
            wanted=AUTO if name == ALL else name, kv_type=settings.kv_type, gpu_layers=settings.gpu_layers,
            speeds=None if name == ALL else decode_speeds(model.digest),
        )  # fmt: skip
        found |= {choice.engine: ENGINES[choice.engine] for choice in (choices if name == ALL else choices[:1])}
    return list(found.values())


def _kv_type(settings: BenchSettings, engine: Engine) -> str:
    return settings.kv_type or engine.kv_types[0]


class _Measuring:
    """One configuration: its samples as far as they came."""

    def __init__(self, request: Request, progress: Progress | None) -> None:
        self._request = request
        self._progress = progress
        self._memory: Memory | None = None
        self._bandwidths: list[Bandwidth] = []
        self._power: Power | None = None  # at the end of the sample before
        self.samples: dict[tuple[str, int, int], list[Taken]] = {}

    def go(self) -> None:
        """Measure, the bandwidth before and after: another user of the machine may disturb one of the two."""
        request, done = self._request, 0
        self._bandwidths.append(read_bandwidth(request.threads, memory_available_bytes()))
        self._power = read_power()
        prompts, depths = len(request.prompts), len(request.depths)
        total = request.repeat * (1 + prompts + depths * (prompts + len(request.generate)))
        label = f"measuring {request.engine}, {counted(request.threads, 'thread')}"
        for found in samples(request):
            if isinstance(found, Memory):
                self._memory = found
                continue
            self.samples.setdefault((found.test, found.tokens, found.depth), []).append(self._taken(found))
            done += 1
            if self._progress is not None:
                self._progress(done, total, label)
        self._bandwidths.append(read_bandwidth(request.threads, memory_available_bytes()))

    def _taken(self, sample: Sample) -> Taken:
        """A sample that has just ended, beside what the machine went through while it was measured."""
        before, self._power = self._power, read_power()
        return Taken(sample, self._power, self._power.since(before))

    def run(self, model: Outline) -> Run:
        """What was measured, and what every generated token reads of memory."""
        request, engine = self._request, ENGINES[self._request.engine]
        weights, per_token = model.weights[engine.format], kv_bytes_per_token(model.shape, request.kv_type)
        bandwidth = max(self._bandwidths, key=lambda found: found.bytes_per_s)
        rows = []
        for (test, tokens, depth), found in self.samples.items():
            row = Row(found[0].sample.test, tokens, depth, tuple(found))
            if test == "decode" and not request.gpu_layers:
                row = replace(row, bytes_per_token=weights.read_bytes + per_token * (depth + (tokens + 1) / 2))
            rows.append(row)
        return Run(
            engine.name, engine.version, engine.format, model.types[engine.format], request.threads, request.kv_type,
            request.context_length, bandwidth, self._memory, tuple(rows),
        )  # fmt: skip


def _at_the_best_bandwidth(runs: tuple[Run, ...]) -> tuple[Run, ...]:
    """A limit is the best that was seen: runs with equally many threads are held to the same."""
    best: dict[int, Bandwidth] = {}
    for run in sorted(runs, key=lambda run: run.bandwidth.bytes_per_s):
        best[run.threads] = run.bandwidth
    return tuple(replace(run, bandwidth=best[run.threads]) for run in runs)


def _remember(model: Outline, settings: BenchSettings, report: Report) -> None:
    """Keep how fast each engine decodes behind nothing, with the default's threads: what can be held side by side.

    What a machine that was held back decoded says nothing of the engine.
    """
    if model.digest is None or settings.kv_type is not None or settings.gpu_layers:
        return
    speeds: dict[str, Speed] = {}
    for run in report.runs:
        decoded = next((row for row in run.of("decode") if not row.depth), None)
        if run.threads != physical_cores() or run.version is None or decoded is None or decoded.slowed:
            continue
        if decoded.tokens_per_s is not None:
            speeds[run.engine] = Speed(cpu_name(), run.version, run.threads, decoded.tokens_per_s.median)
    if speeds:
        keep_speeds(model.digest, speeds)
