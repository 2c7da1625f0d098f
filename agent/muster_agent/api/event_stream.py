"""Answers that last as long as a run: its events one by one, or its result at the end."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muster_agent.disconnects import until_disconnect
from muster_agent.gathering import gathered
from muster_agent.wire import to_json

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from muster_agent.runs.events import StoredEvent

_HEARTBEAT = b": heartbeat\r\n\r\n"

Left = Callable[[], Awaitable[None]]
"""What is done when the client has left before the end."""


@dataclass(frozen=True, slots=True)
class Listening:
    """How somebody listens to a run.

    Attributes:
        events: What the run says.
        has_ids: Whether events carry their numbers, so that the client can come back.
        modes: The event names that are wanted; None for all.
        keep_alive_s: Seconds of silence after which a comment is sent.
        left: Called when the client leaves early.
    """

    events: "AsyncGenerator[StoredEvent]"
    has_ids: bool
    keep_alive_s: float
    modes: frozenset[str] | None = None
    left: Left | None = None

    def wants(self, event: "StoredEvent") -> bool:
        """Whether an event is for this listener."""
        if event.protocol != 1:
            return False
        name = event.event.partition("|")[0].partition("/")[0]
        return self.modes is None or name in self.modes or name in {"metadata", "error", "end"}


class _LongAnswer(Response, ABC):
    """An answer that is written while a run goes on."""

    def __init__(self, listening: Listening, headers: dict[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **headers})
        # A stream has no length, and `init_headers` leaves it out as long as there is no body.
        self._listening = listening
        self._has_ended = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send the answer."""
        is_done = await until_disconnect(receive, partial(self._answer, send))
        if not is_done and self._listening.left is not None:
            await self._listening.left()

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        listening = self._listening
        async with gathered(listening.events, listening.keep_alive_s) as handfuls, aclosing(handfuls):
            async for events in handfuls:
                body = b"".join(map(self._written, events)) if events else self._silence()
                self._has_ended |= any(event.is_last for event in events)
                if body:
                    await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if self._has_ended else self._ending()})

    @abstractmethod
    def _silence(self) -> bytes:
        """What keeps a connection alive while there is nothing to say."""

    def _ending(self) -> bytes:
        """What is said of a run that is gone without an end."""
        return b""

    @abstractmethod
    def _written(self, event: "StoredEvent") -> bytes:
        """What is sent of an event."""


class EventStream(_LongAnswer):
    """A run's events as server-sent events."""

    media_type = "text/event-stream"

    def _silence(self) -> bytes:
        return _HEARTBEAT

    def _written(self, event: "StoredEvent") -> bytes:
        if not self._listening.wants(event):
            return b""
        data = to_json({"status": _status(event)}) if event.is_last else event.data
        identifier = f"id: {event.seq}\r\n".encode() if self._listening.has_ids else b""
        return b"event: %b\r\ndata: %b\r\n%b\r\n" % (event.event.encode(), data, identifier)


class FinalResult(_LongAnswer):
    """A run's result, when it has ended; newlines before it keep the connection alive."""

    media_type = "application/json"

    def _silence(self) -> bytes:
        return b"\n"

    def _written(self, event: "StoredEvent") -> bytes:
        return _result(event) if event.is_last else b""

    def _ending(self) -> bytes:
        return orjson.dumps({"__error__": {"error": "HTTPException", "message": "404: Run not found"}})


def _status(event: "StoredEvent") -> Any:  # noqa: ANN401 - JSON
    return orjson.loads(event.data)["status"]


def _result(event: "StoredEvent") -> bytes:
    return orjson.dumps(orjson.loads(event.data).get("result", {}))
