"""The connections to engines: a small HTTP/1.1 client on httptools, as its cost is most of what a relay costs.

It does what the relay needs and nothing else: whole bodies out, answers in as they come, no redirects, no cookies, no
compression, no proxies. What it holds to:

- An answer's bytes are handed to a sink in the call in which they arrive (`Answer.pour`). A sink that returns something
  to wait for stops the reading until then; so nothing is buffered here but what the parser had already taken.
- Leaving `UpstreamClient.post` before the answer's last byte closes the connection, which is how an engine is told to
  abort. A connection is used again only after an answer that was whole.
- An engine may close an idle connection just when a request is sent on it. A connection that was used before and ends
  within a second, without one byte of an answer, has met that: the request goes out once more, on a new one.
- Every phase has its time: to connect, to the head, between two pieces, in all.
- Nothing that an engine sends grows without bound: heads, interim answers and whole bodies have limits.

Why a client of our own: docs/decisions/0005-server-and-client.md.
"""

import asyncio
import contextlib
import math
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeAlias, cast
from urllib.parse import urlsplit

import httptools

from muster_proxy.failures import Reason, RequestError

# vLLM (uvicorn) and llama.cpp close an idle connection after 5 s; ours go first, so that a request rarely meets one
# that the engine is closing.
_KEEPALIVE_S = 4.0
# However busy, a connection is not used for longer, so that a name that has moved is followed.
_MAX_AGE_S = 60.0
# A close that meets a request already under way is seen within a round trip.
_STALE_S = 1.0

# Between two pieces of a body too, where there are chunks' extensions and trailers.
_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADERS = 200

_SWEEP_S = 0.5

