"""Answers that are streamed while something goes on."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muster_agent import failures
from muster_agent.api.requests import Json
from muster_agent.disconnects import until_disconnect
from muster_agent.failures import Failure
from muster_agent.gathering import gathered

if TYPE_CHECKING:
    from muster_agent.runs.events import StoredEvent

KEEP_ALIVE = b": keep-alive\n\n"

Left = Callable[[], Awaitable[None]]
"""What is done when the client has left before the end."""


class Writer(Protocol):
    """Writes a run's events in the shape of an interface."""

    def opening(self) -> bytes:
        """What an answer begins with."""
        ...

    def write(self, event: "StoredEvent") -> bytes:
        """What is sent for an event.

        Raises:
            Failure: The run has failed.
        """
        ...

    def broken_off(self, failure: Failure) -> bytes:
        """The end of an answer that failed after it had begun."""
        ...


async def whole(events: "AsyncGenerator[StoredEvent]") -> "AsyncGenerator[StoredEvent]":
    """A run's events from the first to the last, and nothing less.

    Raises:
        Failure: The run is gone, or the client has read so slowly that events were dropped.
    """
    seq = 0
    async with aclosing(events):
        async for event in events:
            if event.seq != seq + 1:
                raise failures.client_too_slow()
            seq = event.seq
            yield event
            if event.is_last:
                return
    raise failures.run_cancelled()  # deleted while we listened


async def written(events: "AsyncGenerator[StoredEvent]", writer: Writer) -> AsyncGenerator[bytes]:
    """What is sent for a run's events.

    Raises:
        Failure: The run has failed, or cannot be told.
    """
    async with aclosing(whole(events)) as told:
        async for event in told:
            if piece := writer.write(event):
                yield piece


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is streamed.

    Attributes:
        opening: What it begins with, before the first piece.
        broken_off: How it ends when it fails after it has begun.
        keep_alive_s: Seconds of silence after which a comment is sent.
        left: Called when the client leaves early.
        begins_at_once: Whether it begins before there is anything to say.
    """

    opening: bytes
    broken_off: Callable[[Failure], bytes]
    keep_alive_s: float
    left: Left | None = None
    begins_at_once: bool = False


class StreamedAnswer(Response):
    """Answers with server-sent events.

    The answer begins with the first piece, or after `keep_alive_s` of silence. What fails before that is answered with
    its own status, as it would be unstreamed.

    Args:
        pieces: The answer; a `Failure` that it raises ends it.
        manner: How.
        headers: Further ones.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes], manner: Manner, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        # A stream has no length, and `init_headers` leaves it out as long as there is no body.
        self._pieces = pieces
        self._manner = manner
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        is_done = await until_disconnect(receive, partial(self._answer, scope, receive, send))
        if not is_done and self._manner.left is not None:
            await self._manner.left()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        failure = await self._relay(send)
        if failure is None:
            await self._write(send, b"")
            await send({"type": "http.response.body", "body": b""})
        elif self._has_begun:
            await send({"type": "http.response.body", "body": self._manner.broken_off(failure)})
        else:
            await Json(failure.body, failure.status, failure.headers).response()(scope, receive, send)

    async def _relay(self, send: Send) -> Failure | None:
        """Send the pieces, to the last. Returns why there are no more, if they failed."""
        if self._manner.begins_at_once:
            await self._write(send, b"")
        try:
            async with gathered(self._pieces, self._manner.keep_alive_s) as handfuls, aclosing(handfuls):
                async for pieces in handfuls:
                    await self._write(send, b"".join(pieces) if pieces else KEEP_ALIVE)
        except Failure as failure:
            return failure
        return None

    async def _write(self, send: Send, body: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            await send(start)
            body = self._manner.opening + body
        if body:
            await send({"type": "http.response.body", "body": body, "more_body": True})
