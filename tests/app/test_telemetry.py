"""One trace holds every step of the walk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.config import RouteSettings, TargetSettings
from app.telemetry import WALK
from tests.conftest import QUOTE, fake_settings, open_site
from tests.rag.test_documents_api import LEASE


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Everything recorded in this process from now on."""
    exporter = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield exporter
    exporter.shutdown()


async def test_one_trace_holds_the_walk(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    settings = fake_settings(
        tmp_path,
        targets=(TargetSettings(name="quoting", provider="fake", options=f"text=It says [1]: {QUOTE}"),),
        routes=(RouteSettings(model="quoting", targets=("quoting",)),),
    )
    async with open_site(settings) as site:
        headers = await site.headers()
        await site.file("lease.md", LEASE, headers)
        spans.clear()
        await site.client.post("/api/v1/answers", json={"question": "How much is the rent?"}, headers=headers)
    finished = spans.get_finished_spans()
    [request] = [span for span in finished if span.parent is None and "answers" in span.name]
    walked = {span.name for span in finished if span.context.trace_id == request.context.trace_id}
    in_engine = {"queue", "prefill", "decode"}  # a fake target has none of these
    assert set(WALK) - in_engine <= walked
