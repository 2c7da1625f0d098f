"""The connection to an engine: sends a body, gives back the head of the answer and its bytes as they come.

Everything that aiohttp raises is turned here into a `RequestError`, so that no other module knows which
library does the work. Leaving `UpstreamClient.post` before the answer's last byte closes the connection,
which is how an engine is told to abort.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping

import aiohttp

from muster_proxy.failures import Reason, RequestError

# vLLM (uvicorn) and llama.cpp close an idle connection after 5 s; ours go first, so that a request never
# meets one that the engine is closing.
_KEEPALIVE_S = 4.0

_PLAIN = {"accept-encoding": "identity"}


class Answer:
    """The answer of an engine, its head read and its body still to come.

    Args:
        response: aiohttp's response.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._response.status

    @property
    def is_event_stream(self) -> bool:
        """Whether the body is server-sent events."""
        return self._response.content_type == "text/event-stream"

    def header(self, name: str) -> str | None:
        """A header's value."""
        return self._response.headers.get(name)

    async def chunk(self) -> bytes:
        """The bytes that have come since the last call; waits for some, and is empty at the end.

        Raises:
            RequestError: The connection broke (`UPSTREAM_STREAM_ERROR`) or fell silent (`UPSTREAM_TIMEOUT`).
        """
        with _told_as(Reason.UPSTREAM_STREAM_ERROR):
            return await self._response.content.readany()

    async def body(self, limit_bytes: int) -> bytes:
        """The whole body.

        Raises:
            RequestError: The connection broke (`UPSTREAM_LOST`), fell silent (`UPSTREAM_TIMEOUT`), or the
                body is larger than `limit_bytes` (`UPSTREAM_PROTOCOL_ERROR`).
        """
        held = bytearray()
        with _told_as(Reason.UPSTREAM_LOST):
            async for chunk in self._response.content.iter_any():
                held += chunk
                if len(held) > limit_bytes:
                    raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR, "The engine's answer is too large.")
        return bytes(held)


class UpstreamClient:
    """A pool of connections to the engines.

    Args:
        connect_timeout_s: Seconds to open a connection.
        idle_timeout_s: Seconds that an engine may be silent.
    """

    def __init__(self, *, connect_timeout_s: float, idle_timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            # The scheduler limits what is in flight; a second limit here could only deadlock with it.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=connect_timeout_s, sock_read=idle_timeout_s
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def get(
        self, url: str, headers: Mapping[str, str], *, timeout_s: float, limit_bytes: int
    ) -> bytes | None:
        """The body of a page; None where the status is not 200.

        Args:
            url: Of the page.
            headers: Of the request.
            timeout_s: Seconds for all of it.
            limit_bytes: The largest page.

        Raises:
            RequestError: It cannot be had, not in time, or is too large.
        """
        with _told_as(Reason.UPSTREAM_LOST):
            async with (
                asyncio.timeout(timeout_s),
                self._session.get(url, headers={**headers, **_PLAIN}, allow_redirects=False) as response,
            ):
                if response.status != 200:  # noqa: PLR2004  HTTP's own number
                    return None
                return await Answer(response).body(limit_bytes)

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str]
    ) -> contextlib.AbstractAsyncContextManager[Answer]:
        """Send `body` to `url`; the block has the answer.

        Raises:
            RequestError: No connection (`NO_HEALTHY_UPSTREAM`), it broke before the answer's head
                (`UPSTREAM_LOST`), or none came in time (`UPSTREAM_TIMEOUT`). On entering.
        """
        return _Posted(
            self._session.post(url, data=body, headers={**headers, **_PLAIN}, allow_redirects=False)
        )


class _Posted:
    """A request and its answer; a class, not a generator, as it is on the path of every request.

    Args:
        sending: Sends the request and reads the answer's head.
    """

    __slots__ = ("_response", "_sending")

    _response: aiohttp.ClientResponse

    def __init__(self, sending: Awaitable[aiohttp.ClientResponse]) -> None:
        self._sending = sending

    async def __aenter__(self) -> Answer:
        with _told_as(Reason.UPSTREAM_LOST):
            self._response = await self._sending
        return Answer(self._response)

    async def __aexit__(self, *_exception: object) -> None:
        # Gives a connection back that has been read to its end, and closes any other.
        response = self._response
        response.release() if response.content.at_eof() else response.close()


class _told_as:  # noqa: N801  it reads as a statement, like contextlib.suppress
    """Tells aiohttp's errors in our words.

    Args:
        lost: What a broken connection is.
    """

    __slots__ = ("_lost",)

    def __init__(self, lost: Reason) -> None:
        self._lost = lost

    def __enter__(self) -> None:
        pass

    def __exit__(self, _exc_type: object, exc: BaseException | None, _traceback: object) -> None:
        if exc is not None and (reason := self._reason(exc)) is not None:
            raise RequestError(reason) from exc

    def _reason(self, exc: BaseException) -> Reason | None:
        match exc:
            case aiohttp.ConnectionTimeoutError() | aiohttp.ClientConnectorError():
                return Reason.NO_HEALTHY_UPSTREAM
            case TimeoutError():
                return Reason.UPSTREAM_TIMEOUT
            case aiohttp.ClientError() | OSError():
                return self._lost
            case _:
                return None
