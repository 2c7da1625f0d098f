"""The connections to engines, on both event loops: what is passed on, what is closed, what is used again."""

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_observability import server
from muster_proxy.client import Answer, Origin, Timeouts, UpstreamClient
from muster_proxy.failures import Reason, RequestError
from muster_proxy.testing import End, Endless, Play, RawEngine
from muster_proxy.testing.raw_faults import (
    CLOSES,
    CUT_HEAD,
    ENDLESS_BODY,
    ENDLESS_HEAD,
    ENDLESS_INTERIM,
    ENDLESS_STREAM,
    HANGS,
    NOT_HTTP,
    SHORT_BODY,
    STALE,
)
from muster_proxy.testing.raw_http import LAST_CHUNK, STREAM_HEAD, answer, chunk, completion, head

MANY_BYTES = 1 << 30


@pytest.fixture(
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
    scope="module",
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Their transports differ when they are closed; the proxy runs on uvloop."""
    backend: tuple[str, dict[str, bool]] = request.param
    return backend


@contextlib.asynccontextmanager
async def connections(**timeouts: float) -> AsyncGenerator[UpstreamClient]:
    """A client, closed at the end."""
    client = UpstreamClient(Timeouts(**timeouts))
    try:
        yield client
    finally:
        await client.close()


def posted(client: UpstreamClient, engine: RawEngine) -> contextlib.AbstractAsyncContextManager[Answer]:
    """A request to an engine."""
    return client.post(Origin.of(engine.url), "/v1/chat/completions", b"", b"{}")


async def body_of(client: UpstreamClient, engine: RawEngine, limit_bytes: int = MANY_BYTES) -> bytes:
    """The body of an answer."""
    async with posted(client, engine) as got:
        return await got.body(limit_bytes)


async def reason_of(client: UpstreamClient, engine: RawEngine) -> Reason:
    """Why a request fails."""
    with pytest.raises(RequestError) as failure:
        await body_of(client, engine, limit_bytes=1 << 20)
    return failure.value.reason


def framed(framing: str, pieces: list[bytes]) -> Play:
    """An answer whose body comes in these pieces."""
    if framing == "chunks":
        return (STREAM_HEAD, *map(chunk, pieces), LAST_CHUNK)
    if framing == "length":
        return (head(sum(map(len, pieces))), *pieces)
    return (head(None), *pieces, End.CLOSE)


async def _later() -> None:
    await asyncio.sleep(0)


async def _much_later() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _ready() -> None:
    """No pause."""


PAUSES = (_ready, _later, _much_later)


@settings(max_examples=30)
@given(
    framing=st.sampled_from(["chunks", "length", "end"]),
    pieces=st.lists(st.binary(min_size=1, max_size=100), max_size=30),
    pauses=st.lists(st.sampled_from(PAUSES), min_size=1, max_size=7),
)
async def test_no_byte_is_lost_or_moved_however_a_client_pauses(
    framing: str, pieces: list[bytes], pauses: list[Callable[[], Awaitable[None] | None]]
) -> None:
    """Whatever the framing, the chunks and the pauses, the sink gets the bytes in their order."""
    taken: list[bytes] = []

    def take(piece: bytes) -> Awaitable[None] | None:
        taken.append(piece)
        return pauses[len(taken) % len(pauses)]()

    async with (
        RawEngine([framed(framing, pieces)]) as engine,
        connections() as client,
        posted(client, engine) as got,
    ):
        await got.pour(take)

    assert b"".join(taken) == b"".join(pieces)


async def test_the_next_piece_waits_for_the_client() -> None:
    """While the sink's awaitable is pending nothing more is given, and an endless answer is not read on."""
    pending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    given_out: list[bytes] = []
    taken = asyncio.Event()

    def take(piece: bytes) -> Awaitable[None]:
        given_out.append(piece)
        taken.set()
        return pending

    async with RawEngine([ENDLESS_STREAM]) as engine, connections() as client:
        async with posted(client, engine) as got, asyncio.TaskGroup() as tasks:
            pouring = tasks.create_task(got.pour(take))
            await taken.wait()
            written = -1
            while written != engine.written_bytes:  # until its socket takes no more
                written = engine.written_bytes
                for _ in range(100):
                    await asyncio.sleep(0)
            pouring.cancel()

        assert len(given_out) == 1
        await engine.left.acquire()


async def test_a_sinks_error_is_raised_once_and_ends_the_answer() -> None:
    """Of three pieces in one segment the second fails: the third is not given, and the engine is told to stop."""
    go_on = asyncio.Event()
    play = (STREAM_HEAD + chunk(b"zero"), go_on, chunk(b"one") + chunk(b"two") + chunk(b"three"), End.HANG)
    taken: list[bytes] = []

    def take(piece: bytes) -> None:
        taken.append(piece)
        go_on.set()
        if piece == b"two":
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR)

    async with RawEngine([play]) as engine, connections() as client:
        with pytest.raises(RequestError, match=Reason.UPSTREAM_PROTOCOL_ERROR):
            async with posted(client, engine) as got:
                await got.pour(take)
        await engine.left.acquire()

        assert taken == [b"zero", b"one", b"two"]
        assert client.active == 0


