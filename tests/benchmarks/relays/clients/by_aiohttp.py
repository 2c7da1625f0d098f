"""aiohttp: one session, its pool without a limit, the answer read as whatever has come."""

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

from tests.benchmarks.relays.clients.answering import END, PATH, REQUEST_HEADERS, head, piece

if TYPE_CHECKING:
    from starlette.types import Send

NO_LIMIT = 0


class Aiohttp:
    """A relay's client.

    Args:
        session: aiohttp's.
        url: Of the call.
    """

    def __init__(self, session: ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def relay(self, body: bytes, send: "Send") -> None:
        """Post a body to the engine, and send its answer."""
        async with self._session.post(
            self._url, data=body, headers=REQUEST_HEADERS, allow_redirects=False
        ) as answer:
            headers = answer.headers
            await send(head(answer.status, headers.get("content-type", ""), headers.get("content-length")))
            async for part in answer.content.iter_any():
                await send(piece(part))
            await send(END)


@contextlib.asynccontextmanager
async def opened(engine: str) -> AsyncGenerator[Aiohttp]:
    """The client, for the length of the block."""
    async with ClientSession(
        connector=TCPConnector(limit=NO_LIMIT),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
        timeout=ClientTimeout(total=None, sock_connect=2.0, sock_read=120.0),
    ) as session:
        yield Aiohttp(session, engine + PATH)
