"""Runs: on threads, and by themselves."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any, Literal

from fastapi import FastAPI
from langchain_core.runnables import RunnableConfig
from pydantic import Field, RootModel
from starlette.requests import Request
from starlette.responses import Response

from muster_agent import decisions
from muster_agent.agents.assistants import Assistant, UnknownAssistantError
from muster_agent.api.event_stream import EventStream, FinalResult, Left, Listening
from muster_agent.api.requests import (
    ApiError,
    Body,
    Json,
    add,
    caller_of,
    checked_id,
    is_set,
    number,
    path_id,
    read,
    service_of,
)
from muster_agent.api.run_body import NO_CHECKPOINT, RunBody
from muster_agent.api.shapes import run_as_json
from muster_agent.callers import Caller
from muster_agent.runs.events import StoredEvent
from muster_agent.runs.front import NoRunError, Order, Row, of_ids, of_status
from muster_agent.runs.records import UNFINISHED, Cancel, RunStatus, ThreadNotFoundError
from muster_agent.service import Service
from muster_observability.request_ids import request_id_of

_LEAVING = ("cancel_on_disconnect",)
_MOST_LISTED = 1000
_MOST_IN_BATCH = 100
_MOST_CANCELLED = 1000
_LONGEST_KEY = 255
_NOTHING_TO_CANCEL = "No runs found to cancel."
_OVER = (
    "No matching runs to cancel. Please verify the thread ID and run IDs are correct, and the runs haven't been "
    "deleted or completed."
)


class RunBatch(RootModel[list[RunBody]]):
    """Several runs at once."""


class CancelBody(Body):
    """Which runs are to be cancelled."""

    status: Literal["pending", "running", "all"] | None = None
    thread_id: str | None = None
    run_ids: list[str] | None = Field(default=None, max_length=_MOST_CANCELLED)


def add_runs(app: FastAPI) -> None:
    """Add the routes."""
    on_thread = "/threads/{thread_id}/runs"
    add(app, "POST", on_thread, _create, RunBody)
    add(app, "GET", on_thread, _list, query=("limit", "offset", "status", "select"))
    add(app, "POST", f"{on_thread}/stream", _stream, RunBody)
    add(app, "POST", f"{on_thread}/wait", _wait, RunBody)
    add(app, "GET", f"{on_thread}/{{run_id}}", _get)
    add(app, "DELETE", f"{on_thread}/{{run_id}}", _delete)
    add(app, "POST", f"{on_thread}/{{run_id}}/cancel", _cancel, query=("wait", "action"))
    add(app, "GET", f"{on_thread}/{{run_id}}/join", _join, query=_LEAVING)
    add(app, "GET", f"{on_thread}/{{run_id}}/stream", _join_stream, query=("stream_mode", *_LEAVING))
    add(app, "POST", "/runs", _create, RunBody)
    add(app, "POST", "/runs/stream", _stream, RunBody)
    add(app, "POST", "/runs/wait", _wait, RunBody)
    add(app, "POST", "/runs/batch", _batch, RunBatch)
    add(app, "POST", "/runs/cancel", _cancel_many, CancelBody, query=("action",))
    add(app, "GET", "/runs/{run_id}/stream", _join_stream, query=("stream_mode", *_LEAVING))
    add(app, "GET", "/runs/{run_id}/join", _join, query=_LEAVING)


async def _create(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, RunBody)
    run = await service_of(request).runs.submit(await _order(request, caller, body))
    return Json(run_as_json(run), headers={"content-location": _location(run)}).response()


async def _stream(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, RunBody)
    run, events = await service_of(request).runs.submit_and_follow(await _order(request, caller, body))
    is_stateless = "thread_id" not in request.path_params
    where = f"/runs/{run['run_id']}" if is_stateless else _location(run)
    headers = {"location": f"{where}/stream", "content-location": where}
    left = _when_left(request, run, body)
    listening = _listening(request, events, has_ids=body.stream_resumable, left=left)
    return EventStream(listening, headers)


async def _wait(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, RunBody)
    run, events = await service_of(request).runs.submit_and_follow(await _order(request, caller, body))
    headers = {"location": f"{_location(run)}/join", "content-location": _location(run)}
    listening = _listening(request, events, has_ids=False, left=_when_left(request, run, body))
    return FinalResult(listening, headers)


async def _batch(request: Request) -> Response:
    caller, batch = await caller_of(request), await read(request, RunBatch)
    if not 1 <= len(batch.root) <= _MOST_IN_BATCH:
        raise ApiError(422, f"a batch has 1 to {_MOST_IN_BATCH} runs")
    # All are looked at before one is made.
    orders = [_numbered(await _order(request, caller, body), place) for place, body in enumerate(batch.root)]
    runs = [await service_of(request).runs.submit(order) for order in orders]
    return Json([run_as_json(run) for run in runs]).response()


def _numbered(order: Order, place: int) -> Order:
    """An order of a batch with an idempotency key of its own; no header has a line break, so no other has it."""
    if order.idempotency_key is None:
        return order
    return replace(order, idempotency_key=f"{order.idempotency_key}\n{place}")


async def _order(request: Request, caller: Caller, body: RunBody) -> Order:
    """What a request asks to be run."""
    service = service_of(request)
    thread_id = path_id(request, "thread_id", "thread") if "thread_id" in request.path_params else None
    key = request.headers.get("idempotency-key")
    if key is not None and len(key) > _LONGEST_KEY:
        raise ApiError(422, f"idempotency-key may have {_LONGEST_KEY} characters")
    order = Order(
        caller=caller,
        assistant=assistant_of(service, body.assistant_id),
        kwargs=body.kwargs(),
        request_id=request_id_of(request.scope),
        thread_id=thread_id,
        metadata=body.metadata or {},
        multitask=body.multitask_strategy,
        may_make_thread=body.if_not_exists == "create",
        keeps_thread=body.on_completion == "keep",
        delay_s=body.after_seconds,
        idempotency_key=key,
    )
    await check_checkpoint(service, order, body.started_at)
    await check_answer(service, order)
    return order


async def check_answer(service: Service, order: Order) -> None:
    """See that what waits on the thread can be answered so: a wrong answer would stay there, in every right one's way.

    Raises:
        ApiError: 422, it cannot.
    """
    command: dict[str, Any] = order.kwargs["command"] or {}
    resume = command.get("resume")
    if resume is None or order.thread_id is None:
        return
    try:
        thread = await service.threads.get(order.caller.tenant, order.thread_id)
    except ThreadNotFoundError:  # told when the run is made, which may make the thread, too
        return
    tools = [tool.name for tool in order.assistant.tools]
    problem = decisions.problem_with_resume(resume, thread["interrupts"] or {}, tools)
    if problem is not None:
        raise ApiError(422, f"command.resume: {problem}")


def assistant_of(service: Service, name: str) -> Assistant:
    """The assistant that a client means.

    Raises:
        ApiError: 422, there is none.
    """
    try:
        return service.assistants.find(name)
    except UnknownAssistantError as error:
        known = ", ".join(error.known)
        raise ApiError(
            422,
            f"Invalid assistant: '{name[:64]}'. Must be either:\n- A valid assistant UUID, or\n"
            f"- One of the registered graphs: {known}",
        ) from None


async def check_checkpoint(service: Service, order: Order, checkpoint: dict[str, Any] | None) -> None:
    """See that a checkpoint exists on the caller's own thread: a run from none would begin with an empty state.

    Raises:
        ApiError: 404, it does not.
    """
    if checkpoint is None:
        return
    where = RunnableConfig(configurable={"checkpoint_ns": "", **checkpoint, "thread_id": order.thread_id})
    try:
        # Whose the thread is comes first: whether a foreign checkpoint exists is told to nobody.
        await service.threads.get(order.caller.tenant, order.thread_id or "")
    except ThreadNotFoundError:
        raise ApiError(404, NO_CHECKPOINT) from None
    if await service.memory.saver.aget_tuple(where) is None:
        raise ApiError(404, NO_CHECKPOINT)


def _location(run: Row) -> str:
    return f"/threads/{run['thread_id']}/runs/{run['run_id']}"


def _when_left(request: Request, run: Row, body: RunBody) -> Left | None:
    """What becomes of a run whose client hangs up."""
    service, caller = service_of(request), run["tenant"]

    async def cancel() -> None:
        await service.runs.cancel(of_ids(caller, None, [run["run_id"]]), Cancel.INTERRUPT)

    async def cancel_later() -> None:
        service.departures.cancel_unless_followed(run["run_id"], cancel)

    if body.on_disconnect == "cancel":
        return cancel
    return cancel_later if service.settings.on_disconnect == "cancel" else None


def _listening(
    request: Request,
    events: AsyncGenerator[StoredEvent],
    *,
    has_ids: bool,
    left: Left | None = None,
    modes: frozenset[str] | None = None,
) -> Listening:
    return Listening(
        events=events,
        has_ids=has_ids,
        keep_alive_s=service_of(request).settings.keep_alive_s,
        modes=modes,
        left=left,
    )


async def _known(request: Request) -> tuple[Caller, Row]:
    """The run that a path names."""
    caller = await caller_of(request)
    thread_id = path_id(request, "thread_id", "thread") if "thread_id" in request.path_params else None
    run_id = path_id(request, "run_id", "run")
    return caller, await service_of(request).runs.get(caller.tenant, run_id, thread_id)


async def _get(request: Request) -> Response:
    _, run = await _known(request)
    return Json(run_as_json(run)).response()


async def _list(request: Request) -> Response:
    caller = await caller_of(request)
    thread_id = path_id(request, "thread_id", "thread")
    page = (number(request, "limit", 10, _MOST_LISTED), number(request, "offset", 0, 10**8))
    status, select = request.query_params.get("status"), request.query_params.getlist("select")
    if status is not None and status not in set(RunStatus):
        raise ApiError(422, f"status must be one of {', '.join(RunStatus)}")
    runs = await service_of(request).runs.list(caller.tenant, thread_id, status, page)
    return Json([run_as_json(run, select) for run in runs]).response()


async def _delete(request: Request) -> Response:
    caller, run = await _known(request)
    await service_of(request).runs.delete(caller.tenant, run["run_id"], run["thread_id"])
    return Response(status_code=204)


async def _join(request: Request) -> Response:
    caller, run = await _known(request)
    headers = {"location": f"{_location(run)}/join", "content-location": _location(run)}
    runs = service_of(request).runs
    events = runs.events(run["run_id"], await runs.newest(run["run_id"]))
    return FinalResult(_listening(request, events, has_ids=False, left=_asked(request, caller, run)), headers)


async def _join_stream(request: Request) -> Response:
    """The events of a run: behind `Last-Event-ID` where it is sent, else from now on; of a run that is over, all."""
    caller, run = await _known(request)
    headers = {"location": f"{_location(run)}/stream", "content-location": _location(run)}
    modes = _modes(request)
    after, newest = _after(request), await service_of(request).runs.newest(run["run_id"])
    if after is None:
        after = 0 if run["status"] not in UNFINISHED else newest
    after = min(after, newest + 1)  # nobody has heard what has not been said
    has_ids = bool(run["kwargs"].get("stream_resumable"))
    left = _asked(request, caller, run)
    events = service_of(request).runs.events(run["run_id"], after)
    return EventStream(_listening(request, events, has_ids=has_ids, left=left, modes=modes), headers)


def _asked(request: Request, caller: Caller, run: Row) -> Left | None:
    """Whoever joins a run may ask that it ends when they leave."""
    if not is_set(request, "cancel_on_disconnect"):
        return None
    service = service_of(request)

    async def cancel() -> None:
        await service.runs.cancel(of_ids(caller.tenant, None, [run["run_id"]]), Cancel.INTERRUPT)

    return cancel


def _after(request: Request) -> int | None:
    """The number of the last event that the client has; None where it does not say."""
    given = request.headers.get("last-event-id")
    if given is None:
        return None
    return int(given) if given.isascii() and given.isdecimal() and len(given) <= 18 else 0  # noqa: PLR2004 - digits


def _modes(request: Request) -> frozenset[str] | None:
    """The stream modes of the query: repeated, or as a JSON list."""
    given: Sequence[str] = request.query_params.getlist("stream_mode")
    names: set[str] = set()
    for text in given:
        names |= {name.strip(' "') for name in text.strip("[]").split(",")}
    return frozenset("messages" if name == "messages-tuple" else name for name in names if name) or None


async def _cancel(request: Request) -> Response:
    service, action = service_of(request), _action(request)
    try:
        caller, run = await _known(request)
    except NoRunError:
        raise ApiError(404, _NOTHING_TO_CANCEL) from None
    try:
        await service.runs.cancel_one(caller.tenant, run["run_id"], run["thread_id"], action)
    except NoRunError:
        raise ApiError(404, _OVER) from None
    headers = {"content-location": _location(run)}
    if not is_set(request, "wait"):
        return Json({}, status=202, headers=headers).response()
    await service.runs.ended(run["run_id"])
    return Json({}, headers={"location": f"{_location(run)}/join", **headers}).response()


def _action(request: Request) -> Cancel:
    try:
        return Cancel(request.query_params.get("action", Cancel.INTERRUPT))
    except ValueError:
        raise ApiError(422, "action must be interrupt or rollback") from None


async def _cancel_many(request: Request) -> Response:
    caller = await caller_of(request)
    body, action = await read(request, CancelBody), _action(request)
    if body.status is not None:
        which = of_status(caller.tenant, body.status)
    elif body.run_ids:
        thread_id = None if body.thread_id is None else checked_id(body.thread_id, "thread")
        which = of_ids(caller.tenant, thread_id, [checked_id(each, "run") for each in body.run_ids])
    else:
        raise ApiError(422, "expected status, or thread_id and run_ids")
    if not await service_of(request).runs.cancel(which, action):
        raise ApiError(404, _NOTHING_TO_CANCEL)
    return Response(status_code=204)
