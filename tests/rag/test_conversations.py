"""Conversations: follow-ups by rules, turns that vanish with a right or a document, export, feedback and cases."""

import json
from typing import Any

import pytest

from app.rag.answers.followup import Before, rewrite
from tests.conftest import QUOTE, Site
from tests.rag.test_documents_api import LEASE

Headers = dict[str, str]
LAST = Before("What is the notice period for termination by the landlord?", "Lease of Mill House")


@pytest.mark.parametrize(
    ("question", "searched", "because"),
    [
        (
            "And by the tenant?",
            "Consider Lease of Mill House; Regarding notice period termination landlord: And by the tenant?",
            "goes on",
        ),
        ("How much is the rent under it?", "Consider Lease of Mill House; How much is the rent under it?", "'it'"),
        ("Why?", "Consider Lease of Mill House; Regarding notice period termination landlord: Why?", "too little"),
        ("Does the agreement allow subletting to family members?", None, "'the agreement'"),
        ("What is the governing law of the Orchard Supply Agreement?", "same", ""),
        ("Which contracts mention otters and beavers?", "same", ""),
        ("How long is the warranty period for delivered machines?", "same", ""),
        ("Is it true that the warranty covers delivered machines?", "same", ""),
    ],
)
def test_a_follow_up_is_rewritten_only_where_it_needs_to_be(question: str, searched: str | None, because: str) -> None:
    found = rewrite(question, LAST)
    if searched is not None:
        assert found.question == (question if searched == "same" else searched)
    assert because in found.because and bool(found.because) == bool(because)
    assert rewrite(question, None).question == question


def test_topics_are_carried_from_turn_to_turn() -> None:
    first = rewrite("And by the tenant?", LAST)
    second = rewrite("And for breach?", Before("And by the tenant?", first.document, first.topic))
    assert {"notice", "termination", "tenant"} <= set(second.topic) and second.document == "Lease of Mill House"


async def begin(site: Site, headers: Headers, **body: Any) -> str:
    response = await site.client.post("/api/v1/conversations", json=body, headers=headers)
    assert response.status_code == 201, response.text
    return f"/api/v1/conversations/{response.json()['id']}"


