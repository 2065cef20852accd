"""The in-process engine behind the gateway: exact counts, raw prompts, and what it refuses."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.config import EngineSettings
from tests.conftest import Site, fake_settings, open_site

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]


def tiny_model(folder: Path) -> Path:
    """Random weights, a byte-level tokenizer and a chat template: text is nonsense, counts are real."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(special_tokens=MARKS, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(fast), num_key_value_heads=2, max_position_embeddings=512, eos_token_id=0, **shape
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


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_what_the_engine_cannot_do_is_refused_by_name(local: Site, change: dict[str, Any], param: str) -> None:
    response = await post(local, "/v1/chat/completions", messages=[{"role": "user", "content": "x"}], **change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert "does not support" in response.json()["error"]["message"]
