"""Threads, their states and histories."""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.api.paths import Path, at, parsed
from muster_agent.api.requests import (
    ApiError,
    Body,
    Filters,
    Json,
    Metadata,
    add,
    caller_of,
    checked_id,
    is_set,
    number,
    path_id,
    query_text,
    read,
    service_of,
)
from muster_agent.api.run_body import NO_CHECKPOINT, Jump, checkpoint_of
from muster_agent.api.shapes import chosen, thread_as_json
from muster_agent.callers import Caller
from muster_agent.runs.command import command_of
from muster_agent.runs.records import NewThread, Row, ThreadStatus
from muster_agent.runs.thread_rows import SORTABLE, ThreadQuery
from muster_agent.runs.threads import NoCheckpointError, StateRefusedError, StateUpdate

_MOST = 1000
_MOST_PATHS = 10
_MOST_OFFSET = 10**8


class WrittenCommand(Body):
    """A command that a node is to have returned."""

    goto: str | Jump | list[str | Jump] | None = None
    update: dict[str, Any] | list[tuple[str, Any]] | None = None
    resume: None = None  # there is no question in a thread that is being made


class SuperstepUpdate(Body):
    """One write of a state that is given with a new thread: values, or a command in their place."""

    values: Any = None
    command: WrittenCommand | None = None
    as_node: str | None = None

    def change(self) -> StateUpdate:
        """It, as threads take it."""
        command = None if self.command is None else self.command.model_dump(exclude_none=True)
        return StateUpdate(self.values if command is None else command_of(command), self.as_node)


class Superstep(Body):
    """Writes that belong together."""

    updates: list[SuperstepUpdate] = Field(min_length=1, max_length=_MOST)


class CreateBody(Body):
    """A new thread."""

    thread_id: str | None = None
    metadata: Metadata | None = None
    if_exists: Literal["raise", "do_nothing"] | None = None
    graph_id: str | None = Field(default=None, max_length=256)
    supersteps: list[Superstep] | None = Field(default=None, max_length=_MOST)


class SearchBody(Body):
    """Which threads are meant."""

    ids: list[str] | None = Field(default=None, max_length=_MOST)
    metadata: Filters | None = None
    values: Filters | None = None
    status: ThreadStatus | None = None
    limit: int = Field(default=10, ge=1, le=_MOST)
    offset: int = Field(default=0, ge=0, le=_MOST_OFFSET)
    sort_by: str | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[str] | None = None
    extract: dict[str, str] | None = Field(default=None, max_length=_MOST_PATHS)


class PatchBody(Body):
    """What is added to a thread."""

    metadata: Metadata | None = None


class StateBody(Body):
    """A state that is written by hand."""

    values: Any = None
    as_node: str | None = None
    checkpoint: dict[str, Any] | None = None
    checkpoint_id: str | None = None


class CheckpointBody(Body):
    """A state at a checkpoint."""

    checkpoint: dict[str, Any]
    subgraphs: bool = False
    select: list[str] | None = None


class HistoryBody(Body):
    """Which states are meant."""

    limit: int = Field(default=10, ge=1, le=_MOST)
    before: dict[str, Any] | str | None = None
    metadata: Filters | None = None
    checkpoint: dict[str, Any] | None = None
    select: list[str] | None = None


class PruneBody(Body):
    """Which threads are shortened or deleted."""

    thread_ids: list[str] = Field(max_length=_MOST)
    strategy: Literal["delete", "keep_latest"] = "delete"


def add_threads(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "POST", "/threads", _create, CreateBody)
    add(app, "POST", "/threads/search", _search, SearchBody)
    add(app, "POST", "/threads/count", _count, SearchBody)
    add(app, "POST", "/threads/prune", _prune, PruneBody)
    add(app, "GET", "/threads/{thread_id}", _get)
    add(app, "PATCH", "/threads/{thread_id}", _patch, PatchBody)
    add(app, "DELETE", "/threads/{thread_id}", _delete)
    add(app, "POST", "/threads/{thread_id}/copy", _copy)
    add(app, "GET", "/threads/{thread_id}/state", _state, query=("subgraphs", "select"))
    add(app, "POST", "/threads/{thread_id}/state", _update_state, StateBody)
    add(app, "PATCH", "/threads/{thread_id}/state", _patch, PatchBody)
    add(app, "POST", "/threads/{thread_id}/state/checkpoint", _state_at, CheckpointBody)
    add(app, "GET", "/threads/{thread_id}/state/{checkpoint_id}", _state_of, query=("subgraphs", "select"))
    add(app, "POST", "/threads/{thread_id}/history", _history, HistoryBody)
    add(app, "GET", "/threads/{thread_id}/history", _history_by_query, query=("limit", "before", "select"))


async def _whose(request: Request) -> tuple[Caller, str]:
    """Who calls, and the thread that the path names."""
    caller = await caller_of(request)
    return caller, path_id(request, "thread_id", "thread")


async def _create(request: Request) -> Response:
    caller, body, service = await caller_of(request), await read(request, CreateBody), service_of(request)
    thread_id = str(uuid.uuid4()) if body.thread_id is None else checked_id(body.thread_id, "thread")
    metadata = dict(body.metadata or {})
    if body.graph_id is not None:
        metadata["graph_id"] = body.graph_id
    thread = NewThread(thread_id, caller.tenant, metadata)
    may_exist = body.if_exists == "do_nothing"
    steps = [[update.change() for update in step.updates] for step in body.supersteps or ()]
    try:
        row = await service.threads.create(thread, may_exist=may_exist, supersteps=steps)
    except StateRefusedError as error:
        raise ApiError(422, str(error)) from None
    return Json(thread_as_json(row)).response()


