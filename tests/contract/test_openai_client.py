"""The official `openai` client against a real socket, unmodified."""

import asyncio

import openai
import pytest

from tests.contract.conftest import Served


@pytest.fixture
def client(served: Served) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)


async def test_chat(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": "quick brown fox"}], max_tokens=2
    )
    assert completion.choices[0].message.content == "quick brown"
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 2


async def test_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="echo",
        messages=[{"role": "system", "content": "s"}, {"role": "user", "content": "quick brown fox"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "quick brown fox"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_sync_client_works_as_well(served: Served) -> None:
    def call() -> str | None:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
        done = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
        return done.choices[0].message.content

    assert await asyncio.to_thread(call) == "hi"


async def test_list_models(client: openai.AsyncOpenAI) -> None:
    assert {"echo", "slow"} <= {model.id async for model in client.models.list()}
    assert (await client.models.retrieve("echo")).id == "echo"


async def test_a_wrong_key_is_a_typed_error(served: Served) -> None:
    client = openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="prc_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        await client.models.list()
    assert caught.value.code == "invalid_api_key"


async def test_an_unknown_model_is_a_typed_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"


async def test_a_bad_request_is_a_typed_error(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        await client.chat.completions.create(model="echo", messages=[], temperature=1)


async def test_leaving_a_stream_early_is_fine(client: openai.AsyncOpenAI) -> None:
    text = " ".join(f"w{n}" for n in range(200))
    stream = await client.chat.completions.create(
        model="slow", messages=[{"role": "user", "content": text}], stream=True
    )
    async for _ in stream:
        break
    await stream.close()
    again = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "still here"}])
    assert again.choices[0].message.content == "still here"


async def test_completions_plain_and_streamed(client: openai.AsyncOpenAI) -> None:
    done = await client.completions.create(model="echo", prompt=["quick brown fox", "a"], max_tokens=2)
    assert [(choice.text, choice.finish_reason) for choice in done.choices] == [
        ("quick brown", "length"),
        ("a", "stop"),
    ]
    stream = await client.completions.create(model="echo", prompt="quick brown", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "quick brown"


async def test_embeddings(client: openai.AsyncOpenAI) -> None:
    """The client asks for base64 by itself and unpacks it."""
    made = await client.embeddings.create(model="all-MiniLM-L6-v2", input=["rent", "notice"])
    assert [len(row.embedding) for row in made.data] == [384, 384]
    floats = await client.embeddings.create(model="all-MiniLM-L6-v2", input="rent", encoding_format="float")
    assert floats.data[0].embedding == pytest.approx(made.data[0].embedding, abs=2e-2)
    with pytest.raises(openai.BadRequestError):
        await client.embeddings.create(model="all-MiniLM-L6-v2", input=[1, 2, 3])


async def test_tools(client: openai.AsyncOpenAI) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    done = await client.chat.completions.create(
        model="tools", messages=[{"role": "user", "content": "?"}], tools=[tool]
    )
    calls = done.choices[0].message.tool_calls
    assert calls is not None
    assert [(call.id, call.function.arguments) for call in calls] == [("call_a", '{"city":"Oslo"}'), ("call_b", "{}")]
    assert done.choices[0].finish_reason == "tool_calls"


async def test_a_limit_is_a_typed_error_that_says_when(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        await client.chat.completions.create(model="limited", messages=[{"role": "user", "content": "x"}])
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_stream_that_breaks_is_a_typed_error(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="breaks", messages=[{"role": "user", "content": "one two three four"}], stream=True
    )
    text = ""
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text == "one two"
