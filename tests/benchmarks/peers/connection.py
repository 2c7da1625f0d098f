"""A client's connection: as little work as the measuring of an answer allows."""

import asyncio
import re
from dataclasses import dataclass
from time import perf_counter
from typing import cast
from urllib.parse import urlsplit

import httptools

from tests.benchmarks.peers.pace import Pace

PATH = "/v1/chat/completions"

_TAIL_BYTES = 512  # holds the last events of a stream: the reason of its end, perhaps the usage, [DONE]
_STOPPED = re.compile(rb'"finish_reason":\s*"stop"')
_CODE = re.compile(rb'"code":\s*"(\w+)"')
_BYTES_OF_A_TOKEN = len(" token")


@dataclass(slots=True)
class Answer:
    """What came back for one request. Times are on `perf_counter`'s clock.

    Attributes:
        status: HTTP status; 0 before it came.
        sent_s: When the request was sent.
        first_s: When the first bytes of the body came; 0 before.
        last_s: When the last of them came.
        gap_s: The longest wait between two arrivals.
        body_bytes: Length of the body.
        events: Server-sent events in it.
        tail: The body's end.
    """

    status: int = 0
    sent_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    gap_s: float = 0.0
    body_bytes: int = 0
    events: int = 0
    tail: bytes = b""

    def fits(self, pace: Pace) -> bool:
        """Whether it is all that was asked for."""
        if self.status != 200 or not _STOPPED.search(self.tail):
            return False
        if pace.is_stream:
            return self.events >= pace.tokens and b"data: [DONE]" in self.tail
        return self.body_bytes >= pace.tokens * _BYTES_OF_A_TOKEN

    @property
    def mishap(self) -> str:
        """What it is instead of what was asked for: the status, and OpenAI's code of the error where it has one."""
        code = _CODE.search(self.tail)
        words = ["not whole" if self.status == 200 else f"status {self.status}"]
        return " ".join([*words, code[1].decode()] if code else words)

    def take(self, body: bytes) -> None:
        """Count a part of the body that has just come."""
        now_s = perf_counter()
        if self.first_s:
            self.gap_s = max(self.gap_s, now_s - self.last_s)
        else:
            self.first_s = now_s
        self.last_s = now_s
        self.body_bytes += len(body)
        self.events += body.count(b"\n\n") + (self.tail[-1:] == b"\n" == body[:1])
        self.tail = (self.tail + body)[-_TAIL_BYTES:]


class Connection(asyncio.Protocol):
    """A connection that is kept alive; one exchange on it at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._answer = Answer()
        self._over: asyncio.Future[Answer] | None = None
        self.is_open = True

    @classmethod
    async def open(cls, url: str) -> "Connection":
        """Connect to the server at a root URL.

        Raises:
            OSError: It cannot be reached.
        """
        place = urlsplit(url)
        host, port = place.hostname or "", place.port or 80
        _, connection = await asyncio.get_running_loop().create_connection(cls, host, port)
        return connection

    async def exchange(self, request: bytes) -> Answer:
        """Send a request and wait for the end of its answer.

        Raises:
            ConnectionError: It was closed before that.
        """
        if not self.is_open:
            raise ConnectionError("closed")
        self._over = asyncio.get_running_loop().create_future()
        self._answer = Answer(sent_s=perf_counter())
        self._transport.write(request)
        return await self._over

    def close(self) -> None:
        """Hang up."""
        self.is_open = False
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the signature is asyncio's
        """Called by the event loop."""
        self.is_open = False
        if self._over is not None and not self._over.done():
            self._over.set_exception(ConnectionError("closed in the middle of an answer"))

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_headers_complete(self) -> None:
        """Called by the parser."""
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """Called by the parser for each part."""
        self._answer.take(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if not self._parser.should_keep_alive():
            self.is_open = False
            self._transport.close()
        if self._over is not None and not self._over.done():
            self._answer.last_s = perf_counter()
            self._over.set_result(self._answer)


def request(url: str, body: bytes, key: str | None = None) -> bytes:
    """The bytes of a chat completion request.

    Args:
        url: Root of the server.
        body: As `Pace.body` makes it.
        key: API key to show, if any.
    """
    lines = [f"POST {PATH} HTTP/1.1", f"host: {urlsplit(url).netloc}", "content-type: application/json"]
    lines += [f"authorization: Bearer {key}"] if key else []
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