def _query(body: SearchBody) -> ThreadQuery:
    ids = None if body.ids is None else [checked_id(each, "thread") for each in body.ids]
    status = None if body.status is None else body.status.value
    return ThreadQuery(body.metadata or {}, body.values or {}, status, ids)


async def _search(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, SearchBody)
    if body.sort_by is not None and body.sort_by not in SORTABLE:
        raise ApiError(422, f"sort_by must be one of {', '.join(SORTABLE)}")
    sort = (body.sort_by or "updated_at", (body.sort_order or "desc") == "desc")
    page = (body.limit, body.offset)
    rows, total = await service_of(request).threads.search(caller.tenant, _query(body), sort, page)
    headers = {"x-pagination-total": str(total)}
    if body.offset + len(rows) < total:
        headers["x-pagination-next"] = str(body.offset + len(rows))
    paths = {name: parsed(path) for name, path in (body.extract or {}).items()}
    told = [_found(row, body.select, paths) for row in rows]
    return Json(told, headers=headers).response()


def _found(row: Row, select: Sequence[str] | None, paths: Mapping[str, Path]) -> dict[str, Any]:
    """A thread that was searched for, with what is wanted of it under names of the client's own."""
    told = thread_as_json(row, select)
    if paths:
        whole = thread_as_json(row)
        told["extracted"] = {name: at(whole, path) for name, path in paths.items()}
    return told


async def _count(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, SearchBody)
    return Json(await service_of(request).threads.count(caller.tenant, _query(body))).response()


async def _prune(request: Request) -> Response:
    caller, body = await caller_of(request), await read(request, PruneBody)
    ids = [checked_id(each, "thread") for each in body.thread_ids]
    keep = body.strategy == "keep_latest"
    pruned = await service_of(request).threads.prune(caller.tenant, ids, keep_latest=keep)
    return Json({"pruned_count": pruned}).response()


async def _get(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    return Json(thread_as_json(await service_of(request).threads.get(caller.tenant, thread_id))).response()


async def _patch(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    body = await read(request, PatchBody)
    row = await service_of(request).threads.patch(caller.tenant, thread_id, body.metadata or {})
    if "return=minimal" in request.headers.get("prefer", "").replace(" ", "").lower().split(","):
        return Response(status_code=204, headers={"preference-applied": "return=minimal"})
    return Json(thread_as_json(row)).response()


async def _delete(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    await service_of(request).threads.delete(caller.tenant, thread_id)
    return Response(status_code=204)


async def _copy(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    return Json(thread_as_json(await service_of(request).threads.copy(caller.tenant, thread_id))).response()


async def _state(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    threads = service_of(request).threads
    state = await threads.state(caller.tenant, thread_id, subgraphs=is_set(request, "subgraphs"))
    return Json(chosen(state, _select(request))).response()


async def _state_at(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    body = await read(request, CheckpointBody)
    where = checkpoint_of(body.checkpoint)
    state = await service_of(request).threads.state(caller.tenant, thread_id, where, subgraphs=body.subgraphs)
    return Json(chosen(state, body.select)).response()


async def _state_of(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    where = checkpoint_of({"checkpoint_id": request.path_params["checkpoint_id"]})
    subgraphs = is_set(request, "subgraphs")
    state = await service_of(request).threads.state(caller.tenant, thread_id, where, subgraphs=subgraphs)
    return Json(chosen(state, _select(request))).response()


def _select(request: Request) -> Sequence[str]:
    return request.query_params.getlist("select")


async def _update_state(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    body = await read(request, StateBody)
    where = checkpoint_of(body.checkpoint) or checkpoint_of({"checkpoint_id": body.checkpoint_id})
    change = StateUpdate(body.values, body.as_node, where or None)
    try:
        made = await service_of(request).threads.update(caller.tenant, thread_id, change)
    except StateRefusedError as error:
        raise ApiError(422, str(error)) from None
    except NoCheckpointError:
        raise ApiError(404, NO_CHECKPOINT) from None
    names = ("thread_id", "checkpoint_ns", "checkpoint_id")
    checkpoint = {name: made.get(name) for name in names}
    told = {"checkpoint": checkpoint, "configurable": checkpoint, "checkpoint_id": made.get("checkpoint_id")}
    return Json(told).response()


async def _history(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    body = await read(request, HistoryBody)
    return await _states(request, caller, thread_id, body)


async def _history_by_query(request: Request) -> Response:
    caller, thread_id = await _whose(request)
    body = HistoryBody(
        limit=max(1, number(request, "limit", 10, _MOST)),
        before=query_text(request, "before"),
        select=[*_select(request)],
    )
    return await _states(request, caller, thread_id, body)


async def _states(request: Request, caller: Caller, thread_id: str, body: HistoryBody) -> Response:
    before = _before(body.before)
    states = await service_of(request).threads.history(
        caller.tenant, thread_id, body.limit, before, checkpoint_of(body.checkpoint), body.metadata
    )
    return Json([chosen(state, body.select) for state in states]).response()


def _before(given: Mapping[str, Any] | str | None) -> dict[str, Any] | None:
    """A checkpoint as clients name it: by its identifier, by itself, or inside of a configuration."""
    match given:
        case None:
            return None
        case str():
            return checkpoint_of({"checkpoint_id": given})
        case {"configurable": inner}:
            return checkpoint_of(inner) or None
        case _:
            return checkpoint_of(given) or None
