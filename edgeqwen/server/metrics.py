"""What a server counts, for Prometheus; labels are names of ours alone: models, routes, outcomes."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeqwen.server.models import Models
from edgeqwen.server.record import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
TOKEN_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
REQUEST_S = (0.01, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
# EngineLoad's fields: (name, what it is)
GAUGES = {
    "running": ("edgeqwen_running_answers", "Answers that are being computed"),
    "queued": ("edgeqwen_queued_requests", "Requests that wait for their turn"),
    "kv_tokens": ("edgeqwen_kv_cache_tokens", "Tokens in the KV cache"),
    "kv_capacity": ("edgeqwen_kv_cache_capacity_tokens", "Tokens that the KV cache can hold"),
}
COUNTERS = {
    "prompt_tokens": ("edgeqwen_prompt_tokens", "Tokens of prompts that were computed"),
    "cached_tokens": ("edgeqwen_prompt_tokens_cached", "Tokens of prompts that were found in the KV cache"),
    "answer_tokens": ("edgeqwen_answer_tokens", "Tokens of answers"),
    "cancelled": ("edgeqwen_cancelled_answers", "Answers whose client left"),
    "restarts": ("edgeqwen_engine_restarts", "Times that an engine's process died and was started again"),
}


class Metrics:
    """One server's own registry: two servers in a process do not mix."""

    def __init__(self, models: Models) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(models))
        self._requests = Counter(
            "edgeqwen_requests", "HTTP requests", ("route", "status", "outcome"), registry=self._registry
        )
        self._seconds = Histogram(
            "edgeqwen_request_seconds", "From a request to the end of its response", ("route",),
            buckets=REQUEST_S, registry=self._registry,
        )  # fmt: skip
        self._first = Histogram(
            "edgeqwen_first_token_seconds", "From a request to the first piece of its answer", ("model",),
            buckets=FIRST_S, registry=self._registry,
        )  # fmt: skip
        self._token = Histogram(
            "edgeqwen_token_seconds", "Per token of an answer but the first, one observation an answer", ("model",),
            buckets=TOKEN_S, registry=self._registry,
        )  # fmt: skip
        self._finished = Counter(
            "edgeqwen_answers", "Answers that came to their end", ("model", "finish_reason"), registry=self._registry
        )

    def count(self, record: Record) -> None:
        """Take a request that is over."""
        self._requests.labels(record.route, str(record.status), record.outcome).inc()
        self._seconds.labels(record.route).observe(record.seconds)
        if record.first_s is not None:
            self._first.labels(record.model).observe(record.first_s)
        for reason, usage, timings in record.ends:
            self._finished.labels(record.model, reason).inc()
            if usage.completion_tokens > 1:
                self._token.labels(record.model).observe(timings.decode_s / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self._registry)


class _Engines(Collector):
    """Asks the engines how busy they are when somebody wants to know."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        loads = [
            (self._models.identity(served), served.engine.load(), served.engine.state) for served in self._models.served
        ]
        ready = GaugeMetricFamily("edgeqwen_ready", "1 where a model takes requests", labels=("model",))
        for name, _, state in loads:
            ready.add_metric((name,), float(state == "ready"))
        yield ready
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for field, (metric, text) in table.items():
                family = kind(metric, text, labels=("model",))
                for name, load, _ in loads:
                    family.add_metric((name,), getattr(load, field))
                yield family