Sink: TypeAlias = Callable[[bytes], Awaitable[object] | None]
"""Takes a piece of an answer; what it returns, if anything, is awaited before there is another."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that an engine has.

    Attributes:
        connect_s: To take a connection, for each of its addresses.
        first_byte_s: From the request to the first byte of the answer's body. Engines send a stream's head at once, and
            its first event when they have computed the prompt.
        idle_s: Between two pieces of the answer.
        total_s: For all of it.
    """

    connect_s: float = 2.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    total_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine listens.

    Attributes:
        host: Its name, for the `host` header and for TLS.
        port: TCP port.
        is_tls: Whether it speaks HTTPS.
        path: Before the path of each call, without a slash at the end.
        address: The IP address to connect to; None to ask for that of the name with each new connection.
        lines: The headers of every request to it, as lines.
    """

    host: str
    port: int
    is_tls: bool
    path: str
    address: str | None = None
    lines: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lines = header_lines({"host": self.authority, "accept-encoding": "identity"})
        object.__setattr__(self, "lines", lines)

    @classmethod
    def of(cls, root: str, address: str | None = None) -> "Origin":
        """The origin of a root URL."""
        parts = urlsplit(root)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname or "", port, is_tls, parts.path.rstrip("/"), address)

    @property
    def authority(self) -> str:
        """The value of the `host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


class _BrokenError(Exception):
    """The connection ended, or what came on it is not HTTP."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _Connection(asyncio.Protocol):
    """One connection to an engine, and the answer that is being read from it."""

    __slots__ = (
        "_bare_bytes",
        "_count",
        "_error",
        "_flow",
        "_has_begun",
        "_held",
        "_is_closed",
        "_is_eof_end",
        "_is_heard",
        "_loop",
        "_parser",
        "_sink",
        "_transport",
        "_waiting",
        "born_s",
        "deadline_s",
        "has_head",
        "headers",
        "heard_s",
        "idle_since_s",
        "is_used",
        "is_whole",
        "phase_s",
        "sent_s",
        "status",
    )

    _transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_closed = False
        self._waiting: asyncio.Future[None] | None = None
        self._sink: Sink | None = None
        self._flow: Awaitable[object] | None = None
        self._held: deque[bytes] = deque()
        self._error: Reason | Exception | None = None
        self._is_heard = self._has_begun = self._is_eof_end = False
        self._count = self._bare_bytes = 0
        self._parser: httptools.HttpResponseParser | None = None
        self.is_used = False
        self.is_whole = True
        self.has_head = False
        self.born_s = self.idle_since_s = self.heard_s = self.sent_s = loop.time()
        self.phase_s = self.deadline_s = math.inf
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.heard_s = self._loop.time()
        self._is_heard = True
        if self._parser is None or self.is_whole:
            self.close()  # nobody has asked
            return
        self._bare_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # A sink's error too, which stands already: the parser must not go on to the pieces after it. After an
            # answer's end it costs the connection alone: what is whole stands.
            self._fail(Reason.UPSTREAM_PROTOCOL_ERROR)
        else:
            if self._bare_bytes > _MAX_HEAD_BYTES:
                self._fail(Reason.UPSTREAM_PROTOCOL_ERROR)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_closed = True
        if not self.is_whole and self._error is None:
            if exc is None and self._is_eof_end and self.has_head:
                self._finish()
            else:
                self._fail(Reason.UPSTREAM_LOST)
        self._parser = None  # it holds this, and together they would wait for the garbage collector

    # What the parser finds; what these raise ends the parsing.

    def on_message_begin(self) -> None:
        if self.has_head:
            # One answer was asked for: what follows it is nobody's, least of all the next request's.
            raise _BrokenError(Reason.UPSTREAM_PROTOCOL_ERROR)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.has_head:
            return  # a trailer
        self._count += 1
        if self._count > _MAX_HEADERS:
            raise _BrokenError(Reason.UPSTREAM_PROTOCOL_ERROR)
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        assert self._parser is not None  # noqa: S101  it calls
        self.status = self._parser.get_status_code()
        if 100 <= self.status < 200:  # noqa: PLR2004  an interim answer; the next head counts
            if self.status == 101:  # noqa: PLR2004  switching protocols, which nobody asked for
                raise _BrokenError(Reason.UPSTREAM_PROTOCOL_ERROR)
            self.headers.clear()
            return
        self.has_head = True
        # A body without length or chunks lasts until the connection ends.
        self._is_eof_end = b"content-length" not in self.headers and b"transfer-encoding" not in self.headers
        self._wake()

    def on_body(self, body: bytes) -> None:
        self._has_begun = True
        self._bare_bytes = 0
        if self._sink is None or self._flow is not None:
            self._held.append(body)
            self._transport.pause_reading()
            self._wake()
            return
        try:
            self._flow = self._sink(body)
        except Exception as error:
            self._fail(error)  # it is the relay's, and is raised where the relay waits
            raise
        if self._flow is not None:
            self._transport.pause_reading()
            self._wake()

    def on_message_complete(self) -> None:
        if self.has_head:
            self._finish()

    # What the relay asks.

    @property
    def is_closed(self) -> bool:
        """Whether it is of no more use."""
        return self._is_closed or self._transport.is_closing()

    @property
    def is_stale(self) -> bool:
        """Whether it ended as one does that the engine had closed before the request came."""
        return self.is_used and not self._is_heard and self._loop.time() - self.sent_s < _STALE_S

    def send(self, request: bytes, timeouts: Timeouts) -> None:
        """Send a request; the answer to it is read from now on."""
        self._parser = httptools.HttpResponseParser(self)
        self.is_whole = self.has_head = self._is_eof_end = False
        self._error = None
        self._is_heard = self._has_begun = False
        self._count = self._bare_bytes = 0
        self.headers = {}
        self.sent_s = now_s = self._loop.time()
        self.phase_s = now_s + timeouts.first_byte_s
        self.deadline_s = now_s + timeouts.total_s
        if self._is_closed:
            self._fail(Reason.UPSTREAM_LOST)
        else:
            self._transport.write(request)

    async def head(self) -> None:
        """Wait for the head of the answer.

        Raises:
            _BrokenError: There will be none.
        """
        while not self.has_head:
            await self._news()

    async def pour(self, sink: Sink) -> None:
        """Give the body to `sink`, piece by piece, to its end.

        Raises:
            _BrokenError: It will not be whole.
        """
        self._sink = sink
        try:
            while self._held or not self.is_whole:
                if self._held:
                    self._flow = sink(self._held.popleft())
                else:
                    self._read_on()
                    await self._news()
                if self._flow is not None:
                    await self._flow
                    self._flow = None
        finally:
            # Of one who leaves in the middle of it: the connection's next user must not wait for their client.
            self._sink = self._flow = None

    def rest(self, now_s: float) -> None:
        """Be idle from now on; what of the answer nobody took is gone."""
        self.idle_since_s = now_s
        self._held.clear()
        self._transport.resume_reading()

    def close(self) -> None:
        """Close it now; an engine takes that for an abort, and whoever waits for the rest of the answer for a loss."""
        self._fail(Reason.UPSTREAM_LOST)

    def fail_if_overdue(self, now_s: float, idle_s: float) -> None:
        """Give the answer up if its time has passed, or nothing has come for too long; not while its client is slow."""
        if self.is_whole or self._flow is not None:
            return
        phase_s = self.heard_s + idle_s if self._has_begun else self.phase_s
        if now_s > min(phase_s, self.deadline_s):
            self._fail(Reason.UPSTREAM_TIMEOUT)

    def _read_on(self) -> None:
        self.heard_s = self._loop.time()  # it was not listened to until now
        if not self.is_closed:
            self._transport.resume_reading()

    async def _news(self) -> None:
        """Wait until something has happened.

        Raises:
            _BrokenError: The answer has ended before its time.
        """
        if self._error is not None:
            self._raise(self._error)
        self._waiting = self._loop.create_future()
        await self._waiting

    def _raise(self, error: Reason | Exception) -> None:
        # An error with its trace, which leads here, is not to be kept here.
        self._error = Reason.UPSTREAM_LOST
        try:
            raise _BrokenError(error) if isinstance(error, Reason) else error
        finally:
            del error

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _finish(self) -> None:
        parser = self._parser
        self.is_whole = True
        self.is_used = True
        if parser is None or not parser.should_keep_alive() or self._is_eof_end:
            self._is_closed = True
            self._transport.close()
        self._wake()

    def _fail(self, why: Reason | Exception) -> None:
        """Close the connection; the first reason to do so is what is told, if the answer is not whole."""
        self._is_closed = True
        self._transport.abort()
        if not self.is_whole and self._error is None:
            self._error = why
            self._wake()


class Answer:
    """The answer of an engine, its head read and its body still to come.

    Args:
        connection: It comes on.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._connection.status

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return self._connection.headers.get(b"content-type", b"").startswith(b"text/event-stream")

    def header(self, name: bytes) -> str | None:
        """The value of the header of that lower-case name."""
        value = self._connection.headers.get(name)
        return None if value is None else value.decode("latin-1")

    async def pour(self, sink: Sink) -> None:
        """Hand over the body as it comes, to its end.

        Args:
            sink: Called with each piece, mostly from within the event loop: it must not block. What it raises is
                raised here, and the connection closed.

        Raises:
            RequestError: The connection broke (`UPSTREAM_STREAM_ERROR`), fell silent (`UPSTREAM_TIMEOUT`) or told
                nonsense (`UPSTREAM_PROTOCOL_ERROR`).
        """
        try:
            await self._connection.pour(sink)
        except _BrokenError as error:
            lost = error.reason is Reason.UPSTREAM_LOST
            raise RequestError(Reason.UPSTREAM_STREAM_ERROR if lost else error.reason) from error

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            RequestError: The connection broke (`UPSTREAM_LOST`), fell silent (`UPSTREAM_TIMEOUT`), told nonsense, or
                the body is larger than `limit_bytes` (both `UPSTREAM_PROTOCOL_ERROR`).
        """
        held = bytearray()

        def hold(piece: bytes) -> None:
            held.extend(piece)
            if len(held) > limit_bytes:
                raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR, "The engine's answer is too large.")

        try:
            await self._connection.pour(hold)
        except _BrokenError as error:
            raise RequestError(error.reason) from error
        return bytes(held)


class UpstreamClient:
    """A pool of connections to the engines.

    Args:
        timeouts: Of requests that are relayed.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Origin, list[_Connection]] = {}
        self._active: set[_Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    @property
    def active(self) -> int:
        """Connections on which an answer is awaited or read."""
        return len(self._active)

    async def close(self) -> None:
        """Close every connection; who awaits an answer is told that it is lost, and nobody is connected again."""
        self._sweeping.cancel()
        for connection in (*self._active, *(each for idle in self._idle.values() for each in idle)):
            connection.close()
        self._idle.clear()

    async def get(
        self, origin: Origin, path: str, headers: bytes, *, timeout_s: float, limit_bytes: int
    ) -> tuple[int, bytes]:
        """Status and body of a page.

        Args:
            origin: Where to ask.
            path: Of the page.
            headers: Of the request, as lines.
            timeout_s: Seconds for all of it.
            limit_bytes: The largest page.

        Raises:
            RequestError: It cannot be had, not in time, or is too large.
        """
        try:
            async with asyncio.timeout(timeout_s):
                async with _Posted(self, origin, _head(b"GET", origin, path, headers)) as answer:
                    return answer.status, await answer.body(limit_bytes)
        except TimeoutError as error:
            raise RequestError(Reason.UPSTREAM_TIMEOUT) from error

    def post(
        self, origin: Origin, path: str, headers: bytes, body: bytes
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        """Send a JSON body; the block has the answer.

        Args:
            origin: Where to send it.
            path: Of the call.
            headers: Beside those that every request has, as lines.
            body: As it goes out.

        Raises:
            RequestError: No connection (`NO_HEALTHY_UPSTREAM`), it broke before the answer's head
                (`UPSTREAM_LOST`), none came in time (`UPSTREAM_TIMEOUT`), or it told nonsense. On entering.
        """
        head = _head(b"POST", origin, path, b"content-type: application/json\r\n" + headers, len(body))
        return _Posted(self, origin, head + body)

    async def begin(self, origin: Origin, request: bytes) -> _Connection:
        """Send a request and wait for the head of its answer."""
        connection = self._idle_one(origin) or await self._connect(origin)
        try:
            return await self._ask(connection, request)
        except _BrokenError as error:
            if error.reason is not Reason.UPSTREAM_LOST or not connection.is_stale:
                raise RequestError(error.reason) from error
        try:
            return await self._ask(await self._connect(origin), request)
        except _BrokenError as error:
            raise RequestError(error.reason) from error

    def end(self, origin: Origin, connection: _Connection) -> None:
        """Keep a connection whose answer is whole; close any other."""
        self._active.discard(connection)
        now_s = self._loop.time()
        if not connection.is_whole or connection.is_closed or now_s - connection.born_s > _MAX_AGE_S:
            connection.close()
            return
        connection.rest(now_s)
        self._idle.setdefault(origin, []).append(connection)

    async def _ask(self, connection: _Connection, request: bytes) -> _Connection:
        self._active.add(connection)
        try:
            connection.send(request, self._timeouts)
            await connection.head()
        except BaseException:
            self._active.discard(connection)
            connection.close()
            raise
        return connection

    def _idle_one(self, origin: Origin) -> _Connection | None:
        """The one used last, so that those that are not needed grow old."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.is_closed:
                return connection
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        if self._sweeping.cancelled():
            raise RequestError(Reason.NO_HEALTHY_UPSTREAM)
        if origin.is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        failed: Exception | None = None
        for address in await self._addresses(origin):
            try:
                async with asyncio.timeout(self._timeouts.connect_s):
                    _, connection = await self._loop.create_connection(
                        lambda: _Connection(self._loop),
                        address,
                        origin.port,
                        ssl=self._tls if origin.is_tls else None,
                        server_hostname=origin.host if origin.is_tls else None,
                    )
                    return connection
            except OSError as error:  # a TimeoutError too
                failed = error
        raise RequestError(Reason.NO_HEALTHY_UPSTREAM) from failed

    async def _addresses(self, origin: Origin) -> list[str]:
        if origin.address is not None:
            return [origin.address]
        return await resolve(origin.host, origin.port, self._timeouts.connect_s)

    def _sweep(self) -> None:
        """Give up what is overdue, and close what has been idle for too long."""
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)
        now_s = self._loop.time()
        for connection in tuple(self._active):
            connection.fail_if_overdue(now_s, self._timeouts.idle_s)
        for origin, idle in tuple(self._idle.items()):
            while idle and (idle[0].is_closed or now_s - idle[0].idle_since_s > _KEEPALIVE_S):
                idle.pop(0).close()
            if not idle:
                del self._idle[origin]


async def resolve(host: str, port: int, timeout_s: float) -> list[str]:
    """The IP addresses of a name, each once.

    Raises:
        RequestError: It has none, or they cannot be had in time (`NO_HEALTHY_UPSTREAM`).
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise RequestError(Reason.NO_HEALTHY_UPSTREAM) from error
    return list(dict.fromkeys(str(each[4][0]) for each in found))


class _Posted:
    """A request and its answer; a class, not a generator, as it is on the path of every request.

    Args:
        client: Has the connections.
        origin: Where it goes.
        request: Its bytes.
    """

    __slots__ = ("_client", "_connection", "_origin", "_request")

    _connection: _Connection

    def __init__(self, client: UpstreamClient, origin: Origin, request: bytes) -> None:
        self._client = client
        self._origin = origin
        self._request = request

    async def __aenter__(self) -> Answer:
        self._connection = await self._client.begin(self._origin, self._request)
        return Answer(self._connection)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._client.end(self._origin, self._connection)


def header_lines(headers: Mapping[str, str]) -> bytes:
    """Headers as lines of a request."""
    return b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items())


def _head(method: bytes, origin: Origin, path: str, headers: bytes, length: int | None = None) -> bytes:
    counted = b"" if length is None else b"content-length: %d\r\n" % length
    target = (origin.path + path).encode("latin-1")
    return b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (method, target, origin.lines, counted, headers)
