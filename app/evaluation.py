"""`precedent eval`: the service functions behind the HTTP handlers, on labelled data, in a folder of their own."""

import asyncio
import dataclasses
import mimetypes
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app import migrate
from app.config import Settings, StorageSettings
from app.db import Database
from app.errors import InvalidRequest, Unavailable
from app.jobs import FAILED, SUCCEEDED
from app.rag.api.schemas import AnswerRequest
from app.rag.documents.chunking import chunk
from app.rag.documents.service import Filed, Upload
from app.rag.evaluation.answer_metrics import (
    AnswerResult,
    EvalQuestion,
    answer_rows,
    load_questions,
    oracle_passages,
    summarise_answers,
)
from app.rag.evaluation.citation_metrics import evaluate_citations
from app.rag.evaluation.comparison import Configuration, by_query, compare, draw
from app.rag.evaluation.retrieval_metrics import (
    ask_all,
    evaluate_retrieval,
    index_corpus,
    read_lines,
    read_queries,
    stratified,
)
from app.rag.index.edge import EdgeIndex
from app.rag.index.embedding import Embedder
from app.rag.retrieval.retriever import Retriever
from app.rag.retrieval.search import Found
from app.services import Services, open_services
from app.telemetry import Stages
from app.tenants import service
from app.tenants.principal import Principal, Scope

SEED = 0
COLLECTION = "evaluation"
ORACLE_CONFIDENCE = 1.0  # the passages were given, so there is no retrieval to doubt
POLL_SECONDS = 0.05


def retrieval(corpus: Path, queries: Path, limit: int | None, console: Console, settings: Settings) -> dict[str, Any]:
    """The LegalBench-RAG measure, as `precedent eval retrieval` writes it."""
    embedder = Embedder(settings.rag.embedding_model)
    with _bar(console) as bar:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("index", "search")}

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        return evaluate_retrieval(corpus, queries, embedder=embedder, limit=limit, seed=SEED, progress=progress)


def compare_retrieval(
    corpus: Path,
    queries: Path,
    limit: int | None,
    against: str,
    picture: Path | None,
    console: Console,
    settings: Settings,
) -> dict[str, Any]:
    """The configured retrieval and one that differs in `against`, on the same questions."""
    first = Configuration(settings.rag.embedding_model, settings.rag.chunk_characters)
    second = first.changed(against)
    rows = read_queries(queries)
    asked = rows if limit is None else stratified(rows, lambda row: row.category, limit, SEED)
    with _bar(console) as bar, tempfile.TemporaryDirectory(prefix="precedent-eval-") as folder:
        tasks = {stage: bar.add_task(stage, total=None) for stage in ("index", "search")}

        def progress(stage: str, done: int, total: int) -> None:
            bar.update(tasks[stage], completed=done, total=total)

        measures = []
        for chosen in (first, second):
            place = Path(folder) / f"{chosen.chunk_characters}-{hash(chosen.embedding_model)}"
            built, embedder = place.exists(), Embedder(chosen.embedding_model)
            index = EdgeIndex(place, embedder.dimension, model=embedder.name)
            if not built:
                index_corpus(corpus, index, embedder, progress, chosen.chunk_characters)
            results = ask_all(asked, Retriever(index, embedder, expand=chosen.thesaurus), progress)
            index.close()
            measures.append(by_query(asked, [passages for passages, _ in results]))
    report = {"first": asdict(first), "second": asdict(second), "queries": len(asked), **compare(*measures)}
    if picture:
        draw(report, ("configured", against), picture)
    return report


def citations(files: list[Path], per_document: int, console: Console) -> dict[str, Any]:
    """Whether quotes stand on the page and in the boxes that their citations name, as `precedent eval citations`."""
    if not files:
        raise InvalidRequest("There is no PDF file.")
    with _bar(console) as bar:
        task = bar.add_task("quote", total=len(files))
        return evaluate_citations(files, per_document, SEED, lambda done, total: bar.update(task, completed=done))


def answers(
    contracts: Path, questions: Path, limit: int | None, oracle: bool, console: Console, settings: Settings
) -> dict[str, Any]:
    """Hits, citations and refusals, as `precedent eval answers` writes them.

    `contracts` is JSON Lines of {"contract", "text"}, or a folder whose file names are the contracts' names.
    """
    return asyncio.run(_answers(contracts, questions, limit, oracle, console, settings))


