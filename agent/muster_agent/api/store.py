"""The store: what is remembered beyond threads. Each tenant has its own."""

from typing import Any, cast

from fastapi import FastAPI
from langgraph.store.base import InvalidNamespaceError, Item
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from muster_agent import identity
from muster_agent.api.requests import ApiError, Body, Json, add, caller_of, read, service_of

_MOST = 1000


class PutBody(Body):
    """An item."""

    namespace: list[str] = Field(min_length=1, max_length=32)
    key: str = Field(min_length=1, max_length=1024)
    value: dict[str, Any]
    index: Any = None
    ttl: float | None = None


class DeleteBody(Body):
    """Which item is deleted."""

    namespace: list[str] = Field(default_factory=list[str], max_length=32)
    key: str


class SearchBody(Body):
    """Which items are meant."""

    namespace_prefix: list[str] = Field(default_factory=list[str], max_length=32)
    filter: dict[str, Any] | None = None
    query: str | None = None
    limit: int = Field(default=10, ge=1, le=_MOST)
    offset: int = Field(default=0, ge=0)


class NamespacesBody(Body):
    """Which namespaces are meant."""

    prefix: list[str] | None = None
    suffix: list[str] | None = None
    max_depth: int | None = Field(default=None, ge=1, le=100)
    limit: int = Field(default=100, ge=1, le=_MOST)
    offset: int = Field(default=0, ge=0)


def add_store(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "PUT", "/store/items", _put, PutBody)
    add(app, "GET", "/store/items", _get)
    add(app, "DELETE", "/store/items", _delete, DeleteBody)
    add(app, "POST", "/store/items/search", _search, SearchBody)
    add(app, "POST", "/store/namespaces", _namespaces, NamespacesBody)


async def _as_caller(request: Request) -> identity.RunIdentity:
    caller = await caller_of(request)
    return identity.RunIdentity(session_id="", request_id="", tenant=caller.tenant)


async def _put(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, PutBody)
    with identity.assumed(who):
        try:
            await service_of(request).memory.store.aput(tuple(body.namespace), body.key, body.value)
        except InvalidNamespaceError as error:
            raise ApiError(422, str(error)) from None
    return Response(status_code=204)


async def _get(request: Request) -> Response:
    who = await _as_caller(request)
    given, key = request.query_params.getlist("namespace"), request.query_params.get("key")
    if not key:
        raise ApiError(422, "key is missing")
    namespace = tuple(part for text in given for part in text.split(".") if part)
    with identity.assumed(who):
        item = await service_of(request).memory.store.aget(namespace, key)
    return Json(None if item is None else _as_json(item)).response()


async def _delete(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, DeleteBody)
    with identity.assumed(who):
        await service_of(request).memory.store.adelete(tuple(body.namespace), body.key)
    return Response(status_code=204)


async def _search(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, SearchBody)
    with identity.assumed(who):
        try:
            found = await service_of(request).memory.store.asearch(
                tuple(body.namespace_prefix),
                query=body.query,
                filter=body.filter,
                limit=body.limit,
                offset=body.offset,
            )
        except ValueError as error:
            raise ApiError(422, f"filter: {error}"[:300]) from None
    return Json({"items": [{**_as_json(item), "score": item.score} for item in found]}).response()


async def _namespaces(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, NamespacesBody)
    with identity.assumed(who):
        found = await service_of(request).memory.store.alist_namespaces(
            prefix=cast("Any", tuple(body.prefix) if body.prefix else None),
            suffix=cast("Any", tuple(body.suffix) if body.suffix else None),
            max_depth=body.max_depth,
            limit=body.limit,
            offset=body.offset,
        )
    return Json({"namespaces": [list(namespace) for namespace in found]}).response()


def _as_json(item: Item) -> dict[str, Any]:
    return {
        "namespace": list(item.namespace),
        "key": item.key,
        "value": item.value,
        "created_at": item.created_at.isoformat(),
        "updated_at": item.updated_at.isoformat(),
    }
