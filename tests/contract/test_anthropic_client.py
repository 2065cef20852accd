"""The official `anthropic` client against a real socket, unmodified."""

import asyncio

import anthropic
import pytest

from tests.contract.conftest import Served

HELLO = [{"role": "user", "content": "quick brown fox"}]
TOOLS = [{"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}]


@pytest.fixture
def client(served: Served) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=served.url, api_key=served.key, max_retries=0)


async def test_a_message(client: anthropic.AsyncAnthropic) -> None:
    message = await client.messages.create(model="echo", max_tokens=2, messages=HELLO, system="s")
    assert message.content[0].text == "quick brown"
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


async def test_a_stream(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(model="echo", max_tokens=9, messages=HELLO) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert "".join(texts) == "quick brown fox"
    assert message.content[0].text == "quick brown fox"
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (3, 3)


async def test_raw_events_in_their_order(client: anthropic.AsyncAnthropic) -> None:
    events = await client.messages.create(model="echo", max_tokens=9, messages=HELLO, stream=True)
    kinds = [event.type async for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_tools_plain_and_streamed(client: anthropic.AsyncAnthropic) -> None:
    plain = await client.messages.create(model="tools", max_tokens=9, messages=HELLO, tools=TOOLS)
    async with client.messages.stream(model="tools", max_tokens=9, messages=HELLO, tools=TOOLS) as stream:
        streamed = await stream.get_final_message()
    for message in (plain, streamed):
        assert message.stop_reason == "tool_use"
        assert [(block.id, block.name, block.input) for block in message.content] == [
            ("call_a", "weather", {"city": "Oslo"}),
            ("call_b", "time", {}),
        ]


async def test_count_tokens(client: anthropic.AsyncAnthropic) -> None:
    counted = await client.messages.count_tokens(model="echo", messages=HELLO, system="Be brief.")
    assert counted.input_tokens == (3 + 4) + (4 + 4)


async def test_list_models(client: anthropic.AsyncAnthropic) -> None:
    assert {"echo", "tools"} <= {model.id async for model in client.models.list()}


async def test_the_sync_client_works_as_well(served: Served) -> None:
    def call() -> str:
        client = anthropic.Anthropic(base_url=served.url, api_key=served.key, max_retries=0)
        return client.messages.create(model="echo", max_tokens=9, messages=HELLO).content[0].text

    assert await asyncio.to_thread(call) == "quick brown fox"


async def test_errors_are_typed(served: Served, client: anthropic.AsyncAnthropic) -> None:
    stranger = anthropic.AsyncAnthropic(base_url=served.url, api_key="prc_wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        await stranger.messages.create(model="echo", max_tokens=9, messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        await client.messages.create(model="none", max_tokens=9, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError):
        await client.messages.create(model="echo", max_tokens=0, messages=HELLO)
    with pytest.raises(anthropic.RateLimitError):
        await client.messages.create(model="limited", max_tokens=9, messages=HELLO)


async def test_a_stream_that_breaks_is_a_typed_error(client: anthropic.AsyncAnthropic) -> None:
    words = [{"role": "user", "content": "one two three four"}]
    texts: list[str] = []
    with pytest.raises(anthropic.APIError):
        async with client.messages.stream(model="breaks", max_tokens=9, messages=words) as stream:
            async for text in stream.text_stream:
                texts.append(text)
    assert "".join(texts) == "one two"


async def test_leaving_a_stream_early_is_fine(client: anthropic.AsyncAnthropic) -> None:
    words = [{"role": "user", "content": " ".join(f"w{n}" for n in range(200))}]
    async with client.messages.stream(model="slow", max_tokens=999, messages=words) as stream:
        async for _ in stream.text_stream:
            break
    again = await client.messages.create(model="echo", max_tokens=9, messages=HELLO)
    assert again.content[0].text == "quick brown fox"
