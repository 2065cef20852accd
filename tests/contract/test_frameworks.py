"""LangChain and LlamaIndex against a real socket, unmodified."""

import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

from tests.contract.conftest import Served


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


def chat(served: Served, model: str = "echo") -> ChatOpenAI:
    return ChatOpenAI(model=model, base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, stream_usage=True)


async def test_langchain_chat(served: Served) -> None:
    answer = await chat(served).ainvoke([SystemMessage("s"), HumanMessage("quick brown fox")])
    assert answer.content == "quick brown fox"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 3


async def test_langchain_stream(served: Served) -> None:
    chunks = [chunk async for chunk in chat(served).astream("quick brown fox")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == "quick brown fox"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 3


async def test_langchain_tools(served: Served) -> None:
    answer = await chat(served, "tools").bind_tools([weather]).ainvoke("Weather?")
    assert answer.tool_calls[0]["name"] == "weather"
    assert answer.tool_calls[0]["args"] == {"city": "Oslo"}


async def test_langchain_completions_and_embeddings(served: Served) -> None:
    llm = OpenAI(model="echo", base_url=f"{served.url}/v1", api_key=served.key, max_retries=0)
    assert await llm.ainvoke("quick brown") == "quick brown"
    # Without this the client sends token ids, which no other model than OpenAI's can read.
    embeddings = OpenAIEmbeddings(
        model="all-MiniLM-L6-v2",
        base_url=f"{served.url}/v1",
        api_key=served.key,
        check_embedding_ctx_length=False,
        max_retries=0,
    )
    vectors = await embeddings.aembed_documents(["rent", "notice"])
    assert [len(vector) for vector in vectors] == [384, 384]


@pytest.fixture
def llama(served: Served) -> OpenAILike:
    return OpenAILike(
        model="echo", api_base=f"{served.url}/v1", api_key=served.key, is_chat_model=True, max_retries=0, max_tokens=9
    )


async def test_llamaindex_chat(llama: OpenAILike) -> None:
    answer = await llama.achat([ChatMessage(role="user", content="quick brown fox")])
    assert answer.message.content == "quick brown fox"


async def test_llamaindex_stream(llama: OpenAILike) -> None:
    stream = await llama.astream_chat([ChatMessage(role="user", content="quick brown fox")])
    assert [part async for part in stream][-1].message.content == "quick brown fox"


async def test_llamaindex_completion(served: Served) -> None:
    llm = OpenAILike(model="echo", api_base=f"{served.url}/v1", api_key=served.key, is_chat_model=False, max_retries=0)
    assert (await llm.acomplete("quick brown")).text == "quick brown"
