"""The connection to an engine: sends a body, gives back the head of the answer and its bytes as they come.

Everything that aiohttp raises is turned here into a `RequestError`, so that no other module knows which
library does the work. Leaving `UpstreamClient.post` before the answer's last byte closes the connection,
which is how an engine is told to abort.
"""

import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping

import aiohttp

from muster_proxy.failures import Reason, RequestError

# vLLM (uvicorn) and llama.cpp close an idle connection after 5 s; ours go first, so that a request never
# meets one that the engine is closing.
_KEEPALIVE_S = 4.0


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

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body's bytes as they come.

        Raises:
            RequestError: The connection broke (`UPSTREAM_STREAM_ERROR`) or fell silent (`UPSTREAM_TIMEOUT`).
        """
        with _told_as(Reason.UPSTREAM_STREAM_ERROR):
            async for chunk in self._response.content.iter_any():
                yield chunk

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

    @contextlib.asynccontextmanager
    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> AsyncGenerator[Answer]:
        """Send `body` to `url`; the block has the answer.

        Raises:
            RequestError: No connection (`NO_HEALTHY_UPSTREAM`), it broke before the answer's head
                (`UPSTREAM_LOST`), or none came in time (`UPSTREAM_TIMEOUT`).
        """
        with _told_as(Reason.UPSTREAM_LOST):
            response = await self._session.post(
                url, data=body, headers={**headers, "accept-encoding": "identity"}, allow_redirects=False
            )
        try:
            yield Answer(response)
        finally:
            # Gives a connection back that has been read to its end, and closes any other.
            response.release() if response.content.at_eof() else response.close()


@contextlib.contextmanager
def _told_as(lost: Reason) -> Generator[None]:
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise RequestError(Reason.NO_HEALTHY_UPSTREAM) from error
    except (TimeoutError, aiohttp.SocketTimeoutError) as error:
        raise RequestError(Reason.UPSTREAM_TIMEOUT) from error
    except (aiohttp.ClientError, OSError) as error:
        raise RequestError(lost) from error
