"""HTTP/1.1 as the proxy speaks it to its clients: httptools parses, uvicorn runs the sockets, this is between them.

uvicorn's own protocol has no limit on the size of a head and no deadline but that of an idle connection
(docs/decisions/0005-server-and-client.md). This one differs in:

- limits: a head's bytes, headers and time; a body's time; an idle connection's; a client that does not read;
- strictness where httptools has none: one plausible `Host`, no transfer encoding but chunked, a target that is a path;
- errors in OpenAI's shape, with an id that stands in the log;
- `receive` and `send` that are done when they return (`asgi_request`).

A client that half-closes its connection has left. Pipelined requests are answered one by one, in their order. An offer
of another protocol is not taken up.
"""

import asyncio
import re
import socket
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import httptools

from muster_observability import logs
from muster_observability.request_ids import REQUEST_ID, new_request_id
from muster_proxy.asgi_request import READY, Headers, Ready, Request, whole_answer
from muster_proxy.failures import Reason, RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope
    from uvicorn import Config
    from uvicorn.server import ServerState

__all__ = ["READY", "HttpProtocol", "HttpServer", "Limits", "Ready"]

# Of a body that nobody has asked for yet, and of requests that came before the answer to the one before them.
_HIGH_WATER_BYTES = 64 * 1024

_NEVER_S = float("inf")

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:\[\]%-]*")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_REQUEST_LINE = re.compile(rb"[\r\n]*[A-Za-z-]+ /")

# Of a method that no URL takes.
_ALLOWED = "GET, HEAD, POST"

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_log = logs.get("proxy")


@dataclass(frozen=True, slots=True)
class Limits:
    """What is borne of a client.

    Attributes:
        head_bytes: Of a request's line and headers, or of trailers: what Envoy and Node.js read, to a factor of four.
        headers: How many a request may have.
        pipelined: Requests that may wait for the answers before theirs; each holds some kilobytes.
        head_timeout_s: From a head's first byte to its last.
        body_timeout_s: From a head's end to the body's.
        idle_timeout_s: Between requests. Longer than load balancers keep theirs (60 s): the one who closes an idle
            connection first must be the one who sends.
        stall_timeout_s: How long an answer may stay unread when buffers are full.
        linger_s: After an answer that did not wait for its request's end: the client reads it before it meets a reset.
        sweep_s: How often all of this is looked at.
    """

    head_bytes: int = 64 * 1024
    headers: int = 100
    pipelined: int = 128
    head_timeout_s: float = 10.0
    body_timeout_s: float = 120.0
    idle_timeout_s: float = 75.0
    stall_timeout_s: float = 60.0
    linger_s: float = 2.0
    sweep_s: float = 1.0


