"""A change of rights is in force at once: for searches, texts, jobs, pages, and answers in flight."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from uuid import UUID

import pytest
import pytest_asyncio

from app import migrate
from app.config import RouteSettings, TargetSettings
from app.db import Database
from app.errors import Conflict, Forbidden, NotFound
from app.rag.answers.opened import AnswerDelta
from app.rag.api.schemas import AnswerRequest
from app.rag.documents.service import Upload
from app.rag.retrieval.retriever import Retriever, SearchQuery, SearchResult
from app.rag.retrieval.rights import RECHECK_SECONDS
from app.services import Services, open_services
from app.tenants import service, users
from app.tenants.matters import NewMatter
from app.tenants.models import Matter, User
from app.tenants.principal import Principal
from tests.conftest import fake_settings
from tests.rag.test_forget import LEASE, QUESTION, ingested


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def firm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Services]:
    """Services on the test's loop, with a model that speaks for some seconds."""
    slow = TargetSettings(name="slow", provider="fake", options=f"text={'word ' * 2000},delay_ms=5")
    made = fake_settings(tmp_path_factory.mktemp("rights"), targets=(slow,), routes=(RouteSettings("slow", ("slow",)),))
    made = dataclasses.replace(made, rag=dataclasses.replace(made.rag, min_confidence=0.0, max_answer_tokens=4000))
    database = Database(made.storage.database_url)
    await migrate.upgrade(database)
    await database.close()
    async with open_services(made) as services:
        while services.starting:
            await asyncio.sleep(0.02)
        yield services


@dataclasses.dataclass
class People:
    """A matter "deal" with a document, its owner, and a member of the matter with a key."""

    owner: Principal
    member: Principal
    key_id: UUID
    matter: Matter
    user: User
    document: UUID


class _Held:
    """A retriever that waits with what it has found."""

    def __init__(self, retriever: Retriever) -> None:
        self.retriever = retriever
        self.found, self.goes_on = threading.Event(), threading.Event()

    def search(self, query: SearchQuery) -> SearchResult:
        result = self.retriever.search(query)
        assert result.passages
        self.found.set()
        assert self.goes_on.wait(20)
        return result


async def people(firm: Services, name: str) -> People:
    async with firm.database.session() as session:
        tenant = await service.create_tenant(session, name)
        boss = await users.create_user(session, tenant.id, users.NewUser(f"boss@{name}.example", "B", "owner"), None)
        new = users.NewUser(f"member@{name}.example", "M", "member", frozenset({"elsewhere"}))
        user = await users.create_user(session, tenant.id, new, None)
        owner = await service.principal_of_user(session, boss)
        matter = await firm.matters.create(session, owner, NewMatter("deal", "Deal"))
        owner = await service.principal_of_user(session, boss)
        await firm.matters.put_member(session, owner, matter.id, user.id, "allow")
        member = await service.principal_of_user(session, user)
        key = await service.create_key(
            session, tenant.id, "k", scopes=member.scopes, labels=frozenset({"deal"}), creator=member
        )
        member = await service.find_principal(session, key.secret) or member
    assert member.key_id == key.key.id
    filed = await firm.library.documents.add(
        owner, Upload("lease.txt", "text/plain", (LEASE * 3).encode()), "default", frozenset({"deal"})
    )
    return People(owner, member, key.key.id, matter, user, await ingested(firm, owner, filed))


async def reading(firm: Services, who: Principal) -> AsyncIterator[object]:
    opened = await firm.library.answers.open(who, AnswerRequest(question=QUESTION, model="slow"))
    events = opened.events()
    for _ in range(3):
        assert isinstance(await anext(events), AnswerDelta)
    return events


async def take(firm: Services, them: People, how: str) -> None:
    """The member's right to the document goes, in one of many ways."""
    async with firm.database.session() as session:
        if how == "wall":
            await firm.matters.put_member(session, them.owner, them.matter.id, them.user.id, "deny")
        elif how == "membership":
            await firm.matters.remove_member(session, them.owner, them.matter.id, them.user.id)
        elif how == "key":
            await service.revoke_key(session, them.owner.tenant_id, them.key_id)
        elif how == "person":
            await users.change_user(session, them.owner.tenant_id, them.user.id, {"disabled": True}, None)
    firm.authenticator.forget()  # as the handlers do


