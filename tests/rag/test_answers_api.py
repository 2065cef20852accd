"""Answers over HTTP, with fake models that quote, invent and refuse."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from app.rag.answers.prompts import REFUSAL
from tests.conftest import QUOTE, Site
from tests.rag.test_documents_api import LEASE


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def reader(site: Site) -> AsyncIterator[tuple[dict[str, str], str]]:
    """(headers, document id) of a tenant with one lease."""
    headers = await site.headers("answers")
    job = await site.file("lease.md", LEASE, headers)
    yield headers, job["document_id"]


async def ask(site: Site, headers: dict[str, str], model: str, **body: Any) -> dict[str, Any]:
    request = {"question": "How much is the rent?", "model": model, **body}
    response = await site.client.post("/api/v1/answers", json=request, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_a_quote_is_verified_against_its_source(site: Site, reader: tuple[dict[str, str], str]) -> None:
    headers, document_id = reader
    answer = await ask(site, headers, "quoting")
    text = (await site.client.get(f"/api/v1/documents/{document_id}/text", headers=headers)).json()["text"]
    assert not answer["refused"]
    [citation] = answer["citations"]
    assert (citation["verified"], citation["match"], citation["marker"]) == (True, "exact", 1)
    assert citation["quote"] == citation["said"] == QUOTE.strip('"')
    [span] = citation["spans"]
    assert text[span["start"] : span["end"]] == citation["quote"]
    assert citation["document_id"] == document_id
    assert answer["served_by"] == "quoting"
    assert answer["cache"] == "none"
    assert {"embed", "search", "rerank", "route", "verify", "total"} <= set(answer["timings_ms"])
    assert answer["usage"]["completion_tokens"] > 0


async def test_an_invented_quote_counts_as_a_refusal(site: Site, reader: tuple[dict[str, str], str]) -> None:
    answer = await ask(site, reader[0], "inventing")
    assert (answer["refused"], answer["answer"], answer["citations"]) == (True, REFUSAL, [])


async def test_a_refusal_carries_no_citation(site: Site, reader: tuple[dict[str, str], str]) -> None:
    answer = await ask(site, reader[0], "refusing")
    assert (answer["refused"], answer["answer"], answer["citations"]) == (True, REFUSAL, [])


async def test_without_documents_nobody_is_asked(site: Site) -> None:
    answer = await ask(site, await site.headers("no-documents"), "quoting")
    assert (answer["refused"], answer["served_by"]) == (True, "none")


async def test_the_stream_tells_the_same_story(site: Site, reader: tuple[dict[str, str], str]) -> None:
    request = {"question": "How much is the rent?", "model": "quoting", "stream": True}
    response = await site.client.post("/api/v1/answers", json=request, headers=reader[0])
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in response.text.strip().split("\n\n")]
    events = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]
    names = [name for name, _ in events]
    assert names[-1] == "done"
    assert set(names) == {"delta", "citation", "done"}
    done = events[-1][1]
    assert "".join(data["text"] for name, data in events if name == "delta") == done["answer"]
    assert [data for name, data in events if name == "citation"] == done["citations"]


async def test_a_stream_that_breaks_ends_in_an_error_event(site: Site, reader: tuple[dict[str, str], str]) -> None:
    request = {"question": "How much is the rent?", "model": "breaks", "stream": True}
    response = await site.client.post("/api/v1/answers", json=request, headers=reader[0])
    last = response.text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert json.loads(last.split("data: ")[1])["code"] == "upstream_error"


async def test_questions_that_cannot_be_asked(site: Site, reader: tuple[dict[str, str], str]) -> None:
    headers, _ = reader
    for body, status in [
        ({"question": "x", "model": "none"}, 404),
        ({"question": ""}, 400),
        ({"question": "x" * 5000}, 400),
        ({"question": "x", "documents": ["00000000-0000-0000-0000-000000000000"]}, 404),
        ({"question": "x", "collection": "a b"}, 400),
        ({"question": "x", "temprature": 1}, 400),
    ]:
        response = await site.client.post("/api/v1/answers", json=body, headers=headers)
        assert response.status_code == status, (body, response.text)
        assert response.headers["content-type"] == "application/problem+json"


async def test_the_evidence_of_an_answer_is_found_by_its_request_for_who_may_see_it(site: Site) -> None:
    headers = await site.headers("evidence", labels="m-1")
    await site.file("lease.md", LEASE, headers, labels="m-1")
    body = {"question": "How much is the rent?", "model": "quoting"}
    answer = (await site.client.post("/api/v1/answers", json=body, headers=headers)).json()
    await site.logged()
    assert (await site.client.get(f"/api/v1/requests/{answer['id']}", headers=headers)).status_code == 200
    path = f"/api/v1/answers/{answer['id']}/evidence"
    found = (await site.client.get(path, headers=headers)).json()
    assert {one["document_id"] for one in found["sources"]} == {one["document_id"] for one in answer["evidence"]}
    assert any(one["cited"] for one in found["sources"]) and found["refused"] is False
    assert {one["title"] for one in found["sources"]} == {answer["citations"][0]["document"]}
    text = (
        await site.client.get(f"/api/v1/documents/{found['sources'][0]['document_id']}/text", headers=headers)
    ).json()
    assert "rent" in text["text"][found["sources"][0]["start"] : found["sources"][0]["end"]]
    for stranger in (await site.headers("evidence"), await site.headers("evidence-2", labels="m-1")):
        assert (await site.client.get(path, headers=stranger)).status_code == 404
    await site.client.delete(f"/api/v1/documents/{found['sources'][0]['document_id']}", headers=headers)
    gone = (await site.client.get(path, headers=headers)).json()
    assert gone["sources"][0] | {"title": None, "section": None, "start": None, "end": None} == gone["sources"][0]
