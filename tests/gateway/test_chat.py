"""/v1 in the OpenAI dialect, on fake targets: fallback, streams, errors, the request log."""

import asyncio
import json

import pytest

from app.db import owned
from app.gateway.models import RequestRecord
from app.tenants.principal import Scope
from app.tenants.service import get_tenant
from tests.conftest import Site

HELLO = [{"role": "user", "content": "one two three four"}]


async def records(site: Site, tenant: str) -> list[RequestRecord]:
    await site.logged()
    async with site.services.database.session() as session:
        owner = await get_tenant(session, tenant)
        return list(await session.scalars(owned(RequestRecord, owner.id).order_by(RequestRecord.created_at)))


def events(text: str) -> list[str]:
    assert "\r" not in text
    return [block.removeprefix("data: ") for block in text.strip().split("\n\n")]


async def test_plain_completion(site: Site) -> None:
    headers = await site.headers("plain")
    response = await site.client.post(
        "/v1/chat/completions", json={"model": "echo", "messages": HELLO}, headers=headers
    )
    body = response.json()
    assert response.status_code == 200
    assert body["choices"][0]["message"]["content"] == "one two three four"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] == 4
    assert response.headers["x-precedent-served-by"] == "fake"
    [record] = await records(site, "plain")
    assert (record.status, record.target, record.completion_tokens) == ("stop", "fake", 4)


async def test_stream_with_usage(site: Site) -> None:
    request = {"model": "echo", "messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
    response = await site.client.post("/v1/chat/completions", json=request, headers=await site.headers())
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, usage, done = events(response.text)
    assert done == "[DONE]"
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["total_tokens"] == 8
    parsed = [json.loads(chunk) for chunk in chunks]
    assert all(chunk["usage"] is None for chunk in parsed)
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in parsed) == "one two three four"
    assert parsed[-1]["choices"][0]["finish_reason"] == "stop"
    assert len({chunk["id"] for chunk in parsed}) == 1


async def test_stream_without_usage_has_none(site: Site) -> None:
    request = {"model": "echo", "messages": HELLO, "stream": True}
    response = await site.client.post("/v1/chat/completions", json=request, headers=await site.headers())
    assert all("usage" not in json.loads(e) for e in events(response.text)[:-1])


async def test_fallback_before_the_first_delta(site: Site) -> None:
    headers = await site.headers("resilient")
    request = {"model": "resilient", "messages": HELLO}
    response = await site.client.post("/v1/chat/completions", json=request, headers=headers)
    assert response.json()["choices"][0]["message"]["content"] == "one two three four"
    assert response.headers["x-precedent-served-by"] == "fake"
    [record] = await records(site, "resilient")
    assert record.fallbacks == 2


async def test_a_refused_request_is_not_tried_elsewhere(site: Site) -> None:
    headers = await site.headers("strict")
    response = await site.client.post(
        "/v1/chat/completions", json={"model": "strict", "messages": HELLO}, headers=headers
    )
    assert response.status_code == 400
    assert [r.status for r in await records(site, "strict")] == ["invalid_request"]


async def test_all_targets_down_is_502_in_the_callers_dialect(site: Site) -> None:
    response = await site.client.post(
        "/v1/chat/completions", json={"model": "dead", "messages": HELLO}, headers=await site.headers()
    )
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_error"


async def test_failure_in_the_middle_of_a_stream_is_one_error_frame(site: Site) -> None:
    headers = await site.headers("breaks")
    request = {"model": "breaks", "messages": HELLO, "stream": True}
    response = await site.client.post("/v1/chat/completions", json=request, headers=headers)
    frames = [json.loads(e) for e in events(response.text)]
    text = "".join(f["choices"][0]["delta"].get("content", "") for f in frames if "choices" in f)
    assert text == "one two"
    assert frames[-1]["error"]["code"] == "upstream_error"
    assert [r.status for r in await records(site, "breaks")] == ["upstream_error"]


async def test_unknown_model_is_404(site: Site) -> None:
    response = await site.client.post(
        "/v1/chat/completions", json={"model": "gpt-9", "messages": HELLO}, headers=await site.headers()
    )
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{not json", "JSON"),
        (b"{}", "model"),
        (b'{"model": "echo", "messages": []}', "messages"),
        (b'{"model": "echo", "messages": [{"role": "robot", "content": "x"}]}', "role"),
        (
            b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "temperature": 9}',
            "temperature",
        ),
        (b'{"model": "echo", "messages": [{"role": "user", "content": "x"}], "n": 2}', "n"),
    ],
)
async def test_bad_bodies_are_400_in_the_openai_shape(site: Site, body: bytes, says: str) -> None:
    headers = {**await site.headers(), "content-type": "application/json"}
    response = await site.client.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"] + str(error["param"])


async def test_models_lists_routes(site: Site) -> None:
    headers = await site.headers()
    listed = (await site.client.get("/v1/models", headers=headers)).json()
    assert {"echo", "resilient"} <= {model["id"] for model in listed["data"]}
    assert (await site.client.get("/v1/models/echo", headers=headers)).json()["id"] == "echo"
    assert (await site.client.get("/v1/models/none", headers=headers)).status_code == 404


async def test_a_key_without_the_scope_is_refused(site: Site) -> None:
    headers = await site.headers(scopes=[Scope.ANSWERS])
    response = await site.client.post(
        "/v1/chat/completions", json={"model": "echo", "messages": HELLO}, headers=headers
    )
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "forbidden"


async def test_concurrent_streams_do_not_wait_for_each_other(site: Site) -> None:
    headers = await site.headers()

    async def one(number: int) -> str:
        request = {"model": "echo", "messages": [{"role": "user", "content": f"number {number}"}]}
        response = await site.client.post("/v1/chat/completions", json=request, headers=headers)
        return str(response.json()["choices"][0]["message"]["content"])

    answers = await asyncio.gather(*(one(n) for n in range(20)))
    assert answers == [f"number {n}" for n in range(20)]
