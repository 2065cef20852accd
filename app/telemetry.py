"""Traces and structured logs. Every span name of the walk stands here.

`Stages` measures the steps of one request: each is an OpenTelemetry span and a figure in `timings_ms`, from the
same clock. Steps measured elsewhere (the engine's thread, the retriever) are added after the fact with `add()`.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from app.config import TelemetrySettings

# The spans of the walk of one question, in order; below the request's own span.
WALK = (
    "auth", "embed", "search", "rerank", "route", "cache", "limits", "wake", "queue", "prefill", "decode", "verify",
)  # fmt: skip

tracer = trace.get_tracer("precedent")


class Stages:
    """Durations in milliseconds by stage name; a stage that runs twice adds up."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.timings_ms: dict[str, float] = {}
        self._spans: list[dict[str, Any]] = []

    @contextmanager
    def stage(self, name: str, **attributes: Any) -> Iterator[trace.Span]:
        """Time the block as span and figure."""
        begin = time.perf_counter()
        try:
            if recording():
                with tracer.start_as_current_span(name, attributes=attributes) as span:
                    yield span
            else:
                yield trace.INVALID_SPAN
        finally:
            self._record(name, (time.perf_counter() - begin) * 1000)

    def add(self, name: str, milliseconds: float, **attributes: Any) -> None:
        """A stage that somebody else timed and that ended just now."""
        end = time.time_ns()
        span = tracer.start_span(name, start_time=end - int(milliseconds * 1e6), attributes=attributes)
        span.end(end)
        self._record(name, milliseconds)

    def total(self) -> dict[str, float]:
        """All figures with `total` since this object was made."""
        return {**self.timings_ms, "total": round((time.perf_counter() - self._start) * 1000, 3)}

    def spans(self) -> list[dict[str, Any]]:
        """Each stage's name, start and duration in milliseconds since this object was made, in the order they ended."""
        return self._spans

    def _record(self, name: str, milliseconds: float) -> None:
        end = (time.perf_counter() - self._start) * 1000
        start = round(max(0.0, end - milliseconds), 3)
        self._spans.append({"name": name, "start_ms": start, "duration_ms": round(milliseconds, 3)})
        self.timings_ms[name] = round(self.timings_ms.get(name, 0.0) + milliseconds, 3)


def configure_tracing(settings: TelemetrySettings) -> bool:
    """Export traces where an endpoint is configured. True when spans are recorded, by this or by whoever embeds us."""
    if settings.otlp_endpoint and not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider(resource=Resource.create({"service.name": "precedent"}))
        exporter = OTLPSpanExporter(endpoint=f"{settings.otlp_endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
    return recording()


def recording() -> bool:
    """Whether anybody records spans. Where nobody does they are not even begun: that too takes its time."""
    return isinstance(trace.get_tracer_provider(), TracerProvider)


def flush_traces() -> None:
    """Send what is still buffered."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        provider.force_flush()


def configure_logging(settings: TelemetrySettings) -> None:
    """structlog over the standard library, so that libraries' records come out in the same form."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    json = settings.log_format == "json"
    renderer = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(processor=renderer, foreign_pre_chain=shared))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # One line per HTTP call made by a client is noise at info.
    logging.getLogger("httpx").setLevel(max(logging.WARNING, root.level))


def logger(name: str) -> Any:
    """A structured logger; events are lower-case words, facts are key-values, never prompts or secrets."""
    return structlog.stdlib.get_logger(name)
