"""The `precedent` command."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncSession

from app import __version__, migrate
from app.cases import report_index, run_cases
from app.client import Client, ClientError, ask, ingest
from app.config import Settings, settings_page
from app.db import Database
from app.errors import AppError
from app.tenants import audit, service, users
from app.tenants.passwords import Passwords
from app.tenants.principal import TENANT_SCOPES, Scope
from app.tenants.sealing import new_key

T = TypeVar("T")
console = Console(highlight=False)
ALL_SCOPES = ",".join(scope for scope in Scope if scope in TENANT_SCOPES)


class _Group(click.Group):
    """Errors meant for people are one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except AppError as error:
            raise click.ClickException(error.detail) from error
        except ClientError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group)
@click.version_option(__version__)
def main() -> None:
    """Precedent: AI gateway, legal RAG and inference engine."""


@main.command()
@click.option("--host", help="Address to listen on (default: from the settings).")
@click.option("--port", type=int, help="Port to listen on (default: from the settings).")
def serve(host: str | None, port: int | None) -> None:
    """Serve the API until a signal comes."""
    import uvicorn

    from app.asgi import create_app

    settings = Settings.load()
    asyncio.run(_require_migrated(settings))  # one clear line here instead of a stack from inside the server
    server = settings.server
    uvicorn.run(
        create_app(settings),
        host=host or server.host,
        port=port or server.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=server.shutdown_seconds,
    )


@main.command()
def worker() -> None:
    """Ingest documents beside a server, on this or another machine, until a signal comes."""
    from app import telemetry
    from app.worker import work

    settings = Settings.load()
    telemetry.configure_logging(settings.telemetry)
    asyncio.run(work(settings))


@main.command("migrate")
def migrate_command() -> None:
    """Bring the database to this version's schema."""

    async def run() -> None:
        database = Database(Settings.load().storage.database_url)
        await migrate.upgrade(database)
        await database.close()

    asyncio.run(run())
    console.print("The database is up to date.")


@main.command()
def settings() -> None:
    """Print every setting with its meaning, as Markdown."""
    click.echo(settings_page(), nl=False)


@main.command()
@click.option("--oneshot", is_flag=True, help="Exit after the answer: 0 only if it has a verified citation.")
def demo(oneshot: bool) -> None:
    """Set up the demo tenant and contracts, serve, and ask a question."""
    from app.demo import run

    sys.exit(run(console, oneshot=oneshot))


@main.command("ask")
@click.argument("question")
@click.option("--collection", help="Search this collection only.")
@click.option("--document", "documents", multiple=True, help="Search this document only (id; repeatable).")
@click.option("--model", help="Model name (default: the server's first route).")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def ask_command(
    question: str, collection: str | None, documents: tuple[str, ...], model: str | None, as_json: bool
) -> None:
    """Ask the documents of a running server."""
    request: dict[str, Any] = {"question": question, "collection": collection, "model": model}
    request["documents"] = list(documents) or None
    quiet = Console(quiet=True) if as_json else console
    answer = ask(Client(), request, quiet)
    if as_json:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


@main.command("ingest")
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--collection", default="default", show_default=True)
@click.option("--label", "labels", multiple=True, help="Matter to file under (repeatable).")
def ingest_command(paths: tuple[Path, ...], collection: str, labels: tuple[str, ...]) -> None:
    """File documents (folders with everything in them) with a running server and wait for them."""
    failures = ingest(Client(), files_in(paths), collection, list(labels), console)
    for failure in failures:
        click.echo(failure, err=True)
    sys.exit(1 if failures else 0)


@main.group()
def index() -> None:
    """The vector index of a running server (takes an operator's key)."""


@index.command("status")
def index_status() -> None:
    """Where the vectors are, and how far a move is."""
    click.echo(json.dumps(Client().get("/api/v1/index"), indent=2))


@index.command("optimize")
def index_optimize() -> None:
    """Build the search structures of the embedded index anew, while the server is stopped."""
    from app.rag.index.edge import EdgeIndex

    opened = EdgeIndex.existing(Settings.load().directory / "index")
    console.print(f"{opened.count()} chunks; this takes about a second for each thousand that are new.")
    opened.optimize()
    opened.close()


