"""Several processes do something to the same thing at the same moment, over one PostgreSQL.

The first is held where it has looked and not yet written; the second then goes on to its end, or until it waits for the
first; then the first goes on.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession as Session
from uuid_utils.compat import uuid7

from app import migrate
from app.config import AuthSettings, OidcSettings, ServerSettings, StorageSettings
from app.db import Database, owned
from app.errors import AppError, Conflict, NotFound
from app.gateway import catalog
from app.gateway.controllers_catalog import Editor
from app.gateway.models import Credential
from app.jobs import RUNNING, Job, JobRunner, Progress
from app.rag.answers.feedback import EvaluationCases, FeedbackService, NewCase
from app.rag.answers.log import AnswerLog, Asked
from app.rag.api.schemas import AnswerView, SearchedView, UsageView
from app.rag.documents.background import Background
from app.rag.documents.ingestion import Ingestion
from app.rag.documents.job_control import JobControl
from app.rag.documents.relabel import Relabelling
from app.rag.documents.service import DocumentService, FileStore, Upload
from app.rag.forget import Forgetting
from app.rag.models import READY, Document, DocumentVersion
from app.rag.records import Answer, Conversation, Feedback, Turn
from app.rag.retrieval.rights import Rights, label_in_use
from app.services import Services, open_services
from app.tenants import audit, service, users
from app.tenants.auth import Authenticator
from app.tenants.matters import Matters, NewMatter
from app.tenants.models import LoginFailure, MatterMember, User
from app.tenants.oidc import SingleSignOn
from app.tenants.principal import Principal, Scope
from app.tenants.rights import ALLOW
from app.tenants.roles import Role
from app.tenants.sealing import Sealer, new_key
from app.tenants.sessions import Logins
from tests.conftest import fake_settings
from tests.servers import or_skip, postgres_server

pytestmark = pytest.mark.slow
LEASE = Upload("lease.txt", "text/plain", b"1. Rent. The monthly rent of the office is EUR 4,200.")
NEWER = Upload("lease.txt", "text/plain", b"1. Rent. The monthly rent of the office is EUR 5,000.")
NONE: frozenset[str] = frozenset()


@pytest.fixture(scope="module")
def migrated() -> Iterator[str]:
    async def upgrade(url: str) -> None:
        database = Database(url)
        await migrate.upgrade(database)
        await database.close()

    with or_skip(postgres_server()) as url:
        asyncio.run(upgrade(url))
        yield url


class NoIndex:
    """Takes everything and remembers of which documents points were deleted."""

    def __init__(self) -> None:
        self.deleted: list[tuple[str, int | None]] = []

    def upsert(self, points: Any) -> None: ...

    def delete_document(self, tenant: str, document_id: str, version: int | None = None) -> None:
        self.deleted.append((document_id, version))


class Replica:
    """What a process has of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.database = Database(url)
        self.files = FileStore(folder)
        self.index: Any = NoIndex()
        self.forgetting = Forgetting()
        self.documents = DocumentService(self.database, self.files, self.index, self.forgetting)
        rights = Rights(self.database, Authenticator(self.database, AuthSettings()))
        self.relabelling = Relabelling(self.database, rights)
        self.matters = Matters(label_in_use)

    async def principal(self, *labels: str) -> Principal:
        """A key of a new tenant."""
        async with self.database.session() as session:
            tenant = await service.create_tenant(session, uuid7().hex)
            new = await service.create_key(session, tenant.id, "k", scopes=frozenset(Scope), labels=frozenset(labels))
            found = await service.find_principal(session, new.secret)
        assert found
        return found

    async def person(self, tenant_id: UUID, role: str = Role.MEMBER) -> User:
        async with self.database.session() as session:
            new = users.NewUser(f"{uuid7().hex}@firm.example", "Ada", role)
            return await users.create_user(session, tenant_id, new, None)

    async def rows(self, model: type[Any], tenant_id: UUID) -> list[Any]:
        async with self.database.session() as session:
            return list(await session.scalars(owned(model, tenant_id)))


