"""One HTTP request as an ASGI application has it: its `receive`, its `send`, and the bytes of its answer.

Both are done when they return, unless there is something to wait for. `receive` gives a future, so whoever listens for
the client's leaving needs no task for it; `send` gives `READY` while the client keeps up.
"""

import asyncio
from collections.abc import Awaitable, Generator
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeAlias

from muster_observability import logs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope
    from uvicorn.server import ServerState

Headers: TypeAlias = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("latin-1") for status in HTTPStatus
}

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_UNTIL_CLOSE = float("inf")

_log = logs.get("proxy")


class Ready:
    """What there is to await when there is nothing to wait for."""

    __slots__ = ()

    def __await__(self) -> Generator[None]:
        """Wait for nothing."""
        return iter(())  # pyright: ignore[reportReturnType]  an iterator is all that `await` asks for


READY = Ready()


class Connection(Protocol):
    """What a request needs of the connection that it came on.

    Attributes:
        drained: Done when the client has caught up; None while it keeps up.
    """

    drained: asyncio.Future[None] | None

    def answered(self, request: "Request") -> None:
        """The request has its whole answer."""
        ...

    def break_off(self) -> None:
        """End it at once, with what cannot be taken for the end of an answer."""
        ...

    def common_headers(self) -> bytes:
        """The lines of the headers that every answer has."""
        ...

    def read_on(self) -> None:
        """Read more of the body."""
        ...


