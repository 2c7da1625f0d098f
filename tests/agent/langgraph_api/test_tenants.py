"""Tenants: what is another's is not there, and nothing tells that it is anywhere."""

from typing import Any

import httpx
import pytest

from muster_agent.testing import scripted_agent
from tests.agent.langgraph_api.asking import MISSING, Caller, asks, improvise, run
from tests.agent.runs.conftest import Start

KEYS = {"k1": "ada", "k2": "bob"}
REMEMBERING: dict[str, Any] = {
    "mine": {"graph": "tests.agent.langgraph_api.users_graphs:remembering"},
    "agent": {},
}

# Method, path and body of every route that names something of a tenant's.
ROUTES: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/threads/{thread}", None),
    ("PATCH", "/threads/{thread}", {"metadata": {"a": "mine"}}),
    ("DELETE", "/threads/{thread}", None),
    ("POST", "/threads/{thread}/copy", {}),
    ("GET", "/threads/{thread}/state", None),
    ("POST", "/threads/{thread}/state", {"values": asks("mine")}),
    ("PATCH", "/threads/{thread}/state", {"metadata": {}}),
    ("POST", "/threads/{thread}/state/checkpoint", {"checkpoint": {"checkpoint_id": "{checkpoint}"}}),
    ("GET", "/threads/{thread}/state/{checkpoint}", None),
    ("GET", "/threads/{thread}/history", None),
    ("POST", "/threads/{thread}/history", {}),
    ("GET", "/threads/{thread}/runs", None),
    ("POST", "/threads/{thread}/runs", run()),
    ("POST", "/threads/{thread}/runs", run(if_not_exists="create")),
    ("POST", "/threads/{thread}/runs/wait", run(multitask_strategy="rollback")),
    ("POST", "/threads/{thread}/runs/wait", run(checkpoint_id="{checkpoint}")),
    ("POST", "/threads/{thread}/runs/stream", run(if_not_exists="create")),
    ("GET", "/threads/{thread}/runs/{run}", None),
    ("DELETE", "/threads/{thread}/runs/{run}", None),
    ("POST", "/threads/{thread}/runs/{run}/cancel", {}),
    ("GET", "/threads/{thread}/runs/{run}/join", None),
    ("GET", "/threads/{thread}/runs/{run}/stream", None),
    ("GET", "/threads/{mine}/runs/{run}", None),
    ("DELETE", "/threads/{mine}/runs/{run}", None),
    ("GET", "/threads/{mine}/runs/{run}/join", None),
    ("GET", "/runs/{run}/join", None),
    ("GET", "/runs/{run}/stream", None),
    ("POST", "/runs/cancel", {"run_ids": ["{run}"]}),
    ("POST", "/runs/cancel", {"run_ids": ["{run}"], "thread_id": "{thread}"}),
    ("GET", "/threads/{thread}/stream", None),
    (
        "POST",
        "/threads/{mine}/state",
        {"values": asks("mine"), "checkpoint": {"checkpoint_id": "{checkpoint}"}},
    ),
    ("POST", "/threads/{mine}/runs/wait", run(checkpoint_id="{checkpoint}")),
)


def _filled(value: Any, names: dict[str, str]) -> Any:
    match value:
        case str():
            for name, text in names.items():
                value = value.replace(f"{{{name}}}", text)
            return value
        case dict():
            return {key: _filled(each, names) for key, each in value.items()}
        case list():
            return [_filled(each, names) for each in value]
        case _:
            return value


async def _told(caller: Caller, route: tuple[str, str, Any], names: dict[str, str]) -> tuple[Any, ...]:
    """What a client sees of an answer, but for the request's identifier, and with what it named replaced."""
    method, path, body = route
    answer = await caller.send(method, _filled(path, names), _filled(body, names))
    told = answer.text
    for text in names.values():
        told = told.replace(text, "...")
    headers = {name: value for name, value in answer.headers.items() if name not in {"x-request-id", "date"}}
    headers.pop("content-length")  # of texts that name an identifier, which has its own length
    return answer.status_code, headers, told


