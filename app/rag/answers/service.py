"""A question to an answer whose quotes were checked.

search → evidence → prompt → gateway → deltas → citations. Code never writes into the answer: what the model did not
say is not there, and an answer without one verified quote counts as a refusal.
"""

import hashlib
import re
from pathlib import Path
from uuid import UUID

import msgspec

from app.config import RagSettings
from app.gateway.cache.kept import CachedSource, CacheQuery, Lookup
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment
from app.gateway.service import Gateway
from app.gateway.stream import ChatStream
from app.rag.answers.log import AnswerLog, Asked
from app.rag.answers.opened import OpenAnswer
from app.rag.answers.order import reuse_order
from app.rag.answers.prompts import HEADER, render_passage, render_question
from app.rag.api.schemas import AnswerRequest, AnswerView
from app.rag.forget import Forgetting, source_ids
from app.rag.index.base import FloatArray
from app.rag.retrieval.rights import Rights
from app.rag.retrieval.search import Found, SearchService
from app.rag.retrieval.slots import slots
from app.telemetry import Stages
from app.tenants.principal import Principal

# Byte-identical in every request, so that its keys and values are computed once for everybody.
LEGAL_PROMPT = Path(__file__).with_name("legal_prompt.md").read_text().strip()

# Answers made by other prompts are no answers to these.
PROMPT_VERSION = hashlib.sha256((LEGAL_PROMPT + HEADER).encode()).hexdigest()[:16]
CALM = 0.5  # of what counts as overload: up to it everything that was found is read

_STRUCTURE = re.compile(r"(?i)\[\s*\d|(?:question|passages)\s*:")


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
        given = self._ordered(principal, request, found.passages[: self._affordable(request)])
        query = None
        if asked is None:  # a turn's question hangs on what was said before
            query = cache_query(request, given, found.vector)
        left_out = len(found.passages) - len(given)
        return await self.ask(principal, request, given, found.confidence, stages, asked, query, left_out)

    def _ordered(self, principal: Principal, request: AnswerRequest, passages: list[Found]) -> list[Found]:
        noise = self._settings.reuse_noise
        if not noise:
            return passages
        resident = self._gateway.resident(request.model or self._gateway.router.default_model)
        return reuse_order(passages, resident, noise, lambda some: prompt(principal, some, request.question))

    def _affordable(self, request: AnswerRequest) -> int:
        """Passages to read: under load fewer, from half of what counts as overload on."""
        pressure = self._gateway.pressure(request.model or self._gateway.router.default_model)
        most, least = self._settings.passages, min(self._settings.passages, self._settings.min_passages)
        return most if pressure < CALM else round(most - (most - least) * (pressure - CALM) / (1 - CALM))

    async def look(self, principal: Principal, request: AnswerRequest) -> tuple[CacheQuery, Lookup]:
        """What the semantic cache would say to this question. Nothing is asked, counted or kept."""
        found = await self._search.search(
            principal, request.question, self._settings.passages, request.collection, request.documents
        )
        query = cache_query(request, found.passages, found.vector)
        model = request.model or self._gateway.router.default_model
        self._gateway.router.plan(model)
        return query, await self._gateway.semantic.look(principal, ChatRequest(model, ()), query)

    async def ask(
        self,
        principal: Principal,
        request: AnswerRequest,
        passages: list[Found],
        confidence: float,
        stages: Stages,
        asked: Asked | None = None,
        query: CacheQuery | None = None,
        left_out: int = 0,
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
                cache_query=query,
            )
            stream = await self._gateway.open(principal, chat, stages)
        passages = passages if stream else []  # without a model nothing was read
        sources = {(UUID(found.passage.document_id), found.passage.version) for found in passages}
        carried = set(asked.carried) if asked else set()
        watch = self._rights.watch(principal, sources | carried)

        async def keep(view: AnswerView) -> None:
            await self._log.write(principal, model, view, passages, asked)
            if stream and (cited := quotable(view, passages)):
                await self._gateway.checked(principal, stream, view.answer, cited)

        return OpenAnswer(passages, stream, stages, self._forgetting, watch, keep, asked, left_out)


def cache_query(request: AnswerRequest, passages: list[Found], vector: FloatArray) -> CacheQuery:
    """What the semantic cache needs to know of a question and of what was found for it."""
    depends = (request.collection, request.documents, request.quote_lock, PROMPT_VERSION)
    return CacheQuery(
        question=request.question,
        vector=vector,
        slots=slots(request.question, [found.title for found in passages]),
        scope=msgspec.json.encode(depends).decode(),
        evidence=tuple(_source(found) for found in passages),
    )


def quotable(view: AnswerView, passages: list[Found]) -> frozenset[CachedSource]:
    """What a complete answer quotes; empty where anything of it was not verified, or a passage speaks to the model."""
    sound = view.citations and not view.unverified and not view.flags and not view.refused
    if not sound or not all(citation.verified for citation in view.citations):
        return frozenset()
    return frozenset(_source(passages[citation.marker - 1]) for citation in view.citations)


def _source(found: Found) -> CachedSource:
    return CachedSource(found.passage.chunk_id, found.passage.document_id, found.passage.version)


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
