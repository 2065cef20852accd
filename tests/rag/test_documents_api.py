"""Documents over HTTP: filing, versions, rights, deletion, bad files."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from app.tenants.principal import Scope
from tests.conftest import Site

LEASE = """# Lease of Mill House

## 1. Rent

The rent is nine hundred crowns a month. It is paid on the first day.

## 2. Pets

No otters may be kept in Mill House.
"""


async def search(site: Site, headers: dict[str, str], query: str, **body: Any) -> list[dict[str, Any]]:
    response = await site.client.post("/api/v1/search", json={"query": query, **body}, headers=headers)
    assert response.status_code == 200, response.text
    passages: list[dict[str, Any]] = response.json()["passages"]
    return passages


async def test_a_document_is_filed_found_read_and_deleted(site: Site) -> None:
    headers = await site.headers("filing")
    job = await site.file("lease.md", LEASE, headers, collection="leases")
    assert job["status"] == "succeeded"
    assert job["done"] == job["total"] > 0
    document_id = job["document_id"]
    document = (await site.client.get(f"/api/v1/documents/{document_id}", headers=headers)).json()
    assert (document["title"], document["collection"]) == ("Lease of Mill House", "leases")
    assert (document["current_version"], document["status"]) == (1, "ready")

    text = (await site.client.get(f"/api/v1/documents/{document_id}/text", headers=headers)).json()["text"]
    passages = await search(site, headers, "How much is the rent?")
    assert passages
    for passage in passages:
        assert passage["text"] == text[passage["start"] : passage["end"]]
        assert passage["document"] == "Lease of Mill House"
    assert "nine hundred crowns" in passages[0]["text"]

    deleted = await site.client.delete(f"/api/v1/documents/{document_id}", headers=headers)
    assert deleted.status_code == 204
    assert await search(site, headers, "How much is the rent?") == []
    assert (await site.client.get(f"/api/v1/documents/{document_id}", headers=headers)).status_code == 404


async def test_several_files_in_one_request(site: Site) -> None:
    headers = await site.headers("several")
    files = [("files", ("a.txt", b"Alpha clause one.")), ("files", ("b.html", b"<p>Beta clause two.</p>"))]
    response = await site.client.post("/api/v1/documents", files=files, headers=headers)
    filed = response.json()["documents"]
    assert [one["filename"] for one in filed] == ["a.txt", "b.html"]
    assert {(await site.job(one["job_id"], headers))["status"] for one in filed} == {"succeeded"}
    listed = (await site.client.get("/api/v1/documents?limit=1", headers=headers)).json()
    assert (len(listed["documents"]), listed["total"]) == (1, 2)


async def test_the_same_content_is_not_ingested_twice(site: Site) -> None:
    headers = await site.headers("twice")
    first = await site.file("lease.md", LEASE, headers)
    response = await site.client.post("/api/v1/documents", files={"f": ("copy.md", LEASE.encode())}, headers=headers)
    [again] = response.json()["documents"]
    assert (again["id"], again["job_id"]) == (first["document_id"], None)


async def test_a_new_version_replaces_the_old_one_everywhere(site: Site) -> None:
    headers = await site.headers("versions")
    document_id = (await site.file("lease.md", LEASE, headers))["document_id"]
    newer = LEASE.replace("nine hundred", "one thousand")
    put = await site.client.put(
        f"/api/v1/documents/{document_id}", files={"f": ("lease.md", newer.encode())}, headers=headers
    )
    assert put.status_code == 202
    assert put.json()["version"] == 2
    await site.job(put.json()["job_id"], headers)
    passages = await search(site, headers, "How much is the rent?")
    assert {passage["version"] for passage in passages} == {2}
    assert any("one thousand crowns" in passage["text"] for passage in passages)
    assert not any("nine hundred" in passage["text"] for passage in passages)
    old = await site.client.get(f"/api/v1/documents/{document_id}/text?version=1", headers=headers)
    assert "nine hundred" in old.json()["text"]


async def test_a_failed_new_version_leaves_the_old_one_answering(site: Site) -> None:
    headers = await site.headers("bad-version")
    document_id = (await site.file("lease.md", LEASE, headers))["document_id"]
    put = await site.client.put(
        f"/api/v1/documents/{document_id}", files={"f": ("lease.pdf", b"%PDF-1.7 broken")}, headers=headers
    )
    assert (await site.job(put.json()["job_id"], headers))["status"] == "failed"
    document = (await site.client.get(f"/api/v1/documents/{document_id}", headers=headers)).json()
    assert document["current_version"] == 1
    assert document["versions"][0]["error"]
    assert await search(site, headers, "How much is the rent?")


async def test_another_tenant_sees_nothing(site: Site) -> None:
    ours, theirs = await site.headers("tenant-a"), await site.headers("tenant-b")
    job = await site.file("secret.md", LEASE, ours)
    path = f"/api/v1/documents/{job['document_id']}"
    assert await search(site, ours, "rent") != []
    assert await search(site, theirs, "rent") == []
    assert (await site.client.get(path, headers=theirs)).status_code == 404
    assert (await site.client.get(f"{path}/text", headers=theirs)).status_code == 404
    assert (await site.client.delete(path, headers=theirs)).status_code == 404
    put = await site.client.put(path, files={"f": ("x.txt", b"overwritten")}, headers=theirs)
    assert put.status_code == 404
    assert (await site.client.get(f"/api/v1/jobs/{job['id']}", headers=theirs)).status_code == 404
    named = await site.client.post(
        "/api/v1/search", json={"query": "rent", "documents": [job["document_id"]]}, headers=theirs
    )
    assert named.status_code == 404
    assert (await site.client.get(path, headers=ours)).status_code == 200


async def test_a_matter_is_seen_by_its_holders_alone(site: Site) -> None:
    inside = await site.headers("matters", labels="apollo,zeus")
    outside = await site.headers("matters", labels="zeus")
    job = await site.file("apollo.md", LEASE, inside, labels="apollo,zeus")
    path = f"/api/v1/documents/{job['document_id']}"
    assert (await site.client.get(path, headers=inside)).json()["labels"] == ["apollo", "zeus"]
    assert await search(site, inside, "rent") != []
    assert await search(site, outside, "rent") == []
    assert (await site.client.get(path, headers=outside)).status_code == 404
    assert (await site.client.get("/api/v1/documents", headers=outside)).json()["total"] == 0
    filed = await site.client.post(
        "/api/v1/documents", files={"f": ("x.txt", b"text")}, data={"labels": "apollo"}, headers=outside
    )
    assert filed.status_code == 403


async def test_a_bad_file_fails_alone(site: Site) -> None:
    headers = await site.headers("mixed-bag")
    files = [
        ("files", ("broken.pdf", b"%PDF-1.7\nthis is no pdf")),
        ("files", ("fake.docx", b"not a word file")),
        ("files", ("empty.txt", b"")),
        ("files", ("good.txt", b"The good clause survives.")),
    ]
    response = await site.client.post("/api/v1/documents", files=files, headers=headers)
    assert response.status_code == 202
    jobs = {one["filename"]: await site.job(one["job_id"], headers) for one in response.json()["documents"]}
    assert {name: job["status"] for name, job in jobs.items()} == {
        "broken.pdf": "failed",
        "fake.docx": "failed",
        "empty.txt": "failed",
        "good.txt": "succeeded",
    }
    assert "corrupt" in jobs["fake.docx"]["error"]
    assert "empty" in jobs["empty.txt"]["error"]


async def test_an_unreadable_type_is_415_and_files_nothing(site: Site) -> None:
    headers = await site.headers("types")
    files = [("files", ("ok.txt", b"fine")), ("files", ("song.mp3", b"ID3\x00\x01\x02"))]
    response = await site.client.post("/api/v1/documents", files=files, headers=headers)
    assert response.status_code == 415
    assert "song.mp3" in response.json()["detail"]
    assert (await site.client.get("/api/v1/documents", headers=headers)).json()["total"] == 0


async def test_too_large_is_413(site: Site) -> None:
    headers = await site.headers("large")
    data = b"x" * (site.services.settings.rag.max_document_bytes + 1)
    response = await site.client.post("/api/v1/documents", files={"f": ("big.txt", data)}, headers=headers)
    assert response.status_code == 413
    beyond = b"x" * (site.services.settings.server.max_body_bytes + 1)
    response = await site.client.post("/api/v1/search", content=beyond, headers=headers)
    assert response.status_code == 413


@pytest.mark.parametrize(
    ("form", "files"),
    [({"collection": "../etc"}, True), ({"labels": "a b"}, True), ({}, False)],
)
async def test_bad_forms_are_400(site: Site, form: dict[str, str], files: bool) -> None:
    headers = await site.headers("forms", labels="a")
    response = await site.client.post(
        "/api/v1/documents",
        files={"f": ("x.txt", b"text")} if files else {"f": ("", b"")},
        data=form,
        headers=headers,
    )
    assert response.status_code == 400


async def test_unknown_things_are_404(site: Site) -> None:
    headers = await site.headers()
    for path in (f"documents/{uuid4()}", f"documents/{uuid4()}/text", f"jobs/{uuid4()}"):
        assert (await site.client.get(f"/api/v1/{path}", headers=headers)).status_code == 404


async def test_scopes_of_documents(site: Site) -> None:
    reader = await site.headers("scoped", scopes=[Scope.DOCUMENTS_READ])
    writer = await site.headers("scoped", scopes=[Scope.DOCUMENTS_WRITE])
    assert (await site.client.get("/api/v1/documents", headers=writer)).status_code == 403
    denied = await site.client.post("/api/v1/documents", files={"f": ("x.txt", b"t")}, headers=reader)
    assert denied.status_code == 403


async def test_uploads_at_the_same_time(site: Site) -> None:
    headers = await site.headers("parallel")
    jobs = await asyncio.gather(*(site.file(f"{n}.txt", f"Clause number {n} stands alone.", headers) for n in range(6)))
    assert {job["status"] for job in jobs} == {"succeeded"}


async def test_the_upload_forms_stand_in_openapi(site: Site) -> None:
    paths = site.app.openapi_schema.to_schema()["paths"]
    form = paths["/api/v1/documents"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"files", "collection", "labels"} and form["required"] == ["files"]
    one = paths["/api/v1/documents/{document_id}"]["put"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(one["properties"]) == {"files"}
