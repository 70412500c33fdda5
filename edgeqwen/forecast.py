"""What every type of a model would need on a device, which one to take, and what to give up where none fits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from edgeqwen.boards import THIS, Target, target_named
from edgeqwen.engines import ENGINES, installed_engines
from edgeqwen.memory_need import KV_BYTES, MIB, kv_bytes_per_token
from edgeqwen.plan import CONTEXT_STEP, RESERVE, EngineChoice, Plan, choose_engines, longest_context, plan
from edgeqwen.prospect import Option, Prospect, prospect
from edgeqwen.published import PUBLISHED
from edgeqwen.speed_record import decode_speeds
from edgeqwen.types import DEFAULT_TYPE

# The order in which types are taken where several fit: the default first, then smaller ones, then larger ones.
PREFERENCE = (DEFAULT_TYPE, "q4_k_s", "q4_0", "int4", "int4_fast", "q5_k_m", "q6_k", "q8_0", "int8")
LEAST_CONTEXT = 1024  # tokens; a question with some thinking and its answer


@dataclass(frozen=True, slots=True)
class Row:
    """One type on one engine: what it needs, and how it would be loaded."""

    type: str
    engine: str
    format: str
    file_bytes: int
    read_bytes: int  # that every generated token reads
    plan: Plan
    longest_context: int  # tokens for which there is memory; 0: none

    @property
    def fits(self) -> bool:
        return self.plan.fits

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON data."""
        need = self.plan.need
        return {
            "type": self.type,
            "engine": self.engine,
            "format": self.format,
            "fits": self.fits,
            "file_bytes": self.file_bytes,
            "read_bytes_per_token": self.read_bytes,
            "mapped_bytes": need.mapped_bytes,
            "anonymous_bytes": need.anonymous_bytes,
            "peak_bytes": need.total_bytes,
            "parts": need.parts,
            "kv_type": self.plan.kv_type,
            "mmap": self.plan.mmap,
            "repack": self.plan.repack,
            "pool_tokens": self.plan.pool_tokens,
            "longest_context": self.longest_context,
            "reasons": list(self.plan.reasons),
        }


