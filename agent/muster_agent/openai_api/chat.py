"""`POST /v1/chat/completions`: each request is a run, which ends with its client."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.api.requests import Json, add, caller_of, service_of
from muster_agent.disconnects import until_disconnect
from muster_agent.openai_api.answers import DONE, ChunkWriter, Completion, Heading, broken_off
from muster_agent.openai_api.chat_request import ChatRequest, parse
from muster_agent.openai_api.happenings import reader_for
from muster_agent.openai_api.reading import assistant_of, read_body
from muster_agent.openai_api.streaming import Left, Manner, StreamedAnswer, whole, written
from muster_agent.openai_api.thread_names import ThreadName, thread_named
from muster_agent.openai_api.titles import TaskCall, is_task
from muster_agent.runs.front import Order, Row, of_ids
from muster_agent.runs.records import Cancel
from muster_observability.request_ids import request_id_of

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant
    from muster_agent.callers import Caller
    from muster_agent.runs.events import StoredEvent

IDEMPOTENCY_KEY = "idempotency-key"

CLIENT_LEFT = 499
"""The status of an answer that nobody reads; it is what logs show."""
_NO_STORE = {"cache-control": "no-store"}


def add_chat(app: FastAPI) -> None:
    """Add the route."""
    add(app, "POST", "/v1/chat/completions", _chat, ChatRequest)


async def _chat(request: Request) -> Response:
    caller = await caller_of(request)
    chat = parse(await read_body(request))
    assistant = assistant_of(request, chat.model)
    if is_task(request.headers, chat):
        call = TaskCall(service_of(request), assistant, caller, request_id_of(request.scope))
        return await _task_answer(request, call, chat)
    name = thread_named(request.headers, chat.metadata, chat.prompt_cache_key, caller.tenant)
    order = _order(request, caller, assistant, chat, name)
    run, events = await service_of(request).runs.submit_and_follow(order)
    heading = Heading(
        f"chatcmpl-{run['run_id']}", int(run["created_at"]), chat.model, chat.shows_agent_events
    )
    if chat.stream:
        writer = ChunkWriter(heading, reader_for(assistant), chat.wants_usage)
        pieces = written(events, writer)
        left = when_left(request, run)
        manner = Manner(writer.opening(), writer.broken_off, service_of(request).settings.keep_alive_s, left)
        return StreamedAnswer(pieces, manner, names_of(run))
    return await _whole(request, run, events, Completion(heading, reader_for(assistant)))


def _order(
    request: Request, caller: "Caller", assistant: "Assistant", chat: ChatRequest, name: ThreadName | None
) -> Order:
    kwargs: dict[str, Any] = {
        "transcript": {"messages": chat.conversation, "is_whole": name is None or name.is_sent_whole},
        "stream_mode": ["messages-tuple", "updates"] if chat.stream else ["updates"],
        "is_patient": False,
        # A client that may ask again for the same answer hears it from the beginning.
        "stream_resumable": IDEMPOTENCY_KEY in request.headers,
        **context_for(assistant, chat.instructions, chat.sampling),
    }
    return Order(
        caller=caller,
        assistant=assistant,
        kwargs=kwargs,
        request_id=request_id_of(request.scope),
        thread_id=None if name is None else name.thread_id,
        may_make_thread=True,
        idempotency_key=idempotency_key(request, "chat"),
    )


def context_for(assistant: "Assistant", instructions: str, sampling: dict[str, Any]) -> dict[str, Any]:
    """Instructions and sampling as a run takes them; a mounted graph finds them in its configuration."""
    given = {"instructions": instructions, "sampling": sampling}
    if assistant.declaration.graph is None:
        return {"context": given}
    return {"config": {"configurable": given}}


def idempotency_key(request: Request, interface: str) -> str | None:
    """The request's key, which counts within one interface: an answer cannot be told in another's shape."""
    key = request.headers.get(IDEMPOTENCY_KEY)
    return f"{interface}:{key[:256]}" if key else None


def names_of(run: Row) -> dict[str, str]:
    """Headers that tell where an answer came from."""
    return {"x-agent-run-id": run["run_id"], "x-agent-thread-id": run["thread_id"]}


def when_left(request: Request, run: Row) -> Left:
    """Ends a run whose client has left: at once, which closes its model call, unless the client may come back to it."""
    service = service_of(request)

    async def cancel() -> None:
        await service.runs.cancel(of_ids(run["tenant"], None, [run["run_id"]]), Cancel.INTERRUPT)

    async def cancel_later() -> None:
        service.departures.cancel_unless_followed(run["run_id"], cancel)

    return cancel_later if IDEMPOTENCY_KEY in request.headers else cancel


async def _whole(
    request: Request, run: Row, events: "AsyncGenerator[StoredEvent]", completion: Completion
) -> Response:
    """The answer when the run has ended; it ends with its client."""

    async def listen() -> None:
        async with aclosing(whole(events)) as told:
            async for event in told:
                completion.take(event)

    if not await until_disconnect(request.receive, listen):
        await when_left(request, run)()
        return Response(status_code=CLIENT_LEFT)
    if completion.failure is not None:
        raise completion.failure
    headers = {**_NO_STORE, **names_of(run)}
    if completion.end is not None and completion.end.interrupts:
        headers["x-agent-interrupt-id"] = str(completion.end.interrupts[0]["id"])
    return Json(completion.body(), headers=headers).response()


async def _task_answer(request: Request, call: TaskCall, chat: ChatRequest) -> Response:
    if chat.stream:
        keep_alive_s = service_of(request).settings.keep_alive_s
        return StreamedAnswer(_to_the_end(call.stream(chat)), Manner(b"", broken_off, keep_alive_s), {})
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await call.answer(chat))

    if not await until_disconnect(request.receive, ask):
        return Response(status_code=CLIENT_LEFT)
    return Response(answers[0], headers=_NO_STORE, media_type="application/json")


async def _to_the_end(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece
    yield DONE
