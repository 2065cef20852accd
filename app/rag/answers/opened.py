"""An answer on its way: deltas in, text and verified citations out, then the whole."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from opentelemetry import trace
from uuid_utils.compat import uuid7

from app.errors import source_gone
from app.gateway.schemas import Usage
from app.gateway.stream import ChatStream
from app.rag.answers.citations import Citation, CitationScanner
from app.rag.answers.log import Asked
from app.rag.answers.prompts import REFUSAL
from app.rag.api.schemas import AnswerView, CitationView, EvidenceView, UnverifiedView, UsageView
from app.rag.forget import Forgetting, source_ids
from app.rag.retrieval.rights import Watch
from app.rag.retrieval.search import Found
from app.telemetry import Stages

NO_MODEL = "none"


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
        left_out: int,
    ) -> None:
        self._left_out = left_out
        self._id = stream.exchange.record.id if stream else uuid7()  # its request's, where there was one
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
            cache=(self._stream.exchange.record.cache if self._stream else "") or "none",
            left_out=self._left_out,
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
