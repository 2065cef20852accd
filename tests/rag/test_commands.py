"""`precedent forget verify` and `precedent eval cases` against a running server."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from app import migrate
from app.asgi import create_app
from app.cli import main
from app.config import RouteSettings, TargetSettings
from app.db import Database
from app.services import Services
from app.tenants import service
from app.tenants.principal import Scope
from tests.conftest import QUOTE, fake_settings, listen
from tests.rag.test_documents_api import LEASE


@pytest.mark.slow
async def test_the_index_is_verified_and_saved_cases_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quoting = TargetSettings(name="quoting", provider="fake", options=f"text=The contract states [1]: {QUOTE}")
    settings = fake_settings(tmp_path, targets=(quoting,), routes=(RouteSettings("quoting", ("quoting",)),))
    database = Database(settings.storage.database_url)
    await migrate.upgrade(database)
    async with database.session() as session:
        tenant = await service.create_tenant(session, "firm")
        key = (await service.create_key(session, tenant.id, "k", scopes=frozenset(Scope))).secret
    await database.close()
    app = create_app(settings)

    async def run(*arguments: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, main, list(arguments))

    async with listen(app) as url, httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as http:
        monkeypatch.setenv("PRECEDENT_URL", url)
        monkeypatch.setenv("PRECEDENT_KEY", key)
        filed = (await http.post("/api/v1/documents", files={"f": ("lease.md", LEASE.encode())})).json()
        document = filed["documents"][0]["id"]
        while (await http.get(f"/api/v1/documents/{document}")).json()["current_version"] is None:
            await asyncio.sleep(0.05)
        clean = await run("forget", "verify", "--every", "--json")
        assert clean.exit_code == 0, clean.output
        [report] = json.loads(clean.output)["tenants"]
        assert (report["documents"], report["missing"], report["orphans"]) == (1, 0, 0)
        services: Services = app.state.services
        services.library.reconciler._index.delete_document(str(tenant.id), document)
        broken = await run("forget", "verify")
        assert broken.exit_code == 1 and "NOT CLEAN" in broken.output
        await run("forget", "verify", "--repair")
        async with asyncio.timeout(30):
            while (await run("forget", "verify")).exit_code:
                await asyncio.sleep(0.1)

        case = {"question": "How much is the rent of Mill House?", "document_id": document, "quote": QUOTE.strip('"')}
        await http.post("/api/v1/evaluation/cases", json=case)
        met = await run("eval", "cases")
        assert met.exit_code == 0 and "1 of 1" in met.output, met.output
        await http.post("/api/v1/evaluation/cases", json={"question": "How much is the rent of the Barn?"})
        missed = await run("eval", "cases", "--json", str(tmp_path / "cases.json"))
        assert missed.exit_code == 1 and "1 of 2" in missed.output, missed.output
        assert json.loads((tmp_path / "cases.json").read_text())["hits"] == 1
