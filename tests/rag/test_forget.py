"""A deleted or replaced document is gone from answers in flight, from the engine's memory, and from what was on its
way there; other documents and other people's answers are not touched."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from app import migrate
from app.config import EngineSettings, RouteSettings, Settings, TargetSettings
from app.db import Database
from app.errors import Conflict, Unavailable
from app.gateway.providers.local import LocalProvider
from app.rag.answers.opened import AnswerDelta, OpenAnswer
from app.rag.api.schemas import AnswerRequest
from app.rag.documents.bell import Bell
from app.rag.documents.service import Filed, Upload
from app.rag.forget import Forgetting
from app.services import Services, open_services
from app.telemetry import Stages
from app.tenants import service
from app.tenants.principal import Principal, Scope
from tests.conftest import fake_settings
from tests.gateway.test_local import tiny_model

LEASE = "1. Rent. The monthly rent of the office is EUR 4,200, payable on the third working day of every month. "
QUESTION = "How much is the monthly rent of the office?"


def settings(folder: Path) -> Settings:
    model = tiny_model(folder / "model", max_positions=16384)
    engine = EngineSettings(model=str(model), served_name="tiny", threads=1, kv_cache_bytes=2**25, max_draft_tokens=0)
    slow = TargetSettings(name="slow", provider="fake", options=f"text={'word ' * 400},delay_ms=5")
    echo = TargetSettings(name="echo", provider="fake", options="delay_ms=1")
    routes = (RouteSettings("slow", ("slow",)), RouteSettings("echo", ("echo",)))
    made = fake_settings(folder, engine=engine, targets=(slow, echo), routes=routes)
    return dataclasses.replace(made, rag=dataclasses.replace(made.rag, min_confidence=0.0, max_answer_tokens=4000))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def firm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    """The services on the test's own event loop, without the web."""
    made = settings(tmp_path_factory.mktemp("forget"))
    database = Database(made.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    async with open_services(made) as services, asyncio.timeout(120):
        while services.starting:
            await asyncio.sleep(0.02)
        yield services


async def principal(firm: Services, name: str) -> Principal:
    async with firm.database.session() as session:
        tenant = await service.create_tenant(session, name)
        key = await service.create_key(session, tenant.id, name, scopes=frozenset(Scope))
        found = await service.find_principal(session, key.secret)
    assert found is not None
    return found


async def ingested(firm: Services, who: Principal, filed: Filed) -> UUID:
    firm.library.jobs.wake()
    assert filed.job is not None
    async with asyncio.timeout(60):
        while (job := await firm.library.documents.job(who, filed.job.id)).status not in ("succeeded", "failed"):
            await asyncio.sleep(0.02)
    assert job.status == "succeeded", job.error
    return filed.document.id


async def file(firm: Services, who: Principal, name: str, text: str) -> UUID:
    upload = Upload(name, "text/plain", text.encode())
    return await ingested(firm, who, await firm.library.documents.add(who, upload, "default", frozenset()))


async def take_away(firm: Services, who: Principal, document: UUID, change: str) -> None:
    if change == "delete":
        await firm.library.documents.delete(who, document)
    else:
        upload = Upload("lease.txt", "text/plain", LEASE.replace("4,200", "5,000").encode() * 4)
        await ingested(firm, who, await firm.library.documents.replace(who, document, upload))


async def reading(firm: Services, who: Principal, model: str, document: UUID) -> Any:
    """The rest of an answer of which the first words have come."""
    answer = await firm.library.answers.open(who, AnswerRequest(question=QUESTION, model=model, documents=[document]))
    events = answer.events()
    assert isinstance(await anext(events), AnswerDelta)
    return events


def blocks_of(firm: Services, source: str) -> int:
    """Blocks of the engine's memory that were computed from this source."""
    provider = firm.gateway.providers["local"]
    assert isinstance(provider, LocalProvider) and provider._engine is not None
    return sum(source in block.sources for block in provider._engine.engine.pool._blocks)


@pytest.mark.parametrize("model", ["slow", "tiny"])
@pytest.mark.parametrize("change", ["delete", "replace"])
async def test_answers_in_flight_end_when_their_document_goes(firm: Services, model: str, change: str) -> None:
    who = await principal(firm, f"{model}-{change}")
    gone = await file(firm, who, "lease.txt", LEASE * 4)
    kept = await file(firm, who, "other.txt", LEASE.replace("4,200", "9,999") * 4)
    hit, untouched = await reading(firm, who, model, gone), await reading(firm, who, model, kept)
    if model == "tiny":
        assert blocks_of(firm, str(gone)) > 0
    await take_away(firm, who, gone, change)
    if model == "tiny":
        assert blocks_of(firm, str(gone) if change == "delete" else f"{gone}/1") == 0
        assert blocks_of(firm, str(kept)) > 0
    with pytest.raises(Conflict, match="deleted or replaced"):
        async for _ in hit:
            pass
    assert isinstance(await anext(untouched), AnswerDelta)
    await untouched.aclose()


async def test_what_was_found_before_the_deletion_is_not_sent_after_it(firm: Services) -> None:
    """Search has answered, the model has not been asked yet: the window in which a stale text could slip through."""
    who = await principal(firm, "window")
    document = await file(firm, who, "lease.txt", LEASE * 3)
    found = await firm.library.search.search(who, QUESTION, 5, None, None)
    assert found.passages
    await take_away(firm, who, document, "delete")
    for model in ("tiny", "slow"):
        with pytest.raises(Conflict):
            request = AnswerRequest(question=QUESTION, model=model)
            await (await firm.library.answers.ask(who, request, found.passages, 1.0, Stages())).complete()
    assert blocks_of(firm, str(document)) == 0


async def test_searches_beside_a_deletion_never_find_it_afterwards(firm: Services) -> None:
    """Canaries: once the deletion has been answered, no word of the document is found."""
    who = await principal(firm, "canary")
    document = await file(firm, who, "lease.txt", LEASE.replace("office", "zeppelin") * 3)
    await file(firm, who, "other.txt", LEASE * 3)
    deleted = asyncio.Event()

    async def stale() -> tuple[bool, bool]:
        """Whether the search was begun after the deletion, and whether it names what was in the document."""
        after = deleted.is_set()
        found = await firm.library.search.search(who, "What is the rent of the zeppelin?", 5, None, None)
        return after, any("zeppelin" in passage.text for passage in found.passages)

    assert (await stale())[1], "the canary must be found at all"
    asked = [asyncio.create_task(stale()) for _ in range(10)]
    await take_away(firm, who, document, "delete")
    deleted.set()
    asked += [asyncio.create_task(stale()) for _ in range(10)]
    assert (True, True) not in await asyncio.gather(*asked)


@dataclasses.dataclass
class Canaries:
    """Documents with a word of their own each, questions beside their deletion, and what was heard of them.

    `stale`: words that were heard after their document's deletion, or replacement, had been answered.
    """

    firm: Services
    who: Principal
    words: dict[str, UUID]
    gone: set[str] = dataclasses.field(default_factory=set)
    stale: list[str] = dataclasses.field(default_factory=list)
    said: int = 0
    ended: int = 0
    stop: bool = False

    def judge(self, text: str) -> None:
        self.said += any(word in text for word in self.words)
        self.stale += [word for word in self.gone if word in text]

    async def asks(self, conversation: UUID, number: int) -> None:
        """The model repeats what it reads."""
        request = AnswerRequest(question="How much is the monthly rent of the office?", model="echo")
        while not self.stop:
            try:
                opened = await (
                    self.firm.library.conversations.ask(self.who, conversation, request)
                    if number % 3 == 0
                    else self.firm.library.answers.open(self.who, request)
                )
                async for event in opened.events():
                    self.judge(event.text if isinstance(event, AnswerDelta) else "")
            except Conflict:
                self.ended += 1
            for turn in (await self.firm.library.conversations.history(self.who, conversation)).turns:
                self.judge(str(turn.answer))

    async def _heard(self, more: int) -> None:
        """Returns once the canaries have been named that many more times."""
        wanted = self.said + more
        async with asyncio.timeout(120):
            while self.said < wanted:
                await asyncio.sleep(0.005)

    async def run(self, deletions: int) -> list[str]:
        """The turns that are left, as text."""
        conversation = await self.firm.library.conversations.create(self.who, "canaries")
        asking = [asyncio.create_task(self.asks(conversation.id, number)) for number in range(6)]
        for position, (word, document) in enumerate(list(self.words.items())[:deletions]):
            await self._heard(5)
            await take_away(self.firm, self.who, document, "replace" if position % 4 == 3 else "delete")
            self.gone.add(word)
        self.stop = True
        await asyncio.gather(*asking)
        return [str(turn) for turn in (await self.firm.library.conversations.history(self.who, conversation.id)).turns]


async def canaries(firm: Services, name: str, count: int) -> Canaries:
    who, words = await principal(firm, name), {}
    for word in [f"zeppelin{number:02d}" for number in range(count)]:
        words[word] = await file(firm, who, f"{word}.txt", LEASE.replace("office", f"{word} office"))
    return Canaries(firm, who, words)


async def test_no_word_is_said_after_the_commit_under_concurrent_questions(firm: Services) -> None:
    """Documents go one after the other; from then on none of them is named in a delta or a turn."""
    heard = await canaries(firm, "canaries", 16)
    turns = await heard.run(12)
    assert heard.said > 50 and heard.ended > 0, "the canaries must be said, and answers must be hit"
    assert heard.stale == []
    assert turns and not any(word in turn for turn in turns for word in heard.gone)


async def test_the_canaries_are_heard_where_nobody_watches_the_answers(
    firm: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test before."""

    async def nobody(_answer: OpenAnswer) -> None:
        return None

    monkeypatch.setattr(OpenAnswer, "_require_sources", nobody)
    heard = await canaries(firm, "unwatched", 8)
    await heard.run(6)
    assert heard.stale


async def test_one_that_cannot_forget_keeps_the_news_from_nobody() -> None:
    told: list[str] = []

    async def away(_: Collection[str]) -> None:
        raise Unavailable("The database does not answer.")

    async def there(gone: Collection[str]) -> None:
        told.extend(gone)

    forgetting = Forgetting()
    forgetting.tell(away)
    forgetting.tell(there)
    with pytest.raises(Unavailable):
        await forgetting.sources(["lease"])
    assert told == ["lease"]
    bell = Bell("redis://nowhere.invalid", lambda: None, forgetting.sources)
    await bell._hear(json.dumps({"from": "another process", "gone": ["contract"]}))
    assert told == ["lease", "contract"], "and this process goes on listening"
