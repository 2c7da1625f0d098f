"""The relay as an ASGI application, which every server can load by name.

It does nothing but relay: every request's body goes to the engine as a call of `/v1/chat/completions`, the answer's
bytes go back as they come. The environment says how: RELAY_ENGINE is the engine's root URL, RELAY_CLIENT the client.
"""

import contextlib
import os
from typing import TYPE_CHECKING

from tests.benchmarks.relays.clients import Client, opened

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class Relay:
    """The application.

    Args:
        engine: Root URL of the engine.
        client: Name of the client.
    """

    _client: Client

    def __init__(self, engine: str, client: str) -> None:
        self._engine = engine
        self._name = client

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Relay one request; or open the client, and close it when the server stops."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._client.relay(await _body(receive), send)

    async def _live(self, receive: "Receive", send: "Send") -> None:
        await receive()
        async with contextlib.AsyncExitStack() as stack:
            self._client = await stack.enter_async_context(opened(self._name, self._engine))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _body(receive: "Receive") -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body", False):
        message = await receive()
        body += message.get("body", b"")
    return body


app = Relay(os.environ.get("RELAY_ENGINE", ""), os.environ.get("RELAY_CLIENT", ""))
