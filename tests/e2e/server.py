"""A server of our own for the browser, as a process that can be stopped and started again."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from uuid_utils.compat import uuid7

from app import migrate
from app.config import REPOSITORY
from app.db import Database, now
from app.gateway.models import LedgerEntry, RequestRecord
from app.tenants import service, users
from app.tenants.passwords import Passwords
from app.tenants.principal import TENANT_SCOPES, Scope
from app.tenants.sealing import new_key
from tests.servers import free_port
from tests.tenants.provider import CLIENT

PASSWORD = "correct horse battery"
OWNER, VIEWER, STRANGER = "owner@firm.example", "viewer@firm.example", "owner@other.example"
BUSY = "owner@busy.example"  # of a tenant with very many requests
QUOTE = "The rent is nine hundred crowns a month."
CONFIG = f"""
[[targets]]
name = "fake"
provider = "fake"
region = "eu"
[[targets]]
name = "down"
provider = "fake"
options = "status=503"
[[targets]]
name = "dripping"
provider = "fake"
options = "delay_ms=150,text={"word " * 400}"
[[targets]]
name = "quoting"
provider = "fake"
options = 'text=The contract states [1]: "{QUOTE}"'
[[routes]]
model = "echo"
targets = ["fake"]
[[routes]]
model = "resilient"
targets = ["down", "fake"]
[[routes]]
model = "dripping"
targets = ["dripping"]
[[routes]]
model = "quoting"
targets = ["quoting"]
[[prices]]
target = "fake"
input = 3_000_000
output = 15_000_000
"""


@dataclass
class Serving:
    """Where it runs, and the key of its first tenant."""

    directory: Path
    port: int
    key: str
    tenants: dict[str, UUID]
    issuer: str
    process: "subprocess.Popen[bytes] | None" = None
    _sealing: str = field(default_factory=new_key)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"authorization": f"Bearer {self.key}"}, timeout=60)

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PRECEDENT_")}
        environ |= {"PYTHONPATH": str(REPOSITORY), **self._settings()}
        command = [sys.executable, "-m", "app.cli", "serve", "--port", str(self.port)]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.directory, env=environ, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "server.log").read_text()[-4000:])
            time.sleep(0.1)

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _settings(self) -> dict[str, str]:
        return {
            "PRECEDENT_MODEL": str(REPOSITORY / "demo" / "model"),
            "PRECEDENT_STORAGE_DATABASE_URL": f"sqlite+aiosqlite:///{self.directory}/e2e.db",
            "PRECEDENT_STORAGE_DIRECTORY": str(self.directory),
            "PRECEDENT_LOG_FLUSH_SECONDS": "0.05",
            "PRECEDENT_TELEMETRY_LOG_LEVEL": "warning",
            "PRECEDENT_SERVER_PUBLIC_URL": self.url,
            "PRECEDENT_AUTH_ENCRYPTION_KEY": self._sealing,
            "PRECEDENT_OIDC_ISSUER": self.issuer,
            "PRECEDENT_OIDC_CLIENT_ID": CLIENT,
            "PRECEDENT_OIDC_TENANT": "firm",
            "PRECEDENT_OIDC_CREATE_USERS": "true",
        }

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=2).status_code == 200
        except httpx.TransportError:
            return False


def database_of(directory: Path) -> Database:
    return Database(f"sqlite+aiosqlite:///{directory}/e2e.db")


async def _people(directory: Path) -> tuple[str, dict[str, UUID]]:
    """Two tenants: the firm with an owner, who also runs the installation, and a viewer; another with an owner."""
    database = database_of(directory)
    await migrate.upgrade(database)
    hashed = await Passwords().hash(PASSWORD)
    async with database.session() as session:
        firm = await service.create_tenant(session, "firm")
        other = await service.create_tenant(session, "other")
        busy = await service.create_tenant(session, "busy")
        made = [
            (firm, users.NewUser(OWNER, "Olga Owner", "owner", operator=True, password_hash=hashed)),
            (firm, users.NewUser(VIEWER, "Victor Viewer", "viewer", password_hash=hashed)),
            (other, users.NewUser(STRANGER, "Sam Stranger", "owner", password_hash=hashed)),
            (busy, users.NewUser(BUSY, "Bea Busy", "owner", password_hash=hashed)),
        ]
        for tenant, new in made:
            await users.create_user(session, tenant.id, new, None)
        scopes = frozenset(TENANT_SCOPES | {Scope.OPERATOR.value})
        key = await service.create_key(session, firm.id, "suite", scopes=scopes)
    await database.close()
    return key.secret, {"firm": firm.id, "other": other.id, "busy": busy.id}


async def prepared(directory: Path, issuer: str) -> Serving:
    """Everything but the process. `issuer`: of the OpenID provider through which members of the firm come in."""
    (directory / "precedent.toml").write_text(CONFIG)
    key, tenants = await _people(directory)
    return Serving(directory, free_port(), key, tenants, issuer)


async def add_requests(directory: Path, tenant_id: UUID, count: int, spans: int = 5) -> list[UUID]:
    """Rows in the request log and the ledger, one a minute back from now; returns their ids, newest first."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        at = now() - timedelta(minutes=count - number) if count < 20_000 else now() - timedelta(seconds=count - number)
        rows.append(_request(tenant_id, at, number, spans))
    database = database_of(directory)
    async with database.session() as session:
        for first in range(0, count, 2000):
            part = rows[first : first + 2000]
            await session.execute(RequestRecord.__table__.insert(), part)  # type: ignore[attr-defined]
            await session.execute(LedgerEntry.__table__.insert(), [_entry(row) for row in part])  # type: ignore[attr-defined]
        await session.commit()
    await database.close()
    return [row["id"] for row in reversed(rows)]


def _request(tenant_id: UUID, at: Any, number: int, spans: int) -> dict[str, Any]:
    failed = number % 17 == 0
    return {
        "id": uuid7(),
        "created_at": at,
        "tenant_id": tenant_id,
        "key_id": None,
        "user_id": None,
        "endpoint": "chat",
        "streamed": True,
        "model": "echo" if number % 3 else "legal",
        "target": "fake",
        "status": "upstream_error" if failed else "stop",
        "error": "the upstream said no" if failed else None,
        "fallbacks": number % 2,
        "prompt_tokens": 100 + number % 50,
        "completion_tokens": 10,
        "cached_tokens": number % 90,
        "cost_micros": 7 * number % 1000,
        "cache": "miss",
        "first_delta_ms": 40.0 + number % 30,
        "total_ms": 900.0,
        "routing": {"strategy": "order", "targets": [{"target": "fake", "rank": 1, "reason": "named first"}]},
        "spans": [
            {"name": f"step {one}", "start_ms": one * 900 / spans, "duration_ms": 900 / spans} for one in range(spans)
        ],
    }


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    names = ("tenant_id", "created_at", "key_id", "user_id", "model", "target")
    tokens = ("prompt_tokens", "completion_tokens", "cached_tokens")
    micros = row["cost_micros"]
    lines = {"input_micros": micros, "cached_input_micros": 0, "output_micros": 0, "computing_micros": 0}
    return {
        **{name: row[name] for name in (*names, *tokens)},
        **lines,
        "id": uuid7(),
        "request_id": row["id"],
        "amount_micros": micros,
    }