async def _answers(
    contracts: Path, questions: Path, limit: int | None, oracle: bool, console: Console, settings: Settings
) -> dict[str, Any]:
    asked = load_questions(questions, limit, SEED)
    wanted = {question.contract for question in asked}
    async with _site(settings) as site:
        with _bar(console) as bar:
            documents = await _ingest(site, _uploads(contracts, wanted), bar, len(wanted))
            if missing := wanted - set(documents):
                raise InvalidRequest(f"{questions} asks about {sorted(missing)[0]!r}, which is not in {contracts}.")
            ask = site.ask_oracle if oracle else site.ask
            results = []
            for question in bar.track(asked, description="ask"):
                results.append(await ask(question, documents[question.contract]))
        return summarise_answers(asked, results) | {"rows": answer_rows(asked, results)}


class _Site:
    """Services in a temporary folder, and one tenant in them."""

    def __init__(self, services: Services, principal: Principal) -> None:
        self.services = services
        self.principal = principal

    async def ask(self, question: EvalQuestion, document_id: UUID) -> AnswerResult:
        """Retrieve in the question's own contract and answer."""
        request = AnswerRequest(question=question.question, documents=[document_id])
        opened = await self.services.library.answers.open(self.principal, request)
        view = await opened.complete()
        return AnswerResult(view.answer, view.refused, () if view.refused else tuple(opened.citations))

    async def ask_oracle(self, question: EvalQuestion, document_id: UUID) -> AnswerResult:
        """Answer from five passages of the contract, the gold one among them where there is one."""
        passages = await self._oracle_passages(question, document_id)
        request = AnswerRequest(question=question.question, documents=[document_id])
        opened = await self.services.library.answers.ask(self.principal, request, passages, ORACLE_CONFIDENCE, Stages())
        view = await opened.complete()
        return AnswerResult(view.answer, view.refused, () if view.refused else tuple(opened.citations))

    async def _oracle_passages(self, question: EvalQuestion, document_id: UUID) -> list[Found]:
        _, text = await self.services.library.documents.text(self.principal, document_id, None)
        chunks = chunk(text, max_chars=self.services.settings.rag.chunk_characters)
        seed = uuid5(document_id, question.question).int % 2**32
        chosen = oracle_passages(text, question.answers, chunks, seed)
        return await self.services.library.search.given(self.principal, document_id, chosen)


@asynccontextmanager
async def _site(settings: Settings) -> AsyncIterator[_Site]:
    with tempfile.TemporaryDirectory(prefix="precedent-eval-") as folder:
        storage = StorageSettings(database_url=f"sqlite+aiosqlite:///{folder}/eval.db", directory=folder)
        database = Database(storage.database_url)
        await migrate.upgrade(database)
        async with database.session() as session:
            tenant = await service.create_tenant(session, "evaluation")
            key = await service.create_key(session, tenant.id, "evaluation", scopes=frozenset(Scope))
            principal = await service.find_principal(session, key.secret)
        await database.close()
        assert principal is not None, "a key made a moment ago"
        async with open_services(dataclasses.replace(settings, storage=storage)) as services:
            await _ready(services)
            yield _Site(services, principal)


async def _ready(services: Services) -> None:
    """Wait until the model is loaded. Raises Unavailable when a target could not start."""
    while services.starting:
        await asyncio.sleep(POLL_SECONDS)
    for name, reason in services.not_ready().items():
        raise Unavailable(f"The target {name!r} {reason}.")


async def _ingest(site: _Site, uploads: Iterator[tuple[str, Upload]], bar: Progress, total: int) -> dict[str, UUID]:
    """Document ids by contract name."""
    task = bar.add_task("ingest", total=total)
    documents = {}
    for name, upload in uploads:
        filed = await site.services.library.documents.add(site.principal, upload, COLLECTION, frozenset())
        site.services.library.jobs.wake()
        await _finished(site, filed, name)
        documents[name] = filed.document.id
        bar.advance(task)
    return documents


async def _finished(site: _Site, filed: Filed, name: str) -> None:
    while filed.job:
        job = await site.services.library.documents.job(site.principal, filed.job.id)
        if job.status == FAILED:
            raise InvalidRequest(f"The contract {name!r} could not be ingested: {job.error}")
        if job.status == SUCCEEDED:
            return
        await asyncio.sleep(POLL_SECONDS)


def _uploads(contracts: Path, wanted: set[str]) -> Iterator[tuple[str, Upload]]:
    if contracts.is_dir():
        for path in sorted(contracts.iterdir()):
            if path.name in wanted:
                yield (
                    path.name,
                    Upload(path.name, mimetypes.guess_type(path.name)[0] or "", path.read_bytes()),
                )
        return
    for row in read_lines(contracts):
        if row["contract"] in wanted:
            yield row["contract"], Upload(f"{row['contract'][:200]}.txt", "text/plain", row["text"].encode())


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description:<8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        yield bar
