"""`make run`: from a fresh checkout to a cited answer, over the same HTTP API everybody else has."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from rich.console import Console
from rich.markup import escape

from app import migrate
from app.client import KEY_FILE, Client, ClientError, ask, ingest
from app.config import REPOSITORY, Settings
from app.db import Database, owned
from app.errors import NotFound
from app.tenants import service, users
from app.tenants.models import User
from app.tenants.principal import Scope
from app.tenants.roles import Role
from app.tenants.sessions import make_link

TENANT = "demo"
OWNER = "owner@demo.example"
COLLECTION = "contracts"
CONTRACTS = REPOSITORY / "demo" / "contracts"
QUESTION = (REPOSITORY / "demo" / "sample_question.txt").read_text().strip()
START_SECONDS = 300.0


INTERRUPTED = 130  # the shell's status for Ctrl-C


def run(console: Console, *, oneshot: bool) -> int:
    """Exit status: 0, or 1 when the server did not come up or (oneshot) the answer has no verified citation."""
    settings = Settings.load()
    secret = asyncio.run(_prepare(settings))
    port = _port(settings, console)
    url = f"http://{settings.server.host}:{port}"
    with _server(settings, port) as process:
        try:
            _wait_until_ready(process, url, settings, console)
            answered = _show(Client(url, secret), console)
            if oneshot:
                return 0 if answered else 1
            _print_addresses(console, url, secret, settings, asyncio.run(_sign_in_link(settings)))
            return process.wait()
        except KeyboardInterrupt:
            console.print("\nStopping. The next run goes on from here.")
            return INTERRUPTED if oneshot else 0


def _show(client: Client, console: Console) -> bool:
    """Ingest the contracts and ask the sample question. False without a verified citation, or when a file failed."""
    paths = sorted(path for path in CONTRACTS.iterdir() if path.is_file())
    failures = ingest(client, paths, COLLECTION, [], console)
    for failure in failures:
        console.print(f"[red]{escape(failure)}[/red]")
    answer = ask(client, {"question": QUESTION, "collection": COLLECTION}, console)
    return not failures and any(citation["verified"] for citation in answer["citations"])


async def _prepare(settings: Settings) -> str:
    """Migrate, and make the demo tenant and its key where they are missing. Returns the key."""
    database = Database(settings.storage.database_url)
    try:
        await migrate.upgrade(database)
        async with database.session() as session:
            if KEY_FILE.exists():
                kept = KEY_FILE.read_text().strip()
                if await service.find_principal(session, kept):
                    return kept
            try:
                tenant = await service.get_tenant(session, TENANT)
            except NotFound:
                tenant = await service.create_tenant(session, TENANT)
            name = f"demo {time.strftime('%Y-%m-%d %H:%M:%S')}"
            new = await service.create_key(session, tenant.id, name, scopes=frozenset(Scope))
    finally:
        await database.close()
    _keep(new.secret)
    return new.secret


async def _sign_in_link(settings: Settings) -> str:
    """The token of a one-time link for the demo tenant's owner, who is made where missing and has no password."""
    database = Database(settings.storage.database_url)
    try:
        async with database.session() as session:
            tenant = await service.get_tenant(session, TENANT)
            owner = await session.scalar(owned(User, tenant.id).where(User.email == OWNER))
            if owner is None:
                new = users.NewUser(OWNER, "Demo owner", Role.OWNER, operator=True)
                owner = await users.create_user(session, tenant.id, new, None)
            return await make_link(session, owner)
    finally:
        await database.close()


def _keep(secret: str) -> None:
    """The file is born with mode 0600: at no moment may others read it."""
    KEY_FILE.parent.mkdir(exist_ok=True)
    KEY_FILE.unlink(missing_ok=True)
    with os.fdopen(os.open(KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")


def _port(settings: Settings, console: Console) -> int:
    """The configured port, or a free one when somebody else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.server.host, settings.server.port))
        except OSError:
            probe.bind((settings.server.host, 0))
            console.print(f"Port {settings.server.port} is taken.")
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _server(settings: Settings, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server process of our own, its log in a file, stopped with us."""
    log = settings.directory / "server.log"
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=settings.server.shutdown_seconds + 10)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, settings: Settings, console: Console) -> None:
    deadline = time.monotonic() + START_SECONDS
    with console.status("Starting the server and loading the model …"):
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise ClientError(f"The server did not start; see {settings.directory / 'server.log'}.")
            if _ready(url):
                return
            time.sleep(0.2)
    raise ClientError(f"The server was not ready after {START_SECONDS:.0f} s; see {settings.directory / 'server.log'}.")


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


def _print_addresses(console: Console, url: str, secret: str, settings: Settings, token: str) -> None:
    elsewhere = "" if url.endswith(f":{settings.server.port}") else f"PRECEDENT_URL={url} "
    console.print(f"\nConsole            {url}/console/sign-in#{token}  (works once, for half an hour)", soft_wrap=True)
    console.print(f"API documentation  [link]{url}/docs[/link]")
    console.print(f"API key            {secret}  (also in {KEY_FILE})")
    console.print(f'Ask more           {elsewhere}.venv/bin/precedent ask "What is the notice period?"')
    console.print("Ctrl-C stops the server.")
