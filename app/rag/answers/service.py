"""A question to an answer whose quotes were checked.

search → evidence → prompt → gateway → deltas → citations. Code never writes into the answer: what the model did not
say is not there, and an answer without one verified quote counts as a refusal.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from opentelemetry import trace
from uuid_utils.compat import uuid7

from app.config import RagSettings
from app.errors import source_gone
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment, Usage
from app.gateway.service import Gateway
from app.gateway.stream import ChatStream
from app.rag.answers.citations import Citation, CitationScanner
from app.rag.answers.log import AnswerLog, Asked
from app.rag.answers.prompts import HEADER, REFUSAL, render_passage, render_question
from app.rag.api.schemas import AnswerRequest, AnswerView, CitationView, EvidenceView, UnverifiedView, UsageView
from app.rag.forget import Forgetting, source_ids
from app.rag.retrieval.rights import Rights, Watch
from app.rag.retrieval.search import Found, SearchService
from app.telemetry import Stages
from app.tenants.principal import Principal

NO_MODEL = "none"
# Byte-identical in every request, so that its keys and values are computed once for everybody.
LEGAL_PROMPT = Path(__file__).with_name("legal_prompt.md").read_text().strip()

_STRUCTURE = re.compile(r"(?i)\[\s*\d|(?:question|passages)\s*:")


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

    def __init__(
        self,
        search: SearchService,
        gateway: Gateway,
        settings: RagSettings,
        forgetting: Forgetting,
        rights: Rights,
        log: AnswerLog,
    ) -> None:
        self._search = search
        self._gateway = gateway
        self._settings = settings
        self._forgetting = forgetting
        self._rights = rights
        self._log = log

    async def open(self, principal: Principal, request: AnswerRequest, asked: Asked | None = None) -> "OpenAnswer":
        """Retrieve and get the model's first delta; every failure up to there is an exception, not an event.

        `asked`: of which conversation the answer is a turn.
        """
        stages = Stages()
        found = await self._search.search(
            principal, request.question, self._settings.passages, request.collection, request.documents
        )
        for stage, milliseconds in found.timings_ms.items():
            stages.add(stage, milliseconds)
        return await self.ask(principal, request, found.passages, found.confidence, stages, asked)

    async def ask(
        self,
        principal: Principal,
        request: AnswerRequest,
        passages: list[Found],
        confidence: float,
        stages: Stages,
        asked: Asked | None = None,
    ) -> "OpenAnswer":
        """Put the question with these passages to the model; without any worth asking about, refuse unasked."""
        model = request.model or self._gateway.router.default_model
        self._gateway.router.plan(model)
        stream: ChatStream | None = None
        if passages and confidence >= self._settings.min_confidence:
            chat = ChatRequest(
                model=model,
                messages=prompt(principal, passages, request.question, asked.labels if asked else frozenset()),
                sampling=Sampling(temperature=0.0, max_tokens=self._settings.max_answer_tokens),
                quote_sources=tuple(fold(found.text) for found in passages) if request.quote_lock else (),
                endpoint="answers",
            )
            stream = await self._gateway.open(principal, chat, stages)
        passages = passages if stream else []  # without a model nothing was read
        sources = {(UUID(found.passage.document_id), found.passage.version) for found in passages}
        carried = set(asked.carried) if asked else set()
        watch = self._rights.watch(principal, sources | carried)

        async def keep(view: AnswerView) -> None:
            await self._log.write(principal, model, view, passages, asked)

        return OpenAnswer(passages, stream, stages, self._forgetting, watch, keep, asked)


def prompt(
    principal: Principal, passages: list[Found], question: str, labels: frozenset[str] = frozenset()
) -> tuple[Message, ...]:
    """The firm's policy, byte-identical and shared by all, then passages and question under the caller's label.

    `labels`: of what an earlier turn brought into the question.
    """
    tenant = principal.access_atoms(frozenset())
    evidence = [
        Segment(
            render_passage(number, fold(found.title), fold(" > ".join(found.section)), contained(found.text)),
            principal.access_atoms(found.labels),
            source_ids(found.passage.document_id, found.passage.version),
        )
        for number, found in enumerate(passages, start=1)
    ]
    user = (Segment(HEADER, tenant), *evidence, Segment(render_question(question), principal.access_atoms(labels)))
    return Message("system", (Segment(LEGAL_PROMPT),)), Message("user", user)


def fold(text: str) -> str:
    """White space as a reader sees it: the line breaks of a page are no part of what a clause says, and no text of a
    document can begin a line of the prompt.
    """
    return " ".join(text.split())


def contained(text: str) -> str:
    """A passage's text in the one line that is its own: it cannot begin like a line of the prompt's structure."""
    folded = fold(text)
    return f"… {folded}" if _STRUCTURE.match(folded) else folded


class OpenAnswer:
    """An answer on its way; iterate `events()` once."""

    def __init__(
        self,
        passages: list[Found],
        stream: ChatStream | None,
        stages: Stages,
        forgetting: Forgetting,
        watch: Watch,
        keep: Callable[[AnswerView], Awaitable[None]],
        asked: Asked | None,
    ) -> None:
        self._id = uuid7()
        self._titles = {UUID(found.passage.document_id): found.title for found in passages}
        self._scanner = CitationScanner([found.evidence for found in passages])
        self._stream = stream
        self._stages = stages
        self._text = ""
        self._views: list[CitationView] = []
        self.citations: list[Citation] = []
        self._sources = {s for f in passages for s in source_ids(f.passage.document_id, f.passage.version)}
        self._forgetting = forgetting
        self._watch = watch
        self._keep = keep
        self._asked = asked
        self._evidence = [_evidence(number, found) for number, found in enumerate(passages, start=1)]
        self._speculation: dict[str, Any] | None = None

    async def _require_sources(self) -> None:
        """Nothing more is said of what may not be read any more. Rights may take a moment to ask for, in which a
        document may go.
        """
        self._require_present()
        await self._watch.require()
        self._require_present()

    def _require_present(self) -> None:
        if self._forgetting.any_gone(self._sources):
            raise source_gone()

    async def events(self) -> AsyncIterator[AnswerEvent]:
        """Deltas and citations as they come, then the whole. Raises Conflict when a document that is read has gone."""
        if self._stream is None:
            view = self._view(REFUSAL, refused=True, usage=Usage(), served_by=NO_MODEL)
            await self._keep(view)
            yield AnswerDelta(REFUSAL)
            yield AnswerDone(view)
            return
        async with self._stream:
            async for delta in self._stream:
                await self._require_sources()
                self._speculation = delta.speculation or self._speculation
                if delta.text:
                    self._text += delta.text
                    yield AnswerDelta(delta.text)
                    for citation in self._verify(self._scanner.feed(delta.text)):
                        yield CitationFound(citation)
        with self._stages.stage("verify"):
            last = self._verify(self._scanner.finish())
        await self._require_sources()
        for citation in last:
            yield CitationFound(citation)
        view = self._conclude(self._stream)
        await self._keep(view)
        await self._require_sources()
        yield AnswerDone(view)

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
            unverified=[] if refused else self._unverified(),
            evidence=self._evidence,
            flags=sorted({flag for one in self._evidence for flag in one.flags}),
            searched=self._asked.searched if self._asked else None,
        )

    def _unverified(self) -> list[UnverifiedView]:
        """Offsets in the answer as it is shown, without the white space before it."""
        before = len(self._text) - len(self._text.lstrip())
        found = self._scanner.unverified
        return [UnverifiedView(one.marker, one.said, one.start - before, one.end - before) for one in found]


def _evidence(number: int, found: Found) -> EvidenceView:
    passage = found.passage
    return EvidenceView(
        marker=number,
        document_id=UUID(passage.document_id),
        document=found.title,
        version=passage.version,
        chunk_id=passage.chunk_id,
        page=found.page,
        flags=found.flags,
    )