async def _used(caller: Caller, **metadata: Any) -> dict[str, str]:
    """A thread with a run that goes on, and where it has been."""
    thread = await caller.thread(metadata=metadata)
    await caller.post(f"/threads/{thread}/runs/wait", run("hello"))
    state = await caller.get(f"/threads/{thread}/state")
    going = await caller.post(f"/threads/{thread}/runs", run("slow"))
    return {"thread": thread, "run": going["run_id"], "checkpoint": state["checkpoint_id"]}


async def test_what_is_anothers_is_not_there(start: Start, http: httpx.AsyncClient) -> None:
    """Every route answers a foreign thread, run or checkpoint word for word as it answers a missing one."""
    async with start(improvise=improvise, keys=KEYS, key="k1") as (agent, _client):
        ada, bob = Caller(http, agent, "k1"), Caller(http, agent, "k2")
        theirs = await _used(ada, note="ada's")
        before = await ada.get(f"/threads/{theirs['thread']}")
        mine = await bob.thread(graph_id="agent")
        missing = {"thread": MISSING, "run": MISSING, "checkpoint": MISSING, "mine": mine}
        for route in ROUTES:
            # Whoever names a thread that is nobody's may have it made.
            method, path, body = route
            asked = (
                (method, path, {**body, "if_not_exists": "reject"})
                if "if_not_exists" in (body or {})
                else route
            )
            foreign, expected = (
                await _told(bob, route, {**theirs, "mine": mine}),
                await _told(bob, asked, missing),
            )
            assert (route, foreign) == (route, expected)
            assert foreign[0] == 404
        assert await ada.get(f"/threads/{theirs['thread']}") == before
        assert (await ada.get(f"/threads/{theirs['thread']}/runs/{theirs['run']}"))["status"] in {
            "pending",
            "running",
        }
        assert (await bob.get(f"/threads/{mine}"))["status"] == "idle"


async def test_lists_show_what_is_ones_own(start: Start, http: httpx.AsyncClient) -> None:
    """No list, count, search, pruning or mass cancellation reaches a foreign row, whatever is asked."""
    async with start(improvise=improvise, keys=KEYS, key="k1") as (agent, _client):
        ada, bob = Caller(http, agent, "k1"), Caller(http, agent, "k2")
        theirs = await _used(ada, a=1)
        for query in (
            {},
            {"metadata": {"a": 1}},
            {"ids": [theirs["thread"]]},
            {"status": "busy"},
            {"limit": 1000},
        ):
            answer = await bob.send("POST", "/threads/search", query)
            assert (answer.json(), answer.headers["x-pagination-total"]) == ([], "0")
        assert await bob.post("/threads/count", {}) == 0
        assert await bob.post("/threads/prune", {"thread_ids": [theirs["thread"]]}) == {"pruned_count": 0}
        assert (await bob.send("POST", "/runs/cancel", {"status": "all"})).status_code == 404
        assert await ada.post("/threads/count", {"status": "busy"}) == 1


async def test_identifiers_are_not_taken_over(start: Start, http: httpx.AsyncClient) -> None:
    """Making a thread of a foreign identifier is refused, in the words in which one's own would be."""
    async with start(improvise=improvise, keys=KEYS, key="k1") as (agent, _client):
        ada, bob = Caller(http, agent, "k1"), Caller(http, agent, "k2")
        thread = await ada.thread(metadata={"secret": "ada's"})
        for if_exists in ("raise", "do_nothing"):
            answer = await bob.send("POST", "/threads", {"thread_id": thread, "if_exists": if_exists})
            assert (answer.status_code, answer.json()) == (
                409,
                {"detail": f"Thread with ID {thread} already exists"},
            )
        assert (await ada.get(f"/threads/{thread}"))["metadata"] == {"secret": "ada's"}


async def test_keys_of_requests_are_ones_own(start: Start, http: httpx.AsyncClient) -> None:
    """Two tenants with one idempotency key have a run each."""
    async with start(improvise=improvise, keys=KEYS, key="k1") as (agent, _client):
        same = {"idempotency-key": "same"}
        made = [
            (await Caller(http, agent, key).send("POST", "/runs", run(), headers=same)).json()
            for key in ("k1", "k2")
        ]
        assert made[0]["run_id"] != made[1]["run_id"]