@dataclass(frozen=True, slots=True)
class Forecast:
    """All rows; `recommended` is one of them, or None where none fits, and then `give_up` says what would."""

    model: Prospect
    target: Target
    context_length: int
    parallel: int | None
    rows: tuple[Row, ...]
    recommended: Row | None
    reason: str
    give_up: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON data."""
        kv_types = {name for engine in ENGINES.values() for name in engine.kv_types}
        per_token = {name: kv_bytes_per_token(self.model.shape, name) for name in KV_BYTES if name in kv_types}
        return {
            "model": {"name": self.model.name, "source": self.model.source, "shape": asdict(self.model.shape)},
            "device": asdict(self.target),
            "context_length": self.context_length,
            "parallel": self.parallel,
            "kv_bytes_per_token": per_token,
            "rows": [row.as_dict() for row in self.rows],
            "recommended": self.recommended.as_dict() if self.recommended else None,
            "reason": self.reason,
            "give_up": list(self.give_up),
        }


def forecast(
    name: str,
    *,
    device: str = THIS,
    context_length: int | None = None,
    parallel: int | None = None,
    offline: bool = False,
) -> Forecast:
    """Plan for every type and engine of a model on a device, this one or one of boards.BOARDS.

    RequestError for an unknown device, or a context that the model was not made for; the others are of `prospect`.
    """
    return forecast_of(prospect(name, offline=offline), target_named(device), context_length, parallel)


def forecast_of(
    model: Prospect, target: Target, context_length: int | None = None, parallel: int | None = None
) -> Forecast:
    """The same for a model and a device that are known already."""
    usable = _usable(model, target)
    rows = [_row(model, option, target, context_length, parallel) for option in model.options]
    rows.sort(key=lambda row: (row.engine != "llamacpp", -row.file_bytes))
    context = rows[0].plan.context_length
    best = _best(rows, tuple(usable))
    if best is not None:
        why = "; ".join(part for part in (usable[best.engine], _why(best, rows, model)) if part)
        return Forecast(model, target, context, parallel, tuple(rows), best, why)
    if not any(row.engine in usable for row in rows):
        lines = dict.fromkeys(f"{ENGINES[row.engine].pip_line} (it reads {row.format})" for row in rows)
        reason = f"no engine that runs this model is installed: {', or '.join(lines)}"
        return Forecast(model, target, context, parallel, tuple(rows), None, reason)
    reason = f"nothing fits into the {_room(target)} MiB that may be used for {context} tokens of context"
    return Forecast(
        model, target, context, parallel, tuple(rows), None, reason, _give_up(model, target, rows, parallel)
    )


def _usable(model: Prospect, target: Target) -> dict[str, str]:
    """The engines that can be used, in the order in which they are taken, and what was measured here of their speed."""
    if target.name != THIS:
        return dict.fromkeys(ENGINES, "")
    installed = [name for name in installed_engines() if ENGINES[name].format in {o.format for o in model.options}]
    speeds = decode_speeds(model.digest)
    if not installed or not speeds:
        return dict.fromkeys(installed, "")
    choices = choose_engines(tuple(ENGINES[name].format for name in installed), installed, speeds=speeds)
    return {choice.engine: choice.reason if len(speeds) > 1 else "" for choice in choices}


def _row(model: Prospect, option: Option, target: Target, context_length: int | None, parallel: int | None) -> Row:
    engine = next(engine for engine in ENGINES.values() if engine.format == option.format)
    found = plan(
        model.shape, option.weights, target.device,
        engine=EngineChoice(engine.name, f"{engine.name}: reads {engine.format}"), context_length=context_length,
        gpu_layers=None, parallel=parallel, force=True,
    )  # fmt: skip
    longest = longest_context(model.shape, option.weights, target.device, engine, parallel=parallel)
    return Row(option.type, engine.name, option.format, option.file_bytes, option.weights.read_bytes, found, longest)


def _best(rows: Collection[Row], usable: Sequence[str]) -> Row | None:
    """The row to take: the preferred type that fits, of the first of the engines that can be used."""
    fitting = [row for row in rows if row.fits and row.engine in usable]
    order = {name: place for place, name in enumerate(PREFERENCE)}
    return min(fitting, key=lambda row: (usable.index(row.engine), order.get(row.type, len(order))), default=None)


def _why(best: Row, rows: Collection[Row], model: Prospect) -> str:
    """What speaks for the row, and what else would fit."""
    if model.is_made:
        return "; ".join(("it fits", *best.plan.reasons[2:]))
    usual = "what convert makes by default" if best.type == DEFAULT_TYPE else "the first of the preferred types to fit"
    said = [f"{usual}, {best.read_bytes / 1e6:.0f} MB read for every token", *best.plan.reasons[2:]]
    exact = [row for row in rows if row.fits and row.engine == best.engine and row.read_bytes > best.read_bytes]
    quantized = [row for row in exact if row.type in PREFERENCE]
    if quantized:
        larger = max(quantized, key=lambda row: row.read_bytes)
        share = larger.read_bytes / best.read_bytes
        said.append(f"{larger.type} fits as well: closer to the original, and {share:.1f} times as much to read")
    return "; ".join(said)


def _room(target: Target) -> int:
    return int(RESERVE * (target.device.memory_available_bytes or 0)) // MIB


def _give_up(model: Prospect, target: Target, rows: Sequence[Row], parallel: int | None) -> tuple[str, ...]:
    """What would fit instead: less context, fewer answers, a smaller model; or that nothing does."""
    said = []
    able = [row for row in rows if row.longest_context >= CONTEXT_STEP]
    if able:
        best = max(able, key=lambda row: (row.longest_context, row.engine == "llamacpp"))
        said.append(f"--context {best.longest_context} would fit as {best.type} on {best.engine}")
    if (parallel or 1) > 1:
        said.append(f"fewer answers side by side than {parallel}")
    said += _smaller(model, target, rows[0].plan.context_length)
    least = min(rows, key=lambda row: row.plan.need.total_bytes)
    need = least.plan.need
    if not said:
        said.append(
            f"more memory: as {least.type} on {least.engine} it needs {need.total_bytes // MIB} MiB, "
            f"{need.anonymous_bytes // MIB} MiB of them anonymous"
        )
    return tuple(said)


def _smaller(model: Prospect, target: Target, context_length: int) -> list[str]:
    """The largest of the smaller models that fits with this context, or else with the least that is of use."""
    size = model.shape.num_hidden_layers * model.shape.hidden_size
    smaller = [name for name, s in PUBLISHED.items() if s.num_hidden_layers * s.hidden_size < size]
    for context in dict.fromkeys((context_length, min(context_length, LEAST_CONTEXT))):
        for name in reversed(smaller):
            other = prospect(name)
            fitting = [_row(other, option, target, context, None) for option in other.options]
            if best := _best(fitting, tuple(ENGINES)):
                return [f"a smaller model: {name} as {best.type} fits with {context} tokens of context"]
    return []