async def ask(site: Site, path: str, headers: Headers, question: str, **body: Any) -> dict[str, Any]:
    request = {"question": question, "model": "quoting", **body}
    response = await site.client.post(f"{path}/answers", json=request, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def history(site: Site, path: str, headers: Headers) -> dict[str, Any]:
    response = await site.client.get(path, headers=headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_a_conversation_is_kept_continued_exported_and_deleted(site: Site) -> None:
    headers = await site.headers("talking")
    await site.file("lease.md", LEASE, headers)
    path = await begin(site, headers)
    first = await ask(site, path, headers, "How much is the rent of Mill House?")
    assert first["searched"] == {
        "question": "How much is the rent of Mill House?",
        "because": "",
        "document": None,
        "topic": [],
    }
    second = await ask(site, path, headers, "And when is it paid?")
    assert second["searched"]["document"] == "Lease of Mill House" and second["searched"]["because"]
    assert "rent" in second["searched"]["question"]
    shown = await history(site, path, headers)
    assert shown["title"] == "How much is the rent of Mill House?" and shown["hidden"] == 0
    assert [turn["id"] for turn in shown["turns"]] == [first["id"], second["id"]]
    assert shown["turns"][0]["answer"]["citations"] == first["citations"]  # spans and all
    assert shown["turns"][1]["answer"]["evidence"][0]["chunk_id"]
    listed = (await site.client.get("/api/v1/conversations", headers=headers)).json()
    assert [one["title"] for one in listed["conversations"]] == [shown["title"]]
    exported = await site.client.get(f"{path}/export", headers=headers)
    assert json.loads(exported.content) == shown and "attachment" in exported.headers["content-disposition"]
    page = (await site.client.get(f"{path}/export?format=markdown", headers=headers)).text
    assert "## And when is it paid?" in page and QUOTE.strip('"') in page and "(verified)" in page
    assert (await site.client.delete(path, headers=headers)).status_code == 204
    assert (await site.client.get(path, headers=headers)).status_code == 404


async def test_a_streamed_turn_is_kept_as_well(site: Site) -> None:
    headers = await site.headers("streaming-talk")
    await site.file("lease.md", LEASE, headers)
    path = await begin(site, headers, title="Named")
    body = {"question": "How much is the rent?", "model": "quoting", "stream": True}
    response = await site.client.post(f"{path}/answers", json=body, headers=headers)
    done = json.loads(response.text.strip().split("\n\n")[-1].split("data: ")[1])
    shown = await history(site, path, headers)
    assert (shown["title"], [turn["answer"]["answer"] for turn in shown["turns"]]) == ("Named", [done["answer"]])


async def test_conversations_are_their_owners_alone(site: Site) -> None:
    mine, colleague, stranger = [await site.headers(name) for name in ("owners", "owners", "strangers")]
    path = await begin(site, mine)
    for other in (colleague, stranger):
        assert (await site.client.get(path, headers=other)).status_code == 404
        assert (await site.client.get(f"{path}/export", headers=other)).status_code == 404
        assert (await site.client.delete(path, headers=other)).status_code == 404
        asked = await site.client.post(f"{path}/answers", json={"question": "x"}, headers=other)
        assert asked.status_code == 404
        assert (await site.client.get("/api/v1/conversations", headers=other)).json()["conversations"] == []


@pytest.mark.parametrize("change", ["delete", "replace", "label"])
async def test_turns_go_with_the_document_they_were_made_of(site: Site, change: str) -> None:
    headers = await site.headers(f"turns-{change}")
    gone = (await site.file("lease.md", LEASE, headers))["document_id"]
    other = LEASE.replace("Mill House", "Barn")
    kept = (await site.file("barn.md", other, headers))["document_id"]
    path = await begin(site, headers)
    await ask(site, path, headers, "How much is the rent of Mill House?", documents=[gone])
    # A follow-up that reads another document is made of the first as well: its title and words came along.
    await ask(site, path, headers, "And when is it paid?", documents=[kept])
    alone = await ask(site, path, headers, "How many otters may tenants keep altogether?", documents=[kept])
    document = f"/api/v1/documents/{gone}"
    if change == "delete":
        await site.client.delete(document, headers=headers)
    elif change == "replace":
        newer = {"f": ("lease.md", LEASE.replace("nine", "ten").encode())}
        put = await site.client.put(document, files=newer, headers=headers)
        await site.job(put.json()["job_id"], headers)
    else:
        holder = await site.headers(f"turns-{change}", labels="walled")
        put = await site.client.put(f"{document}/labels", json={"labels": ["walled"]}, headers=holder)
        assert put.status_code == 200, put.text
    shown = await history(site, path, headers)
    assert [turn["id"] for turn in shown["turns"]] == [alone["id"]]
    assert shown["hidden"] == (0 if change == "delete" else 2)  # deleted ones are deleted
    exported = (await site.client.get(f"{path}/export?format=markdown", headers=headers)).text
    assert QUOTE.strip('"') in exported and "Mill House" not in exported.split("\n", 2)[2]


async def test_feedback_keeps_the_evidence_and_becomes_a_case(site: Site) -> None:
    headers, colleague = await site.headers("feedback"), await site.headers("feedback")
    document = (await site.file("lease.md", LEASE, headers))["document_id"]
    path = await begin(site, headers)
    answer = await ask(site, path, headers, "How much is the rent?")
    said = f"/api/v1/answers/{answer['id']}/feedback"
    for thumb in ("up", "down"):
        given = await site.client.post(said, json={"thumb": thumb, "reason": "too high"}, headers=headers)
        assert given.status_code == 201, given.text
    assert (await site.client.post(said, json={"thumb": "up"}, headers=colleague)).status_code == 404
    [kept] = (await site.client.get("/api/v1/feedback", headers=headers)).json()["feedback"]
    assert (kept["thumb"], kept["reason"], kept["answer_id"]) == ("down", "too high", answer["id"])
    assert {e["chunk_id"] for e in kept["evidence"]} == {e["chunk_id"] for e in answer["evidence"]}
    assert [e["chunk_id"] for e in kept["evidence"] if e["cited"]] == [answer["citations"][0]["chunk_id"]]

    cases = "/api/v1/evaluation/cases"
    quote = QUOTE.strip('"')
    made = await site.client.post(
        cases, json={"answer_id": answer["id"], "document_id": document, "quote": quote}, headers=headers
    )
    assert made.status_code == 201 and made.json()["question"] == "How much is the rent?", made.text
    for bad in (
        {"question": "x", "document_id": document, "quote": "Not in there at all."},
        {"question": "x", "quote": "of nothing"},
        {"document_id": document},
    ):
        assert (await site.client.post(cases, json=bad, headers=headers)).status_code == 400, bad
    stranger = await site.headers("feedback-strangers")
    assert (await site.client.get(cases, headers=stranger)).json()["cases"] == []
    foreign = {"question": "x", "document_id": document}
    assert (await site.client.post(cases, json=foreign, headers=stranger)).status_code == 404
    assert (await site.client.delete(f"{cases}/{made.json()['id']}", headers=stranger)).status_code == 404
    await site.client.delete(f"/api/v1/documents/{document}", headers=headers)
    assert (await site.client.get(cases, headers=headers)).json()["cases"] == []  # the quote was text of it


async def test_of_an_answer_outside_of_conversations_no_words_are_kept(site: Site) -> None:
    headers = await site.headers("wordless")
    await site.file("lease.md", LEASE, headers)
    body = {"question": "How much is the rent?", "model": "quoting"}
    answer = (await site.client.post("/api/v1/answers", json=body, headers=headers)).json()
    assert answer["evidence"] and answer["searched"] is None
    given = await site.client.post(f"/api/v1/answers/{answer['id']}/feedback", json={"thumb": "up"}, headers=headers)
    assert given.status_code == 201 and given.json()["evidence"]
    case = await site.client.post("/api/v1/evaluation/cases", json={"answer_id": answer["id"]}, headers=headers)
    assert case.status_code == 400 and "not kept" in case.json()["detail"]
