"""The engines' metrics say how much each is given; where they are lost or untrue, requests flow all the same."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from muster_batching.testing import H200_8B
from muster_proxy.testing import FakeVllm, Reply
from muster_proxy.testing.fake_vllm import MetricsMode
from tests.proxy.asking import body, limit, metric, open_stream, post
from tests.proxy.conftest import Proxied

# Two requests at once, ten milliseconds a step whatever is in it, a KV cache of a thousand tokens.
SMALL = replace(
    H200_8B,
    max_num_seqs=2,
    kv_blocks=64,
    step_s=0.01,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
    request_s=0.0,
)

OFTEN_S = 0.01
"""Between two readings, so that a test waits for few."""

LIES: tuple[MetricsMode, ...] = ("missing", "stale", "zero", "full")


async def load(client: httpx.AsyncClient, count: int, tokens: int) -> list[int]:
    """The statuses of so many requests at once."""
    async with asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(post(client, max_tokens=tokens, ignore_eos=True)) for _ in range(count)]
    return [answer.result().status_code for answer in answers]


async def test_an_engine_with_metrics_is_never_throttled_at_first(proxied: Proxied) -> None:
    """Its limit is what vLLM runs at once on most devices, before its first request comes."""
    async with FakeVllm(profile=SMALL) as engine, proxied(engine.url) as client:
        assert await limit(client) == 256


async def test_the_limit_follows_the_engines_own_queue(proxied: Proxied) -> None:
    """An engine that runs two at once and is sent forty is soon given a few; all forty are answered."""
    async with FakeVllm(profile=SMALL) as engine, proxied(engine.url, scrape_interval_s=OFTEN_S) as client:
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(load(client, 40, tokens=10))
            while await limit(client) > 6:
                await asyncio.sleep(0)
        assert loading.result() == [200] * 40


@pytest.mark.parametrize("lie", LIES)
async def test_metrics_that_are_lost_or_untrue_stop_nothing(proxied: Proxied, lie: MetricsMode) -> None:
    """From one moment to the next, under load: every request is answered."""
    async with FakeVllm(profile=SMALL) as engine, proxied(engine.url, scrape_interval_s=OFTEN_S) as client:
        async with asyncio.TaskGroup() as tasks:
            loading = tasks.create_task(load(client, 30, tokens=5))
            for _ in range(10):
                await engine.arrived.acquire()
            engine.metrics = lie
        assert loading.result() == [200] * 30


async def test_a_configured_limit_is_kept(proxied: Proxied) -> None:
    """Whatever the metrics say."""
    async with (
        FakeVllm(profile=SMALL) as engine,
        proxied(engine.url, limit=10, scrape_interval_s=OFTEN_S) as client,
    ):
        assert await load(client, 12, tokens=5) == [200] * 12
        assert await limit(client) == 10


async def test_metrics_that_come_later_are_learned_by(proxied: Proxied) -> None:
    """An engine that had none is asked for them now and then."""
    async with FakeVllm(profile=SMALL) as engine:
        engine.metrics = "missing"
        async with proxied(engine.url, scrape_interval_s=OFTEN_S) as client:
            assert await limit(client) == 64

            engine.metrics = "honest"
            while await limit(client) != 256:
                await asyncio.sleep(0)


async def test_an_engine_that_comes_back_with_metrics_is_learned_by_them(proxied: Proxied) -> None:
    """Without them it is given 64 until it pushes back; with them what vLLM runs at once."""
    async with FakeVllm() as first:
        port = first.port
        proxy = proxied(first.url)
        client = await proxy.__aenter__()
        assert await limit(client) == 64
    try:
        assert (await post(client)).status_code == 503
        async with FakeVllm(port=port, profile=SMALL):
            while not (await client.get("/health/ready")).is_success:
                await asyncio.sleep(0)
            assert await limit(client) == 256
            assert await load(client, 1, tokens=1) == [200]
    finally:
        await proxy.__aexit__(None, None, None)


def answered(finish_reason: str, **fields: bool) -> Reply:
    """An answer that fills most of the small engine's KV cache."""
    choice = {"index": 0, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 500, "completion_tokens": 100}
    if not fields.get("is_stream"):
        return Reply(raw=[json.dumps({"choices": [choice], "usage": usage}).encode()])
    events = [
        {"choices": [{"delta": {"content": "x"}}]},
        {"choices": [choice]},
        {"choices": [], "usage": usage},
    ]
    data = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in events]
    return Reply(raw=[*data, b"data: [DONE]\n\n"], content_type="text/event-stream")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    ("tools", "finish_reason", "is_held"),
    [
        ({"tools": [TOOL]}, "stop", False),
        ({"tools": [TOOL]}, "tool_calls", True),
        ({}, "stop", True),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "stop", True),
    ],
)
async def test_an_agents_final_answer_makes_room_for_the_next_session(
    proxied: Proxied, *, is_stream: bool, tools: dict[str, Any], finish_reason: str, is_held: bool
) -> None:
    """A session whose next call is expected keeps its part of the KV cache, and a new one that does not fit waits."""
    long = [{"role": "user", "content": "x" * 2000}]
    release = asyncio.Event()
    async with FakeVllm(profile=SMALL) as engine, proxied(engine.url) as client:
        engine.script(answered(finish_reason, is_stream=is_stream), Reply(release=release))
        ended = await post(client, {"x-session-id": "ended"}, stream=is_stream, **tools)
        assert ended.status_code == 200
        await engine.arrived.acquire()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(post(client, {"x-session-id": "busy"}))
            await engine.arrived.acquire()

            new = tasks.create_task(post(client, {"x-session-id": "new"}, messages=long, max_tokens=1))
            while engine.arrived.locked() and not await metric(client, "muster_held"):
                await asyncio.sleep(0)
            assert await metric(client, "muster_held") == is_held
            release.set()
        assert new.result().status_code == 200


async def test_a_streams_tokens_are_counted_where_the_engine_does_not_tell(proxied: Proxied) -> None:
    """Such a stream is charged for its events: only an engine's own account is shown as tokens."""
    events = [b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n', b"data: [DONE]\n\n"]
    async with FakeVllm() as engine, proxied(engine.url) as client:
        engine.script(Reply(raw=events, content_type="text/event-stream"))
        async with open_stream(client) as answer:
            assert [line async for line in answer.aiter_lines() if line][-1] == "data: [DONE]"
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 0
        assert body()["model"] == engine.model


@pytest.mark.parametrize("tokens", [-5, 10**30])
async def test_an_account_that_makes_no_sense_is_not_one(
    engine: FakeVllm, proxied: Proxied, tokens: int
) -> None:
    """The answer passes; nothing is counted."""
    usage = {"prompt_tokens": tokens, "completion_tokens": 1}
    engine.script(Reply(raw=[json.dumps({"choices": [], "usage": usage}).encode()]))
    async with proxied(engine.url) as client:
        assert (await post(client)).status_code == 200
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 0
