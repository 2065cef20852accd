"""The API documentation is there for everybody, and complete."""

import re

from tests.conftest import Site


async def test_the_documentation_page_is_public(site: Site) -> None:
    page = await site.client.get("/docs")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    [script] = re.findall(r'<script [^>]*src="([^"]+)"', page.text)
    assert (await site.client.get(script)).status_code == 200


async def test_the_schema_names_every_route_and_the_key(site: Site) -> None:
    schema = (await site.client.get("/docs/openapi.json")).json()
    assert {"/api/v1/answers", "/api/v1/documents", "/api/v1/search", "/v1/chat/completions"} <= set(schema["paths"])
    assert schema["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    summaries = [operation.get("summary") for path in schema["paths"].values() for operation in path.values()]
    assert all(summaries)
    answer = schema["paths"]["/api/v1/answers"]["post"]
    assert "AnswerRequest" in str(answer["requestBody"])


async def test_health(site: Site) -> None:
    assert (await site.client.get("/health/live")).json() == {"status": "live"}
    ready = await site.client.get("/health/ready")
    assert (ready.status_code, ready.json()["reasons"]) == (200, {})
