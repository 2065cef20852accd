"""Checks of what a server talks to: database, Redis, the index."""

import fcntl
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app import migrate
from app.config import RagSettings, Settings
from app.db import Database
from app.errors import ConfigurationError, Unavailable
from app.gateway.models import Credential
from app.operations.findings import Finding, failed, ok, warning
from app.operations.machine import serves
from app.rag.index.edge import META
from app.rag.index.moving import EDGE, MOVED
from app.tenants.sealing import Sealer

DRIFT_SECONDS = 2.0  # jobs' leases, sessions and sliding windows bear this much
ADRIFT_SECONDS = 30.0
UNREACHABLE = (OSError, SQLAlchemyError)


async def database(url: str) -> Finding:
    shown = make_url(url).render_as_string(hide_password=True)
    if not _sqlite_exists(url):
        return failed("database", f"{shown} does not exist", "Run 'precedent migrate' (or 'make run').")
    opened = Database(url)
    try:
        await opened.ping()
        await migrate.require_current(opened)
    except Unavailable as error:
        return failed("database", error.detail, "Run 'precedent migrate'; take a backup first.")
    except UNREACHABLE as error:
        return failed("database", f"{shown}: {_reason(error)}", "Start the server or correct storage.database_url.")
    finally:
        await opened.close()
    return ok("database", f"{shown}, migrated")


async def clock(url: str, ours: Callable[[], datetime]) -> Finding:
    """Ours against the database's: several processes compare times that each of them wrote."""
    opened = Database(url)
    if opened.is_sqlite:
        await opened.close()
        return ok("clock", "SQLite has this machine's")
    try:
        async with opened.engine.connect() as connection:
            before = ours()
            theirs = (await connection.execute(text("SELECT clock_timestamp()"))).scalar_one()
            halfway = before + (ours() - before) / 2
            apart = abs((theirs - halfway).total_seconds())
    except UNREACHABLE as error:
        return failed("clock", f"cannot be compared: {_reason(error)}", "Put the database right first.")
    finally:
        await opened.close()
    detail, advice = (
        f"{apart:.1f} s from the database's",
        "Run an NTP client (chrony, timesyncd) on both machines.",
    )
    if apart > ADRIFT_SECONDS:
        return failed("clock", detail, advice)
    return warning("clock", detail, advice) if apart > DRIFT_SECONDS else ok("clock", detail)


async def encryption_key(settings: Settings) -> Finding:
    """Whether stored credentials can be read."""
    name = "encryption key"
    if not _sqlite_exists(settings.storage.database_url):
        return ok(name, "nothing is stored yet")
    opened = Database(settings.storage.database_url)
    try:
        async with opened.session() as session:
            stored = list(await session.scalars(select(Credential)))
    except UNREACHABLE as error:
        return failed(name, f"credentials cannot be read: {_reason(error)}", "Put the database right first.")
    finally:
        await opened.close()
    if stored and not settings.auth.encryption_key:
        advice = "Set PRECEDENT_AUTH_ENCRYPTION_KEY to the key that they were stored under."
        return failed(name, f"{len(stored)} credentials are stored and no key is set", advice)
    sealer = Sealer(settings.auth.encryption_key)
    for credential in stored:
        try:
            sealer.open(credential.sealed)
        except ConfigurationError:
            advice = "Add the key that it was stored under to PRECEDENT_AUTH_ENCRYPTION_KEY, or store it anew."
            return failed(name, f"credential {credential.name!r} was stored under another key", advice)
    return ok(name, f"opens {len(stored)} stored credentials" if stored else "no credentials are stored")


async def redis_answers(name: str, url: str) -> Finding:
    client = Redis.from_url(url, socket_timeout=3, socket_connect_timeout=3)
    try:
        await client.ping()
    except (RedisError, OSError) as error:
        advice = "Start Redis or correct its URL; meanwhile every replica counts and polls by itself."
        return failed(name, f"does not answer: {type(error).__name__}", advice)
    finally:
        await client.aclose()
    return ok(name, "answers")


def index(settings: Settings) -> Finding:
    if settings.rag.index == EDGE:
        return _edge(settings)
    return _qdrant(settings.rag)


def _qdrant(rag: RagSettings) -> Finding:
    if not rag.qdrant_url:
        return failed("index", "rag.index is qdrant without a rag.qdrant_url", "Set rag.qdrant_url.")
    seconds = max(1, round(min(rag.qdrant_timeout_seconds, 5)))
    client = QdrantClient(
        url=rag.qdrant_url, api_key=rag.qdrant_api_key or None, timeout=seconds, check_compatibility=False
    )
    try:
        client.collection_exists("precedent")
    except UnexpectedResponse as error:
        advice = "Correct rag.qdrant_api_key (401, 403) or look into the server's log."
        return failed("index", f"{rag.qdrant_url} answers {error.status_code}", advice)
    except (ResponseHandlingException, ApiException):
        advice = "Start the Qdrant server or correct rag.qdrant_url; until then nothing is searched."
        return failed("index", f"{rag.qdrant_url} does not answer", advice)
    finally:
        client.close()
    return ok("index", f"{rag.qdrant_url} answers")


def _edge(settings: Settings) -> Finding:
    folder = settings.directory / "index"
    if not folder.exists():
        return ok("index", f"{folder} will be made")
    if (folder / MOVED).exists():
        place = (folder / MOVED).read_text("utf-8")
        return failed("index", f"was moved to {place}", 'Set rag.index = "qdrant" and rag.qdrant_url.')
    if (folder / META).exists() and (built := _model_of(folder)) != settings.rag.embedding_model:
        advice = "Set rag.embedding_model to that, or move the folder away and ingest again."
        return failed("index", f"{folder} was built with {built!r}", advice)
    owner = index_owner(folder)
    if owner is None:
        return ok("index", f"{folder} is free")
    if serves(settings.server):
        return ok("index", f"{folder} is the running server's (process {owner})")
    advice = "Stop that process before you start a server here, or share a Qdrant server."
    return warning("index", f"{folder} is in use by process {owner}", advice)


def _model_of(folder: Path) -> str:
    model: str = json.loads((folder / META).read_text("utf-8"))["model"]
    return model


def index_owner(folder: Path) -> str | None:
    """Who holds the folder; a shared lock asks without taking it from anybody."""
    path = folder / "owner.lock"
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return file.read().strip() or "unknown"
    return None


def _sqlite_exists(url: str) -> bool:
    """Opening a SQLite file makes it, and a look should not."""
    made = make_url(url)
    return made.get_backend_name() != "sqlite" or made.database in (None, ":memory:") or Path(made.database).exists()


def _reason(error: Exception) -> str:
    said = str(getattr(error, "orig", None) or error).splitlines()
    return said[0] if said else type(error).__name__
