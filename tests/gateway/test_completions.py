"""/v1/completions and /v1/embeddings in the OpenAI dialect, and what targets cannot take."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.config import RouteSettings, TargetSettings
from tests.conftest import Site, fake_settings, open_site
from tests.gateway.test_chat import events, records

MINILM = "all-MiniLM-L6-v2"
PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}


async def post(site: Site, path: str, body: dict[str, Any]) -> Any:
    return await site.client.post(path, json=body, headers=await site.headers())


async def test_plain_completions_of_several_prompts(site: Site) -> None:
    response = await post(site, "/v1/completions", {"model": "echo", "prompt": ["a b c", "d"], "max_tokens": 2})
    body = response.json()
    assert body["object"] == "text_completion"
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "a b", "length"),
        (1, "d", "stop"),
    ]
    assert body["usage"]["total_tokens"] == 4 + 3


async def test_the_default_limit_is_the_apis(site: Site) -> None:
    response = await post(site, "/v1/completions", {"model": "echo", "prompt": "w " * 30})
    assert response.json()["usage"]["completion_tokens"] == 16


async def test_a_streamed_completion(site: Site) -> None:
    request = {"model": "echo", "prompt": "a b", "stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events((await post(site, "/v1/completions", request)).text)
    assert done == "[DONE]"
    assert json.loads(usage)["usage"]["completion_tokens"] == 2
    parsed = [json.loads(chunk) for chunk in chunks]
    assert all(chunk["object"] == "text_completion" and chunk["usage"] is None for chunk in parsed)
    assert "".join(chunk["choices"][0]["text"] for chunk in parsed) == "a b"
    assert parsed[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt": [1, 2, 3]}, "prompt"),
        ({"prompt": [[1, 2]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", "b"], "stream": True}, "prompt"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
async def test_what_completions_refuse(site: Site, change: dict[str, Any], param: str) -> None:
    response = await post(site, "/v1/completions", {"model": "echo", "prompt": "x"} | change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


async def test_a_failing_prompt_fails_the_request(site: Site) -> None:
    response = await post(site, "/v1/completions", {"model": "breaks", "prompt": ["a b c", "d e f"]})
    assert response.status_code == 502


async def test_embeddings_as_floats_and_as_base64(site: Site) -> None:
    headers = await site.headers("embedding")
    request = {"model": MINILM, "input": ["The rent is due.", "Notice period", "The rent is due."]}
    floats = (await site.client.post("/v1/embeddings", json=request, headers=headers)).json()
    packed = (
        await site.client.post("/v1/embeddings", json=request | {"encoding_format": "base64"}, headers=headers)
    ).json()
    vectors = np.array([row["embedding"] for row in floats["data"]], dtype=np.float32)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    assert np.allclose(vectors[0], vectors[2], atol=1e-3)
    decoded = [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed["data"]]
    assert np.allclose(vectors, decoded, atol=1e-3)
    assert [row["index"] for row in floats["data"]] == [0, 1, 2]
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] == 4 + 4 + 4
    assert [r.target for r in await records(site, "embedding")] == ["embedding", "embedding"]


async def test_many_embeddings_keep_their_order(site: Site) -> None:
    words = [f"clause {number}" for number in range(40)]
    many = (await post(site, "/v1/embeddings", {"model": MINILM, "input": words})).json()["data"]
    one = (await post(site, "/v1/embeddings", {"model": MINILM, "input": words[37]})).json()["data"]
    assert np.allclose(many[37]["embedding"], one[0]["embedding"], atol=2e-2)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": [1, 2, 3]}, "input"),
        ({"input": [[1], [2]]}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"dimensions": 7}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
    ],
)
async def test_what_embeddings_refuse(site: Site, change: dict[str, Any], param: str) -> None:
    response = await post(site, "/v1/embeddings", {"model": MINILM, "input": "x"} | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert param in f"{error['param']} {error['message']}"


async def test_an_unknown_embedding_model_is_404(site: Site) -> None:
    assert (await post(site, "/v1/embeddings", {"model": "echo", "input": "x"})).status_code == 404
    listed = await site.client.get("/v1/models", headers=await site.headers())
    assert MINILM in {model["id"] for model in listed.json()["data"]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([PIXEL], "images"),
        ([{"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}], "data: URLs"),
        ([{"type": "input_audio", "input_audio": {}}], "input_audio"),
        ([{"type": "text"}], "text"),
    ],
)
async def test_parts_that_are_refused(site: Site, content: list[Any], says: str) -> None:
    request = {"model": "echo", "messages": [{"role": "user", "content": content}]}
    response = await post(site, "/v1/chat/completions", request)
    assert response.status_code == 400
    assert says in response.json()["error"]["message"]


async def test_a_request_goes_to_the_target_that_can_take_it(tmp_path: Path) -> None:
    """Images skip a target without them; a long prompt skips one with a short context; both without another are 400."""
    plain = TargetSettings(name="plain", provider="anthropic", base_url="https://api.anthropic.com", max_context=100)
    fake = TargetSettings(name="fake", provider="fake", max_context=300)
    routes = (
        RouteSettings(model="both", targets=("plain", "fake")),
        RouteSettings(model="plain", targets=("plain",)),
    )
    async with open_site(fake_settings(tmp_path, targets=(plain, fake), routes=routes)) as site:
        raw = await post(site, "/v1/completions", {"model": "both", "prompt": "a b"})
        long = [{"role": "user", "content": "word " * 100}]
        skipped = await post(site, "/v1/chat/completions", {"model": "both", "messages": long})
        refused = await post(site, "/v1/completions", {"model": "plain", "prompt": "a"})
        too_long = await post(site, "/v1/chat/completions", {"model": "both", "messages": long, "max_tokens": 200})
    assert raw.headers.get("x-precedent-served-by", "fake") == "fake"
    assert raw.json()["choices"][0]["text"] == "a b"
    assert skipped.headers["x-precedent-served-by"] == "fake"
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    assert (too_long.status_code, too_long.json()["error"]["code"]) == (400, "context_length_exceeded")
