"""The whole documented API under generated requests: no 5xx, and nobody sees what is another tenant's."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case

from app.asgi import create_app
from app.config import AuthSettings
from app.tenants import service, users
from app.tenants.models import Budget
from app.tenants.principal import TENANT_SCOPES, Scope
from app.tenants.sealing import new_key
from tests.conftest import Site, fake_settings, listen
from tests.gateway.upstream import prepared

pytestmark = pytest.mark.slow
CANARY = "canary-7f3a"
EXAMPLES = 12
# A stream that only ends after minutes.
ENDLESS = "/api/v1/events"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Site, str]]:
    folder = tmp_path_factory.mktemp("fuzz")
    config = fake_settings(folder, auth=AuthSettings(encryption_key=new_key()))
    await prepared(config)
    app = create_app(config)
    async with listen(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        site = Site(app, client, app.state.services)  # type: ignore[arg-type]
        await plant(site)
        yield site, url


async def plant(site: Site) -> None:
    """What belongs to another tenant, everywhere with the canary's name."""
    headers = await site.headers("others")
    await site.client.post(
        "/api/v1/keys", json={"name": CANARY, "scopes": ["chat"], "models": [CANARY]}, headers=headers
    )
    note = {"files": (f"{CANARY}.txt", f"The {CANARY} lease is void.".encode())}
    await site.client.post("/api/v1/documents", files=note, data={"collection": CANARY}, headers=headers)
    body = {"model": "echo", "messages": [{"role": "user", "content": CANARY}], "logit_bias": {"1": 1}}
    await site.client.post("/v1/chat/completions", json=body | {"min_p": 0.5}, headers=headers)
    async with site.services.database.session() as session:
        tenant = await service.get_tenant(session, "others")
        person = users.NewUser(f"{CANARY}@others.example", CANARY, "owner")
        user = await users.create_user(session, tenant.id, person, None)
        session.add(Budget(tenant_id=tenant.id, window="day", limit_micros=1, user_id=user.id))
        await session.commit()


def fuzz(url: str, headers: dict[str, str], refused: Iterable[int] | None) -> list[str]:
    """What went wrong, one line each. `refused`: the only statuses that a caller without rights may get."""
    schema = schemathesis.openapi.from_url(f"{url}/docs/openapi.json")
    found: list[str] = []
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == ENDLESS:
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Case) -> None:
            response = case.call(base_url=url, headers={**headers, "authorization": headers["authorization"]})
            what = f"{case.method} {case.path}: {response.status_code} {response.text[:200]}"
            if response.status_code >= 500:
                found.append(what)
            if CANARY in response.text:
                found.append(f"foreign object in {what}")
            public = case.path.startswith(("/health", "/docs", "/api/v1/session"))
            if refused is not None and not public and response.status_code not in refused:
                found.append(f"let in: {what}")

        ask()
    return found


@pytest.mark.parametrize("who", ["operator", "tenant", "revoked"])
async def test_generated_requests(target: tuple[Site, str], who: str) -> None:
    site, url = target
    scopes: Any = tuple(Scope) if who == "operator" else TENANT_SCOPES
    headers = await site.headers(f"fuzz-{who}", scopes=scopes)
    refused = None
    if who == "revoked":
        keys = (await site.client.get("/api/v1/keys", headers=headers)).json()["keys"]
        await site.client.delete(f"/api/v1/keys/{keys[0]['id']}", headers=headers)
        refused = (401, 404, 405)
    found = await asyncio.to_thread(fuzz, url, headers, refused)
    assert not found, "\n".join(sorted(set(found)))
