"""HTTP/1.1 as the proxy's server speaks it, byte by byte, on both event loops."""

import asyncio
import contextlib
import json
import resource
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import structlog.testing
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.server import ServerState

from muster_observability import server
from muster_proxy.app import create_app
from muster_proxy.keys import KeySettings, digest_of
from muster_proxy.protocol import HttpServer, Limits
from muster_proxy.settings import ProxySettings, UpstreamSettings
from muster_proxy.testing import Endless, FakeVllm, RawEngine, Reply
from muster_proxy.testing.raw_http import STREAM_HEAD, chunk, event
from tests.proxy.asking import body as asked
from tests.proxy.processes import proxy_process
from tests.proxy.raw_client import RawClient, ask, request

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

CHAT = "/v1/chat/completions"
KEY = "sk-muster-one-key-of-the-tenant-acme"

SHORT_S = 0.05
SWEEP_S = 0.01


@pytest.fixture(
    scope="module",
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Both event loops: their transports differ, and uvicorn takes the second where it can."""
    return request.param


@pytest.fixture(autouse=True)
async def no_loose_errors() -> AsyncIterator[None]:
    """Fail a test in which an exception reached the event loop."""
    loose: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: loose.append(context))
    yield
    asyncio.get_running_loop().set_exception_handler(None)
    assert not loose


@contextlib.asynccontextmanager
async def serving(app: App, limits: Limits | None = None) -> AsyncGenerator[tuple[int, uvicorn.Server]]:
    """The port and the server of an application that knows no lifespan."""
    with server.bind(0, "") as listener:
        async with server.serving(app, listener, server.Manner(HttpServer(limits))) as running:
            yield listener.getsockname()[1], running


@contextlib.asynccontextmanager
async def proxying(*urls: str, limits: Limits | None = None, **fields: Any) -> AsyncGenerator[int]:
    """The port of a proxy that is ready."""
    settings = ProxySettings(upstreams=[UpstreamSettings(url=url) for url in urls], **fields)
    with server.bind(0, "") as listener:
        port: int = listener.getsockname()[1]
        app = create_app(settings)
        async with server.serving(app, listener, server.Manner(HttpServer(limits))):
            while (await ask(port, request("GET", "/health/ready"))).status != 200:
                await asyncio.sleep(0)
            yield port


def limits(**fields: float) -> Limits:
    """Limits that are looked at often."""
    return Limits(sweep_s=SWEEP_S, **fields)  # type: ignore[arg-type]


async def read(receive: Receive) -> bytes | None:
    """A request's body; None if the client left before its end."""
    held = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        held += message["body"]
        if not message["more_body"]:
            return held


async def head(send: Send, status: int = 200, *headers: tuple[bytes, bytes]) -> None:
    """Send the head of an answer."""
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def piece(send: Send, content: bytes = b"", *, more: bool = False) -> None:
    """Send a piece of an answer; the last one, unless more are to come."""
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def reply(send: Send, content: bytes, status: int = 200) -> None:
    """Send a whole answer."""
    await head(send, status, (b"content-length", b"%d" % len(content)))
    await piece(send, content)


def told_of(scope: MutableMapping[str, Any], content: bytes | None) -> bytes:
    """What the application has been told of a request, as JSON."""
    names = [name.decode() for name, _ in scope["headers"]]
    told = {name: scope[name] for name in ("method", "path", "http_version")}
    told |= {"raw": scope["raw_path"].decode(), "query": scope["query_string"].decode(), "names": names}
    return json.dumps(told | {"body": None if content is None else content.decode("latin-1")}).encode()


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the request."""
    assert scope["type"] == "http"
    await reply(send, told_of(scope, await read(receive)))


async def nobody(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Fail: no request may come so far."""
    raise AssertionError("a request reached the application")


def lifeless(app: App) -> App:
    """An application without a lifespan."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await app(scope, receive, send)

    return served


def on(head_lines: bytes, content: bytes = b"") -> bytes:
    """A POST with these lines in its head."""
    return b"POST / HTTP/1.1\r\n" + head_lines + b"\r\n\r\n" + content


CHUNKED = b"host: h\r\ntransfer-encoding: chunked"
FAULTY: dict[str, bytes] = {
    "length and chunks": on(CHUNKED + b"\r\ncontent-length: 2", b"0\r\n\r\n"),
    "two lengths": on(b"host: h\r\ncontent-length: 2\r\ncontent-length: 2", b"ab"),
    "a list of lengths": on(b"host: h\r\ncontent-length: 2, 2", b"ab"),
    "lengths that differ": on(b"host: h\r\ncontent-length: 2\r\ncontent-length: 3", b"ab"),
    "a huge length": on(b"host: h\r\ncontent-length: 99999999999999999999"),
    "a negative length": on(b"host: h\r\ncontent-length: -1"),
    "space before the colon": on(b"host: h\r\ntransfer-encoding : chunked", b"0\r\n\r\n"),
    "another encoding": on(b"host: h\r\ntransfer-encoding: gzip, chunked", b"0\r\n\r\n"),
    "two encodings": on(CHUNKED + b"\r\ntransfer-encoding: chunked", b"0\r\n\r\n"),
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": on(b"host: h\r\na: b\r\n c"),
    "bare line feeds": b"GET / HTTP/1.1\nhost: h\n\n",
    "a bare carriage return": on(b"host: h\r\na: b\rc"),
    "a NUL": on(b"host: h\r\na: b\0c"),
    "chunk size in C": on(CHUNKED, b"0x2\r\nab\r\n0\r\n\r\n"),
    "chunk size of 17 digits": on(CHUNKED, b"11111111111111111\r\n"),
    "chunk longer than its size": on(CHUNKED, b"2\r\nabc\r\n0\r\n\r\n"),
    "line feed in an extension": on(CHUNKED, b"2;a\nb\r\nab\r\n0\r\n\r\n"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nhost: x/#@evil\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n",
    "a host that is not ASCII": b"GET / HTTP/1.1\r\nhost: \xc3\xa4\r\n\r\n",
    "a target without a slash": b"GET @evil HTTP/1.1\r\nhost: h\r\n\r\n",
    "an absolute target": b"GET http://evil/ HTTP/1.1\r\nhost: h\r\n\r\n",
    "a target that is not ASCII": b"GET /\xc3\xa4 HTTP/1.1\r\nhost: h\r\n\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\nhost: h\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.1": b"GET / HTTP/3.1\r\nhost: h\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("content", FAULTY.values(), ids=FAULTY.keys())
async def test_what_is_not_strict_http_is_a_400_and_the_end(content: bytes) -> None:
    """What follows it on the connection never reaches the application."""
    answered: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (sent := await read(receive)) is not None:
            answered.append(sent)
            await reply(send, b"")
        del scope

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        with structlog.testing.capture_logs() as logged:
            client.send(content + request("GET", "/second"))
            answer = await client.answer()

        assert answer.status == 400
        assert answer.error["code"] == "invalid_http"
        assert answer.headers["connection"] == "close"
        assert [line["request_id"] for line in logged if line["event"] == "refused"] == [
            answer.headers["x-request-id"]
        ]
        assert await client.rest() == b""
        assert not answered


@pytest.mark.parametrize(
    "content",
    [b"BREW / HTTP/1.1\r\nhost: h\r\n\r\n", b"CONNECT evil:443 HTTP/1.1\r\nhost: evil:443\r\n\r\n"],
    ids=["unknown", "CONNECT"],
)
async def test_a_method_of_no_url_is_a_405(content: bytes) -> None:
    """With those that there are, and the end of the connection."""
    async with serving(lifeless(nobody)) as (port, _), RawClient.connected(port) as client:
        client.send(content)
        answer = await client.answer()

        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD, POST"
        assert answer.headers["x-request-id"]
        assert await client.rest() == b""


LARGE: dict[str, bytes] = {
    "a long line": b"x: " + b"a" * 65_537 + b"\r\n\r\n",
    "a line without an end": b"x: " + b"a" * 400_000,
    "a name without an end": b"a" * 400_000,
    "many headers": b"x: a\r\n" * 101 + b"\r\n",
    "many long headers": (b"x: " + b"a" * 9_000 + b"\r\n") * 8 + b"\r\n",
}


@pytest.mark.parametrize("content", LARGE.values(), ids=LARGE.keys())
@pytest.mark.parametrize("step", [1_000, 1_000_000])
async def test_a_large_head_is_a_431(content: bytes, step: int) -> None:
    """Whether it comes at once or by and by, and whether it ends or not."""
    async with serving(lifeless(nobody)) as (port, _), RawClient.connected(port) as client:
        client.send(b"GET / HTTP/1.1\r\nhost: h\r\n")
        for at in range(0, len(content), step):
            client.send(content[at : at + step])
        answer = await client.answer()

        assert answer.status == 431
        assert answer.error["code"] == "headers_too_large"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("step", [10_000, 30_000, 1_000_000])
async def test_a_head_within_the_limit_is_taken_however_it_comes(step: int) -> None:
    """Of 60,000 bytes in four headers; a body of many times that in the same packet does not count."""
    content = request("POST", "/", *[f"x: {'a' * 14_990}"] * 4, body=b"b" * 100_000)
    async with serving(lifeless(echo)) as (port, _), RawClient.connected(port) as client:
        for _ in range(2):
            for at in range(0, len(content), step):
                client.send(content[at : at + step])
                await asyncio.sleep(0)
            assert len((await client.answer()).body) > 100_000


async def test_a_trailer_without_an_end_is_a_431() -> None:
    """It would be kept until the body's deadline."""
    told: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        told.put_nowait(await read(receive))

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        client.send(on(CHUNKED, b"1\r\na\r\n0\r\n") + b"x: " + b"a" * 800_000)

        assert (await client.answer()).status == 431
        assert await told.get() is None


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET / HTTP/1.1\r\nho", 408),
        (on(b"host: h\r\ncontent-length: 10", b"a"), 408),
        (on(CHUNKED, b"2\r\na"), 408),
        (request("GET", "/first") + b"GET / HT", 408),
    ],
    ids=["head", "body", "chunk", "next head"],
)
async def test_a_request_that_does_not_come_whole_in_time_is_a_408(content: bytes, status: int) -> None:
    """And the application hears that its client has gone."""
    told: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        told.put_nowait(await read(receive))
        if scope["path"] == "/first":
            await reply(send, b"")

    quick = limits(head_timeout_s=SHORT_S, body_timeout_s=SHORT_S)
    async with serving(lifeless(app), quick) as (port, _), RawClient.connected(port) as client:
        client.send(content)
        if b"/first" in content:
            assert (await client.answer()).status == 200
        answer = await client.answer()

        assert answer.status == status
        assert answer.error["code"] == "request_timeout"
        assert answer.headers["x-request-id"]
        assert await client.rest() == b""
        if b"POST" in content:
            assert await told.get() is None


