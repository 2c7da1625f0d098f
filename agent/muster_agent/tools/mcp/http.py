"""A server that is asked over HTTP: streamable HTTP, or the older SSE.

The `mcp` package speaks the protocol; what it leaves open is bounded here, below it. It follows redirects on
the endpoint's own origin only. It reads answers of any length for any time: here a message is bounded in
bytes, whether it is a body of JSON or one event of a stream, and an answer in seconds. Compressed answers are
refused, since their size is not known before they are unpacked.

Not bounded: the number of messages in the stream that stays open for the server's own news, and how often a
server makes the package resume an answer that broke off. Both end with the session. The bound in bytes is
exceeded by what is read at once, 64 KB.
"""

import math
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import httpx
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from muster_agent.tools.mcp.settings import McpServer
from muster_agent.tools.mcp.stdio import Streams

_MOST_REDIRECTS: Final = 3
_LEEWAY_S: Final = 5.0
"""An answer may stream this much longer than its call may last: the call is cancelled at the server first."""
_EVENT_ENDS: Final = (b"\n\n", b"\n\r\n", b"\r\r")


@asynccontextmanager
async def open_http(
    settings: McpServer, headers: Mapping[str, str], tls: ssl.SSLContext, broken: Callable[[], None]
) -> AsyncGenerator[Streams]:
    """Connect to the server; leaving tells it that the session has ended.

    Args:
        settings: Where the server is.
        headers: Headers of each request.
        tls: The certificates that are trusted.
        broken: Called when the server has sent a message that is too long.
    """

    def client(*_args: object, **_options: object) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            headers={**headers, "accept-encoding": "identity"},
            timeout=settings.timeout_s,
            max_redirects=_MOST_REDIRECTS,
            trust_env=False,
            transport=_BoundedTransport(settings, tls, broken),
        )

    url = settings.url or ""
    if settings.way == "sse":
        async with sse_client(url, httpx_client_factory=client) as streams:
            yield streams
        return
    async with client() as http, streamable_http_client(url, http_client=http) as (incoming, outgoing, _):
        yield incoming, outgoing


class _BoundedTransport(httpx.AsyncBaseTransport):
    """HTTP with bounded answers.

    Args:
        settings: The bounds.
        tls: The certificates that are trusted.
        broken: Called when a message is too long.
    """

    def __init__(self, settings: McpServer, tls: ssl.SSLContext, broken: Callable[[], None]) -> None:
        self._transport = httpx.AsyncHTTPTransport(verify=tls, trust_env=False)
        self._settings = settings
        self._broken = broken

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request.

        Raises:
            httpx.HTTPError: It failed, or the answer is compressed.
        """
        # The stream for the server's own news is silent for as long as there are none.
        is_standing = request.method == "GET" and "last-event-id" not in request.headers
        if is_standing:
            request.extensions["timeout"] = {**request.extensions.get("timeout", {}), "read": None}
        until_s = None if is_standing else time.monotonic() + self._settings.timeout_s + _LEEWAY_S
        response = await self._transport.handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx.DecodingError("a compressed answer was not asked for", request=request)
        body = _BoundedBody(response, self._settings.most_message_bytes, until_s, self._broken)
        return httpx.Response(
            response.status_code, headers=response.headers, stream=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _BoundedBody(httpx.AsyncByteStream):
    """An answer's bytes.

    Args:
        response: The answer.
        most_bytes: Of the whole of it, or of each event of a stream.
        until_s: When it must have ended, by the monotonic clock.
        broken: Called when it is too long.
    """

    def __init__(
        self, response: httpx.Response, most_bytes: int, until_s: float | None, broken: Callable[[], None]
    ) -> None:
        self._response = response
        self._most_bytes = most_bytes
        self._until_s = until_s
        self._broken = broken

    async def __aiter__(self) -> AsyncIterator[bytes]:
        is_stream = self._response.headers.get("content-type", "").lower().startswith("text/event-stream")
        bytes_read: float = 0
        tail = b""
        async for chunk in self._response.aiter_raw():
            bytes_read += len(chunk)
            if is_stream:
                bytes_read = min(bytes_read, _bytes_after_event(tail + chunk))
                tail = (tail + chunk)[-2:]
            self._check(bytes_read)
            yield chunk

    def _check(self, bytes_read: float) -> None:
        if bytes_read > self._most_bytes:
            self._broken()
            raise httpx.ReadError("the answer is too long")
        if self._until_s is not None and time.monotonic() > self._until_s:
            raise httpx.ReadTimeout("the answer takes too long")

    async def aclose(self) -> None:
        await self._response.aclose()


def _bytes_after_event(data: bytes) -> float:
    """Bytes after the last end of an event in `data`; no bound, if none ends there."""
    ends = [at + len(mark) for mark in _EVENT_ENDS if (at := data.rfind(mark)) >= 0]
    return len(data) - max(ends) if ends else math.inf