async def test_what_came_before_a_loss_is_given_before_it_is_told() -> None:
    """Also where the client was still busy with the first piece when the connection ended."""
    taken: list[bytes] = []

    def take(piece: bytes) -> Awaitable[None]:
        taken.append(piece)
        return _much_later()

    play = (STREAM_HEAD, chunk(b"one") + chunk(b"two") + chunk(b"three"), End.CLOSE)
    async with RawEngine([play]) as engine, connections() as client, posted(client, engine) as got:
        with pytest.raises(RequestError) as failure:
            await got.pour(take)

    assert failure.value.reason is Reason.UPSTREAM_STREAM_ERROR
    assert taken == [b"one", b"two", b"three"]


async def test_a_client_that_leaves_late_leaves_the_connection_to_the_next() -> None:
    """The answer was whole, its client was not ready for it and left: the next request does not wait for them."""
    taken = asyncio.Event()

    def take(_piece: bytes) -> Awaitable[None]:
        taken.set()
        return asyncio.get_running_loop().create_future()

    async def ask() -> None:
        async with posted(client, engine) as got:
            await got.pour(take)

    async with RawEngine([(answer(b"one"),), (answer(b"two"),)]) as engine, connections() as client:
        leaving = asyncio.ensure_future(ask())
        await taken.wait()
        leaving.cancel()
        await asyncio.wait({leaving})

        assert await body_of(client, engine) == b"two"
        assert engine.connections == 1


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    """Two requests, one connection; a third after one that the engine wants closed."""
    closing = answer(b"two").replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with (
        RawEngine([(answer(b"one"),), (closing,), (answer(b"three"),)]) as engine,
        connections() as client,
    ):
        bodies = [await body_of(client, engine) for _ in range(3)]

    assert bodies == [b"one", b"two", b"three"]
    assert [request.connection for request in engine.requests] == [1, 1, 2]


@pytest.mark.parametrize(
    "more",
    [b"more", b"H", answer(b"for somebody else"), LAST_CHUNK],
    ids=["text", "a byte", "an answer", "a chunk"],
)
async def test_what_follows_an_answer_belongs_to_nobody(more: bytes) -> None:
    """It is no part of that answer nor of the next, and its connection is not used again."""
    async with RawEngine([(answer(b"one") + more,), (answer(b"two"),)]) as engine, connections() as client:
        assert await body_of(client, engine) == b"one"
        assert await body_of(client, engine) == b"two"

    assert engine.connections == 2


async def test_interim_answers_are_passed_over() -> None:
    """103 and 100 come before the answer; their headers are none of it."""
    interim = b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with (
        RawEngine([(interim + answer(b"one"),)]) as engine,
        connections() as client,
        posted(client, engine) as got,
    ):
        assert (got.status, got.header(b"x-early")) == (200, None)
        assert await got.body(100) == b"one"


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        pytest.param((b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",), "protocol", id="a switch"),
        pytest.param(NOT_HTTP, "protocol", id="not HTTP"),
        pytest.param(CUT_HEAD, "lost", id="half a head"),
        pytest.param(CLOSES, "lost", id="no head"),
        pytest.param(STALE, "lost", id="a reset"),
        pytest.param(SHORT_BODY, "lost", id="half a body"),
        pytest.param((STREAM_HEAD, chunk(b"one"), End.RESET), "lost", id="half a chunked body"),
        pytest.param((head(None), b"one", End.RESET), "lost", id="a reset in place of the end"),
        pytest.param((STREAM_HEAD, b"what\r\n"), "protocol", id="a chunk that is none"),
        pytest.param((answer(b"").replace(b"length: 0", b"length: -1"),), "protocol", id="a negative length"),
    ],
)
async def test_an_answer_that_is_not_whole_is_an_error(play: Play, reason: str) -> None:
    """Whatever came of it, it is not taken for an answer, and no connection is left."""
    expected = Reason.UPSTREAM_LOST if reason == "lost" else Reason.UPSTREAM_PROTOCOL_ERROR
    async with RawEngine([play]) as engine, connections() as client:
        assert await reason_of(client, engine) is expected
        assert client.active == 0
        assert await body_of(client, engine) == completion()