async def test_heads_that_trickle_end_while_others_are_served() -> None:
    """Two hundred of them."""
    async with (
        serving(lifeless(echo), limits(head_timeout_s=SHORT_S)) as (port, running),
        contextlib.AsyncExitStack() as stack,
    ):
        slow = [await stack.enter_async_context(RawClient.connected(port)) for _ in range(200)]
        for client in slow:
            client.send(b"G")
        while running.server_state.total_requests == 0:
            assert (await ask(port, request())).status == 200
        for client in slow:
            assert (await client.answer()).status == 408
            assert await client.rest() == b""


async def test_a_body_whose_turn_comes_late_has_its_whole_time() -> None:
    """And no more than that, though it was waited for behind another answer."""
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/first":
            await gate.wait()
        if await read(receive) is not None:
            await reply(send, b"")

    async with (
        serving(lifeless(app), limits(body_timeout_s=SHORT_S)) as (port, _),
        RawClient.connected(port) as client,
    ):
        client.send(request("GET", "/first") + on(b"host: h\r\ncontent-length: 10", b"a"))
        await asyncio.sleep(SHORT_S * 2)
        gate.set()
        assert (await client.answer()).status == 200
        assert (await client.answer()).status == 408


async def test_an_idle_connection_is_closed() -> None:
    """Before its first request and after it, without a word."""
    async with serving(lifeless(echo), limits(idle_timeout_s=SHORT_S)) as (port, _):
        async with RawClient.connected(port) as client:
            assert await client.rest() == b""
        async with RawClient.connected(port) as client:
            client.send(request())
            assert (await client.answer()).status == 200
            assert await client.rest() == b""


