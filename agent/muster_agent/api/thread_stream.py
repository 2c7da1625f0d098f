"""`GET /threads/{id}/stream`: what a thread's runs say, from now on or behind `Last-Event-ID`, run after run."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from muster_agent.api.requests import ApiError, add, caller_of, path_id, service_of
from muster_agent.disconnects import until_disconnect
from muster_agent.gathering import gathered
from muster_agent.runs.thread_events import Heard, Place

if TYPE_CHECKING:
    from muster_agent.runs.events import StoredEvent
    from muster_agent.runs.thread_events import Said

_HEARTBEAT = b": heartbeat\r\n\r\n"
_STATES = frozenset({"values", "updates", "checkpoints"})
_MODES: dict[str, frozenset[str] | None] = {
    "run_modes": None,  # all that a run says
    "lifecycle": frozenset({"metadata"}),
    "state_update": _STATES,
}


def add_thread_stream(app: FastAPI) -> None:
    """Add the route."""
    add(app, "GET", "/threads/{thread_id}/stream", _join)


class LiveStream(Response):
    """Server-sent events that come when they come, until the client leaves.

    Args:
        events: Events as they go out; closed when the client has left.
        keep_alive_s: Seconds of silence after which a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], keep_alive_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no"})
        self._events = events
        self._keep_alive_s = keep_alive_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        del scope
        await until_disconnect(receive, partial(self._answer, send))

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with gathered(self._events, self._keep_alive_s) as handfuls, aclosing(handfuls):
            async for events in handfuls:
                body = b"".join(events) if events else _HEARTBEAT
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def frame(event: str, data: bytes, identifier: str) -> bytes:
    """A server-sent event."""
    return b"event: %b\r\ndata: %b\r\nid: %b\r\n\r\n" % (event.encode(), data, identifier.encode())


async def _join(request: Request) -> Response:
    caller, thread_id = await caller_of(request), path_id(request, "thread_id", "thread")
    service, modes = service_of(request), _modes(request)
    await service.threads.get(caller.tenant, thread_id)
    left = _left(request)
    known = (
        await service.thread_events.heard_by_now(caller.tenant, thread_id)
        if left is None
        else Heard.until(left)
    )
    events = service.thread_events.follow(caller.tenant, thread_id, known)
    return LiveStream(_written(events, modes), service.settings.keep_alive_s)


def _modes(request: Request) -> frozenset[str] | None:
    """The events that the query's stream modes name; None for all. Clients repeat it, or send a JSON list."""
    given = ",".join(request.query_params.getlist("stream_mode")) or "run_modes"
    names = [name.strip(' "[]') for name in given.split(",")]
    if unknown := [name for name in names if name not in _MODES]:
        raise ApiError(422, f"{unknown[0][:64]!r} is no stream mode; expected some of {', '.join(_MODES)}")
    wanted: set[str] = set()
    for name in names:
        events = _MODES[name]
        if events is None:
            return None
        wanted |= events
    return frozenset(wanted)


def _left(request: Request) -> Place | None:
    """Where the client has left; a thread's whole log for an identifier that is none of ours, such as `-1`."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    run, _, event = given.partition("-")
    numbers = [text for text in (run, event) if text.isascii() and text.isdecimal() and len(text) <= 18]  # noqa: PLR2004 - digits
    return Place(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else Place()  # noqa: PLR2004 - a pair


async def _written(heard: AsyncGenerator["Said"], modes: frozenset[str] | None) -> AsyncGenerator[bytes]:
    async with aclosing(heard) as all_said:
        async for said in all_said:
            if (told := _told(said)) is None:
                continue
            event, data = told
            if modes is None or event.partition("|")[0].partition("/")[0] in modes:
                yield frame(event, data, f"{said.place.run}-{said.place.event}")


def _told(said: "Said") -> tuple[str, bytes] | None:
    event: StoredEvent | None = said.event
    if event is None or event.is_last:
        return "metadata", orjson.dumps({"status": "run_done", "run_id": said.run_id})
    return (event.event, event.data) if event.protocol == 1 else None
