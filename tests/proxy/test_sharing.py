"""With `single_flight`, identical requests that are in flight together share one answer; without it none do."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import MESSAGES, body, metric, open_stream, post
from tests.proxy.conftest import Proxied

SHARED = "x-muster-shared"


async def ask(client: httpx.AsyncClient, name: str = "", **fields: Any) -> httpx.Response:
    """Send a request that may be shared, under a name of its own."""
    return await post(client, {"x-request-id": name} if name else None, **{"temperature": 0, **fields})


async def until_read(client: httpx.AsyncClient) -> None:
    """Let the proxy read what has been sent to it; all of this runs in one event loop."""
    for _ in range(20):
        await client.get("/health/live")


async def test_identical_requests_share_an_answer(engine: FakeVllm, proxied: Proxied) -> None:
    """One generation, one slot and its tokens counted once; each client has its own id."""
    release = asyncio.Event()
    engine.script(Reply("one two", release=release))
    async with proxied(engine.url, single_flight=True) as client:
        async with asyncio.TaskGroup() as tasks:
            leading = tasks.create_task(ask(client, "leader"))
            await engine.arrived.acquire()
            following = [
                tasks.create_task(ask(client, f"follower-{number}", user=str(number))) for number in (1, 2)
            ]
            await until_read(client)
            release.set()

        answers = [leading.result(), *(each.result() for each in following)]
        assert [answer.status_code for answer in answers] == [200] * 3
        assert len({answer.content for answer in answers}) == 1
        assert [answer.headers["x-request-id"] for answer in answers] == [
            "leader",
            "follower-1",
            "follower-2",
        ]
        assert [answer.headers.get(SHARED) for answer in answers] == [None, "true", "true"]
        assert [answer.headers["x-muster-upstream"] for answer in answers] == ["upstream-1"] * 3
        assert len(engine.requests) == 1
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 2
        assert await metric(client, "muster_dispatched") == 1
        assert await metric(client, "muster_in_flight") == 0
        assert await metric(client, 'muster_requests_total{outcome="completed"}') == 3


async def test_one_who_joins_a_stream_late_has_it_from_the_start(engine: FakeVllm, proxied: Proxied) -> None:
    """Event by event, with the same end."""
    resume = asyncio.Event()
    engine.script(Reply("one two three", pauses_after=2, resume=resume))
    async with (
        proxied(engine.url, single_flight=True) as client,
        open_stream(client, temperature=0) as leader,
    ):
        events = leader.aiter_bytes()
        first = await anext(events)
        async with open_stream(client, temperature=0) as follower:
            resume.set()
            late = b"".join([chunk async for chunk in follower.aiter_bytes()])
        rest = b"".join([chunk async for chunk in events])

        assert first + rest == late
        assert late.endswith(b"data: [DONE]\n\n")
        assert (leader.headers.get(SHARED), follower.headers.get(SHARED)) == (None, "true")
        assert len(engine.requests) == 1


@pytest.mark.parametrize(
    ("settings", "headers", "fields"),
    [
        pytest.param({"single_flight": False}, {}, {}, id="it is off"),
        pytest.param({}, {}, {"temperature": 0.5}, id="not deterministic"),
        pytest.param({}, {}, {"stop": "x"}, id="another request"),
        pytest.param({}, {"authorization": "Bearer sk-b"}, {}, id="another key"),
        pytest.param({}, {"x-muster-class": "interactive"}, {}, id="another class"),
    ],
)
async def test_what_is_not_shared(
    engine: FakeVllm,
    proxied: Proxied,
    settings: dict[str, bool],
    headers: dict[str, str],
    fields: dict[str, Any],
) -> None:
    """The second request has a generation of its own."""
    release = asyncio.Event()
    engine.script(Reply(release=release), Reply(release=release))
    async with (
        proxied(engine.url, **{"single_flight": True, **settings}) as client,
        asyncio.TaskGroup() as tasks,
    ):
        one = tasks.create_task(ask(client))
        other = tasks.create_task(post(client, headers, **{"temperature": 0, **fields}))
        await engine.arrived.acquire()
        await engine.arrived.acquire()
        release.set()
    assert SHARED not in one.result().headers
    assert SHARED not in other.result().headers


@pytest.mark.parametrize("leaves", ["leader", "follower"])
async def test_whoever_hangs_up_hurts_nobody(engine: FakeVllm, proxied: Proxied, leaves: str) -> None:
    """The other one has its answer, of the one generation."""
    release = asyncio.Event()
    engine.script(Reply(release=release))
    async with proxied(engine.url, single_flight=True) as client, asyncio.TaskGroup() as tasks:
        asked = {"leader": tasks.create_task(ask(client))}
        await engine.arrived.acquire()
        asked["follower"] = tasks.create_task(ask(client))
        await until_read(client)

        asked.pop(leaves).cancel()
        while not await metric(client, 'muster_requests_total{outcome="cancelled"}'):
            await asyncio.sleep(0)
        release.set()
    [stays] = asked.values()
    assert stays.result().status_code == 200
    assert len(engine.requests) == 1


async def test_when_the_last_one_hangs_up_the_engine_is_told(engine: FakeVllm, proxied: Proxied) -> None:
    """The generation is aborted and its slot free."""
    engine.script(Reply(release=asyncio.Event()))
    async with proxied(engine.url, limit=1, single_flight=True) as client, asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(ask(client))]
        await engine.arrived.acquire()
        asked.append(tasks.create_task(ask(client)))
        await until_read(client)

        for each in asked:
            each.cancel()
        await engine.aborted.acquire()

        assert (await ask(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0


async def test_a_generation_that_fails_costs_its_leader_alone(engine: FakeVllm, proxied: Proxied) -> None:
    """The follower, which had nothing yet, leads one of its own."""
    release = asyncio.Event()
    engine.script(Reply(status=500, release=release), Reply("fine"))
    async with proxied(engine.url, single_flight=True) as client, asyncio.TaskGroup() as tasks:
        leading = tasks.create_task(ask(client))
        await engine.arrived.acquire()
        following = tasks.create_task(ask(client))
        await until_read(client)
        release.set()

    assert (leading.result().status_code, following.result().status_code) == (502, 200)
    assert SHARED not in following.result().headers


async def test_a_reader_that_falls_far_behind_is_told_so(engine: FakeVllm, proxied: Proxied) -> None:
    """It does not slow the other down, and its stream ends with an error event."""
    event = b'data: {"x": "' + b"a" * 1_000_000 + b'"}\n\n'
    resume = asyncio.Event()
    pieces = [event] * 24 + [b"data: [DONE]\n\n"]
    engine.script(Reply(raw=pieces, content_type="text/event-stream", pauses_after=1, resume=resume))
    async with (
        proxied(engine.url, single_flight=True) as client,
        open_stream(client, temperature=0) as slow,
        open_stream(client, temperature=0) as quick,
    ):
        resume.set()
        whole = b"".join([chunk async for chunk in quick.aiter_bytes()])
        assert whole == b"".join(pieces)

        part = b"".join([chunk async for chunk in slow.aiter_bytes()])
        *_, error, done = part.removesuffix(b"\n\n").split(b"\n\n")
        assert done == b"data: [DONE]"
        assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "read_too_slowly"


async def test_emulated_tool_calls_are_shared_with_their_ids(engine: FakeVllm, proxied: Proxied) -> None:
    """They are made once, so all who share them can answer to them."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    release = asyncio.Event()
    engine.script(Reply('{"name": "look", "arguments": {}}', release=release))
    async with proxied(engine.url, tool_mode="emulated", single_flight=True) as client:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(ask(client, tools=[tool], tool_choice="required"))]
            await engine.arrived.acquire()
            asked.append(tasks.create_task(ask(client, tools=[tool], tool_choice="required")))
            await until_read(client)
            release.set()
        one, other = (each.result() for each in asked)

    assert one.json()["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert one.content == other.content
    assert len(engine.requests) == 1


async def test_a_body_nested_too_deeply_to_compare_is_served_alone(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """It is no fault of the client's."""
    deep = '{"a":' * 1000 + "1" + "}" * 1000
    text = json.dumps(body(temperature=0, messages=MESSAGES)).removesuffix("}") + f', "x": {deep}}}'
    async with proxied(engine.url, single_flight=True) as client:
        assert (await client.post("/v1/chat/completions", content=text)).status_code == 200
