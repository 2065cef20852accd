"""Secrets and prompts appear in no log, no row and no answer of the gateway's own."""

import json
import logging

import pytest
from sqlalchemy import text

from tests.conftest import Site

PROMPT = "canary-prompt-51c2"


async def test_canaries(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    headers = await site.headers("canaries")
    secret = headers["authorization"].removeprefix("Bearer ")
    said = []
    for model in ("echo", "breaks", "strict", "nothing"):
        for stream in (False, True):
            body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "stream": stream}
            said.append((await site.client.post("/v1/chat/completions", json=body, headers=headers)).text)
    wrong = {"authorization": f"Bearer {secret}x"}
    said.append((await site.client.get("/api/v1/me", headers=wrong)).text)
    await site.logged()
    assert secret not in "".join(said) and secret not in caplog.text and PROMPT not in caplog.text
    listed = (await site.client.get("/api/v1/requests", headers=headers)).json()["requests"]
    details = [
        (await site.client.get(f"/api/v1/requests/{request['id']}", headers=headers)).json() for request in listed
    ]
    assert len(details) >= 6 and PROMPT not in json.dumps(details)
    async with site.services.database.engine.connect() as connection:
        for table in ("requests", "ledger", "audit", "api_keys", "sessions", "users"):
            rows = (await connection.execute(text(f"SELECT * FROM {table}"))).all()
            assert PROMPT not in str(rows) and secret not in str(rows), table