@index.command("move")
@click.option("--to", "to", required=True, help="edge, or the URL of a Qdrant server.")
def index_move(to: str) -> None:
    """Move the index to or from a Qdrant server while the server goes on answering."""
    from app.client import move_index

    move_index(Client(), to, console)


@main.group()
def tenant() -> None:
    """Tenants (works on the configured database)."""


@tenant.command("create")
@click.argument("name")
def tenant_create(name: str) -> None:
    created = _with_session(lambda session: service.create_tenant(session, name))
    console.print(f"{created.id}  {created.name}")


@tenant.command("list")
def tenant_list() -> None:
    for row in _with_session(service.list_tenants):
        console.print(f"{row.id}  {row.name}")


@main.group()
def key() -> None:
    """API keys (works on the configured database)."""


@key.command("create")
@click.argument("tenant_name")
@click.argument("name")
@click.option("--scopes", default=ALL_SCOPES, show_default=True, help="Comma-separated.")
@click.option("--labels", default="", help="Comma-separated matters the key holds.")
def key_create(tenant_name: str, name: str, scopes: str, labels: str) -> None:
    """Make a key; its secret is printed this once."""

    async def run(session: AsyncSession) -> service.NewKey:
        owner = await service.get_tenant(session, tenant_name)
        return await service.create_key(session, owner.id, name, scopes=_split(scopes), labels=_split(labels))

    click.echo(_with_session(run).secret)


@key.command("list")
@click.argument("tenant_name")
def key_list(tenant_name: str) -> None:
    async def run(session: AsyncSession) -> list[Any]:
        return list(await service.list_keys(session, (await service.get_tenant(session, tenant_name)).id))

    table = Table("id", "name", "prefix", "scopes", "labels", "state")
    for row in _with_session(run):
        state = "revoked" if row.revoked_at else "active"
        table.add_row(str(row.id), row.name, row.prefix, " ".join(row.scopes), " ".join(row.labels), state)
    console.print(table)


@key.command("revoke")
@click.argument("tenant_name")
@click.argument("key_id", type=click.UUID)
def key_revoke(tenant_name: str, key_id: Any) -> None:
    async def run(session: AsyncSession) -> None:
        owner = await service.get_tenant(session, tenant_name)
        await service.revoke_key(session, owner.id, key_id)

    _with_session(run)
    console.print("revoked")


@main.group()
def user() -> None:
    """People who log in to the console (works on the configured database)."""


@user.command("create")
@click.argument("tenant_name")
@click.argument("email")
@click.option("--name", default="", help="Shown name (default: the address).")
@click.option("--role", default="owner", show_default=True, help="owner, admin, member or viewer.")
@click.option("--labels", default="", help="Comma-separated matters the person holds.")
@click.option("--operator", is_flag=True, help="Also runs the installation, above all tenants.")
@click.password_option(help="Asked for where it is not given.")
def user_create(tenant_name: str, email: str, name: str, role: str, labels: str, operator: bool, password: str) -> None:
    """Add a person with a password."""

    async def run(session: AsyncSession) -> None:
        owner = await service.get_tenant(session, tenant_name)
        hashed = await Passwords().hash(password)
        new = users.NewUser(email, name or email, role, _split(labels), operator, hashed)
        await users.create_user(session, owner.id, new, None)

    _with_session(run)
    console.print("created")


@main.group("audit")
def audit_group() -> None:
    """The audit log (works on the configured database)."""


@audit_group.command("verify")
@click.option("--expect", help="The last hash that is expected.")
def audit_verify(expect: str | None) -> None:
    """Check that no entry was changed or taken away; exit status 1 where one was."""
    chain = _with_session(audit.verify)
    if expect and expect != chain.head:
        raise click.ClickException(f"The chain is whole but ends in {chain.head}.")
    click.echo(f"{chain.entries} entries, whole. Last hash: {chain.head}")


@main.command("secret-key")
def secret_key() -> None:
    """Print a new key for PRECEDENT_AUTH_ENCRYPTION_KEY."""
    click.echo(new_key())


