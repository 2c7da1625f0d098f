"""`RawEngine` sends what its script says, as it says, and serves the rest properly."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from muster_proxy.testing import Drip, End, Endless, Play, RawEngine, raw_faults
from muster_proxy.testing.raw_http import STREAM_HEAD, answer, completion, stream

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: engine\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
async def engine() -> AsyncIterator[RawEngine]:
    """An engine without a script."""
    async with RawEngine() as raw:
        yield raw


async def _opened(engine: RawEngine) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(engine.url.rpartition(":")[2]))
    writer.write(REQUEST)
    return reader, writer


async def _said(engine: RawEngine, play: Play) -> bytes:
    """All that a client gets whose connection the play ends."""
    engine.script(play)
    reader, writer = await _opened(engine)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_what_every_engine_serves(engine: RawEngine) -> None:
    """Health, models and metrics, and a good answer where there is no script; over one connection."""
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as client:
        health = await client.get("/health")
        models = await client.get("/v1/models")
        metrics = await client.get("/metrics")
        missing = await client.get("/nothing")
        good = await client.post("/v1/chat/completions", json={"model": "m"})

    assert [each.status_code for each in (health, models, metrics, missing)] == [200, 200, 200, 404]
    assert models.json()["data"][0]["id"] == "fake-model"
    assert "vllm:num_requests_running 0" in metrics.text
    assert good.json()["choices"][0]["message"]["content"] == "Hello."
    assert engine.connections == 1
    assert engine.requests[0].body == b'{"model":"m"}'


async def test_bytes_are_sent_as_they_are(engine: RawEngine) -> None:
    """Well-formed or not, until the play closes the connection."""
    assert await _said(engine, (b"\x00what\r\n", b"ever", End.CLOSE)) == b"\x00what\r\never"


async def test_a_play_waits_for_an_event(engine: RawEngine) -> None:
    """What comes before it is there; what comes after is not sent yet."""
    go_on = asyncio.Event()
    engine.script((b"one", go_on, b"two", End.CLOSE))
    reader, writer = await _opened(engine)

    assert await reader.readexactly(3) == b"one"
    assert engine.written_bytes == 3
    go_on.set()
    assert await reader.read() == b"two"
    writer.close()


async def test_a_play_that_ends_nothing_leaves_the_connection_open(engine: RawEngine) -> None:
    """The next request over it gets the next play."""
    engine.script((answer(b"1"),), (Drip(answer(b"2"), 0.0), End.CLOSE))
    reader, writer = await _opened(engine)
    writer.write(REQUEST)

    assert await reader.read() == answer(b"1") + answer(b"2")
    assert [request.connection for request in engine.requests] == [1, 1]
    assert (engine.requests[0].head + engine.requests[0].body) == REQUEST
    writer.close()


async def test_a_reset_is_one(engine: RawEngine) -> None:
    """The client reads an error, and no end."""
    with pytest.raises(ConnectionResetError):
        await _said(engine, raw_faults.STALE)


@pytest.mark.parametrize("play", [raw_faults.HANGS, raw_faults.ENDLESS_BODY, raw_faults.ENDLESS_INTERIM])
async def test_a_client_that_leaves_ends_the_play(engine: RawEngine, play: Play) -> None:
    """`left` says so, and nothing more is sent."""
    engine.script(play)
    _reader, writer = await _opened(engine)
    await engine.arrived.acquire()
    writer.close()
    await engine.left.acquire()
    while engine.open:
        await asyncio.sleep(0)
    written = engine.written_bytes
    await _said(engine, (End.CLOSE,))

    assert engine.written_bytes == written


async def test_an_endless_answer_stops_where_nobody_reads(engine: RawEngine) -> None:
    """The engine writes as much as the sockets hold, and goes on when it is read."""
    piece = b"x" * 65_536
    engine.script((Endless(piece),))
    reader, writer = await _opened(engine)
    held = -1
    while engine.written_bytes != held:
        held = engine.written_bytes
        await asyncio.sleep(0.05)  # what the kernel takes cannot be awaited
    await reader.readexactly(held + len(piece))

    assert engine.written_bytes > held
    writer.transport.abort()


async def test_idle_connections_are_closed_and_busy_ones_are_not(engine: RawEngine) -> None:
    """As a keep-alive timeout does it."""
    engine.script((answer(b"1"),), raw_faults.HANGS)
    idle, idle_writer = await _opened(engine)
    await idle.readexactly(len(answer(b"1")))
    await engine.arrived.acquire()
    _busy, busy_writer = await _opened(engine)
    await engine.arrived.acquire()

    assert await engine.close_idle() == 1
    assert await idle.read() == b""
    assert engine.open == 1
    idle_writer.close()
    busy_writer.close()


async def test_leaving_the_block_ends_what_is_played() -> None:
    """No connection and no task is left, whatever was being said."""
    async with RawEngine([raw_faults.HANGS, raw_faults.ENDLESS_EVENT]) as engine:
        readers = [await _opened(engine) for _ in range(2)]
        for _ in readers:
            await engine.arrived.acquire()

    assert engine.open == 0
    for _reader, writer in readers:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("play", "error"),
    [
        (raw_faults.CUT_HEAD, httpx.RemoteProtocolError),
        (raw_faults.NOT_HTTP, httpx.RemoteProtocolError),
        (raw_faults.CLOSES, httpx.RemoteProtocolError),
        (raw_faults.STALE, httpx.ReadError),
        (raw_faults.SHORT_BODY, httpx.RemoteProtocolError),
        (raw_faults.BAD_CHUNK, httpx.RemoteProtocolError),
        (raw_faults.dies_after(2), httpx.ReadError),
        (raw_faults.dies_after(2, End.CLOSE), httpx.RemoteProtocolError),
        (raw_faults.ENDLESS_HEAD, httpx.RemoteProtocolError),
    ],
)
async def test_what_is_broken_is_broken(engine: RawEngine, play: Play, error: type[Exception]) -> None:
    """An ordinary client fails on what no client may take for an answer."""
    engine.script(play)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as client:
        with pytest.raises(error):
            await client.post("/v1/chat/completions", json={})


@pytest.mark.parametrize(
    ("play", "text"),
    [
        (raw_faults.NO_LENGTH, completion().decode()),
        (raw_faults.LONG_BODY, completion().decode()),
        (raw_faults.NOT_JSON, "<html>out of order</html>"),
        (raw_faults.JSON_FOR_STREAM, "out of order"),
        (raw_faults.ERROR_EVENT, '{"error": {"message": "out of order"'),
        (raw_faults.NOT_JSON_EVENT, "data: {out of order"),
        (raw_faults.NO_DONE, '"content": "one"'),
        (raw_faults.drips(0.0), "data: [DONE]"),
        (stream("a", "b"), '"finish_reason": "stop"'),
    ],
)
async def test_what_is_good_http_is_read(engine: RawEngine, play: Play, text: str) -> None:
    """An ordinary client takes it as an answer, whatever it says."""
    engine.script(play)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as client:
        answered = await client.post("/v1/chat/completions", json={})

    assert answered.status_code == 200
    assert text in answered.text


async def test_a_huge_event_is_huge(engine: RawEngine) -> None:
    """More than 50 MiB in one event, then a good end."""
    engine.script(raw_faults.HUGE_EVENT)
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False, timeout=60) as client:
        answered = await client.post("/v1/chat/completions", json={})
    event, done, end = answered.content.split(b"\n\n")

    assert len(event) > 50 << 20
    assert (done, end) == (b"data: [DONE]", b"")
    assert STREAM_HEAD.startswith(b"HTTP/1.1 200")
