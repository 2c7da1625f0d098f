"""What clients say of their requests decides whose turn it is, and who is turned away."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import httpx
import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import limit, metric, open_stream, post, until_waiting, waiting
from tests.proxy.conftest import Proxied

KEY_A = {"authorization": "Bearer sk-a"}
KEY_B = {"authorization": "Bearer sk-b"}

Told = tuple[Mapping[str, str], Mapping[str, Any]]
"""Headers and fields of a request."""


@contextlib.asynccontextmanager
async def busy(engine: FakeVllm, client: httpx.AsyncClient, *replies: Reply) -> AsyncGenerator[asyncio.Event]:
    """A request holds the one slot until the block's event is set, or to the block's end."""
    release = asyncio.Event()
    engine.script(Reply(release=release), *replies)
    async with asyncio.TaskGroup() as tasks:
        holding = tasks.create_task(post(client, {"x-muster-class": "interactive"}, user="holding"))
        await engine.arrived.acquire()
        try:
            yield release
        finally:
            release.set()
    assert holding.result().status_code == 200


async def order_of(engine: FakeVllm, client: httpx.AsyncClient, queued: Sequence[Told]) -> list[str]:
    """The order in which requests go that came as listed while the one slot was taken; each named by its place."""
    async with asyncio.TaskGroup() as tasks, busy(engine, client):
        for place, (headers, fields) in enumerate(queued):
            tasks.create_task(post(client, headers, user=str(place), **fields))
            await until_waiting(client, place + 1)
    return [request.body["user"] for request in engine.requests if request.body.get("user", "").isdigit()]


@pytest.mark.parametrize(
    ("queued", "order"),
    [
        pytest.param(
            [({"x-muster-class": each}, {}) for each in ("batch", "standard", "interactive")],
            ["2", "1", "0"],
            id="class by header",
        ),
        pytest.param(
            [({}, {"service_tier": each}) for each in ("flex", "default", "priority")],
            ["2", "1", "0"],
            id="class by service tier",
        ),
        pytest.param(
            [
                ({"x-muster-class": "batch"}, {"service_tier": "priority"}),
                ({}, {"service_tier": "auto"}),
            ],
            ["1", "0"],
            id="the header counts",
        ),
        pytest.param(
            [(KEY_A, {}), (KEY_A, {}), (KEY_A, {}), (KEY_B, {})],
            ["0", "3", "1", "2"],
            id="keys take turns",
        ),
        pytest.param(
            [({}, {}), ({}, {}), ({"authorization": "Basic x"}, {})],
            ["0", "1", "2"],
            id="no keys are one tenant",
        ),
    ],
)
async def test_whose_turn_it_is(
    engine: FakeVllm, proxied: Proxied, queued: list[Told], order: list[str]
) -> None:
    """With one slot the order of the engine's requests shows it."""
    async with proxied(engine.url, limit=1) as client:
        assert await order_of(engine, client, queued) == order


@pytest.mark.parametrize(
    ("served", "fresh"),
    [
        pytest.param(({"x-session-id": "old"}, {}), ({"x-session-id": "new"}, {}), id="by header"),
        pytest.param(({}, {"prompt_cache_key": "old"}), ({}, {"prompt_cache_key": "new"}), id="by cache key"),
    ],
)
async def test_the_session_that_has_had_least_goes_first(
    engine: FakeVllm, proxied: Proxied, served: Told, fresh: Told
) -> None:
    """Of one key's two sessions, the one that has had a long answer waits for the one that has had none."""
    usage = {"prompt_tokens": 90_000, "completion_tokens": 10_000}
    engine.script(Reply(raw=[json.dumps({"choices": [], "usage": usage}).encode()]))
    async with proxied(engine.url, limit=1) as client:
        headers, fields = served
        await post(client, headers, **fields)
        await engine.arrived.acquire()

        assert await order_of(engine, client, [served, fresh]) == ["1", "0"]


@pytest.mark.parametrize(
    ("header", "value"), [("x-muster-class", "CANARY"), ("x-slo-ttft-ms", "CANARY"), ("x-slo-ttft-ms", "-1")]
)
async def test_a_malformed_header_of_ours_is_a_400(
    engine: FakeVllm, proxied: Proxied, header: str, value: str
) -> None:
    """It names the header, repeats nothing, and no engine hears of the request."""
    async with proxied(engine.url) as client:
        answer = await post(client, {header: value})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, header)
    assert "CANARY" not in answer.text
    assert not engine.requests


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"x-stainless-read-timeout": "None"}, {}),
        ({"x-stainless-read-timeout": "-1"}, {}),
        ({"x-session-id": "a b"}, {}),
        ({"authorization": "sk-\xff"}, {}),
        ({"authorization": "Bearer \xff\xfe"}, {}),
        ({}, {"service_tier": "made-up"}),
        ({}, {"prompt_cache_key": "a b"}),
    ],
)
async def test_what_is_not_understood_is_no_reason_to_refuse(
    engine: FakeVllm, proxied: Proxied, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    """The request is served as if it had not been said."""
    raw = httpx.Headers([(name.encode(), value.encode("latin-1")) for name, value in headers.items()])
    async with proxied(engine.url) as client:
        assert (await post(client, raw, **fields)).status_code == 200


@pytest.mark.parametrize("headers", [{"x-slo-ttft-ms": "60000"}, {"x-stainless-read-timeout": "60"}])
async def test_a_deadline_that_cannot_be_met_is_refused_on_arrival(
    engine: FakeVllm, proxied: Proxied, headers: dict[str, str]
) -> None:
    """Behind as many as are in flight, and nothing has moved yet: 429 at once, a minute before its deadline."""
    async with proxied(engine.url, limit=1) as client, asyncio.TaskGroup() as tasks, busy(engine, client):
        tasks.create_task(post(client))
        await until_waiting(client, 1)

        refused = await post(client, headers)

        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["type"]) == (
            429,
            "deadline_unreachable",
            "rate_limit_error",
        )
        assert int(refused.headers["retry-after"]) >= 1
        assert await metric(client, 'muster_turned_away_total{reason="deadline"}') == 1
        assert await metric(client, 'muster_requests_total{outcome="turned_away"}') == 1
        assert await waiting(client) == 1