async def test_stores_are_apart(start: Start, http: httpx.AsyncClient) -> None:
    """Each tenant has a store of its own, the same one over HTTP and in a graph, whatever it names."""
    names = {**KEYS, "k3": "ad", "k4": "ada%", "k5": "a.b", "k6": ""}
    async with start(improvise=improvise, keys=names, key="k1", agents=REMEMBERING) as (agent, _client):
        callers = {name: Caller(http, agent, key) for key, name in names.items()}
        for name, caller in callers.items():
            body = {"assistant_id": "mine", "input": {"text": name}}
            assert (await caller.post("/runs/wait", body))["seen"] == []
        for name, caller in callers.items():
            item = await caller.get("/store/items?namespace=notes&key=last")
            assert (item["namespace"], item["value"]) == (["notes"], {"text": name})
            assert len((await caller.post("/store/items/search", {}))["items"]) == 1
            for told in ({}, {"prefix": ["*"]}, {"suffix": ["notes"]}, {"max_depth": 1}):
                assert await caller.post("/store/namespaces", told) == {"namespaces": [["notes"]]}
            for other in (["tenant:ada"], ["tenant:ada", "notes"], ["*", "notes"]):
                assert await caller.post("/store/namespaces", {"prefix": other}) == {"namespaces": []}
            seen = await caller.post("/runs/wait", {"assistant_id": "mine", "input": {"text": name}})
            assert seen["seen"] == [["notes"], {"text": name}]
        await callers["bob"].send("DELETE", "/store/items", {"namespace": ["notes"], "key": "last"})
        assert await callers["bob"].get("/store/items?namespace=notes&key=last") is None
        assert await callers["ada"].get("/store/items?namespace=notes&key=last") is not None


@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
@pytest.mark.parametrize("key", [b"\xe9", "\u043a\u043b\u044e\u0447".encode(), b"\xff" * 100])
async def test_a_key_that_is_no_text(start: Start, http: httpx.AsyncClient, header: str, key: bytes) -> None:
    """Bytes that no header of ours could carry are nobody's key; the proxy is not blamed for it."""
    sent = {header.encode(): key if header == "x-api-key" else b"Bearer " + key}
    async with start(keys=KEYS, key="k1") as (agent, _client):
        for path in ("/threads/search", "/v1/chat/completions"):
            answer = await http.post(f"{agent.url}{path}", json={}, headers=sent)
            assert answer.status_code == 401


@pytest.mark.parametrize("key", [None, "wrong", "K1", "x" * 5000])
async def test_a_key_that_is_nobodys(start: Start, http: httpx.AsyncClient, key: str | None) -> None:
    """Where there are keys, a request without one of them is a 401 whatever else is wrong with it."""
    async with start(keys=KEYS, key="k1") as (agent, _client):
        caller = Caller(http, agent, key)
        for method, path, body in (
            ("POST", "/threads", {"thread_id": "nonsense"}),
            ("POST", "/threads/search", {"limit": -1}),
            ("GET", "/threads/nonsense", None),
            ("POST", "/runs/wait", {}),
            ("POST", "/runs/batch", []),
            ("POST", "/runs/cancel", {}),
            ("POST", f"/threads/{MISSING}/runs/stream", {}),
            ("GET", f"/threads/{MISSING}/runs/{MISSING}/join", None),
            ("POST", "/assistants/search", {}),
            ("POST", "/assistants", {}),
            ("GET", "/assistants/agent/graph", None),
            ("PUT", "/store/items", {}),
            ("GET", "/store/items", None),
        ):
            answer = await caller.send(method, path, body)
            assert answer.status_code == 401
            assert set(answer.json()) == {"detail"}
            assert key is None or key not in answer.text


async def test_the_proxy_cannot_be_asked(http: httpx.AsyncClient) -> None:
    """While nobody can tell whose a key is, nothing is answered as somebody's: 503, and health goes on."""
    async with scripted_agent(proxy="http://127.0.0.1:1") as agent:
        caller = Caller(http, agent, "k1")
        for path in ("/threads/search", "/runs/wait", "/store/items/search"):
            answer = await caller.send("POST", path, run())
            assert answer.status_code == 503
            assert "127.0.0.1" not in answer.text
        assert await caller.get("/ok") == {"ok": True}
