"""httpx2: one client, its pool without a limit, the answer read as raw bytes."""

import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from httpx2 import AsyncClient, Limits, Timeout

from tests.benchmarks.relays.clients.answering import END, PATH, REQUEST_HEADERS, head, piece

if TYPE_CHECKING:
    from starlette.types import Send


class Httpx2:
    """A relay's client.

    Args:
        client: httpx2's.
        url: Of the call.
    """

    def __init__(self, client: AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def relay(self, body: bytes, send: "Send") -> None:
        """Post a body to the engine, and send its answer."""
        async with self._client.stream("POST", self._url, content=body, headers=REQUEST_HEADERS) as answer:
            headers = answer.headers
            await send(
                head(answer.status_code, headers.get("content-type", ""), headers.get("content-length"))
            )
            async for part in answer.aiter_raw():
                await send(piece(part))
            await send(END)


@contextlib.asynccontextmanager
async def opened(engine: str) -> AsyncGenerator[Httpx2]:
    """The client, for the length of the block."""
    limits = Limits(max_connections=None, max_keepalive_connections=None)
    timeout = Timeout(None, connect=2.0, read=120.0)
    async with AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client:
        yield Httpx2(client, engine + PATH)
