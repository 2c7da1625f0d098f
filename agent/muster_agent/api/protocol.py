"""LangGraph's second protocol: commands to a thread, and its events as a stream or over a WebSocket."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import WebSocketRoute

from muster_agent.api.commands import Command, Sender
from muster_agent.api.requests import Json, add, caller_of, path_id, read, service_of
from muster_agent.api.subscribing import SubscriptionBody, subscribed
from muster_agent.api.thread_socket import serve_thread
from muster_agent.api.thread_stream import LiveStream, frame
from muster_observability.request_ids import request_id_of

if TYPE_CHECKING:
    from muster_agent.streams.tape import ThreadEvent

PATH = "/threads/{thread_id}/stream/events"


def add_protocol(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "POST", "/threads/{thread_id}/commands", _command, Command)
    add(app, "POST", PATH, _stream, SubscriptionBody)
    app.router.routes.append(WebSocketRoute(PATH, serve_thread))


async def _command(request: Request) -> Response:
    caller, thread_id = await caller_of(request), path_id(request, "thread_id", "thread")
    command = await read(request, Command)
    sender = Sender(service_of(request), caller, thread_id, request_id_of(request.scope))
    return Json(await sender.obey(command)).response()


async def _stream(request: Request) -> Response:
    """A thread that does not exist yet is silent: clients listen before they make it."""
    caller, thread_id = await caller_of(request), path_id(request, "thread_id", "thread")
    body, service = await read(request, SubscriptionBody), service_of(request)
    await service.thread_events.check(caller.tenant, thread_id)
    events = subscribed(service, caller.tenant, thread_id, body)
    return LiveStream(_framed(events), service.settings.keep_alive_s)


async def _framed(events: AsyncGenerator["ThreadEvent"]) -> AsyncGenerator[bytes]:
    async with aclosing(events) as wanted:
        async for event in wanted:
            yield frame(event.wire_method, event.as_json(), str(event.seq))