@pytest.mark.parametrize(
    "play",
    [
        pytest.param(ENDLESS_HEAD, id="headers"),
        pytest.param((b"HTTP/1.1 200 OK\r\nx-more: ", Endless(b"y" * 1000)), id="one header"),
        pytest.param((b"HTTP/1.1 200 OK\r\n", Endless(b"x: y\r\n")), id="small headers"),
        pytest.param(ENDLESS_INTERIM, id="interim answers"),
        pytest.param(ENDLESS_BODY, id="body"),
        pytest.param((STREAM_HEAD, Endless(chunk(b"x" * 65_536))), id="chunks"),
        pytest.param((STREAM_HEAD, b"0\r\n", Endless(b"x: y\r\n")), id="trailers"),
        pytest.param((STREAM_HEAD, b"0\r\nx: ", Endless(b"y" * 1000)), id="one trailer"),
        pytest.param((STREAM_HEAD, b"1;", Endless(b"y" * 1000)), id="a chunk's extension"),
    ],
)
async def test_nothing_is_without_end(play: Play) -> None:
    """What an engine sends without an end is given up at its limit, and the engine loses its connection."""
    async with RawEngine([play]) as engine, connections() as client:
        assert await reason_of(client, engine) is Reason.UPSTREAM_PROTOCOL_ERROR
        await engine.left.acquire()
        assert client.active == 0


async def test_a_body_that_nobody_reads_is_not_read() -> None:
    """Of an endless one only the sockets' buffers fill, until its request is left."""
    async with RawEngine([ENDLESS_BODY]) as engine, connections() as client:
        async with posted(client, engine) as got:
            assert got.status == 200
        await engine.left.acquire()

        assert engine.written_bytes < 64 * 1024 * 1024


@pytest.mark.parametrize(
    ("timeouts", "play"),
    [
        pytest.param({"first_byte_s": 0.05}, HANGS, id="no head"),
        pytest.param({"first_byte_s": 0.05}, (STREAM_HEAD, End.HANG), id="a head alone"),
        pytest.param({"idle_s": 0.05}, (STREAM_HEAD, chunk(b"one"), End.HANG), id="silence"),
        pytest.param({"total_s": 0.05}, (STREAM_HEAD, Endless(chunk(b"x"), 0.01)), id="in all"),
    ],
)
async def test_every_phase_has_its_time(timeouts: dict[str, float], play: Play) -> None:
    """An engine that takes longer is given up, and loses its connection."""
    async with RawEngine([play]) as engine, connections(**timeouts) as client:
        assert await reason_of(client, engine) is Reason.UPSTREAM_TIMEOUT
        await engine.left.acquire()
        assert client.active == 0


async def test_a_slow_client_is_not_the_engines_silence() -> None:
    """While the client is busy with a piece the engine's time does not run."""
    busy: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    go_on = asyncio.Event()
    taken: list[bytes] = []

    def take(piece: bytes) -> Awaitable[None]:
        taken.append(piece)
        return busy

    play = (STREAM_HEAD, chunk(b"one"), go_on, chunk(b"two") + LAST_CHUNK)
    silent = (STREAM_HEAD, chunk(b"one"), End.HANG)
    async with RawEngine([play, silent]) as engine, connections(idle_s=0.05) as client:

        async def ask() -> None:
            async with posted(client, engine) as got:
                await got.pour(take)

        slow = asyncio.ensure_future(ask())
        await engine.arrived.acquire()
        # The other request began later and is given up, and so would this one be.
        assert await reason_of(client, engine) is Reason.UPSTREAM_TIMEOUT
        busy.set_result(None)
        go_on.set()
        await slow

    assert taken == [b"one", b"two"]


async def test_a_connection_closed_for_its_idleness_costs_nothing() -> None:
    """The engine closes it before or just as the request comes: the answer comes over a new one, made once."""
    async with RawEngine() as engine, connections() as client:
        await body_of(client, engine)
        while not await engine.close_idle():  # it has yet to see that its answer is out
            await asyncio.sleep(0)

        assert await body_of(client, engine) == completion()
        assert [request.connection for request in engine.requests] == [1, 2]


