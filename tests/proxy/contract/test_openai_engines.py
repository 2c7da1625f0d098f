"""What every engine does, the embedded one too; `test_engine_contract.py` asks vLLM and its fake for more."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from muster_batching.testing import H200_8B
from muster_proxy.testing import FakeVllm
from tests.stacks import until


@pytest.fixture(params=["fake", "modelled", pytest.param("real", marks=pytest.mark.engine)])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the engine itself."""
    if request.param == "real":
        url = request.getfixturevalue("stack").url("engine")
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            yield client
    else:
        profile = H200_8B if request.param == "modelled" else None
        async with FakeVllm(profile=profile) as fake, httpx.AsyncClient(base_url=fake.url) as client:
            yield client


async def model_of(engine: httpx.AsyncClient) -> str:
    """The model that the engine lists."""
    listed = (await engine.get("/v1/models")).json()
    assert listed["object"] == "list"
    model: str = listed["data"][0]["id"]
    return model


async def body(engine: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    """A short request."""
    messages = [{"role": "user", "content": "Say hello."}]
    return {
        "model": await model_of(engine),
        "messages": messages,
        "max_tokens": 8,
        "temperature": 0,
        **fields,
    }


async def test_it_is_healthy(engine: httpx.AsyncClient) -> None:
    """`/health` answers 200 once it serves."""
    assert (await engine.get("/health")).status_code == 200


async def test_a_whole_answer(engine: httpx.AsyncClient) -> None:
    """A chat completion with content, a reason to end, and usage that adds up."""
    answer = (await engine.post("/v1/chat/completions", json=await body(engine))).json()
    [choice] = answer["choices"]
    usage = answer["usage"]

    assert answer["object"] == "chat.completion"
    assert (choice["index"], choice["message"]["role"]) == (0, "assistant")
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"] > 0


async def test_a_stream(engine: httpx.AsyncClient) -> None:
    """The role first, then content, then the reason, then usage alone as asked for, then [DONE]."""
    fields = await body(engine, stream=True, stream_options={"include_usage": True})
    async with engine.stream("POST", "/v1/chat/completions", json=fields) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    chunks = [json.loads(each) for each in data[:-1]]
    deltas = [chunk["choices"][0] for chunk in chunks[:-1]]

    assert data[-1] == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert deltas[0]["delta"]["role"] == "assistant"
    assert "".join(each["delta"].get("content") or "" for each in deltas)
    assert [each["finish_reason"] for each in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1]["finish_reason"] in ("stop", "length")
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 0


async def test_a_stream_without_the_option_has_no_usage_chunk(engine: httpx.AsyncClient) -> None:
    """Every chunk has a choice."""
    fields = await body(engine, stream=True)
    text = (await engine.post("/v1/chat/completions", json=fields)).text
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]

    assert all(chunk["choices"] for chunk in chunks)


@pytest.mark.engine
async def test_closing_the_connection_aborts_the_generation(stack: Any) -> None:
    """A real engine gives the slot up; the fake one's `aborted` stands for that."""
    async with httpx.AsyncClient(base_url=stack.url("engine"), timeout=60) as engine:
        fields = await body(engine, stream=True, max_tokens=2000)
        async with engine.stream("POST", "/v1/chat/completions", json=fields) as answer:
            await anext(answer.aiter_lines())
        metrics = ""
        for _ in until(30, "the slot's end"):
            metrics = (await engine.get("/metrics")).text
            if "llamacpp:requests_processing 0" in metrics:
                break
        assert "llamacpp:requests_processing 0" in metrics