@pytest_asyncio.fixture(loop_scope="session")
async def replicas(migrated: str, tmp_path: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two processes with the same database and files."""
    one, two = Replica(migrated, tmp_path), Replica(migrated, tmp_path)
    yield one, two
    for replica in (one, two):
        await replica.database.close()


@dataclasses.dataclass
class Meeting:
    """Holds the first who calls `owner.name`, until the second has come as far as it can."""

    database: Database
    monkeypatch: pytest.MonkeyPatch

    async def of(
        self, owner: Any, name: str, first: Coroutine[Any, Any, Any], second: Coroutine[Any, Any, Any]
    ) -> list[Any]:
        """What came of them, errors included."""
        reached, go = asyncio.Event(), asyncio.Event()
        original = getattr(owner, name)

        async def held(*args: Any, **named: Any) -> Any:
            self.monkeypatch.setattr(owner, name, original)
            reached.set()
            await go.wait()
            return await original(*args, **named)

        self.monkeypatch.setattr(owner, name, held)
        async with asyncio.timeout(60):
            one = asyncio.create_task(first)
            await reached.wait()
            two = asyncio.create_task(second)
            while not two.done() and not await self._waits():
                await asyncio.sleep(0.01)
            go.set()
            return await asyncio.gather(one, two, return_exceptions=True)

    async def _waits(self) -> bool:
        async with self.database.session() as session:
            return bool(await session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))


@pytest.fixture
def meeting(replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch) -> Meeting:
    return Meeting(replicas[1].database, monkeypatch)


def errors(outcomes: list[Any]) -> list[type[BaseException]]:
    """Their kinds; a 500 is none that anybody may expect."""
    found = [one for one in outcomes if isinstance(one, BaseException)]
    assert all(isinstance(one, AppError) for one in found), found
    return [type(one) for one in found]


async def test_replicas_that_migrate_at_once_do_it_once(empty_postgres: str) -> None:
    replicas = [Database(empty_postgres) for _ in range(3)]
    async with asyncio.timeout(120):
        outcomes = await asyncio.gather(*(migrate.upgrade(one) for one in replicas), return_exceptions=True)
    for replica in replicas:
        await replica.close()
    assert outcomes == [None, None, None]


async def test_two_owners_cannot_take_the_right_from_each_other(
    replicas: tuple[Replica, Replica], meeting: Meeting
) -> None:
    one, two = replicas
    tenant = (await one.principal()).tenant_id
    ada, ben = await one.person(tenant, Role.OWNER), await one.person(tenant, Role.OWNER)

    async def demote(replica: Replica, user: User) -> None:
        async with replica.database.session() as session:
            await users.change_user(session, tenant, user.id, {"role": Role.MEMBER}, None)

    assert errors(await meeting.of(audit, "append", demote(one, ada), demote(two, ben))) == [Conflict]
    assert sorted(user.role for user in await one.rows(User, tenant)) == [Role.MEMBER, Role.OWNER]


async def test_matters_cannot_be_hung_below_each_other(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    """A circle would hold whoever walks up from there, and with it the whole process, for ever."""
    one, two = replicas
    who = await one.principal("a", "b")
    async with one.database.session() as session:
        a, b = [await one.matters.create(session, who, NewMatter(name, name)) for name in "ab"]

    async def below(replica: Replica, matter: UUID, parent: UUID) -> None:
        async with replica.database.session() as session:
            await replica.matters.change(session, who, matter, {"parent_id": parent})

    assert errors(await meeting.of(audit, "append", below(one, a.id, b.id), below(two, b.id, a.id))) == [Conflict]


async def test_a_key_holds_every_matter_it_made(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal()

    async def make(replica: Replica, label: str) -> None:
        async with replica.database.session() as session:
            await replica.matters.create(session, who, NewMatter(label, label))

    assert errors(await meeting.of(audit, "append", make(one, "a"), make(two, "b"))) == []
    async with one.database.session() as session:
        [key] = await service.list_keys(session, who.tenant_id)
    assert key.labels == ["a", "b"]


async def test_a_member_is_put_by_two_at_once(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal("a")
    user = await one.person(who.tenant_id)
    async with one.database.session() as session:
        matter = await one.matters.create(session, who, NewMatter("a", "a"))

    async def put(replica: Replica) -> None:
        async with replica.database.session() as session:
            await replica.matters.put_member(session, who, matter.id, user.id, ALLOW)

    assert errors(await meeting.of(audit, "append", put(one), put(two))) == []
    assert len(await one.rows(MatterMember, who.tenant_id)) == 1


async def test_every_secret_of_a_key_that_two_rotate_works(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal()
    assert who.key_id

    async def rotate(replica: Replica) -> str:
        async with replica.database.session() as session:
            return (await service.rotate_key(session, who.tenant_id, who.key_id, timedelta(hours=1))).secret

    for secret in await meeting.of(audit, "append", rotate(one), rotate(two)):
        async with one.database.session() as session:
            assert await service.find_principal(session, secret)


async def test_a_chain_that_grows_while_it_is_walked_is_whole(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    await one.principal()
    digest, after = audit.digest, asyncio.Event()

    def walked(entry: Any) -> str:
        after.set()
        return digest(entry)

    async with one.database.session() as session:
        scalars = session.scalars

        async def grows(*args: Any, **named: Any) -> Any:
            read = await scalars(*args, **named)
            monkeypatch.setattr(session, "scalars", scalars)
            await two.principal()
            return read

        monkeypatch.setattr(session, "scalars", grows)
        monkeypatch.setattr(audit, "digest", walked)
        assert (await audit.verify(session)).entries
    assert after.is_set()


async def test_right_passwords_at_once_leave_no_failure_behind(replicas: tuple[Replica, Replica]) -> None:
    """The attempts of an office come from one address: what is left of them would lock it out."""
    one, two = replicas
    tenant = (await one.principal()).tenant_id
    logins = [Logins(replica.database, AuthSettings()) for replica in replicas]
    people = [await one.person(tenant), await two.person(tenant)]
    for person in people:
        async with one.database.session() as session:
            hashed = await logins[0].passwords.hash("correct horse battery")
            await users.set_password(session, tenant, person.id, hashed, None)
    both, waiting = asyncio.Event(), 0

    def at_once(login: Logins) -> Any:
        forgive = login._failures.forgive

        async def meet(*names: Any) -> None:
            nonlocal waiting
            waiting += 1
            if waiting == len(logins):
                both.set()
            await both.wait()
            await forgive(*names)

        return meet

    for login in logins:
        login._failures.forgive = at_once(login)  # type: ignore[method-assign]
    async with one.database.session() as session:
        before = await session.scalar(select(func.count(LoginFailure.id)))
    await asyncio.gather(
        *(
            login.with_password(person.email, "correct horse battery", "192.0.2.7")
            for login, person in zip(logins, people, strict=True)
        )
    )
    async with one.database.session() as session:
        assert await session.scalar(select(func.count(LoginFailure.id))) == before


async def test_somebody_new_may_come_through_two_windows(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    who = await replicas[0].principal()
    settings = OidcSettings(issuer="https://id.example", client_id="c", tenant=who.tenant, create_users=True)
    claims = {"sub": "7", "email": f"{who.tenant}@firm.example", "email_verified": True}

    async def arrive(replica: Replica) -> UUID:
        sign_on = SingleSignOn(settings, "https://precedent.example", Sealer(new_key()), replica.database)
        async with replica.database.session() as session:
            return (await sign_on._user(session, claims)).id

    first, second = await meeting.of(audit, "append", arrive(replicas[0]), arrive(replicas[1]))
    assert first == second


async def test_the_same_content_filed_twice_at_once_is_one_document(
    replicas: tuple[Replica, Replica], meeting: Meeting, tmp_path: Path
) -> None:
    one, two = replicas
    who = await one.principal()

    async def file(replica: Replica) -> UUID:
        return (await replica.documents.add(who, LEASE, "default", NONE)).document.id

    first, second = await meeting.of(FileStore, "write", file(one), file(two))
    assert first == second and len(await one.rows(Document, who.tenant_id)) == 1
    assert len(files(tmp_path)) == 1


async def test_two_new_versions_at_once_are_two(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal()
    document = (await one.documents.add(who, LEASE, "default", NONE)).document.id

    async def replace(replica: Replica) -> int:
        return (await replica.documents.replace(who, document, NEWER)).version

    outcomes = await meeting.of(FileStore, "write", replace(one), replace(two))
    assert errors(outcomes) == [] and sorted(outcomes) == [2, 3]


@pytest.mark.parametrize("first", ["replace", "delete"])
async def test_a_deletion_takes_a_version_along_that_is_being_filed(
    replicas: tuple[Replica, Replica], meeting: Meeting, tmp_path: Path, first: str
) -> None:
    one, two = replicas
    who = await one.principal()
    document = (await one.documents.add(who, LEASE, "default", NONE)).document.id
    replace, delete = one.documents.replace(who, document, NEWER), two.documents.delete(who, document)
    if first == "replace":
        outcomes = await meeting.of(FileStore, "write", replace, delete)
    else:
        outcomes = await meeting.of(audit, "append", delete, replace)
    assert errors(outcomes) in ([], [NotFound])
    assert files(tmp_path) == []


async def test_labels_given_by_two_at_once(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal("a", "b")
    document = (await one.documents.add(who, LEASE, "default", NONE)).document.id
    labels = frozenset({"a"})
    relabel = [replica.relabelling.relabel(who, document, labels) for replica in replicas]
    assert errors(await meeting.of(audit, "append", *relabel)) == []
    assert (await two.documents.get(who, document)).labels == labels


class Embeds:
    dimension, name = 2, "none"


def ingestion(replica: Replica, background: Background, embedder: Any) -> Ingestion:
    files = (replica.database, replica.files, replica.index)
    return Ingestion(*files, embedder, 1000, replica.forgetting, background)


async def claimed(replica: Replica, who: Principal, job_id: UUID) -> tuple[Job, Progress]:
    """The job as a worker has it that claimed it."""
    async with replica.database.session() as session:
        job = await session.get_one(Job, job_id)
        job.status, job.worker = RUNNING, uuid7().hex
        await session.commit()
    return job, Progress(replica.database, job_id, job.worker)


async def test_a_document_that_is_deleted_while_it_is_ingested_leaves_no_points(
    replicas: tuple[Replica, Replica], meeting: Meeting, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    who = await one.principal()
    filed = await one.documents.add(who, LEASE, "default", NONE)
    assert filed.job
    background = Background(1)
    monkeypatch.setattr("app.rag.documents.ingestion.chunk_points", lambda *_: [])
    monkeypatch.setattr("app.rag.documents.ingestion.document_point", lambda *_: None)
    ingest = ingestion(one, background, Embeds())
    working = ingest(*await claimed(one, who, filed.job.id))
    delete = two.documents.delete(who, filed.document.id)
    assert errors(await meeting.of(Ingestion, "_publish", working, delete)) == []
    background.close()
    assert one.index.deleted[-1] == (str(filed.document.id), 1)


async def test_a_job_that_has_published_its_version_cannot_be_cancelled(
    replicas: tuple[Replica, Replica], meeting: Meeting
) -> None:
    one, two = replicas
    who = await one.principal()
    filed = await one.documents.add(who, LEASE, "default", NONE)
    assert filed.job
    job, progress = await claimed(one, who, filed.job.id)
    async with one.database.session() as session:
        await progress.hold(session)
        version = (await session.scalars(owned(DocumentVersion, who.tenant_id))).one()
        version.status = READY
        await session.flush()
        cancel = asyncio.create_task(JobControl(two.database).cancel(who, job.id))
        while not cancel.done() and not await meeting._waits():
            await asyncio.sleep(0.01)
        await session.commit()
    with pytest.raises(Conflict, match="succeeded"):
        await cancel
    assert [row.status for row in await one.rows(DocumentVersion, who.tenant_id)] == [READY]
    assert [row.status for row in await one.rows(Job, who.tenant_id)] == [RUNNING]


async def test_feedback_given_twice_at_once_is_given_once(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    one, two = replicas
    who = await one.principal()
    answer = Answer(
        id=uuid7(), tenant_id=who.tenant_id, owner_id=who.owner_id, model="m", served_by="t", refused=False, labels=[],
        flags=[],
    )  # fmt: skip
    async with one.database.session() as session:
        session.add(answer)
        await session.commit()
    give = [FeedbackService(replica.database).give(who, answer.id, "up", "") for replica in replicas]
    assert errors(await meeting.of(audit, "append", *give)) == []
    assert len(await two.rows(Feedback, who.tenant_id)) == 1


@pytest.mark.parametrize("first", ["answer", "delete"])
async def test_no_turn_is_kept_of_a_document_that_is_deleted_at_that_moment(
    replicas: tuple[Replica, Replica], meeting: Meeting, first: str
) -> None:
    one, two = replicas
    who = await one.principal()
    document = (await one.documents.add(who, LEASE, "default", NONE)).document.id
    conversation = Conversation(id=uuid7(), tenant_id=who.tenant_id, owner_id=who.owner_id)
    async with one.database.session() as session:
        session.add(conversation)
        await session.commit()
    view = AnswerView(uuid7(), "The rent is EUR 4,200.", False, [], UsageView(), {}, "fake")
    asked = Asked(conversation.id, "How much?", SearchedView("How much?"), carried=((document, 1),))
    keep, delete = AnswerLog(one.database).write(who, "m", view, [], asked), two.documents.delete(who, document)
    if first == "answer":
        outcomes = await meeting.of(Session, "commit", keep, delete)
    else:
        outcomes = await meeting.of(audit, "append", delete, keep)
    assert errors(outcomes) in ([], [Conflict])
    assert await one.rows(Turn, who.tenant_id) == []


async def test_a_worker_whose_clock_is_ahead_leaves_jobs_that_run_to_others(
    replicas: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = replicas
    who = await one.principal()
    filed = await one.documents.add(who, LEASE, "default", NONE)
    assert filed.job
    while (job := await JobRunner(one.database, {}, 0, shared=True)._claim()) and job.id != filed.job.id:
        continue  # of other tests
    monkeypatch.setattr("app.jobs.now", lambda: datetime.now(UTC) + timedelta(hours=2))
    await JobRunner(two.database, {}, 0, shared=True)._requeue(None)
    assert [job.status for job in await one.rows(Job, who.tenant_id)] == [RUNNING]


@pytest_asyncio.fixture(loop_scope="session")
async def gateways(migrated: str, tmp_path: Path) -> AsyncIterator[tuple[Services, Services]]:
    """Two processes that serve models, with their configuration in the same database."""
    storage = StorageSettings(database_url=migrated, directory=str(tmp_path))
    settings = fake_settings(tmp_path, storage=storage, server=ServerSettings(role="engine"))
    async with open_services(settings) as one, open_services(settings) as two:
        yield one, two


async def test_two_changes_that_make_no_sense_together_are_not_both_stored(
    gateways: tuple[Services, Services], meeting: Meeting
) -> None:
    """At the next start all that the API made would be left out."""
    one, two = gateways
    who = await Replica(str(meeting.database.url), Path()).principal()
    first, second = Editor(one.reloader, who), Editor(two.reloader, who)
    await first.put(catalog.TARGETS, "extra", {"name": "extra", "provider": "fake"})
    delete = first.delete(catalog.TARGETS, "extra")
    use = second.put(catalog.ROUTES, "more", {"model": "more", "targets": ["extra"]})
    assert errors(await meeting.of(audit, "append", delete, use)) == [Conflict]


async def test_a_credential_is_stored_by_two_at_once(replicas: tuple[Replica, Replica], meeting: Meeting) -> None:
    async def put(replica: Replica, sealed: str) -> None:
        async with replica.database.session() as session:
            await catalog.put_credential(session, "upstream", sealed)
            await audit.append(session, audit.CLI, "credential.put", "credential:upstream", None)
            await session.commit()

    one, two = replicas
    assert errors(await meeting.of(audit, "append", put(one, "first"), put(two, "second"))) == []
    async with one.database.session() as session:
        assert (await session.scalars(select(Credential.sealed).where(Credential.name == "upstream"))).all() == [
            "second"
        ]
        await session.execute(sql_delete(Credential))  # nobody here can open it
        await session.commit()


async def test_a_case_of_a_document_that_is_deleted_at_that_moment_is_refused(
    replicas: tuple[Replica, Replica], meeting: Meeting
) -> None:
    one, two = replicas
    who = await one.principal()
    document = (await one.documents.add(who, LEASE, "default", NONE)).document.id
    async with one.database.session() as session:
        (await session.get_one(Document, document)).current_version = 1
        await session.commit()
    case = EvaluationCases(two.database, two.documents).create(who, NewCase("How much?", document, None, None))
    assert errors(await meeting.of(audit, "append", one.documents.delete(who, document), case)) == [NotFound]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("files/*/*") if path.is_file()]
