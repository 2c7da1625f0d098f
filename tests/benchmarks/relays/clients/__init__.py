"""The clients that a relay may have, each used for streaming as its documentation says.

All keep connections alive, as many as there are requests, decompress nothing, follow no redirects and use no proxy of
the environment. Each reads on only when the relay's own client has taken what came before.
"""

import importlib
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from starlette.types import Send


class Client(Protocol):
    """A client of one engine."""

    async def relay(self, body: bytes, send: "Send") -> None:
        """Post a body to the engine, and send its answer."""
        ...


class _Module(Protocol):
    def opened(self, engine: str) -> AbstractAsyncContextManager[Client]: ...


def opened(name: str, engine: str) -> AbstractAsyncContextManager[Client]:
    """A client, for the length of the block; nothing is imported for any other.

    Args:
        name: `ours`, `aiohttp`, `pyreqwest` or `httpx2`.
        engine: Root URL of the engine.
    """
    module: _Module = importlib.import_module(f"{__name__}.by_{name}")  # pyright: ignore[reportAssignmentType]
    return module.opened(engine)
