"""The store over HTTP: items by namespace and key, found by prefix and by what is in them."""

from datetime import datetime
from typing import Any

import httpx

from tests.agent.langgraph_api.asking import Caller, keys
from tests.agent.runs.conftest import Start

ITEM = {"namespace", "key", "value", "created_at", "updated_at"}


async def test_an_item(start: Start, http: httpx.AsyncClient) -> None:
    """An item is put, got, changed and deleted; one that is not there is null."""
    async with start() as (agent, client):
        caller = Caller(http, agent)
        body = {"namespace": ["u", "1"], "key": "k", "value": {"a": 1}}
        answer = await caller.send("PUT", "/store/items", body)
        assert (answer.status_code, answer.content) == (204, b"")
        item = await caller.get("/store/items?namespace=u.1&key=k")
        assert set(item) == ITEM
        assert (item["namespace"], item["key"], item["value"]) == (["u", "1"], "k", {"a": 1})
        assert datetime.fromisoformat(item["created_at"]).utcoffset() is not None
        await client.store.put_item(("u", "1"), key="k", value={"a": 2})
        assert (await client.store.get_item(("u", "1"), key="k"))["value"] == {"a": 2}
        await client.store.delete_item(("u", "1"), key="k")
        answer = await caller.send("GET", "/store/items?namespace=u.1&key=k")
        assert (answer.status_code, answer.json()) == (200, None)


async def test_searching(start: Start, http: httpx.AsyncClient) -> None:
    """Items are found under a prefix, by what is in them, page by page; no letter of a prefix is a wildcard."""
    async with start() as (agent, client):
        for namespace, key, value in (
            (("u", "1"), "a", {"n": 1, "kind": "x", "done": True}),
            (("u", "1"), "b", {"n": 2, "kind": "y", "done": False}),
            (("u", "2"), "c", {"n": 3, "kind": "x"}),
            (("ux",), "d", {"n": 4}),
        ):
            await client.store.put_item(namespace, key=key, value=value)

        async def found(*prefix: str, **query: Any) -> list[str]:
            told = await client.store.search_items(prefix, **query)
            return sorted(item["key"] for item in told["items"])

        assert await found() == ["a", "b", "c", "d"]
        assert await found("u") == ["a", "b", "c"]
        assert await found("u", "1") == ["a", "b"]
        for wild in ("_", "%", "u%", "u_", "?", "[u]"):
            assert await found(wild) == []
        assert await found("u", filter={"kind": "x"}) == ["a", "c"]
        assert await found(filter={"n": {"$gt": 1, "$lte": 3}}) == ["b", "c"]
        assert await found(filter={"done": True}) == ["a"]
        assert len(await found(limit=3)) == 3
        assert len(await found(limit=3, offset=3)) == 1
        told = await Caller(http, agent).post("/store/items/search", {"namespace_prefix": ["ux"]})
        assert set(told) == {"items"}
        assert keys(told["items"]) == [{*ITEM, "score"}]


async def test_namespaces(start: Start) -> None:
    """Namespaces are told by prefix, suffix and depth."""
    async with start() as (_agent, client):
        for namespace in (("u", "1", "notes"), ("u", "2"), ("v", "notes")):
            await client.store.put_item(namespace, key="k", value={})

        async def found(**query: Any) -> list[list[str]]:
            return sorted((await client.store.list_namespaces(**query))["namespaces"])

        assert await found() == [["u", "1", "notes"], ["u", "2"], ["v", "notes"]]
        assert await found(prefix=["u"]) == [["u", "1", "notes"], ["u", "2"]]
        assert await found(suffix=["notes"]) == [["u", "1", "notes"], ["v", "notes"]]
        assert await found(prefix=["*", "notes"]) == [["v", "notes"]]
        assert await found(max_depth=1) == [["u"], ["v"]]
        assert await found(limit=1, offset=2) == [["v", "notes"]]