async def endless(_scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for as long as the client reads."""
    await read(receive)
    left = asyncio.ensure_future(receive())
    await head(send)
    while not left.done():
        await piece(send, b"x" * 65_536, more=True)


async def test_a_client_that_does_not_read_is_waited_for_and_then_left() -> None:
    """The application's sending waits, so that no more than some buffers are full; then its client has gone."""
    sent = 0
    over = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent

        async def counted(message: Message) -> None:
            nonlocal sent
            sent += len(message.get("body", b""))
            await send(message)

        await endless(scope, receive, counted)
        over.set()

    async with (
        serving(lifeless(app), limits(stall_timeout_s=SHORT_S)) as (port, running),
        RawClient.connected(port, 4_096) as client,
    ):
        client.send(request())
        await over.wait()
        assert sent < 32 * 1024 * 1024
        while running.server_state.connections:
            await asyncio.sleep(0)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("size", [10_000_000, 3_000_000])
async def test_an_answer_that_nobody_reads_ends_with_a_reset(version: str, size: int) -> None:
    """The connection does not stay for ever, and what was read cannot be taken for all."""

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await head(send)
        await piece(send, b"x" * size)

    async with (
        serving(lifeless(app), limits(stall_timeout_s=SHORT_S)) as (port, running),
        RawClient.connected(port, 4_096) as client,
    ):
        client.send(request("GET", "/", version=version))
        while running.server_state.total_requests == 0:
            await asyncio.sleep(0)
        while running.server_state.connections:
            await asyncio.sleep(0)
        with pytest.raises((ConnectionError, EOFError)):
            await client.answer()


async def test_pipelined_requests_are_answered_in_order() -> None:
    """One at a time, though all have come; a body that comes in pieces behind them is read too."""
    working = peak = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal working, peak
        working += 1
        peak = max(peak, working)
        content = await read(receive)
        await asyncio.sleep(0)
        working -= 1
        await reply(send, scope["path"].encode() + b" " + (content or b""))

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        last = request("POST", "/4", body=b"0123456789")
        client.send(b"".join(request("POST", f"/{n}", body=b"ab") for n in range(4)) + last[:-5])
        await asyncio.sleep(0.01)
        client.send(last[-5:])
        told = [(await client.answer()).body for _ in range(5)]

        assert told == [b"/0 ab", b"/1 ab", b"/2 ab", b"/3 ab", b"/4 0123456789"]
        assert peak == 1


async def test_what_is_wrong_behind_good_requests_is_told_after_their_answers() -> None:
    """A head or a body; the application never hears of a request whose body is broken before its turn."""
    heard: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(scope["path"])
        await echo(scope, receive, send)

    for faulty in (b"GET nothing\r\n\r\n", on(CHUNKED, b"0x2\r\n").replace(b"POST /", b"POST /broken")):
        async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
            client.send(request("GET", "/1") + request("GET", "/2") + faulty)
            assert [(await client.answer()).status for _ in range(3)] == [200, 200, 400]
            assert await client.rest() == b""
    assert heard == ["/1", "/2"] * 2


async def test_too_many_pipelined_requests_are_refused() -> None:
    """Each is held with its head until its turn."""
    async with serving(lifeless(echo), limits(pipelined=4)) as (port, _), RawClient.connected(port) as client:
        client.send(request() * 8)

        assert [(await client.answer()).status for _ in range(6)] == [200] * 5 + [400]


async def test_more_than_the_length_is_no_part_of_the_body() -> None:
    """It is the next request, and a bad one."""
    async with serving(lifeless(echo)) as (port, _), RawClient.connected(port) as client:
        client.send(request("POST", "/", body=b"ab") + b"cd\r\n\r\n")

        assert json.loads((await client.answer()).body)["body"] == "ab"
        assert (await client.answer()).status == 400


async def test_a_stream_goes_on_while_more_is_sent_than_is_kept() -> None:
    """None of it is taken for the client's leaving, and all of it is read afterwards."""
    gate = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        content = await read(receive)
        if scope["path"] == "/stream":
            left = asyncio.ensure_future(receive())
            await head(send)
            await piece(send, b"one", more=True)
            await gate.wait()
            assert not left.done()
            await piece(send, b"two")
        else:
            await reply(send, b"%d" % len(content or b""))

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        client.send(request("GET", "/stream"))
        await client.read_until(b"one\r\n")
        client.send(request("POST", "/next", body=b"x" * 5_000_000))
        await asyncio.sleep(0.01)
        gate.set()

        assert await client.chunk() == b"two"
        assert await client.chunk() == b""
        assert (await client.answer()).body == b"5000000"


CHUNKS = b'2;a="b";c\r\nab\r\n1\r\nc\r\n0;d\r\nx-trailer: t\r\n\r\n'


async def test_chunks_may_have_extensions_and_trailers() -> None:
    """Neither is read, and neither becomes a header."""
    async with serving(lifeless(echo)) as (port, _), RawClient.connected(port) as client:
        client.send(on(CHUNKED, CHUNKS) + request())
        told = json.loads((await client.answer()).body)

        assert told["body"] == "abc"
        assert "x-trailer" not in told["names"]
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("step", [1, 30, 1_000])
@pytest.mark.parametrize("offer", ["h2c", "websocket"])
async def test_an_offer_of_another_protocol_is_passed_over(offer: str, step: int) -> None:
    """Java's HTTP client makes it with its first request, body or not; the connection goes on."""
    names = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {offer}", "http2-settings: AAEAA")
    content = request("POST", "/a?b", *names, body=b"ab")
    content += request("GET", "/b", *names) + on(CHUNKED + b"\r\n" + "\r\n".join(names).encode(), CHUNKS)
    content += request("POST", "/c", *names, "connection: close", body=b"")
    async with serving(lifeless(echo)) as (port, _), RawClient.connected(port) as client:
        for at in range(0, len(content), step):
            client.send(content[at : at + step])
            await asyncio.sleep(0)
        told = [json.loads((await client.answer()).body) for _ in range(4)]

        assert [(each["raw"], each["query"], each["body"]) for each in told] == [
            ("/a", "b", "ab"),
            ("/b", "", ""),
            ("/", "", "abc"),
            ("/c", "", ""),
        ]
        assert await client.rest() == b""


async def test_very_many_offers_in_one_packet_are_passed_over() -> None:
    """However deep they would nest."""
    async with (
        serving(lifeless(echo), limits(pipelined=10_000)) as (port, _),
        RawClient.connected(port) as client,
    ):
        client.send(request("POST", "/", "connection: upgrade", "upgrade: h2c", body=b"a") * 2_000)
        for _ in range(2_000):
            assert (await client.answer()).status == 200


async def test_a_client_that_waits_for_leave_to_send_its_body_is_given_it() -> None:
    """Once the body is wanted, and not where the answer needs none or the client speaks HTTP/1.0."""
    async with serving(lifeless(echo)) as (port, _), RawClient.connected(port) as client:
        content = request("POST", "/", "expect: 100-continue", body=b"ab")
        client.send(content[:-2])
        assert await client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"ab")
        assert json.loads((await client.answer()).body)["body"] == "ab"
        client.send(content)
        assert (await client.answer()).status == 200

    async with serving(lifeless(early)) as (port, _), RawClient.connected(port) as client:
        client.send(content[:-2])
        assert (await client.answer()).status == 413


