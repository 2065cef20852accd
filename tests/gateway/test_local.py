"""The in-process engine behind the gateway: exact counts, raw prompts, and what it refuses."""

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.config import EngineSettings
from app.errors import Conflict, RateLimited
from app.gateway.providers.local import LocalProvider
from app.gateway.schemas import ChatRequest, Message, Sampling, Segment
from tests.conftest import Site, fake_settings, open_site

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tiny_model(
    folder: Path, template: str = TEMPLATE, marks: list[str] = MARKS, max_positions: int = 512, seed: int = 0
) -> Path:
    """Random weights, a byte-level tokenizer and a chat template: text is nonsense, counts are real."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=marks, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(fast), num_key_value_heads=2, max_position_embeddings=max_positions, eos_token_id=0, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def local(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    folder = tmp_path_factory.mktemp("local")
    engine = EngineSettings(
        model=str(tiny_model(folder / "model")), served_name="tiny", device="cpu", threads=1, kv_cache_bytes=2**22
    )
    async with open_site(fake_settings(folder, engine=engine, targets=(), routes=())) as site:
        yield site


async def post(local: Site, path: str, **body: Any) -> Any:
    return await local.client.post(path, json={"model": "tiny", **body}, headers=await local.headers())


async def test_count_tokens_is_what_the_engine_computes(local: Site) -> None:
    prompt = {"system": "Be brief.", "messages": [{"role": "user", "content": "How many — tokens? <|end|>"}]}
    counted = await post(local, "/v1/messages/count_tokens", **prompt)
    assert counted.headers["x-precedent-token-count"] == "exact"
    answered = (await post(local, "/v1/messages", max_tokens=3, **prompt)).json()
    usage = answered["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted.json()["input_tokens"]
    streamed = await post(local, "/v1/messages", max_tokens=3, stream=True, **prompt)
    start = json.loads(streamed.text.splitlines()[1].removeprefix("data: "))
    assert start["message"]["usage"]["input_tokens"] == counted.json()["input_tokens"]


async def test_a_plain_completion_has_no_chat_template(local: Site) -> None:
    body = (await post(local, "/v1/completions", prompt="abc", max_tokens=4, temperature=0)).json()
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] <= 4
    again = (await post(local, "/v1/completions", prompt=["abc", "abc"], max_tokens=4, temperature=0)).json()
    assert {choice["text"] for choice in again["choices"]} == {body["choices"][0]["text"]}


async def test_a_stream_in_both_dialects(local: Site) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    request = {"messages": messages, "max_tokens": 5, "temperature": 0}
    plain = (await post(local, "/v1/chat/completions", **request)).json()
    streamed = await post(local, "/v1/messages", **request, stream=True)
    bodies = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert (bodies[0]["type"], bodies[-1]["type"]) == ("message_start", "message_stop")
    text = "".join(body["delta"]["text"] for body in bodies if body["type"] == "content_block_delta")
    assert text == plain["choices"][0]["message"]["content"]


async def test_sampling_fields_reach_the_engine(local: Site) -> None:
    """JSON is JSON and an ignored end is no end, whatever the weights would rather say."""
    request = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 400}
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}
    answer = (await post(local, "/v1/chat/completions", **request, response_format=wanted)).json()
    assert json.loads(answer["choices"][0]["message"]["content"])["n"] in (1, 2)
    endless = (await post(local, "/v1/chat/completions", **request | {"max_tokens": 30}, ignore_eos=True)).json()
    assert endless["usage"]["completion_tokens"] == 30
    refused = await post(local, "/v1/chat/completions", **request, repetition_penalty=-1)
    assert (refused.status_code, "repetition_penalty" in refused.json()["error"]["message"]) == (400, True)


async def test_tools_are_refused_where_the_template_knows_none(local: Site) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    response = await post(local, "/v1/chat/completions", messages=[{"role": "user", "content": "x"}], tools=tools)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert "does not support" in response.json()["error"]["message"]


async def test_log_probabilities_are_those_of_the_text(local: Site) -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 6, "ignore_eos": True}
    wanted = {"logprobs": True, "top_logprobs": 2}
    choice = (await post(local, "/v1/chat/completions", **request, **wanted)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    said = b"".join(bytes(entry["bytes"]) for entry in content)
    assert said.decode(errors="replace") == choice["message"]["content"]
    for entry in content:
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
    streamed = await post(local, "/v1/chat/completions", **request, **wanted, stream=True)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    parts = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert [entry["token"] for entry in parts] == [entry["token"] for entry in content]


async def test_a_predicted_answer_is_verified_token_by_token(local: Site) -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    plain = (await post(local, "/v1/chat/completions", **request)).json()
    said = plain["choices"][0]["message"]["content"]
    for content in (said, said[:8] + "something else"):
        predicted = {"type": "content", "content": content}
        body = (await post(local, "/v1/chat/completions", **request, prediction=predicted)).json()
        assert body["choices"][0]["message"]["content"] == said
        details = body["usage"]["completion_tokens_details"]
        assert details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"] > 0


async def test_several_choices_share_one_prompt(local: Site) -> None:
    request = {"messages": [{"role": "user", "content": "x"}], "temperature": 1.2, "max_tokens": 8, "ignore_eos": True}
    body = (await post(local, "/v1/chat/completions", **request, seed=7, n=3)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    texts = [choice["message"]["content"] for choice in body["choices"]]
    assert len(set(texts)) == 3, "choices draw by seeds of their own"
    alone = (await post(local, "/v1/chat/completions", **request, seed=7)).json()
    assert alone["choices"][0]["message"]["content"] == texts[0]
    assert body["usage"]["completion_tokens"] == 24
    assert body["usage"]["prompt_tokens"] == alone["usage"]["prompt_tokens"]
    streamed = await post(local, "/v1/chat/completions", **request, seed=7, n=3, stream=True)
    chunks = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    by_index = ["", "", ""]
    for chunk in chunks:
        by_index[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content") or ""
    assert by_index == texts
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 3
    too_many = await post(local, "/v1/chat/completions", **request, n=100)
    assert (too_many.status_code, too_many.json()["error"]["param"]) == (400, "n")


def long_answer(source: str = "") -> ChatRequest:
    segment = Segment("A clause.", frozenset({"tenant:a"}), (source,) if source else ())
    endless = {"ignore_eos": True}
    return ChatRequest("tiny", (Message("user", (segment,)),), Sampling(max_tokens=400), endless)


@pytest_asyncio.fixture
async def narrow(tmp_path: Path) -> AsyncIterator[LocalProvider]:
    """One seat, and nobody waits for it longer than a moment."""
    provider = LocalProvider(
        EngineSettings(
            model=str(tiny_model(tmp_path)), threads=1, max_num_seqs=1, kv_cache_bytes=2**22, max_queue_seconds=0.05
        )
    )
    await provider.start()
    yield provider
    await provider.close()


async def test_who_cannot_start_in_time_is_told_when_to_come_back(narrow: LocalProvider) -> None:
    async with aclosing(narrow.stream(long_answer())) as first:
        await anext(first)
        with pytest.raises(RateLimited) as refused:
            await anext(narrow.stream(long_answer()))
    assert int(refused.value.headers["retry-after"]) >= 1


async def test_forgetting_a_document_ends_the_answers_that_read_it(narrow: LocalProvider) -> None:
    async with aclosing(narrow.stream(long_answer("contract-7"))) as reading:
        await anext(reading)
        await narrow.forget(["contract-8"])
        await anext(reading)
        await narrow.forget(["contract-7"])
        with pytest.raises(Conflict, match="deleted or replaced"):
            async for _ in reading:
                pass


async def test_what_the_engine_says_of_itself(local: Site) -> None:
    headers = await local.headers()
    state = (await local.client.get("/api/v1/engine/state", headers=headers)).json()
    assert state["unhealthy"] is None and state["stats"]["total_blocks"] == state["load"]["total_blocks"] > 0
    blocks = (await local.client.get("/api/v1/engine/blocks", headers=headers)).json()
    assert blocks["total"] == sum(count for _, count, _ in blocks["runs"]) == state["stats"]["total_blocks"]
    assert {name for name, _, _ in blocks["runs"]} <= {"free", "cached", "used", "pinned"}


async def test_the_engine_forecasts_for_routing(local: Site) -> None:
    provider = next(p for p in local.services.gateway.providers.values() if isinstance(p, LocalProvider))
    request = ChatRequest("m", (Message("user", (Segment("hello"),)),))
    forecast = await provider.forecast(request)
    assert forecast is not None and forecast.ttft_ms >= 0 and forecast.cached_tokens >= 0
    await provider.probe()
