"""Clients that leave, at every moment at which they can; and those who are gone without a word.

Who leaves the queue, or before the first byte: `test_relay`. Who leaves while a connection is made: `test_client`.
"""

import asyncio
import contextlib
import gc
import json
import random
import socket
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest

from muster_proxy.generation import pieces
from muster_proxy.testing import End, FakeVllm, RawEngine, Reply
from muster_proxy.testing.raw_faults import ENDLESS_STREAM, HANGS
from muster_proxy.testing.raw_http import STREAM_HEAD, chunk, event
from tests.proxy.asking import MESSAGES, metric, open_stream, post, waiting
from tests.proxy.carrying import Taken, engine_side
from tests.proxy.conftest import Proxied


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage collector that could close by chance what should have been closed on purpose."""
    gc.disable()
    yield
    gc.enable()


@contextlib.asynccontextmanager
async def unread_stream(client: httpx.AsyncClient) -> AsyncGenerator[socket.socket]:
    """A client that asks for a stream and reads none of it."""
    body = json.dumps({"model": "fake-model", "messages": MESSAGES, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: muster\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(one, (client.base_url.host, client.base_url.port))
        await loop.sock_sendall(one, head + body)
        yield one


async def until_unread(engine: RawEngine) -> None:
    """Wait until an endless answer is read no further."""
    await engine.arrived.acquire()
    written = -1
    while written != engine.written_bytes:
        written = engine.written_bytes
        for _ in range(200):
            await asyncio.sleep(0)


@pytest.mark.usefixtures("uncollected")
async def test_a_client_that_does_not_read_is_not_read_for_and_may_leave(proxied: Proxied) -> None:
    """An endless stream stops at full buffers; when its client goes, the engine's connection is closed."""
    async with RawEngine([ENDLESS_STREAM]) as engine, proxied(engine.url, limit=1) as client:
        async with unread_stream(client):
            await until_unread(engine)
            assert engine.written_bytes < 64 * 1024 * 1024
            assert await metric(client, "muster_in_flight") == 1
        await engine.left.acquire()

        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0
        assert await metric(client, 'muster_requests_total{outcome="cancelled"}') == 1


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("stream", [False, True])
async def test_the_engines_connection_is_closed_when_its_client_goes(
    proxied: Proxied, *, stream: bool
) -> None:
    """Before the first byte, whether a stream was asked for or not; that is how an engine is told to stop."""
    async with RawEngine([HANGS]) as engine, proxied(engine.url, limit=1) as client:
        leaving = asyncio.ensure_future(post(client, stream=stream))
        await engine.arrived.acquire()
        leaving.cancel()
        await engine.left.acquire()

        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0


@pytest.mark.usefixtures("uncollected")
async def test_three_hundred_clients_leave_at_any_moment(engine: FakeVllm, proxied: Proxied) -> None:
    """Nothing of theirs is left, waiting or in flight, and the next client is served."""
    dice = random.Random(11)  # noqa: S311  a seed, not a secret
    async with proxied(engine.url, limit=4) as client:
        asked: list[asyncio.Future[httpx.Response]] = []
        for number in range(300):
            asked.append(asyncio.ensure_future(post(client, stream=number % 2 == 0)))
            for _ in range(dice.randrange(30)):
                await asyncio.sleep(0)
            dice.choice(asked[-8:]).cancel()
        for each in asked:
            each.cancel()
        await asyncio.wait(asked)

        while await metric(client, "muster_in_flight") or await waiting(client) or engine.in_flight:
            await asyncio.sleep(0)
        assert (await post(client)).status_code == 200
        assert engine.peak <= 4


async def test_a_client_that_leaves_as_the_server_stops_leaves_nothing(proxied: Proxied) -> None:
    """The request is cancelled twice, and the engine's connection closed all the same."""
    play = (STREAM_HEAD, chunk(event("one")), End.HANG)
    async with RawEngine([play]) as engine:
        async with proxied(engine.url) as client, open_stream(client) as answer:
            await anext(answer.aiter_lines())
        await engine.left.acquire()
        while engine.open:
            await asyncio.sleep(0)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("is_shared", [False, True], ids=["alone", "in pieces"])
@pytest.mark.parametrize("moment", ["before", "during", "blocked"])
async def test_two_cancellations_leave_nothing(*, turns: int, is_shared: bool, moment: str) -> None:
    """Whatever the moment and the time between them: no connection, no slot and no retry stays taken."""
    play = HANGS if moment == "before" else (STREAM_HEAD, chunk(event("one")), End.HANG)
    never = asyncio.get_running_loop().create_future
    async with RawEngine([play]) as engine, engine_side() as side:
        side.add("one", engine.url)
        taken = Taken(flow=never if moment == "blocked" else lambda: None)

        async def carry() -> None:
            generation = side.generation(stream=True)
            if not is_shared:
                await side.engines.carry_out(generation, taken)
                return
            async with contextlib.aclosing(pieces(side.engines, generation)) as shared:
                async for piece in shared:
                    if isinstance(piece, bytes) and (flow := taken.take(piece)) is not None:
                        await flow

        work = asyncio.ensure_future(carry())
        await (engine.arrived.acquire() if moment == "before" else taken.begun.wait())
        work.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work})

        assert work.cancelled()
        await engine.left.acquire()
        assert side.client.active == 0
        assert side.scheduler.scheduler.in_flight == 0


async def test_an_engine_that_vanished_is_given_up(proxied: Proxied) -> None:
    """No FIN comes from a machine that is off: the idle time frees the slot, and the next request has it."""
    play = (STREAM_HEAD, chunk(event("one")), End.HANG)
    async with RawEngine([play]) as engine, proxied(engine.url, limit=1, idle_timeout_s=0.1) as client:
        answer = await post(client, stream=True)
        assert '"upstream_timeout"' in answer.text

        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0
        await engine.left.acquire()


async def test_two_hundred_at_once_are_never_more_than_ten(engine: FakeVllm, proxied: Proxied) -> None:
    """Requests that come together are counted one by one."""
    release = asyncio.Event()
    engine.script(*[Reply(release=release)] * 10)
    async with proxied(engine.url, limit=10) as client, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(post(client)) for _ in range(200)]
        for _ in range(10):
            await engine.arrived.acquire()
        release.set()

    assert [answer.result().status_code for answer in answers] == [200] * 200
    assert engine.peak == 10
