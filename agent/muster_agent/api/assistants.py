"""Assistants: the agents that the service has.

They are declared in a file, and everybody who calls the service has the same ones, so no request makes, changes or
deletes one: what LangGraph's clients would do it with is a 405 that says so.
"""

from typing import Any, Literal, cast

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muster_agent.agents.assistants import Assistant, Graph
from muster_agent.api.requests import ApiError, Body, Filters, Json, add, caller_of, path_id, read, service_of
from muster_agent.api.schemas import schemas_of
from muster_agent.api.shapes import selected

_READING = "assistants.read"
_DECLARED = (
    "Assistants are declared in the service's agents file. No request makes, changes or deletes one, and each has one "
    "version."
)


class SearchBody(Body):
    """Which assistants are meant."""

    graph_id: str | None = None
    name: str | None = None
    metadata: Filters | None = None
    limit: int = Field(default=10, ge=1, le=1000)
    offset: int = Field(default=0, ge=0)
    sort_by: Literal["assistant_id", "graph_id", "name", "created_at", "updated_at"] | None = None
    sort_order: Literal["asc", "desc"] | None = None
    select: list[str] | None = None


def add_assistants(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "POST", "/assistants/search", _search, SearchBody)
    add(app, "POST", "/assistants/count", _count, SearchBody)
    add(app, "GET", "/assistants/{assistant_id}", _get)
    add(app, "GET", "/assistants/{assistant_id}/graph", _graph, query=("xray",))
    add(app, "GET", "/assistants/{assistant_id}/schemas", _schemas)
    add(app, "GET", "/assistants/{assistant_id}/subgraphs", _subgraphs, query=("recurse",))
    add(app, "GET", "/assistants/{assistant_id}/subgraphs/{namespace:path}", _subgraphs, query=("recurse",))
    for method, path, allowed in (
        ("POST", "/assistants", ""),
        ("PATCH", "/assistants/{assistant_id}", "GET"),
        ("DELETE", "/assistants/{assistant_id}", "GET"),
        ("POST", "/assistants/{assistant_id}/versions", ""),
        ("POST", "/assistants/{assistant_id}/latest", ""),
    ):
        app.router.routes.append(Route(path, _Refusing(allowed), methods=[method], include_in_schema=False))


class _Refusing:
    """Tells that assistants are as they are declared."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await caller_of(Request(scope, receive))
        refusal = Json({"detail": _DECLARED}, status=405, headers={"allow": self._allowed})
        await refusal.response()(scope, receive, send)


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
    if body.sort_by is not None:
        found.sort(key=lambda each: each[str(body.sort_by)], reverse=body.sort_order != "asc")
    page = found[body.offset : body.offset + body.limit]
    headers = {"x-pagination-total": str(len(found))}
    if body.offset + len(page) < len(found):
        headers["x-pagination-next"] = str(body.offset + len(page))
    return Json([selected(each, "assistant_id", body.select) for each in page], headers=headers).response()


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
    return Json(_without_types(drawn.to_json())).response()


def _without_types(drawn: dict[str, Any]) -> dict[str, Any]:
    """A drawing without the names of the Python modules that its nodes are made of."""
    nodes: list[dict[str, Any]] = drawn["nodes"]
    told = [
        {**node, "data": {"name": node["data"]["name"]}} if "name" in _data(node) else node for node in nodes
    ]
    return {**drawn, "nodes": told}


def _data(node: dict[str, Any]) -> Any:  # noqa: ANN401 - what a graph says of a node
    return node.get("data") or {}


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
            (name, schemas_of(cast("Graph", each)))
            async for name, each in cast("Any", graph).aget_subgraphs(namespace=namespace, recurse=recurse)
        ]
    return Json(dict(found)).response()