@pytest.mark.parametrize("ends", [STALE, CLOSES], ids=["reset", "closed"])
async def test_a_request_that_meets_the_close_goes_out_once_more(ends: Play) -> None:
    """On a connection that was used before, without a byte of an answer: once, and not a third time."""
    async with RawEngine([(answer(b"one"),), ends, ends]) as engine, connections() as client:
        await body_of(client, engine)

        assert await reason_of(client, engine) is Reason.UPSTREAM_LOST
        assert [request.connection for request in engine.requests] == [1, 1, 2]


async def test_an_engine_that_dies_at_its_work_is_not_asked_again() -> None:
    """After a second without an answer it was no idle connection: the request may have killed it."""
    dies = asyncio.Event()
    async with RawEngine([(answer(b"one"),), (dies, End.RESET)]) as engine, connections() as client:
        await body_of(client, engine)
        asyncio.get_running_loop().call_later(1.05, dies.set)

        assert await reason_of(client, engine) is Reason.UPSTREAM_LOST
        assert len(engine.requests) == 2


async def test_nobody_listens(unused_port: int) -> None:
    """A refused connection is told at once."""
    async with connections() as client:
        with pytest.raises(RequestError, match=Reason.NO_HEALTHY_UPSTREAM):
            async with client.post(Origin.of(f"http://127.0.0.1:{unused_port}"), "/", b"", b"{}"):
                pass
        assert client.active == 0


async def test_a_name_that_cannot_be_one_is_no_upstream() -> None:
    """What the resolver refuses is told as an engine that cannot be reached."""
    async with connections() as client:
        with pytest.raises(RequestError, match=Reason.NO_HEALTHY_UPSTREAM):
            async with client.post(Origin.of(f"http://{'x' * 64}.invalid:1"), "/", b"", b"{}"):
                pass


@contextlib.contextmanager
def black_hole():  # noqa: ANN201  a fixture of two tests
    """The port of a listener whose queue is full: connections to it are neither taken nor refused."""
    with socket.socket() as listener:
        listener.bind((server.LOOPBACK, 0))
        listener.listen(0)
        with contextlib.ExitStack() as waiting:
            for _ in range(4):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
            yield listener.getsockname()[1]


async def test_an_address_that_does_not_answer_has_its_time() -> None:
    """A connection that is not made in time is given up."""
    with black_hole() as port:
        async with connections(connect_s=0.05) as client:
            with pytest.raises(RequestError, match=Reason.NO_HEALTHY_UPSTREAM):
                async with client.post(Origin.of(f"http://127.0.0.1:{port}"), "/", b"", b"{}"):
                    pass


async def test_a_client_that_leaves_while_a_connection_is_made_leaves_none() -> None:
    """The attempt ends with it."""
    with black_hole() as port:
        async with connections(connect_s=60) as client:

            async def ask() -> None:
                async with client.post(Origin.of(f"http://127.0.0.1:{port}"), "/", b"", b"{}"):
                    pass

            leaving = asyncio.ensure_future(ask())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not leaving.done()
            leaving.cancel()
            await asyncio.wait({leaving})

            assert leaving.cancelled()
            assert client.active == 0


async def test_three_hundred_clients_leave_at_any_moment() -> None:
    """Whichever await they leave at, no connection stays behind, and the next request is served."""
    dice = random.Random(7)  # noqa: S311  a seed, not a secret
    stream = (STREAM_HEAD, *(chunk(b"x") for _ in range(6)), LAST_CHUNK)

    def take(_piece: bytes) -> Awaitable[None]:
        return _later()

    async def ask() -> None:
        async with posted(client, engine) as got:
            await got.pour(take)

    async with RawEngine() as engine, connections() as client:
        engine.script(*[stream] * 300)
        asked: set[asyncio.Future[None]] = set()
        for _ in range(300):
            asked.add(asking := asyncio.ensure_future(ask()))
            for _ in range(dice.randrange(25)):
                await asyncio.sleep(0)
            asking.cancel()
        await asyncio.wait(asked)
        assert client.active == 0
        assert sum(each.cancelled() for each in asked) > 100

        assert await body_of(client, engine) in (b"xxxxxx", completion())
        await client.close()
        while engine.open:
            await asyncio.sleep(0)


async def test_who_waits_for_an_answer_is_told_when_all_is_closed() -> None:
    """Nobody hangs, and nobody connects again."""
    async with RawEngine([HANGS]) as engine, connections() as client:
        asking = asyncio.ensure_future(reason_of(client, engine))
        await engine.arrived.acquire()
        await client.close()

        assert await asking is Reason.UPSTREAM_LOST
        assert await reason_of(client, engine) is Reason.NO_HEALTHY_UPSTREAM
        assert client.active == 0
