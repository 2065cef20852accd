"""One trace holds every step of the walk."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from app.asgi import create_app
from app.config import RouteSettings, TargetSettings
from app.telemetry import WALK
from app.tenants.principal import Scope
from tests.conftest import QUOTE, fake_settings, listen, open_site
from tests.gateway import wires
from tests.gateway.upstream import answering, prepared, upstream
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
    in_engine = {"wake", "queue", "prefill", "decode", "cache"}  # a fake target has none of these; the cache is off
    assert set(WALK) - in_engine <= walked
    assert request.attributes
    assert request.attributes["gen_ai.request.model"] == "quoting"
    assert request.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert request.attributes["gen_ai.usage.output_tokens"] == len(f"It says [1]: {QUOTE}".split())


async def test_upstreams_are_told_the_trace(tmp_path: Path, spans: InMemorySpanExporter) -> None:
    async with upstream(answering(*wires.OPENAI_TEXT)) as running:
        target = TargetSettings(name="far", provider="openai", base_url=running.url, allow_private=True)
        settings = fake_settings(tmp_path, targets=(target,), routes=(RouteSettings(model="m", targets=("far",)),))
        key = await prepared(settings, Scope.CHAT)
        async with listen(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            headers = {"authorization": f"Bearer {key}"}
            assert (await client.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        [asked] = running.exchanges
        [request] = [s for s in spans.get_finished_spans() if s.parent is None and "completions" in s.name]
        assert asked.headers["traceparent"].split("-")[1] == f"{request.context.trace_id:032x}"
