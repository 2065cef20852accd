"""A question to an answer whose quotes were checked.

search → evidence → prompt → gateway → deltas → citations. Code never writes into the answer: what the model did not
say is not there, and an answer without one verified quote counts as a refusal.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from opentelemetry import trace

from app.config import RagSettings
from app.errors import source_gone
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment, Usage
from app.gateway.service import Gateway
from app.gateway.stream import ChatStream
from app.rag.citations import Citation, CitationScanner
from app.rag.forget import Forgetting, source_ids
from app.rag.prompts import HEADER, REFUSAL, render_passage, render_question
from app.rag.schemas import AnswerRequest, AnswerView, CitationView, UsageView
from app.rag.search import Found, SearchService
from app.telemetry import Stages
from app.tenants.principal import Principal

NO_MODEL = "none"
# Byte-identical in every request, so that its keys and values are computed once for everybody.
LEGAL_PROMPT = Path(__file__).with_name("legal_prompt.md").read_text().strip()


@dataclass(frozen=True)
class AnswerDelta:
    """Text as the model writes it."""

    text: str


@dataclass(frozen=True)
class CitationFound:
    citation: CitationView


@dataclass(frozen=True)
class AnswerDone:
    """Last: the whole answer. Where it differs from the deltas (a refusal for want of support), it is what counts."""

    answer: AnswerView


AnswerEvent = AnswerDelta | CitationFound | AnswerDone


class AnswerService:
    """Answers questions from documents."""

    def __init__(self, search: SearchService, gateway: Gateway, settings: RagSettings, forgetting: Forgetting) -> None:
        self._search = search
        self._gateway = gateway
        self._settings = settings
        self._forgetting = forgetting

    async def open(self, principal: Principal, request: AnswerRequest) -> "OpenAnswer":
        """Retrieve and get the model's first delta; every failure up to there is an exception, not an event."""
        stages = Stages()
        found = await self._search.search(
            principal, request.question, self._settings.passages, request.collection, request.documents
        )
        for stage, milliseconds in found.timings_ms.items():
            stages.add(stage, milliseconds)
        return await self.ask(principal, request, found.passages, found.confidence, stages)

    async def ask(
        self,
        principal: Principal,
        request: AnswerRequest,
        passages: list[Found],
        confidence: float,
        stages: Stages,
    ) -> "OpenAnswer":
        """Put the question with these passages to the model; without any worth asking about, refuse unasked."""
        model = request.model or self._gateway.router.default_model
        self._gateway.router.plan(model)
        stream: ChatStream | None = None
        if passages and confidence >= self._settings.min_confidence:
            chat = ChatRequest(
                model=model,
                messages=prompt(principal, passages, request.question),
                sampling=Sampling(temperature=0.0, max_tokens=self._settings.max_answer_tokens),
                quote_sources=tuple(fold(found.text) for found in passages) if request.quote_lock else (),
                endpoint="answers",
            )
            stream = await self._gateway.open(principal, chat, stages)
        return OpenAnswer(passages, stream, stages, self._forgetting)


def prompt(principal: Principal, passages: list[Found], question: str) -> tuple[Message, ...]:
    """The firm's policy, byte-identical and shared by all, then passages and question under the caller's label."""
    tenant = principal.access_atoms(frozenset())
    evidence = [
        Segment(
            render_passage(number, found.title, " > ".join(found.section), fold(found.text)),
            principal.access_atoms(found.labels),
            source_ids(found.passage.document_id, found.passage.version),
        )
        for number, found in enumerate(passages, start=1)
    ]
    user = (Segment(HEADER, tenant), *evidence, Segment(render_question(question), tenant))
    return Message("system", (Segment(LEGAL_PROMPT),)), Message("user", user)


def fold(text: str) -> str:
    """White space as a reader sees it: the line breaks of a page are no part of what a clause says."""
    return " ".join(text.split())


class OpenAnswer:
    """An answer on its way; iterate `events()` once."""

    def __init__(
        self, passages: list[Found], stream: ChatStream | None, stages: Stages, forgetting: Forgetting
    ) -> None:
        self._id = uuid4()
        self._titles = {UUID(found.passage.document_id): found.title for found in passages}
        self._scanner = CitationScanner([found.evidence for found in passages])
        self._stream = stream
        self._stages = stages
        self._text = ""
        self._views: list[CitationView] = []
        self.citations: list[Citation] = []
        self._sources = {s for f in passages for s in source_ids(f.passage.document_id, f.passage.version)}
        self._forgetting = forgetting
        self._speculation: dict[str, Any] | None = None

    def _require_sources(self) -> None:
        if self._forgetting.any_gone(self._sources):
            raise source_gone()

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """Deltas and citations as they come, then the whole. Raises Conflict when a document that is read has gone."""
        if self._stream is None:
            yield AnswerDelta(REFUSAL)
            yield AnswerDone(self._view(REFUSAL, refused=True, usage=Usage(), served_by=NO_MODEL))
            return
        async with self._stream:
            async for delta in self._stream:
                self._require_sources()
                self._speculation = delta.speculation or self._speculation
                if delta.text:
                    self._text += delta.text
                    yield AnswerDelta(delta.text)
                    for citation in self._verify(self._scanner.feed(delta.text)):
                        yield CitationFound(citation)
        with self._stages.stage("verify"):
            last = self._verify(self._scanner.finish())
        self._require_sources()
        for citation in last:
            yield CitationFound(citation)
        yield AnswerDone(self._conclude(self._stream))

    async def complete(self) -> AnswerView:
        """The whole answer at once."""
        async for event in self.events():
            if isinstance(event, AnswerDone):
                return event.answer
        raise AssertionError("events() ends with AnswerDone")

    def _verify(self, citations: list[Citation]) -> list[CitationView]:
        views = [CitationView.of(c, self._titles[UUID(c.document_id)]) for c in citations]
        self.citations += citations
        self._views += views
        return views

    def _conclude(self, stream: ChatStream) -> AnswerView:
        refused = REFUSAL in self._text or not any(citation.verified for citation in self.citations)
        text = REFUSAL if refused else self._text.strip()
        return self._view(text, refused=refused, usage=stream.usage, served_by=stream.served_by)

    def _view(self, text: str, *, refused: bool, usage: Usage, served_by: str) -> AnswerView:
        span = trace.get_current_span()
        span.set_attribute("precedent.refused", refused)
        return AnswerView(
            id=self._id,
            answer=text,
            refused=refused,
            citations=[] if refused else self._views,
            usage=UsageView(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
            timings_ms=self._stages.total(),
            served_by=served_by,
            speculation=self._speculation,
        )
