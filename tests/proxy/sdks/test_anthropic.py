"""Anthropic's Python SDK as a client of `/v1/messages`."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.sdks.conftest import KEY, WORDS, Full

MODEL = "fake-model"
MESSAGES: list[MessageParam] = [{"role": "user", "content": "Where is it warm?"}]
TEXT = "".join(WORDS)
TOOLS: list[ToolParam] = [
    {
        "name": "weather",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@contextlib.asynccontextmanager
async def _sdk(url: str, **options: Any) -> AsyncGenerator[anthropic.AsyncAnthropic]:
    http = anthropic.DefaultAsyncHttpxClient(trust_env=False)
    given: dict[str, Any] = {"api_key": KEY, "max_retries": 0, **options}
    async with anthropic.AsyncAnthropic(base_url=url, http_client=http, **given) as client:
        yield client


@pytest.fixture
async def client(proxy_url: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The SDK, in front of the proxy that works; it tries nothing twice."""
    async with _sdk(proxy_url) as sdk:
        yield sdk


async def test_message(client: anthropic.AsyncAnthropic) -> None:
    """A message has its text, its end and its usage."""
    answer = await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=50, system="Be kind.")

    assert [block.text for block in answer.content if block.type == "text"] == [TEXT]
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == len(WORDS)


async def test_stream(client: anthropic.AsyncAnthropic) -> None:
    """The SDK follows a message's events to the message that they make."""
    async with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=50) as stream:
        pieces = [piece async for piece in stream.text_stream]
        answer = await stream.get_final_message()

    assert pieces == WORDS
    assert answer.stop_reason == "end_turn"
    assert answer.usage.output_tokens == len(WORDS)


async def test_tools_streamed(client: anthropic.AsyncAnthropic, engine: FakeVllm) -> None:
    """A tool's call comes together with its arguments."""
    engine.script(Reply("", tool_calls=[("weather", '{"city": "Rome"}')]))
    async with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=50, tools=TOOLS) as stream:
        answer = await stream.get_final_message()

    assert [(block.name, block.input) for block in answer.content if block.type == "tool_use"] == [
        ("weather", {"city": "Rome"})
    ]
    assert answer.stop_reason == "tool_use"


async def test_bad_request(client: anthropic.AsyncAnthropic, engine: FakeVllm) -> None:
    """A wrong value is a `BadRequestError` in Anthropic's shape, and no engine hears of it."""
    with pytest.raises(anthropic.BadRequestError) as caught:
        await client.messages.create(model=MODEL, messages=[], max_tokens=50)

    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-request-id"]
    assert engine.requests == []


@pytest.mark.parametrize("header", ["api_key", "auth_token"])
async def test_keys(keyed_url: str, header: str) -> None:
    """A key counts in `x-api-key` and as a bearer token; a wrong one is an `AuthenticationError`."""
    async with _sdk(keyed_url, **{"api_key": None, header: KEY}) as right:
        assert (await right.messages.create(model=MODEL, messages=MESSAGES, max_tokens=50)).content
    async with _sdk(keyed_url, **{"api_key": None, header: "wrong"}) as wrong:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await wrong.messages.create(model=MODEL, messages=MESSAGES, max_tokens=50)

    assert caught.value.type == "authentication_error"


async def test_unknown_models(client: anthropic.AsyncAnthropic) -> None:
    """A model that does not exist is a `NotFoundError`."""
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.messages.create(model="other", messages=MESSAGES, max_tokens=50)

    assert caught.value.type == "not_found_error"


async def test_a_full_queue(full: Full) -> None:
    """A request that is turned away is a `RateLimitError` that says when to come back."""
    async with _sdk(full.url) as client:
        with pytest.raises(anthropic.RateLimitError) as caught:
            await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=50)

    assert caught.value.type == "rate_limit_error"
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_a_stream_that_breaks(client: anthropic.AsyncAnthropic, engine: FakeVllm) -> None:
    """A stream that breaks in its middle raises `APIStatusError`; no end is made up."""
    engine.script(Reply(breaks_after=4))
    async with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=50) as stream:
        first = await anext(aiter(stream.text_stream))
        with pytest.raises(anthropic.APIStatusError) as caught:
            await stream.get_final_message()

    assert first == WORDS[0]
    assert caught.value.type == "api_error"


async def test_a_closed_stream_aborts(client: anthropic.AsyncAnthropic, engine: FakeVllm) -> None:
    """A stream that is left in its middle closes the engine's connection."""
    engine.script(Reply(pauses_after=4, resume=asyncio.Event()))
    async with client.messages.stream(model=MODEL, messages=MESSAGES, max_tokens=50) as stream:
        await anext(aiter(stream.text_stream))

    await engine.aborted.acquire()
