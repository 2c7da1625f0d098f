"""The store: what is remembered beyond threads. Each tenant has its own."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, cast

from fastapi import FastAPI
from langgraph.store.base import Item
from pydantic import AfterValidator, Field
from starlette.requests import Request
from starlette.responses import Response

from muster_agent import identity
from muster_agent.api.requests import Body, Filters, Json, add, caller_of, check, query_text, read, service_of

_MOST = 1000
_MOST_OFFSET = 10**8
_LONGEST_BYTES = 1024  # of a namespace and of a key: PostgreSQL indexes both together, up to 2,704 bytes
# They become part of a JSON path in SQLite, and of a key in PostgreSQL.
_FILTER_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_COMPARISONS = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})


def _comparable(filters: dict[str, Any]) -> dict[str, Any]:
    for key, value in filters.items():
        if not _FILTER_KEY.fullmatch(key):
            raise ValueError("a key has letters, digits, _ and - only, and 1 to 128 of them")
        compared = cast("dict[str, Any]", value if isinstance(value, dict) else {"$eq": value})
        if not set(compared) <= _COMPARISONS:
            raise ValueError(f"a comparison is one of {', '.join(sorted(_COMPARISONS))}")
        if not all(isinstance(each, str | int | float | None) for each in compared.values()):
            raise ValueError("a value is compared with a text, a number, true, false or null")
    return filters


def _label(text: str) -> str:
    if not text or not {".", "*", "\0"}.isdisjoint(text):
        raise ValueError("a part of a namespace is not empty, and has no dot, asterisk or NUL")
    return text


def _matcher(text: str) -> str:
    return text if text == "*" else _label(text)


def _indexable(text: str) -> str:
    if len(text.encode()) > _LONGEST_BYTES:
        raise ValueError(f"it is longer than {_LONGEST_BYTES} bytes")
    return text


def _namespace(namespace: list[str]) -> list[str]:
    _indexable(".".join(namespace))
    if namespace[:1] == ["langgraph"]:
        raise ValueError("langgraph is reserved")
    return namespace


Namespace = Annotated[
    list[Annotated[str, AfterValidator(_label)]], AfterValidator(_namespace), Field(max_length=32)
]
Key = Annotated[str, Field(min_length=1), AfterValidator(_indexable)]
Pattern = Annotated[list[Annotated[str, AfterValidator(_matcher)]], Field(max_length=32)]


class PutBody(Body):
    """An item."""

    namespace: Namespace = Field(min_length=1)
    key: Key
    value: dict[str, Any]
    index: Any = None
    ttl: float | None = None


class ItemQuery(Body):
    """Which item is meant."""

    namespace: Namespace = Field(min_length=1)
    key: Key


class SearchBody(Body):
    """Which items are meant."""

    namespace_prefix: Namespace = Field(default_factory=list[str])
    filter: Annotated[Filters, AfterValidator(_comparable)] | None = None
    query: str | None = None
    limit: int = Field(default=10, ge=1, le=_MOST)
    offset: int = Field(default=0, ge=0, le=_MOST_OFFSET)


class NamespacesBody(Body):
    """Which namespaces are meant."""

    prefix: Pattern | None = None
    suffix: Pattern | None = None
    max_depth: int | None = Field(default=None, ge=1, le=100)
    limit: int = Field(default=100, ge=1, le=_MOST)
    offset: int = Field(default=0, ge=0, le=_MOST_OFFSET)


def add_store(app: FastAPI) -> None:
    """Add the routes."""
    add(app, "PUT", "/store/items", _put, PutBody)
    add(app, "GET", "/store/items", _get, query=("namespace", "key"))
    add(app, "DELETE", "/store/items", _delete, ItemQuery)
    add(app, "POST", "/store/items/search", _search, SearchBody)
    add(app, "POST", "/store/namespaces", _namespaces, NamespacesBody)


async def _as_caller(request: Request) -> identity.RunIdentity:
    caller = await caller_of(request)
    return identity.RunIdentity(session_id="", request_id="", tenant=caller.tenant)


async def _put(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, PutBody)
    with identity.assumed(who):
        await service_of(request).memory.store.aput(tuple(body.namespace), body.key, body.value)
    return Response(status_code=204)


async def _get(request: Request) -> Response:
    who = await _as_caller(request)
    given = request.query_params.getlist("namespace")
    named = [part for text in given for part in text.split(".") if part]
    wanted = check(ItemQuery, {"namespace": named, "key": query_text(request, "key")})
    with identity.assumed(who):
        item = await service_of(request).memory.store.aget(tuple(wanted.namespace), wanted.key)
    return Json(None if item is None else _as_json(item)).response()


async def _delete(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, ItemQuery)
    with identity.assumed(who):
        await service_of(request).memory.store.adelete(tuple(body.namespace), body.key)
    return Response(status_code=204)


async def _search(request: Request) -> Response:
    who, body = await _as_caller(request), await read(request, SearchBody)
    with identity.assumed(who):
        found = await service_of(request).memory.store.asearch(
            tuple(body.namespace_prefix),
            query=body.query,
            filter=body.filter,
            limit=body.limit,
            offset=body.offset,
        )
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
        "created_at": _iso(item.created_at),
        "updated_at": _iso(item.updated_at),
    }


def _iso(moment: datetime) -> str:
    """With its zone: the store in SQLite leaves it out, and browsers would take it for theirs."""
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).isoformat()
