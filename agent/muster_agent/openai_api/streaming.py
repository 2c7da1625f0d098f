"""Answers that are streamed while a run goes on."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muster_agent.api.requests import Json
from muster_agent.disconnects import until_disconnect
from muster_agent.failures import Failure

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

    def write(self, event: "StoredEvent") -> bytes | Failure:
        """What is sent for an event; a failure ends the answer."""
        ...

    def broken_off(self, failure: Failure) -> bytes:
        """The end of an answer that failed after it had begun."""
        ...

    def gone(self) -> Failure:
        """Why an answer has no end: its run was deleted."""
        ...


@dataclass(frozen=True, slots=True)
class Listening:
    """How a client listens to a run.

    Attributes:
        events: What the run says.
        keep_alive_s: Seconds of silence after which a comment is sent.
        left: Called when the client leaves early.
        begins_at_once: Whether the answer begins before the run has said anything.
    """

    events: "AsyncGenerator[StoredEvent]"
    keep_alive_s: float
    left: Left | None = None
    begins_at_once: bool = False


class StreamedAnswer(Response):
    """Answers with server-sent events while a run goes on.

    The answer begins with the first thing that the run has to say, or after `keep_alive_s` of silence. A run that fails
    before that is answered with its own status, as it would be unstreamed.

    Args:
        listening: What is heard, and how.
        writer: Writes it.
        headers: Further ones.
    """

    media_type = "text/event-stream"

    def __init__(self, listening: Listening, writer: Writer, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        # A stream has no length, and `init_headers` leaves it out as long as there is no body.
        self._listening = listening
        self._writer = writer
        self._has_begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        is_done = await until_disconnect(receive, partial(self._answer, scope, receive, send))
        if not is_done and self._listening.left is not None:
            await self._listening.left()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._listening.begins_at_once:
            await self._write(send, b"")
        failure = await self._relay(send)
        if failure is None:
            await send({"type": "http.response.body", "body": b""})
        elif self._has_begun:
            await send({"type": "http.response.body", "body": self._writer.broken_off(failure)})
        else:
            await Json(failure.body, failure.status, failure.headers).response()(scope, receive, send)

    async def _relay(self, send: Send) -> Failure | None:
        """Send what the run says, to its end. Returns why it failed."""
        heard = _with_silences(self._listening.events, self._listening.keep_alive_s)
        async with aclosing(self._listening.events), aclosing(heard):
            async for event in heard:
                written = KEEP_ALIVE if event is None else self._writer.write(event)
                if isinstance(written, Failure):
                    return written
                if written:
                    await self._write(send, written)
                if event is not None and event.is_last:
                    return None
        return self._writer.gone()

    async def _write(self, send: Send, body: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            body = self._writer.opening() + body
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def _with_silences(
    events: "AsyncGenerator[StoredEvent]", silence_s: float
) -> "AsyncGenerator[StoredEvent | None]":
    """`events`, and None whenever there was none for so long."""

    async def following() -> "StoredEvent | None":
        return await anext(events, None)

    task: asyncio.Task[StoredEvent | None] = asyncio.create_task(following())
    try:
        while True:
            await asyncio.wait([task], timeout=silence_s)
            if not task.done():
                yield None
                continue
            event = task.result()
            if event is None:
                return
            task = asyncio.create_task(following())
            yield event
    finally:
        task.cancel()
        await asyncio.wait([task])