async def test_a_deadline_that_passes_in_the_queue_ends_the_wait(engine: FakeVllm, proxied: Proxied) -> None:
    """Its client is told while the slot is still taken."""
    async with proxied(engine.url, limit=1) as client, busy(engine, client):
        refused = await post(client, {"x-slo-ttft-ms": "20"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "deadline_unreachable")
        assert await waiting(client) == 0


async def test_a_deadline_that_can_be_met_changes_nothing(engine: FakeVllm, proxied: Proxied) -> None:
    """A free slot is taken, and a first in the queue waits for its turn."""
    async with proxied(engine.url, limit=1) as client:
        assert (await post(client, {"x-slo-ttft-ms": "60000"})).status_code == 200
        await engine.arrived.acquire()
        async with asyncio.TaskGroup() as tasks, busy(engine, client):
            queued = tasks.create_task(post(client, {"x-slo-ttft-ms": "60000"}))
            await until_waiting(client, 1)
        assert queued.result().status_code == 200


async def test_batch_waits_in_a_queue_of_its_own(engine: FakeVllm, proxied: Proxied) -> None:
    """When as many of it wait as may, the next is turned away; the others' queue is none of its business."""
    batch = {"x-muster-class": "batch"}
    async with (
        proxied(engine.url, limit=1, batch_max_waiting=1) as client,
        asyncio.TaskGroup() as tasks,
        busy(engine, client),
    ):
        tasks.create_task(post(client, batch))
        await until_waiting(client, 1)

        refused = await post(client, batch)
        tasks.create_task(post(client))
        await until_waiting(client, 2)

        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert await metric(client, 'muster_waiting{class="batch"}') == 1
        assert await metric(client, 'muster_waiting{class="standard"}') == 1
        assert await metric(client, 'muster_turned_away_total{reason="waiting_full"}') == 1


async def test_batch_has_a_waiting_time_of_its_own(engine: FakeVllm, proxied: Proxied) -> None:
    """It ends while a request of the default class goes on waiting."""
    async with (
        proxied(engine.url, limit=1, batch_max_wait_s=0.02) as client,
        asyncio.TaskGroup() as tasks,
        busy(engine, client),
    ):
        tasks.create_task(post(client))
        await until_waiting(client, 1)

        refused = await post(client, {"x-muster-class": "batch"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_timeout")
        assert await waiting(client) == 1


async def test_batch_has_bytes_of_its_own(engine: FakeVllm, proxied: Proxied) -> None:
    """A body that does not fit in them is turned away at once."""
    async with proxied(engine.url, limit=1, batch_max_waiting_bytes=1024) as client, busy(engine, client):
        refused = await post(client, {"x-muster-class": "batch"}, user="x" * 1024)

        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")


async def test_a_first_token_lets_the_next_prompt_in(engine: FakeVllm, proxied: Proxied) -> None:
    """A stream with a long prompt keeps others out until its first token is here, and not until its end."""
    role, token = (
        b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n',
    )
    first, rest = asyncio.Event(), asyncio.Event()
    long = [{"role": "user", "content": "x" * 100_000}]
    engine.script(
        Reply(raw=[role, token], content_type="text/event-stream", pauses_after=1, resume=first),
        Reply(release=rest),
    )
    async with (
        proxied(engine.url) as client,
        asyncio.TaskGroup() as tasks,
        open_stream(client, messages=long) as answer,
    ):
        tasks.create_task(post(client))
        await until_waiting(client, 1)

        first.set()
        await engine.arrived.acquire()
        await engine.arrived.acquire()
        rest.set()
        assert answer.status_code == 200


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_that_pushes_back_is_given_less(
    engine: FakeVllm, proxied: Proxied, status: int
) -> None:
    """One without metrics starts with 64 slots, and keeps the least after a push-back at one in flight."""
    engine.script(Reply(status=status))
    async with proxied(engine.url) as client:
        assert await limit(client) == 64
        assert (await post(client)).status_code == status
        assert await limit(client) == 4


async def test_an_engine_that_is_silent_is_given_less(engine: FakeVllm, proxied: Proxied) -> None:
    """A timeout is a push-back."""
    engine.script(Reply(release=asyncio.Event()))
    async with proxied(engine.url, first_byte_timeout_s=0.05) as client:
        assert (await post(client)).json()["error"]["code"] == "upstream_timeout"
        assert await limit(client) == 4


async def test_an_engine_that_refuses_a_request_is_not_given_less(engine: FakeVllm, proxied: Proxied) -> None:
    """Nor is one that fails: neither says that it has too much."""
    engine.script(Reply(status=400), Reply(status=500))
    async with proxied(engine.url) as client:
        assert [(await post(client)).status_code for _ in range(2)] == [400, 502]
        assert await limit(client) == 64