class HttpServer:
    """Makes the protocols of one server's connections, and closes those that are overdue. For uvicorn's `http`.

    Args:
        limits: Of each connection; None for the usual ones.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._sweeping: asyncio.TimerHandle | None = None
        self._common_of: Headers = []
        self._common = b""

    def __call__(
        self,
        config: "Config",
        server_state: "ServerState",
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> "HttpProtocol":
        """A protocol for a new connection; the arguments are uvicorn's."""
        loop = _loop or asyncio.get_running_loop()
        return HttpProtocol(self, cast("Any", config).loaded_app, server_state, app_state, loop)

    def common_headers(self, headers: Headers) -> bytes:
        """The lines of the headers that every answer has (uvicorn's `date`, made anew each second)."""
        if headers is not self._common_of:
            self._common_of = headers
            self._common = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._common

    def watch(self, server_state: "ServerState", loop: asyncio.AbstractEventLoop) -> None:
        """Close connections that are overdue from now on: there is one, which its protocol may have waited for."""
        if self._sweeping is None:
            self._sweeping = loop.call_later(self.limits.sweep_s, self._sweep, server_state, loop)

    def _sweep(self, server_state: "ServerState", loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for connection in tuple(server_state.connections):
            if isinstance(connection, HttpProtocol):  # pyright: ignore[reportUnnecessaryIsInstance]  uvicorn's types
                connection.close_if_overdue(now_s)
        self._sweeping = None
        if server_state.connections:
            self.watch(server_state, loop)


class _RefusedError(Exception):
    """A request that is refused before it reaches the application."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class HttpProtocol(asyncio.Protocol):
    """One client's connection.

    Args:
        server: Made it.
        app: The ASGI application.
        server_state: uvicorn's: connections and tasks that a graceful stop waits for.
        app_state: The lifespan's state, for each request's scope.
        loop: The event loop.

    Attributes:
        drained: Done when the client has caught up; None while it keeps up.
    """

    __slots__ = (
        "_app",
        "_app_state",
        "_asked",
        "_client",
        "_due_s",
        "_early",
        "_has_head",
        "_headers",
        "_is_closing",
        "_limits",
        "_local",
        "_loop",
        "_open_bytes",
        "_parser",
        "_piece_bytes",
        "_refusal",
        "_request",
        "_server",
        "_stalled_s",
        "_state",
        "_target",
        "_transport",
        "_unheard",
        "drained",
    )

    _transport: asyncio.Transport

    def __init__(
        self,
        server: HttpServer,
        app: "ASGIApp",
        server_state: "ServerState",
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._server = server
        self._limits = server.limits
        self._app = app
        self._state = server_state
        self._app_state = app_state
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # being answered
        self._asked: Request | None = None  # being read
        self._unheard: deque[Request] = deque()  # read, and waiting for the answers before theirs
        self._early = bytearray()
        self._due_s = loop.time() + self._limits.idle_timeout_s  # for what is awaited of the client's sending
        self._stalled_s = _NEVER_S  # for its reading
        self._is_closing = False
        self._refusal: Reason | None = None  # from then on the parser takes nothing
        self._has_head = True
        # Of what came last, and that came since the head began, or since a piece of the body: the parser keeps a
        # header, a trailer or a chunk's extension that has no end, and tells nothing of it.
        self._piece_bytes = self._open_bytes = 0
        self._headers: Headers = []
        self._target = b""
        self._client: tuple[str, int] | None = None
        self._local: tuple[str, int] | None = None
        self.drained: asyncio.Future[None] | None = None

    # What the event loop tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        self._transport = cast("asyncio.Transport", transport)
        self._state.connections.add(self)  # pyright: ignore[reportArgumentType]  uvicorn names its own classes
        self._server.watch(self._state, self._loop)
        self._client = _address(transport.get_extra_info("peername"))
        self._local = _address(transport.get_extra_info("sockname"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the requests that their client has gone."""
        del exc
        self._state.connections.discard(self)  # pyright: ignore[reportArgumentType]  as above
        self._leave()
        del self._parser  # it holds this, and together they would wait for the garbage collector

    def eof_received(self) -> None:
        """The client sends no more, and so has left; the event loop closes when what was sent has been read."""
        self._leave()
        self._wait_for_close()

    def pause_writing(self) -> None:
        """The client does not keep up: what is sent from now on waits."""
        self.drained = self._loop.create_future()
        self._stalled_s = self._loop.time() + self._limits.stall_timeout_s

    def resume_writing(self) -> None:
        """It has caught up."""
        if self.drained is not None:
            if not self.drained.done():
                self.drained.set_result(None)
            self.drained = None
            self._stalled_s = _NEVER_S

    def data_received(self, data: bytes) -> None:
        """Read on; what comes while a request is answered is kept until its turn."""
        while data and not self._is_closing:
            if self._request is not None and self._asked is None:
                self._early += data
                if len(self._early) > _HIGH_WATER_BYTES:
                    self._transport.pause_reading()
                return
            data = self._feed(data)

    # What uvicorn asks.

    def shutdown(self) -> None:
        """Close as soon as what has been asked is answered."""
        if self._request is None:
            self._close()
        else:
            self._request.keep_alive = False

    def close_if_overdue(self, now_s: float) -> None:
        """Close a connection whose client is too slow."""
        if now_s >= self._stalled_s:
            self.break_off()
        elif now_s < self._due_s:
            pass
        elif self._is_closing:
            self._give_up()
        elif self._asked is not None or not self._has_head:
            self._refuse(Reason.REQUEST_TIMEOUT)
        else:
            self._close()

    # What the parser finds.

    def on_message_begin(self) -> None:
        """A request's first byte has come."""
        self._target = b""
        self._headers = []
        self._open_bytes = self._piece_bytes
        self._has_head = False
        if self._request is None:
            self._due_s = self._loop.time() + self._limits.head_timeout_s

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer after the body, which nobody reads."""
        if not self._has_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole: the application is asked, though the body may have yet to come."""
        self._has_head = True
        if self._is_head_too_large():
            self._refuse_in_parser(Reason.HEADERS_TOO_LARGE)
        self._open_bytes = 0
        parser = self._parser
        method = parser.get_method()
        if method == b"CONNECT":
            self._refuse_in_parser(Reason.METHOD_NOT_ALLOWED)
        if parser.should_upgrade():
            return
        version = parser.get_http_version()
        if len(self._unheard) >= self._limits.pipelined or _is_faulty(self._headers, self._target, version):
            self._refuse_in_parser(Reason.INVALID_HTTP)
        is_kept = version == "1.1" and parser.should_keep_alive()
        scope = self._scope(method.decode("ascii"), version)
        self._asked = request = Request(self, self._transport, scope, keep_alive=is_kept)
        if self._request is None:
            self._answer(request)
        else:
            self._unheard.append(request)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._open_bytes = 0
        if self._asked is not None and self._asked.hear(body) > _HIGH_WATER_BYTES:
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._open_bytes = self._piece_bytes = 0
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.heard_all()
            self._due_s = _NEVER_S

    # How it goes on.

    def _feed(self, data: bytes) -> bytes:
        """Have the parser read; returns what it has not read."""
        self._piece_bytes = len(data)
        self._open_bytes += self._piece_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade()
            return data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            self._refuse(self._reason_of(error, data))
            return b""
        if self._open_bytes > self._limits.head_bytes:
            self._refuse(Reason.HEADERS_TOO_LARGE)
        return b""

    def _is_head_too_large(self) -> bool:
        limits = self._limits
        if len(self._headers) > limits.headers:
            return True
        if self._open_bytes <= limits.head_bytes:
            return False
        # The piece may have had more in it than the head.
        told_bytes = len(self._target) + sum(len(name) + len(value) for name, value in self._headers)
        return told_bytes > limits.head_bytes

    def _decline_upgrade(self) -> None:
        """Read a head again without its offer of another protocol, which RFC 9110 (7.8) allows to pass over.

        Java's HTTP client offers HTTP/2 with every first request, and the parser takes an offer for accepted.
        """
        parser = self._parser
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self._target, parser.get_http_version().encode())]
        lines += [b"%b: %b" % header for header in self._headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        self._feed(b"\r\n".join(lines) + b"\r\n\r\n")

    def _reason_of(self, error: httptools.HttpParserError, data: bytes) -> Reason:
        if self._refusal is not None:
            return self._refusal
        if isinstance(error, httptools.HttpParserCallbackError):
            raise error  # a fault of ours
        # What begins with no method at all is not HTTP.
        is_first = self._piece_bytes and not self._target
        is_first = is_first and isinstance(error, httptools.HttpParserInvalidMethodError)
        is_method = is_first and _REQUEST_LINE.match(data)
        return Reason.METHOD_NOT_ALLOWED if is_method else Reason.INVALID_HTTP

    def _refuse_in_parser(self, reason: Reason) -> None:
        self._refusal = reason
        raise _RefusedError(reason)  # the parser stops, and `_feed` hears of it

    def _scope(self, method: str, version: str) -> "Scope":
        raw_path, _, query = self._target.partition(b"?")
        path = raw_path.decode("ascii")
        if "%" in path:
            # A slash that is written so parts nothing (RFC 3986, 2.2), and must not make one route of another.
            path = unquote(_ENCODED_SLASH.sub("%252F", path))
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._local,
            "client": self._client,
            "scheme": "http",
            "root_path": "",
            "method": method,
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self._headers,
            "state": self._app_state.copy(),
        }

    def _answer(self, request: Request) -> None:
        self._request = request
        is_whole = request is not self._asked
        self._due_s = _NEVER_S if is_whole else self._loop.time() + self._limits.body_timeout_s
        task = self._loop.create_task(request.run(self._app, self._state))
        self._state.tasks.add(task)
        request.task = task

    def answered(self, request: Request) -> None:
        """A request has its answer: the next one is answered, or the connection closed."""
        self._state.total_requests += 1
        self._request = None
        if self._is_closing or request is self._asked:
            self._linger()  # the answer did not wait for the request's end
        elif not request.keep_alive:
            self._finish()
        elif self._unheard:
            self._answer(self._unheard.popleft())
        elif self._refusal is not None:
            self._refuse(self._refusal)
        else:
            self._next()

    def _next(self) -> None:
        limits = self._limits
        self._due_s = self._loop.time() + (limits.idle_timeout_s if self._has_head else limits.head_timeout_s)
        self.read_on()
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            self.data_received(early)

    def common_headers(self) -> bytes:
        """The lines of the headers that every answer has."""
        return self._server.common_headers(self._state.default_headers)

    def read_on(self) -> None:
        """Read more of the body, or the next request."""
        if not self._is_closing:
            self._transport.resume_reading()

    def _refuse(self, reason: Reason) -> None:
        """Answer what is no request and close; after the answers to what came before it."""
        self._refusal = reason
        asked, self._asked = self._asked, None
        if self._request is not None and self._request is not asked:
            if asked is not None:
                self._unheard.remove(asked)
            return
        self._request = None
        if asked is not None:
            asked.client_has_gone()  # its body will never be whole
        if asked is not None and asked.has_begun:
            self.break_off()
        else:
            self._tell_refusal(reason, _request_id_of(asked))
            self._linger()

    def _tell_refusal(self, reason: Reason, request_id: str) -> None:
        error = RequestError(reason, allow=_ALLOWED if reason is Reason.METHOD_NOT_ALLOWED else None)
        status = error.http_status
        _log.info("refused", request_id=request_id, status=status, code=reason.value)
        if not self._transport.is_closing():
            headers = [*error.headers(), (REQUEST_ID.encode(), request_id.encode())]
            self._transport.write(whole_answer(status, headers, self.common_headers(), error.body()))

    # How it ends.

    def _leave(self) -> None:
        """Tell the requests that their client has gone; nothing that they send is waited for any more."""
        self._is_closing = True
        if self.drained is not None and not self.drained.done():
            self.drained.set_result(None)
        for request in (self._request, self._asked, *self._unheard):
            if request is not None:
                request.client_has_gone()
        self._request = self._asked = None
        self._unheard.clear()

    def _finish(self) -> None:
        """Close after the last answer; what came after its request would turn the close into a reset."""
        if self._early or self._unheard or self._refusal is not None:
            self._linger()
        else:
            self._close()

    def _linger(self) -> None:
        """Close when the client does, or soon; until then what it sends is passed over."""
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._wait_for_close()

    def _close(self) -> None:
        self._transport.close()
        self._wait_for_close()

    def _wait_for_close(self) -> None:
        """Give the client time to read what was sent."""
        self._is_closing = True
        is_read = self._transport.get_write_buffer_size() == 0
        limit_s = self._limits.linger_s if is_read else self._limits.stall_timeout_s
        self._due_s = self._loop.time() + limit_s

    def _give_up(self) -> None:
        if self._transport.get_write_buffer_size():
            self.break_off()
        else:
            self._transport.abort()

    def break_off(self) -> None:
        """End the connection with a reset: a plain end is that of an answer without a length."""
        if not self._transport.is_closing() or self._transport.get_write_buffer_size():
            opened = self._transport.get_extra_info("socket")
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()


def _request_id_of(asked: Request | None) -> str:
    """The id that the application has given a request; a new one where it has not seen it."""
    return (asked is not None and asked.scope.get("muster.request_id")) or new_request_id()


def _is_faulty(headers: Headers, target: bytes, version: str) -> bool:
    """Whether something is wrong with a head that httptools takes."""
    named = dict(headers)
    if len(named) < len(headers):
        names = [name for name, _ in headers]
        if names.count(b"host") > 1 or names.count(b"transfer-encoding") > 1:
            return True
    host = named.get(b"host")
    if version == "1.1" if host is None else not _HOST.fullmatch(host):
        return True
    encoding = named.get(b"transfer-encoding")
    if encoding is not None and (encoding.lower() != b"chunked" or version != "1.1"):
        return True
    return not target.startswith(b"/") or not target.isascii() or version not in ("1.0", "1.1")


def _address(told: Any) -> tuple[str, int] | None:  # noqa: ANN401  as the transport tells it
    """Host and port of an end of the connection; a Unix socket has none."""
    return (told[0], told[1]) if told and not isinstance(told, str) else None