async def test_http_1_0_gets_its_answer_and_the_end() -> None:
    """With `keep-alive` too; an answer without a length has no chunks, which it would not know."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await (head(send) if scope["path"] == "/stream" else reply(send, b"whole"))
        if scope["path"] == "/stream":
            await piece(send, b"one", more=True)
            await piece(send, b"two")

    async with serving(lifeless(app)) as (port, _):
        for target, content in (("/", b"whole"), ("/stream", b"onetwo")):
            for names in ((), ("connection: keep-alive",)):
                async with RawClient.connected(port) as client:
                    client.send(request("GET", target, *names, version="1.0"))
                    answer = await client.answer()
                    assert answer.body == content
                    assert answer.headers["connection"] == "close"
                    assert "transfer-encoding" not in answer.headers
                    assert await client.rest() == b""


async def test_head_has_the_head_alone() -> None:
    """Whatever body the application sends, with or without a length."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await (reply(send, b"body") if scope["path"] == "/" else head(send))
        if scope["path"] != "/":
            await piece(send, b"body", more=True)
            await piece(send, b"body")

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        for target, length in (("/", "4"), ("/stream", None)):
            client.send(request("HEAD", target))
            answer = await client.answer(is_bodiless=True)
            assert answer.headers.get("content-length") == length
        client.send(request())
        assert (await client.answer()).body == b"body"


