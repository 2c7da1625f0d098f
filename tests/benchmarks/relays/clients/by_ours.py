"""Muster's client, as the proxy uses it: a piece of the answer goes out in the call in which it comes in."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import TYPE_CHECKING, Any

from muster_proxy.client import Origin, Timeouts, UpstreamClient
from tests.benchmarks.relays.clients.answering import END, PATH, head, piece

if TYPE_CHECKING:
    from starlette.types import Send


class Ours:
    """A relay's client.

    Args:
        client: Muster's.
        origin: Of the engine.
    """

    def __init__(self, client: UpstreamClient, origin: Origin) -> None:
        self._client = client
        self._origin = origin

    async def relay(self, body: bytes, send: "Send") -> None:
        """Post a body to the engine, and send its answer."""
        async with self._client.post(self._origin, PATH, b"", body) as answer:
            content_type = answer.header(b"content-type") or ""
            await send(head(answer.status, content_type, answer.header(b"content-length")))
            await answer.pour(lambda part: begun(send(piece(part))))
            await send(END)


class Rest:
    """What is left to await of something that has been begun.

    Args:
        awaited: What it waits for first.
        steps: Those after it.
    """

    __slots__ = ("_awaited", "_steps")

    def __init__(self, awaited: object, steps: Generator[Any, Any, object]) -> None:
        self._awaited = awaited
        self._steps = steps

    def __await__(self) -> Generator[Any, Any, object]:
        yield self._awaited
        return (yield from self._steps)


def begun(flow: Awaitable[object]) -> Awaitable[object] | None:
    """Go on with something until it has to wait; the rest of it, if there is any.

    Most of the time a server's `send` waits for nothing. Found out so, it does not stop the reading from the engine;
    Muster's own server says it by what it returns, which comes to the same here.
    """
    steps = flow.__await__()
    try:
        awaited = next(steps)
    except StopIteration:
        return None
    return Rest(awaited, steps)


@contextlib.asynccontextmanager
async def opened(engine: str) -> AsyncGenerator[Ours]:
    """The client, for the length of the block."""
    client = UpstreamClient(Timeouts())
    try:
        yield Ours(client, Origin.of(engine))
    finally:
        await client.close()