@main.group("eval")
def evaluate() -> None:
    """Measure retrieval and answers on labelled data; inputs may be .xz."""


@evaluate.command("retrieval")
@click.option("--corpus", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--queries", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="A seeded sample, stratified by category.")
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
@click.option(
    "--against",
    help="Compare with a configuration that differs in name=value,…: embedding_model, chunk_characters, thesaurus.",
)
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the comparison as PNG.")
def eval_retrieval(
    corpus: Path, queries: Path, limit: int | None, output: Path, against: str | None, picture: Path | None
) -> None:
    """Character precision and recall (LegalBench-RAG) and the wrong-document rate."""
    from app.evaluation import compare_retrieval, retrieval

    if against:
        _write(output, compare_retrieval(corpus, queries, limit, against, picture, console, Settings.load()))
        return
    _write(output, retrieval(corpus, queries, limit, console, Settings.load()))


@evaluate.command("answers")
@click.option(
    "--contracts",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="JSONL, or a folder of files.",
)
@click.option("--questions", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--limit", type=click.IntRange(min=1), help="A seeded sample, stratified by category.")
@click.option("--oracle-passages", is_flag=True, help="Give the gold passage among five instead of retrieving.")
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
def eval_answers(contracts: Path, questions: Path, limit: int | None, oracle_passages: bool, output: Path) -> None:
    """Hits, citations and refusals, each question asked of its own contract."""
    from app.evaluation import answers

    _write(output, answers(contracts, questions, limit, oracle_passages, console, Settings.load()))


@evaluate.command("citations")
@click.option("--documents", required=True, type=click.Path(exists=True, path_type=Path), help="A folder of PDF files.")
@click.option("--per-document", default=20, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "output", required=True, type=click.Path(path_type=Path))
def eval_citations(documents: Path, per_document: int, output: Path) -> None:
    """Quotes of PDF files, looked up again on the page and in the boxes that their citations name."""
    from app.evaluation import citations

    files = [path for path in files_in((documents,)) if path.suffix.lower() == ".pdf"]
    _write(output, citations(files, per_document, console))


@evaluate.command("cases")
@click.option("--model", help="Model name (default: the server's first route).")
@click.option("--json", "output", type=click.Path(path_type=Path))
def eval_cases(model: str | None, output: Path | None) -> None:
    """Ask a running server its saved cases; exit status 1 where one is not answered as expected."""
    result = run_cases(Client(), model, console)
    if output:
        output.write_text(json.dumps(result, indent=2) + "\n")
    sys.exit(0 if result["hits"] == result["cases"] else 1)


@main.group()
def forget() -> None:
    """What was deleted is gone (asks a running server)."""


@forget.command("verify")
@click.option("--repair", is_flag=True, help="Delete what should not be there, and index again what is missing.")
@click.option("--every", is_flag=True, help="All tenants; takes an operator's key.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def forget_verify(repair: bool, every: bool, as_json: bool) -> None:
    """Compare index and database; exit status 1 unless they agree."""
    report = report_index(Client(), Console(quiet=True) if as_json else console, repair=repair, every=every)
    if as_json:
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    sys.exit(0 if report["clean"] else 1)


def files_in(paths: tuple[Path, ...]) -> list[Path]:
    """Files as given, and everything in folders, in a stable order."""
    found: list[Path] = []
    for path in paths:
        found += (
            sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            if path.is_dir()
            else [path]
        )
    return found


def _split(value: str) -> frozenset[str]:
    return frozenset(part.strip() for part in value.split(",") if part.strip())


def _with_session(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(Settings.load().storage.database_url)
        try:
            await migrate.require_current(database)
            async with database.session() as session:
                return await work(session)
        finally:
            await database.close()

    return asyncio.run(run())


async def _require_migrated(settings: Settings) -> None:
    database = Database(settings.storage.database_url)
    try:
        await migrate.require_current(database)
    finally:
        await database.close()


def _write(output: Path, result: dict[str, Any]) -> None:
    output.write_text(json.dumps(result, indent=2) + "\n")
    console.print_json(json.dumps(result))


if __name__ == "__main__":
    main()