async def test_answers_without_a_body_have_no_frame() -> None:
    """A 204 is followed at once by the next answer; a status that has no name is sent without."""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        await head(send, int(scope["path"][1:]))
        await piece(send)

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        client.send(request("GET", "/204") + request("GET", "/599"))
        answer = await client.answer(is_bodiless=True)
        assert "transfer-encoding" not in answer.headers
        assert (await client.answer()).status == 599


async def early(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer without a look at the body."""
    await reply(send, b"too large", 413)


async def test_an_answer_that_does_not_wait_for_the_body_is_read() -> None:
    """A client that is still sending fifty megabytes gets it before the connection ends."""
    async with serving(lifeless(early)) as (port, _), RawClient.connected(port) as client:
        client.send(request("POST", "/", body=b"x" * 50_000_000))
        await client.drained()
        answer = await client.answer()

        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert await client.rest() == b""


async def test_a_client_that_goes_on_sending_is_left() -> None:
    """What it sends after its answer is passed over for a time."""
    async with (
        serving(lifeless(early), limits(linger_s=SHORT_S)) as (port, running),
        RawClient.connected(port) as client,
    ):
        client.send(on(b"host: h\r\ncontent-length: 1000000000"))
        assert (await client.answer()).status == 413
        while running.server_state.connections:
            client.send(b"x")
            await asyncio.sleep(0)


@pytest.mark.parametrize("way", ["end", "reset"])
@pytest.mark.parametrize(
    "content",
    [b"", b"GET / HT", on(b"host: h\r\ncontent-length: 100", b"0123456789"), on(CHUNKED, b"5\r\nab")],
    ids=["nothing", "head", "body", "chunk"],
)
async def test_a_client_that_leaves_before_its_request_is_whole_is_forgotten(
    content: bytes, way: str
) -> None:
    """The application, if asked, is told so, and nothing is answered."""
    told: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        told.put_nowait(await read(receive))
        await reply(send, b"for nobody")

    async with serving(lifeless(app)) as (port, running), RawClient.connected(port) as client:
        client.send(content)
        while not running.server_state.connections:
            await asyncio.sleep(0)
        if way == "end":
            client.end()
            assert await client.rest() == b""
        else:
            client.reset()
        while running.server_state.connections or running.server_state.tasks:
            await asyncio.sleep(0)
        assert told.qsize() == content.startswith(b"POST")
        if content.startswith(b"POST"):
            assert await told.get() is None


async def test_a_half_close_during_a_blocked_answer_is_heard_at_once() -> None:
    """Though what was sent has not been read yet."""
    gone = asyncio.Event()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        await head(send)
        await piece(send, b"x" * 10_000_000, more=True)
        await read(receive)
        gone.set()

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port, 4_096) as client:
        client.send(request())
        await client.read_until(b"\r\n\r\n")
        client.end()
        await gone.wait()


async def short(send: Send) -> None:
    """Promise more than is sent."""
    await head(send, 200, (b"content-length", b"10"))
    await piece(send, b"short")


async def long(send: Send) -> None:
    """Send more than was promised."""
    await head(send, 200, (b"content-length", b"2"))
    await piece(send, b"more", more=True)
    await piece(send)


async def unfinished(send: Send) -> None:
    """End in the middle."""
    await head(send)
    await piece(send, b"one", more=True)


async def failing(send: Send) -> None:
    """Fail in the middle."""
    await unfinished(send)
    raise ZeroDivisionError


async def silent(_send: Send) -> None:
    """Answer nothing."""


async def headless(send: Send) -> None:
    """Send a body alone."""
    await piece(send, b"one")


async def two_headed(send: Send) -> None:
    """Send two heads."""
    await head(send)
    await head(send, 500)


async def forging(send: Send) -> None:
    """Send a header with another in it."""
    await head(send, 200, (b"x", b"a\r\nset-cookie: b"))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("bad", [short, long, unfinished, failing, silent, headless, two_headed, forging])
async def test_a_broken_answer_is_never_taken_for_whole(
    bad: Callable[[Send], Awaitable[None]], version: str
) -> None:
    """The connection is broken off, and the next one is served."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await (bad(send) if scope["path"] == "/bad" else echo(scope, receive, send))

    async with serving(lifeless(app)) as (port, _), RawClient.connected(port) as client:
        client.send(request("GET", "/bad", version=version) + request("GET", "/never"))
        with pytest.raises((ConnectionError, EOFError)):
            await client.answer()
        assert b"set-cookie" not in await client.rest()
        assert (await ask(port, request())).status == 200


@pytest.mark.parametrize("header", [(b"a", b"b\nc"), (b"a", b"b\rc"), (b"a\r\nb", b"c"), (b"a", b"\r\n")])
async def test_an_applications_header_stays_in_its_line(header: tuple[bytes, bytes]) -> None:
    """The application is told by a ValueError, and can still answer."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        with pytest.raises(ValueError, match="one line each"):
            await head(send, 200, header)
        await reply(send, b"", 500)

    async with serving(lifeless(app)) as (port, _):
        assert (await ask(port, request())).status == 500


async def test_the_date_is_told_once_by_every_answer() -> None:
    """By those of the server itself too."""
    async with serving(lifeless(echo)) as (port, running):
        running.server_state.default_headers = [(b"date", b"Thu, 01 Jan 2026 00:00:00 GMT")]
        for content in (request(), b"GET nothing\r\n\r\n"):
            assert (await ask(port, content)).headers["date"] == "Thu, 01 Jan 2026 00:00:00 GMT"


async def test_a_stop_lets_what_is_being_answered_finish() -> None:
    """It closes idle connections at once, those in the middle of a head too, and the busy one after its answer."""
    gate = asyncio.Event()
    begun = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await gate.wait()
        await echo(scope, receive, send)

    async with serving(lifeless(app)) as (port, running), contextlib.AsyncExitStack() as stack:
        idle, half, busy = [await stack.enter_async_context(RawClient.connected(port)) for _ in range(3)]
        half.send(b"GET / HT")
        busy.send(request() + request("GET", "/pipelined"))
        await begun.wait()
        while len(running.server_state.connections) < 3:
            await asyncio.sleep(0)

        for connection in tuple(running.server_state.connections):
            connection.shutdown()

        assert await idle.rest() == b""
        assert await half.rest() == b""
        gate.set()
        answer = await busy.answer()
        assert answer.status == 200
        assert answer.headers["connection"] == "close"
        assert await busy.rest() == b""


# The proxy behind it.


@pytest.fixture
async def fake() -> AsyncIterator[FakeVllm]:
    """A fake engine on the loop of the test."""
    async with FakeVllm() as engine:
        yield engine


def chat(*headers: str, **fields: Any) -> bytes:
    """A chat completion request."""
    return request("POST", CHAT, *headers, body=json.dumps(asked(**fields)).encode())


def keyed() -> dict[str, Any]:
    """Settings with a key."""
    return {"keys": [KeySettings(digest=digest_of(KEY), tenant="acme")]}


async def test_pipelined_requests_have_their_own_keys_and_ids(fake: FakeVllm) -> None:
    """Nothing of one is taken for the next."""
    key = f"authorization: Bearer {KEY}"
    async with proxying(fake.url, **keyed()) as port, RawClient.connected(port) as client:
        client.send(chat(key, "x-request-id: a") + chat("x-request-id: b") + chat(key))
        answers = [await client.answer() for _ in range(3)]

        assert [answer.status for answer in answers] == [200, 401, 200]
        ids = [answer.headers["x-request-id"] for answer in answers]
        assert ids[:2] == ["a", "b"]
        assert ids[2].startswith("req_")


TARGETS = {
    "//v1/models": 404,
    "/v1/../v1/models": 404,
    "/v1/%2e%2e/v1/models": 404,
    "/v1%2fmodels": 404,
    "/v1%2Fmodels": 404,
    "/V1/models": 404,
    "/v1/models/": 401,  # a model without a name
    "/v1/models%00": 404,
    "/v1/models?x=/health/live": 401,
    "/v1/%6dodels": 401,
    "/health/live%2f../../v1/models": 404,
    "/v1/models;x": 404,
    "/v1/models#x": 404,
    "/health/live": 200,
}


@pytest.mark.parametrize(("target", "status"), TARGETS.items())
async def test_who_may_ask_depends_on_the_path_alone(fake: FakeVllm, target: str, status: int) -> None:
    """No writing of it, no host and no header of a proxy leads past the key, and none is redirected."""
    forged = (
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: h",
        "x-forwarded-proto: https",
        "forwarded: for=127.0.0.1",
        "x-original-url: /health/live",
        "x-rewrite-url: /health/live",
        "x-http-method-override: DELETE",
    )
    async with proxying(fake.url, **keyed()) as port:
        for headers in ((), forged):
            assert (await ask(port, request("GET", target, *headers))).status == status


async def test_a_forged_address_of_a_client_is_not_believed(fake: FakeVllm) -> None:
    """Wrong keys are counted against the peer, whatever it says of itself."""
    async with proxying(fake.url, **keyed()) as port, RawClient.connected(port) as client:
        statuses: set[int] = set()
        for number in range(100):
            client.send(
                request("GET", "/v1/models", f"x-forwarded-for: 10.0.0.{number}", "x-api-key: sk-wrong")
            )
            statuses.add((await client.answer()).status)
        assert statuses == {401, 429}


ANSWERS: dict[str, tuple[bytes, int]] = {
    "parser": (b"GET nothing\r\n\r\n", 400),
    "431": (request("GET", "/", "x: " + "a" * 70_000), 431),
    "404": (request("GET", "/nothing"), 404),
    "websocket": (request("GET", "/nothing", "connection: upgrade", "upgrade: websocket"), 404),
    "405": (request("DELETE", CHAT), 405),
    "TRACE": (request("TRACE", CHAT), 405),
    "CONNECT": (request("CONNECT", CHAT), 405),
    "BREW": (request("BREW", CHAT), 405),
    "413": (request("POST", CHAT, "content-length: 99999999999"), 413),
    "415": (request("POST", CHAT, "content-encoding: gzip", body=b"x"), 415),
    "400": (request("POST", CHAT, body=b"{"), 400),
    "408": (request("POST", CHAT, "content-length: 3"), 408),
    "model": (chat(model="no-such-model"), 404),
}


@pytest.mark.parametrize(("content", "status"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_refusal_is_an_error_with_an_id(fake: FakeVllm, content: bytes, status: int) -> None:
    """In OpenAI's shape; one that is no call to an engine leaves one line in the log at most."""
    quick = limits(body_timeout_s=SHORT_S)
    async with proxying(fake.url, limits=quick) as port:
        with structlog.testing.capture_logs() as logged:
            answer = await ask(port, content)

        assert answer.status == status
        assert answer.error["type"] == "invalid_request_error"
        assert ("allow" in answer.headers) == (status == 405)
        assert answer.headers["x-request-id"]
        refused = {line["request_id"] for line in logged if line["event"] == "refused"}
        assert refused <= {answer.headers["x-request-id"]}


async def test_a_body_over_the_limit_is_refused_while_it_is_sent(fake: FakeVllm) -> None:
    """By its length or as it comes, and the client reads why."""
    async with proxying(fake.url, max_body_bytes=1_000_000) as port:
        for content in (
            request("POST", CHAT, body=b"x" * 50_000_000),
            b"POST %b HTTP/1.1\r\n%b\r\n\r\n2faf080\r\n%b" % (CHAT.encode(), CHUNKED, b"x" * 50_000_000),
        ):
            async with RawClient.connected(port) as client:
                client.send(content)
                assert (await client.answer()).status == 413
    assert not fake.requests


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_half_close_is_the_clients_leaving(fake: FakeVllm, is_stream: bool) -> None:
    """The same for a stream and for a whole answer: the engine stops, and nothing is answered any more."""
    gate = asyncio.Event()
    fake.script(Reply(release=gate) if not is_stream else Reply(pauses_after=1, resume=gate))
    async with proxying(fake.url) as port, RawClient.connected(port) as client:
        client.send(chat(stream=is_stream))
        await fake.arrived.acquire()
        if is_stream:
            await client.read_until(b"\n\n")
        client.end()

        await fake.aborted.acquire()
        assert b"[DONE]" not in await client.rest()
        gate.set()
        assert (await ask(port, chat())).status == 200


async def test_bytes_during_a_stream_are_not_the_clients_leaving(fake: FakeVllm) -> None:
    """The stream comes whole, and the request behind it is answered."""
    gate = asyncio.Event()
    fake.script(Reply(pauses_after=1, resume=gate))
    async with proxying(fake.url) as port, RawClient.connected(port) as client:
        client.send(chat(stream=True))
        await client.read_until(b"\n\n")
        client.send(chat()[:20])
        await asyncio.sleep(0.01)
        gate.set()
        assert (await client.read_until(b"0\r\n\r\n")).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        client.send(chat()[20:])
        assert (await client.answer()).status == 200


async def test_a_slow_reader_holds_its_engine_back_and_loses_its_slot() -> None:
    """The engine's sending stops when buffers are full; the stall's end closes its connection."""
    async with (
        RawEngine([(STREAM_HEAD, Endless(chunk(event("x" * 8_000))))]) as engine,
        proxying(engine.url, limits=limits(stall_timeout_s=1.0)) as port,
        RawClient.connected(port, 4_096) as client,
    ):
        client.send(chat(stream=True))
        await client.read_until(b"data: ")
        await engine.left.acquire()

        assert engine.written_bytes < 64 * 1024 * 1024
        metrics = (await ask(port, request("GET", "/metrics"))).body.decode()
        assert "\nmuster_in_flight 0.0" in metrics


async def until_ready(port: int) -> None:
    """Wait until a proxy is there and has an engine."""
    while True:
        with contextlib.suppress(OSError, EOFError):
            if (await ask(port, request("GET", "/health/ready"))).status == 200:
                return
        await asyncio.sleep(0.05)


def cpu_ticks(process: Path) -> int:
    """What the process has computed, in hundredths of a second."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.skipif(sys.platform != "linux", reason="descriptors and times are read in /proc")
async def test_a_proxy_without_descriptors_goes_on_with_what_it_has(fake: FakeVllm) -> None:
    """A stream that runs is not disturbed, nothing spins, and new clients are served when old ones have gone."""
    gate = asyncio.Event()
    fake.script(Reply(pauses_after=1, resume=gate))
    async with proxy_process(fake) as proxy:
        resource.prlimit(proxy.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        process = Path(f"/proc/{proxy.process.pid}")
        await until_ready(proxy.port)
        async with RawClient.connected(proxy.port) as client:
            client.send(chat(stream=True))
            await client.read_until(b"\n\n")
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(100):
                    await stack.enter_async_context(RawClient.connected(proxy.port))
                while len(list((process / "fd").iterdir())) < 60:
                    await asyncio.sleep(0.01)
                before = cpu_ticks(process)
                await asyncio.sleep(1.0)
                assert cpu_ticks(process) - before < 50
                gate.set()
                assert (await client.read_until(b"0\r\n\r\n")).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        await until_ready(proxy.port)
        assert (await ask(proxy.port, chat())).status == 200
        proxy.process.terminate()
        assert await proxy.process.wait() == 0


async def test_a_connection_that_comes_long_after_its_protocol_is_closed_when_it_is_overdue() -> None:
    """The loop makes the protocol first; connections that ended meanwhile must not end the watch over this one."""
    loop, state = asyncio.get_running_loop(), ServerState()
    config = uvicorn.Config(lifeless(echo))
    config.load()
    quick = HttpServer(Limits(head_timeout_s=0.05, linger_s=0.05, sweep_s=0.01))
    early = quick(config, state, {}, loop)
    await asyncio.sleep(0.03)  # a sweep that finds nobody
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        transport, _ = await loop.connect_accepted_socket(lambda: early, theirs)
        await loop.sock_sendall(ours, b"GET / HT")
        told = b""
        while piece := await loop.sock_recv(ours, 4096):
            told += piece

        transport.close()
        while state.connections:
            await asyncio.sleep(0)

    assert told.startswith(b"HTTP/1.1 408 ")