@pytest.mark.parametrize("how", ["wall", "membership", "key", "person", "label"])
async def test_an_answer_in_flight_ends_when_its_reader_loses_the_right(firm: Services, how: str) -> None:
    them = await people(firm, f"flight-{how}")
    theirs, untouched = await reading(firm, them.member), await reading(firm, them.owner)
    if how == "label":
        async with firm.database.session() as session:
            await firm.matters.create(session, them.owner, NewMatter("inner", "Inner"))
            boss = await session.get_one(User, them.owner.user_id)
            owner = await service.principal_of_user(session, boss)
        await firm.library.relabelling.relabel(owner, them.document, frozenset({"deal", "inner"}))
    else:
        await take(firm, them, how)
    with pytest.raises(Conflict, match="right to read"):
        await anext(theirs)
    assert isinstance(await anext(untouched), AnswerDelta)
    await untouched.aclose()  # type: ignore[attr-defined]


async def test_a_change_elsewhere_ends_the_answer_within_a_second_or_so(firm: Services) -> None:
    """Another replica has changed the database; nobody here was told."""
    them = await people(firm, "replica")
    events = await reading(firm, them.member)
    async with firm.database.session() as session:
        await firm.matters.put_member(session, them.owner, them.matter.id, them.user.id, "deny")
    began = time.monotonic()
    with pytest.raises(Conflict, match="right to read"):
        async for _ in events:
            assert time.monotonic() - began < RECHECK_SECONDS + 9  # and before the answer, of two seconds, is over
    with pytest.raises(NotFound):
        async with firm.database.session() as session:
            member = await service.renewed(session, them.member)
        assert member is not None
        await firm.library.documents.text(member, them.document, None)


async def test_a_search_that_was_begun_before_the_change_finds_nothing_after_it(firm: Services) -> None:
    them = await people(firm, "search")
    assert (await firm.library.search.search(them.member, QUESTION, 5)).passages
    held = _Held(firm.library.search._retriever)
    firm.library.search._retriever = held  # type: ignore[assignment]
    asked = asyncio.create_task(firm.library.search.search(them.member, QUESTION, 5))
    await asyncio.to_thread(held.found.wait)
    await take(firm, them, "wall")
    held.goes_on.set()
    assert (await asked).passages == []
    firm.library.search._retriever = held.retriever


async def test_relabelling_holds_at_once_and_the_index_follows(firm: Services) -> None:
    them = await people(firm, "relabel")
    stranger = dataclasses.replace(them.owner, labels=frozenset())
    member = dataclasses.replace(them.member, labels=frozenset({"elsewhere"}))
    assert (await firm.library.search.search(stranger, QUESTION, 5)).passages == []
    with pytest.raises(Forbidden):  # taking a label away lets others in
        await firm.library.relabelling.relabel(them.member, them.document, frozenset())
    with pytest.raises(Forbidden):  # not held
        await firm.library.relabelling.relabel(them.owner, them.document, frozenset({"deal", "foreign"}))
    with pytest.raises(NotFound):
        await firm.library.relabelling.relabel(member, them.document, frozenset({"elsewhere"}))
    await firm.library.relabelling.relabel(them.owner, them.document, frozenset())
    assert (await firm.library.documents.text(stranger, them.document, None))[1]
    firm.library.jobs.wake()
    async with asyncio.timeout(30):
        while not (await firm.library.search.search(stranger, QUESTION, 5)).passages:
            await asyncio.sleep(0.05)
    [report] = await firm.library.reconciler.run(repair=False, tenant_id=them.owner.tenant_id)
    assert report.clean, report
    back = frozenset({"deal"})
    await firm.library.relabelling.relabel(them.owner, them.document, back)
    assert (await firm.library.search.search(stranger, QUESTION, 5)).passages == []  # the fence, before the index
    assert (await firm.library.documents.get(them.owner, them.document)).labels == back