class Request:
    """One request and its answer: an ASGI application's `receive` and `send`.

    Args:
        connection: It came on.
        transport: Of the connection.
        scope: ASGI's.
        keep_alive: Whether the connection stays open after it.

    Attributes:
        has_begun: Whether the head of an answer was sent.
        task: Runs the application.
    """

    __slots__ = (
        "_body",
        "_connection",
        "_head",
        "_is_answered",
        "_is_asked_for",
        "_is_chunked",
        "_is_gone",
        "_is_whole",
        "_left_bytes",
        "_told_whole",
        "_transport",
        "_waiting",
        "has_begun",
        "keep_alive",
        "scope",
        "task",
    )

    task: asyncio.Task[None]

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, scope: "Scope", *, keep_alive: bool
    ) -> None:
        self._connection = connection
        self._transport = transport
        self.scope = scope
        self.keep_alive = keep_alive
        self.has_begun = False
        self._is_asked_for = False
        self._body = bytearray()
        self._is_whole = self._told_whole = False
        self._is_gone = self._is_answered = False
        self._is_chunked = False
        self._head = b""
        self._left_bytes = 0.0  # of the length that the answer's head has told
        self._waiting: asyncio.Future[Message] | None = None

    def hear(self, body: bytes) -> int:
        """Take a piece of the body; returns how many bytes nobody has asked for yet."""
        if self._is_answered:
            return 0
        self._body += body
        if self._waiting is not None:
            self._tell()
        return len(self._body)

    def heard_all(self) -> None:
        """The body is whole."""
        self._is_whole = True
        if self._waiting is not None:
            self._tell()

    def client_has_gone(self) -> None:
        """The client has left, or is sent away: what is sent from now on goes nowhere."""
        self._is_gone = True
        self._tell()

    async def run(self, app: "ASGIApp", state: "ServerState") -> None:
        """Have the application answer; an answer that it leaves unfinished ends with the connection."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:  # noqa: BLE001  the server goes on, and the trace is all that is left to tell
            _log.exception("the application failed", request_id=self.scope.get("muster.request_id"))
        finally:
            state.tasks.discard(self.task)
            if not (self._is_answered or self._is_gone):
                self._connection.break_off()

    def receive(self) -> "asyncio.Future[Message]":
        """The next piece of the body, then the client's leaving; ASGI's `receive`."""
        waiting = self._waiting = asyncio.get_running_loop().create_future()
        if not self._is_whole:
            if not self._is_asked_for:
                self._is_asked_for = True
                self._ask_for_body()
            self._connection.read_on()
        self._tell()
        return waiting

    def _ask_for_body(self) -> None:
        """Have a client send the body that it waits with; one of HTTP/1.0 would take that for its answer."""
        if self.has_begun or self._is_gone or self.scope["http_version"] != "1.1":
            return
        if any(name == b"expect" for name, _ in self.scope["headers"]):
            self._transport.write(_CONTINUE)

    def _tell(self) -> None:
        """Give what there is to who waits for it."""
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if self._is_gone or self._is_answered:
            waiting.set_result({"type": "http.disconnect"})
        elif self._body or (self._is_whole and not self._told_whole):
            body, self._body = bytes(self._body), bytearray()
            self._told_whole = self._is_whole
            waiting.set_result({"type": "http.request", "body": body, "more_body": not self._is_whole})

    def send(self, message: "Message") -> Awaitable[None]:
        """Send a piece of the answer; what it returns is to be awaited before the next.

        Raises:
            RuntimeError: The piece is not what comes next, or not as long as the head said.
            ValueError: A header would break out of its line.
        """
        if not self._is_gone and not self._transport.is_closing():
            if message["type"] == "http.response.body":
                self._send_body(message.get("body", b""), more=message.get("more_body", False))
            else:
                self._send_head(message["status"], message["headers"])
        return self._connection.drained or READY

    def _send_head(self, status: int, headers: Headers) -> None:
        if self.has_begun:
            raise RuntimeError("expected one head of an answer, got a second")
        length = next((value for name, value in headers if name == b"content-length"), None)
        left_bytes = _UNTIL_CLOSE if length is None else int(length)
        if self.scope["method"] == "HEAD" or status in (204, 304):
            left_bytes = 0
        is_endless = left_bytes == _UNTIL_CLOSE
        self._is_chunked = is_endless and self.scope["http_version"] == "1.1"
        if not self._is_whole or (is_endless and not self._is_chunked):
            self.keep_alive = False
        common = self._connection.common_headers()
        is_last = not self.keep_alive
        # Sent with the first piece of the body: one call of the system instead of two.
        self._head = _lines(status, headers, common, is_chunked=self._is_chunked, is_last=is_last)
        self._left_bytes = left_bytes
        self.has_begun = True

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if not self.has_begun or self._is_answered:
            raise RuntimeError("expected the body of an answer after its head and before its end")
        if self._is_chunked:
            if body:
                body = b"%x\r\n%b\r\n" % (len(body), body)
            if not more:
                body += b"0\r\n\r\n"
        elif self.scope["method"] == "HEAD":
            body = b""
        else:
            self._account(len(body), more=more)
        if self._head or body:
            self._transport.write(self._head + body)
            self._head = b""
        if not more:
            self._is_answered = True
            self._tell()
            self._connection.answered(self)

    def _account(self, size: int, *, more: bool) -> None:
        """Hold the answer to the length that its head has told."""
        self._left_bytes -= size
        if self._left_bytes < 0 or (not more and 0 < self._left_bytes < _UNTIL_CLOSE):
            raise RuntimeError(
                f"expected a body as long as its content-length, got {-self._left_bytes:+} bytes"
            )


def whole_answer(status: int, headers: Headers, common: bytes, body: bytes) -> bytes:
    """The last answer on a connection; the arguments are as for `_lines`."""
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    return _lines(status, headers, common, is_chunked=False, is_last=True) + body


def _lines(status: int, headers: Headers, common: bytes, *, is_chunked: bool, is_last: bool) -> bytes:
    """The head of an answer.

    Args:
        status: HTTP's; one that HTTP has no name for is sent without.
        headers: Of this answer.
        common: The lines of the headers that every answer has.
        is_chunked: Whether the body comes in chunks.
        is_last: Whether the connection ends with this answer.

    Raises:
        ValueError: A header would break out of its line.
    """
    lines = [b"%b: %b\r\n" % header for header in headers]
    if is_chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    if is_last:
        lines.append(b"connection: close\r\n")
    block = b"".join(lines)
    if block.count(b"\n") != len(lines) or block.count(b"\r") != len(lines):
        raise ValueError("expected headers of one line each")
    return (_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + common + block + b"\r\n"
