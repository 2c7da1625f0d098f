"""Assistants: the agents that the service has. They are declared in a file, so no request makes or changes one."""

from typing import Any

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.agents.assistants import Assistant
from muster_agent.api.requests import ApiError, Body, Json, add, caller_of, path_id, read, service_of
from muster_agent.api.schemas import schemas_of

_READING = "assistants.read"


class SearchBody(Body):
    """Which assistants are meant."""

    graph_id: str | None = None
    name: str | None = None
    metadata: dict[str, Any] | None = None
    limit: int = Field(default=10, ge=1, le=1000)
    offset: int = Field(default=0, ge=0)


def add_assistants(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "POST", "/assistants/search", _search, SearchBody)
    add(app, "POST", "/assistants/count", _count, SearchBody)
    add(app, "GET", "/assistants/{assistant_id}", _get)
    add(app, "GET", "/assistants/{assistant_id}/graph", _graph)
    add(app, "GET", "/assistants/{assistant_id}/schemas", _schemas)
    add(app, "GET", "/assistants/{assistant_id}/subgraphs", _subgraphs)
    add(app, "GET", "/assistants/{assistant_id}/subgraphs/{namespace:path}", _subgraphs)


def assistant_as_json(assistant: Assistant) -> dict[str, Any]:
    """An assistant as LangGraph's server writes it."""
    made_at = assistant.made_at.isoformat()
    return {
        "assistant_id": assistant.assistant_id,
        "graph_id": assistant.graph_id,
        "config": {},
        "context": {},
        "metadata": {"created_by": "system"},
        "name": assistant.graph_id,
        "created_at": made_at,
        "updated_at": made_at,
        "version": 1,
        "description": assistant.declaration.description,
    }


def _matching(request: Request, body: SearchBody) -> list[dict[str, Any]]:
    every = [assistant_as_json(assistant) for assistant in service_of(request).assistants]
    wanted = {"graph_id": body.graph_id}
    return [
        each
        for each in every
        if all(value is None or each[name] == value for name, value in wanted.items())
        and (body.name is None or body.name.lower() in each["name"].lower())
        and all(each["metadata"].get(key) == value for key, value in (body.metadata or {}).items())
    ]


async def _search(request: Request) -> Response:
    await caller_of(request)
    body = await read(request, SearchBody)
    found = _matching(request, body)
    page = found[body.offset : body.offset + body.limit]
    headers = {"x-pagination-total": str(len(found))}
    if body.offset + len(page) < len(found):
        headers["x-pagination-next"] = str(body.offset + len(page))
    return Json(page, headers=headers).response()


async def _count(request: Request) -> Response:
    await caller_of(request)
    return Json(len(_matching(request, await read(request, SearchBody)))).response()


async def _known(request: Request, *, by_name: bool = False) -> Assistant:
    """The assistant that the path names: by its UUID, and where clients use it, by the agent's name."""
    await caller_of(request)
    service, name = service_of(request), request.path_params["assistant_id"]
    if by_name and (found := next((each for each in service.assistants if each.graph_id == name), None)):
        return found
    found = service.assistants.by_id(path_id(request, "assistant_id", "assistant"))
    if found is None:
        raise ApiError(404, "Not Found")
    return found


async def _get(request: Request) -> Response:
    return Json(assistant_as_json(await _known(request))).response()


async def _graph(request: Request) -> Response:
    assistant = await _known(request, by_name=True)
    async with assistant.open(service_of(request).memory, access=_READING) as graph:
        drawn = await graph.aget_graph(xray=_xray(request))
    return Json(drawn.to_json()).response()


def _xray(request: Request) -> bool | int:
    given = request.query_params.get("xray", "")
    if given.isascii() and given.isdecimal():
        return min(int(given[:3]), 100)
    return given.lower() == "true"


async def _schemas(request: Request) -> Response:
    assistant = await _known(request, by_name=True)
    async with assistant.open(service_of(request).memory, access=_READING) as graph:
        return Json({"graph_id": assistant.graph_id, **schemas_of(graph)}).response()


async def _subgraphs(request: Request) -> Response:
    assistant = await _known(request, by_name=True)
    namespace = request.path_params.get("namespace")
    recurse = request.query_params.get("recurse", "").lower() == "true"
    async with assistant.open(service_of(request).memory, access=_READING) as graph:
        found = [
            (name, schemas_of(each))
            async for name, each in graph.aget_subgraphs(namespace=namespace, recurse=recurse)
        ]
    return Json(dict(found)).response()
