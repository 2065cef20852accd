"""Metrics, every name in one place: read by Prometheus at /metrics and pushed to an OTLP endpoint where one is set.

Names follow OpenTelemetry's conventions for generative AI where there is one (gen_ai.server.*, gen_ai.client.*);
what only this application has begins with `precedent.`. Prometheus spells dots as underscores and adds the unit:
`gen_ai.server.time_to_first_token` is `gen_ai_server_time_to_first_token_seconds`.
Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Histogram, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from app.config import TelemetrySettings

# Bucket borders in seconds; the conventions', with finer ones where a person notices.
TTFT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 60.0)
PER_TOKEN = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
STAGE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
Counts = Mapping[str, float]
# What engines count: name here, then the attribute by which a model's series differ and the counter behind each.
ENGINE_COUNTERS: dict[str, dict[str, str]] = {
    "precedent.engine.steps": {"": "steps"},
    "precedent.engine.tokens": {
        "prompt": "prompt_tokens", "prefill": "prefill_tokens_computed", "output": "output_tokens",
        "prefix_hit": "prefix_hit_tokens",
    },
    "precedent.engine.draft_tokens": {"tried": "draft_tokens", "accepted": "draft_tokens_accepted"},
    "precedent.engine.preemptions": {"": "preemptions"},
    "precedent.engine.unfinished": {"abort": "aborts", "deadline": "expired", "forgotten": "forgotten"},
    "precedent.engine.wakes": {"": "wakes"},
    "precedent.engine.waking": {"": "wake_seconds"},
}  # fmt: skip
ENGINE_GAUGES: dict[str, dict[str, str]] = {
    "precedent.engine.requests": {"running": "running", "waiting": "waiting", "waking": "waking"},
    "precedent.engine.kv_blocks": {
        "free": "free_blocks", "used": "used_blocks", "cached": "cached_blocks", "pinned": "pinned_blocks",
    },
    "precedent.engine.awake": {"": "awake"},
    "precedent.engine.memory": {"": "device_bytes"},
    "precedent.engine.predicted_ttft": {"": "predicted_ttft_ms"},
}  # fmt: skip
UNITS = {"precedent.engine.memory": "By", "precedent.engine.waking": "s", "precedent.engine.predicted_ttft": "ms"}


class Metrics:
    """One application's instruments, with their own provider and registry: several can live in one process."""

    def __init__(self, settings: TelemetrySettings) -> None:
        self._registry = CollectorRegistry()
        readers: list[MetricReader] = [
            PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        ]
        if settings.otlp_endpoint:
            exporter = OTLPMetricExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/metrics")
            readers.append(PeriodicExportingMetricReader(exporter))
        resource = Resource.create({"service.name": "precedent"})
        self._provider = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._meter = self._provider.get_meter("precedent")
        self._ttft = self._histogram("gen_ai.server.time_to_first_token", "s", TTFT)
        self._per_token = self._histogram("gen_ai.server.time_per_output_token", "s", PER_TOKEN)
        self._duration = self._histogram("gen_ai.server.request.duration", "s", DURATION)
        self._usage = self._histogram("gen_ai.client.token.usage", "{token}", TOKENS)
        self._stage = self._histogram("precedent.stage.duration", "s", STAGE)
        self._requests = self._meter.create_counter("precedent.requests", "{request}", "By target and how they ended.")
        self._fallbacks = self._meter.create_counter("precedent.fallbacks", "{attempt}", "Targets that did not answer.")
        self._cache = self._meter.create_counter("precedent.cache.lookups", "{lookup}", "By cache and outcome.")
        self._overhead = self._histogram("precedent.overhead.duration", "s", STAGE)
        self._slo = self._meter.create_counter("precedent.slo", "{request}", "Answers by whether they came in time.")
        self._ttft_within = settings.slo_ttft_ms / 1e3
        self._per_token_within = settings.slo_per_token_ms / 1e3
        self._cost = self._meter.create_counter("precedent.cost", "{USD}", "What requests cost, in US dollars.")

    def _histogram(self, name: str, unit: str, borders: Sequence[float]) -> Histogram:
        return self._meter.create_histogram(name, unit, explicit_bucket_boundaries_advisory=borders)

    def request(
        self,
        *,
        model: str,
        target: str,
        status: str,
        fallbacks: int,
        prompt_tokens: int,
        completion_tokens: int,
        cost_micros: int,
        first_delta_ms: float,
        total_ms: float,
        overhead_ms: float,
        timings_ms: Mapping[str, float],
    ) -> None:
        """A request has ended. first_delta_ms 0: nothing came. overhead_ms: of our own, before any target was asked.
        timings_ms: its stages, see telemetry.Stages."""
        by = {"gen_ai.request.model": model, "precedent.target": target}
        self._requests.add(1, by | {"status": status})
        self._duration.record(total_ms / 1e3, by)
        self._overhead.record(overhead_ms / 1e3)
        if fallbacks:
            self._fallbacks.add(fallbacks, by)
        if cost_micros:
            self._cost.add(cost_micros / 1e6, by)
        for stage, milliseconds in timings_ms.items():
            self._stage.record(milliseconds / 1e3, {"stage": stage})
        if not first_delta_ms:
            return
        first = (overhead_ms + first_delta_ms) / 1e3
        per_token = max(0.0, total_ms / 1e3 - first) / max(1, completion_tokens - 1)
        self._ttft.record(first_delta_ms / 1e3, by)
        if completion_tokens > 1:
            self._per_token.record(per_token, by)
        met = first <= self._ttft_within and per_token <= self._per_token_within
        self._slo.add(1, by | {"met": "true" if met else "false"})
        for kind, tokens in (("input", prompt_tokens), ("output", completion_tokens)):
            self._usage.record(tokens, by | {"gen_ai.token.type": kind})

    def cache(self, cache: str, outcome: str) -> None:
        """cache: exact or semantic.  outcome: hit, draft or miss."""
        self._cache.add(1, {"cache": cache, "outcome": outcome})

    def watch(self, name: str, unit: str, value: Callable[[], float | None]) -> None:
        """A gauge that is asked at each scrape; None: unknown."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            found = value()
            return [] if found is None else [Observation(found)]

        self._meter.create_observable_gauge(name, [observe], unit)

    def watch_engines(self, engines: Callable[[], Mapping[str, Counts]]) -> None:
        """engines: those that are there now, by target, each with its own counters by name; asked at each scrape. What
        is left out has no value now."""
        for name, series in ENGINE_COUNTERS.items():
            self._meter.create_observable_counter(name, [_observer(series, engines)], UNITS.get(name, ""))
        for name, series in ENGINE_GAUGES.items():
            self._meter.create_observable_gauge(name, [_observer(series, engines)], UNITS.get(name, ""))

    def exposition(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and its media type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def close(self) -> None:
        """Push what is left and end the exporter's thread."""
        self._provider.shutdown()


def _observer(
    series: Mapping[str, str], engines: Callable[[], Mapping[str, Counts]]
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for target, found in engines().items():
            for kind, counter in series.items():
                if counter in found:
                    by = {"precedent.target": target}
                    yield Observation(found[counter], by | {"kind": kind} if kind else by)

    return observe
