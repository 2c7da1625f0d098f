"""Bad input: whatever a client sends, the answer is one that tells it what was expected, never a 5xx."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import httpx

from muster_agent.testing import Say
from tests.agent.langgraph_api.asking import MISSING, Caller, improvise, run
from tests.agent.runs.conftest import Start

HUGE = 2**64 - 1
NUL = "a\0b"
DEEP: Any = functools.reduce(lambda inside, _: [inside], range(200), "x")
MANY = {f"key-{at}": "v" for at in range(10_000)}
STRANGE = {"": 1, "a.b": 2, 'a"b': 3, "a'b": 4, "$x": 5, "a]b": 6, "ü": 7, "__proto__": 8, "lc": 1}

WRONG: tuple[Any, ...] = (
    0,
    -1,
    1.5,
    HUGE,
    1e300,
    True,
    "",
    "x",
    NUL,
    "é" * 5000,
    [],
    [1],
    [[]],
    {},
    {"a": 1},
    DEEP,
)
"""Values of which a field takes some, and refuses the others."""

# A body that is right, and its fields.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/threads"): {
        "metadata": {},
        "if_exists": "raise",
        "thread_id": MISSING,
        "graph_id": "agent",
        "supersteps": [{"updates": [{"values": {"messages": []}, "as_node": "model"}]}],
    },
    ("POST", "/threads/search"): {
        "ids": [MISSING],
        "metadata": {"a": 1},
        "values": {"a": 1},
        "status": "idle",
        "limit": 10,
        "offset": 0,
        "sort_by": "status",
        "sort_order": "asc",
        "select": ["status"],
        "extract": {"a": "values.messages[-1]"},
    },
    ("POST", "/threads/count"): {"metadata": {}, "values": {}, "status": "idle"},
    ("POST", "/threads/prune"): {"thread_ids": [MISSING], "strategy": "delete"},
    ("PATCH", "/threads/{thread}"): {"metadata": {}},
    ("POST", "/threads/{thread}/copy"): {},
    ("POST", "/threads/{thread}/state"): {
        "values": {"messages": []},
        "as_node": "model",
        "checkpoint": None,
        "checkpoint_id": None,
    },
    ("PATCH", "/threads/{thread}/state"): {"metadata": {}},
    ("POST", "/threads/{thread}/state/checkpoint"): {
        "checkpoint": {},
        "subgraphs": False,
        "select": ["values.messages"],
    },
    ("POST", "/threads/{thread}/history"): {
        "limit": 1,
        "before": None,
        "metadata": {"a": 1},
        "checkpoint": {"checkpoint_ns": ""},
        "select": ["values.messages"],
    },
    ("POST", "/threads/{thread}/runs/wait"): run(
        command=None,
        config={},
        context={},
        metadata={},
        stream_mode=["values"],
        stream_subgraphs=False,
        stream_resumable=False,
        interrupt_before=None,
        interrupt_after=None,
        checkpoint=None,
        checkpoint_id=None,
        multitask_strategy="enqueue",
        if_not_exists="reject",
        on_disconnect="cancel",
        on_completion="delete",
        after_seconds=0,
        durability="sync",
        webhook=None,
        feedback_keys=None,
    ),
    ("POST", "/runs/cancel"): {"status": "pending", "thread_id": MISSING, "run_ids": [MISSING]},
    ("POST", "/assistants/search"): {
        "graph_id": "agent",
        "name": "agent",
        "metadata": {"a": 1},
        "limit": 1,
        "offset": 0,
        "sort_by": "name",
        "sort_order": "asc",
        "select": ["name"],
    },
    ("POST", "/assistants/count"): {"graph_id": "agent", "name": "agent", "metadata": {}},
    ("PUT", "/store/items"): {"namespace": ["a"], "key": "k", "value": {}, "index": None, "ttl": None},
    ("DELETE", "/store/items"): {"namespace": ["a"], "key": "k"},
    ("POST", "/store/items/search"): {
        "namespace_prefix": ["a"],
        "filter": {"a": 1},
        "query": "a",
        "limit": 1,
        "offset": 0,
    },
    ("POST", "/store/namespaces"): {
        "prefix": ["a"],
        "suffix": ["a"],
        "max_depth": 1,
        "limit": 1,
        "offset": 0,
    },
}

# Bodies of which one part is wrong in a way of its own, and the status that each gets.
SPECIAL: tuple[tuple[str, str, Any, int], ...] = (
    ("POST", "/threads", {"metadata": MANY}, 200),
    ("POST", "/threads", {"metadata": STRANGE}, 200),
    ("POST", "/threads", {"metadata": {"a": NUL, NUL: 1}}, 200),
    ("POST", "/threads", {"metadata": {"a": "x" * 300_000}}, 422),
    ("POST", "/threads", {"supersteps": [{"updates": [{"values": {}}]}]}, 422),
    ("POST", "/threads", {"graph_id": "agent", "supersteps": [{"updates": [{"as_node": "nobody"}]}]}, 422),
    ("POST", "/threads", {"graph_id": "agent", "supersteps": [{"updates": []}]}, 422),
    (
        "POST",
        "/threads",
        {
            "graph_id": "agent",
            "supersteps": [{"updates": [{"command": {"update": [1]}, "as_node": "model"}]}],
        },
        422,
    ),
    ("POST", "/threads/search", {"metadata": MANY}, 422),
    ("POST", "/threads/search", {"metadata": {"a": MANY}}, 422),
    ("POST", "/threads/search", {"metadata": {'a" OR 1=1 --': 1}}, 422),
    ("POST", "/threads/search", {"metadata": {"a": {"b'": 1}}}, 422),
    ("POST", "/threads/search", {"values": {"$": 1}}, 422),
    ("POST", "/threads/search", {"metadata": {"a": HUGE}}, 200),
    ("POST", "/threads/search", {"metadata": {"a": {"b": [1, {"c": NUL}]}}}, 200),
    ("POST", "/threads/search", {"offset": 10**9}, 422),
    ("POST", "/threads/search", {"offset": 10**8}, 200),
    ("POST", "/threads/search", {"limit": 10**30}, 422),
    ("POST", "/threads/search", {"ids": ["x"]}, 422),
    ("POST", "/threads/search", {"sort_by": "tenant; DROP TABLE agent_threads"}, 422),
    ("POST", "/threads/{thread}/state", {"values": {"messages": [{"role": "nobody"}]}}, 422),
    ("POST", "/threads/{thread}/state", {"values": "x", "as_node": "model"}, 422),
    ("POST", "/threads/{thread}/state", {"values": {}, "as_node": "nobody"}, 422),
    ("POST", "/threads/{thread}/state", {"values": {}, "checkpoint": {"checkpoint_id": MISSING}}, 404),
    ("POST", "/threads/{thread}/state", {"values": {}, "checkpoint_id": "1' OR '1'='1"}, 422),
    ("POST", "/threads/{thread}/state", {"values": {}, "checkpoint": {"checkpoint_map": [1]}}, 422),
    ("POST", "/threads/{thread}/state/checkpoint", {"checkpoint": {"checkpoint_ns": NUL}}, 200),
    ("POST", "/threads/{thread}/state/checkpoint", {"checkpoint": {"checkpoint_id": 7}}, 422),
    ("POST", "/threads/{thread}/state/checkpoint", {}, 422),
    ("POST", "/threads/{thread}/history", {"before": "x"}, 422),
    ("POST", "/threads/{thread}/history", {"before": {"configurable": {"checkpoint_id": "x"}}}, 422),
    ("POST", "/threads/{thread}/history", {"metadata": {"' OR 1=1 --": 1}}, 200),
    ("POST", "/threads/{thread}/history", {"limit": 0}, 422),
    ("POST", "/threads/{thread}/runs/wait", run(checkpoint_id=MISSING), 404),
    ("POST", "/threads/{thread}/runs/wait", run(checkpoint={"checkpoint_id": "x"}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(config={"configurable": {"checkpoint_id": 7}}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(config={"recursion_limit": 0}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(config={"recursion_limit": True}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(config={"recursion_limit": 10**18}), 200),
    ("POST", "/threads/{thread}/runs/wait", run(config={"tags": MANY, "configurable": STRANGE}), 200),
    (
        "POST",
        "/threads/{thread}/runs/wait",
        run(config={"configurable": {"__pregel_x": 1, "thread_id": MISSING}}),
        200,
    ),
    ("POST", "/threads/{thread}/runs/wait", run(metadata={"a": NUL, "thread_id": MISSING}), 200),
    ("POST", "/threads/{thread}/runs/wait", run(stream_mode=["values"] * 100), 422),
    ("POST", "/threads/{thread}/runs/wait", run(after_seconds=1e99), 422),
    ("POST", "/threads/{thread}/runs/wait", {"input": {}}, 422),
    ("POST", "/threads/{thread}/runs/wait", run(assistant="nobody"), 422),
    ("POST", "/threads/{thread}/runs/wait", run(command={"goto": {"input": 1}}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(command={"update": [1]}), 422),
    ("POST", "/threads/{thread}/runs/wait", run(command={"goto": "nobody"}), 200),
    ("POST", "/threads/{thread}/runs/wait", run(f"say {NUL}"), 200),
    ("POST", f"/threads/{MISSING}/runs/wait", run(), 404),
    ("POST", "/runs/batch", [], 422),
    ("POST", "/runs/batch", {}, 422),
    ("POST", "/runs/batch", [run()] * 101, 422),
    ("POST", "/runs/cancel", {}, 422),
    ("POST", "/runs/cancel", {"status": "success"}, 422),
    ("POST", "/runs/cancel?action=explode", {"status": "all"}, 422),
    ("PUT", "/store/items", {"namespace": ["a.b"], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": [""], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": [], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": ["langgraph"], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": ["*"], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": [NUL], "key": NUL, "value": {NUL: NUL}}, 204),
    ("PUT", "/store/items", {"namespace": ["a"] * 33, "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": ["é" * 500], "key": "é" * 500, "value": {}}, 204),
    ("PUT", "/store/items", {"namespace": ["é" * 600], "key": "k", "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": ["a"], "key": "é" * 600, "value": {}}, 422),
    ("PUT", "/store/items", {"namespace": ["a"], "key": "k", "value": {"n": HUGE, **STRANGE}}, 204),
    ("POST", "/store/items/search", {"filter": {"a'": 1}}, 422),
    ("POST", "/store/items/search", {"filter": {"a\n": 1}}, 422),
    ("POST", "/store/items/search", {"filter": {"$.a": 1}}, 422),
    ("POST", "/store/items/search", {"filter": {"a[0]": 1}}, 422),
    ("POST", "/store/items/search", {"filter": {"a": {"$regex": "x"}}}, 422),
    ("POST", "/store/items/search", {"filter": {"a": {"$gt": [1]}}}, 422),
    ("POST", "/store/items/search", {"filter": {"a": {"$gt": HUGE}}}, 200),
    ("POST", "/store/items/search", {"filter": {"a": {"$gt": "x"}, "b": None, "c": True}}, 200),
    ("POST", "/store/items/search", {"filter": {"a": {"$lt": None, "$ne": True}}}, 200),
    ("POST", "/store/items/search", {"offset": 10**12}, 422),
    ("POST", "/store/namespaces", {"prefix": ["*"], "suffix": ["*", "a"], "max_depth": 100}, 200),
    ("POST", "/store/namespaces", {"prefix": ["a.b"]}, 422),
    ("GET", "/store/items?namespace=a", None, 422),
    ("GET", "/store/items?key=a", None, 422),
    ("GET", "/store/items?namespace=a&key=a%00", None, 422),
    ("GET", "/store/items?namespace=a%00&key=a", None, 422),
    ("GET", "/threads/{thread}/state/x", None, 422),
    ("GET", "/threads/{thread}/state/x%00", None, 422),
    ("GET", f"/threads/{{thread}}/state/{MISSING}", None, 200),
    ("GET", "/threads/{thread}/history?limit=-1", None, 422),
    ("GET", "/threads/{thread}/history?limit=10000", None, 422),
    ("GET", "/threads/{thread}/history?before=%00", None, 422),
    ("GET", "/threads/{thread}/runs?limit=x", None, 422),
    ("GET", "/threads/{thread}/runs?offset=99999999999", None, 422),
    ("GET", "/threads/{thread}/runs?status=x%00", None, 422),
    ("GET", "/threads/{thread}/runs/x", None, 422),
    ("GET", f"/threads/{{thread}}/runs/{MISSING}", None, 404),
    ("GET", "/threads/%00", None, 422),
    ("GET", "/threads/..%2f..%2fetc", None, 404),
    ("GET", "/assistants/x%00", None, 422),
    ("GET", "/assistants/agent/graph?xray=99999999999999999999", None, 200),
    ("GET", "/assistants/agent/subgraphs/x%00", None, 200),
)


def _wrong_bodies() -> Iterator[tuple[str, str, Any]]:
    for (method, path), body in BODIES.items():
        for field in body:
            for wrong in WRONG:
                yield method, path, {**body, field: wrong}


async def _answer(caller: Caller, thread: str, method: str, path: str, body: object) -> httpx.Response:
    content = None if body is None else json.dumps(body)  # also numbers that orjson does not write
    return await caller.send(method, path.format(thread=thread), content=content)


def _is_told(answer: httpx.Response) -> bool:
    if answer.status_code < 400:
        return True
    return (
        answer.status_code < 500
        and set(answer.json()) == {"detail"}
        and isinstance(answer.json()["detail"], str)
    )


async def _used_thread(caller: Caller) -> str:
    thread = await caller.thread()
    await caller.post(f"/threads/{thread}/runs/wait", run())
    return thread


async def test_every_field_with_every_wrong_value(start: Start, http: httpx.AsyncClient) -> None:
    """A field that is wrong is a 4xx in the API's own shape, and the service goes on."""
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await _used_thread(caller)
        bad: list[Any] = []
        for method, path, body in _wrong_bodies():
            answer = await _answer(caller, thread, method, path, body)
            if not _is_told(answer):
                bad.append((method, path, str(body)[:200], answer.status_code, answer.text[:200]))
        assert bad == []
        assert (await caller.get("/ok"))["ok"]


async def test_special_cases(start: Start, http: httpx.AsyncClient) -> None:
    """What looks right and is not has its own status, on both databases the same."""
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await _used_thread(caller)
        bad: list[Any] = []
        for method, path, body, status in SPECIAL:
            answer = await _answer(caller, thread, method, path, body)
            if answer.status_code != status or not _is_told(answer):
                bad.append((method, path, str(body)[:200], status, answer.status_code, answer.text[:300]))
        assert bad == []


ELEVEN_MB = b"x" * 11_000_000
CONTENTS: tuple[tuple[bytes, int], ...] = (
    (b"", 422),
    (b"null", 422),
    (b"[]", 422),
    (b'"x"', 422),
    (b"123", 422),
    (b"{", 400),
    (b"{'a': 1}", 400),
    (b'{"assistant_id": "agent"} {}', 400),
    (b'{"assistant_id": "agent", "input": NaN}', 400),
    (b'{"assistant_id": "agent", "after_seconds": Infinity}', 400),
    (b'{"assistant_id": "\\ud800"}', 400),
    (b'{"assistant_id": "agent", "input": "\xff"}', 400),
    (b'{"assistant_id": "agent", "input": ' + b"[" * 250 + b"]" * 250 + b"}", 400),
    (b'{"assistant_id": "agent", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400),
    (b'{"assistant_id": "agent", "input": "' + ELEVEN_MB + b'"}', 413),
    (ELEVEN_MB, 413),
)


async def test_bodies_that_are_no_run(start: Start, http: httpx.AsyncClient) -> None:
    """A body that is not the JSON object that it should be is refused by what is wrong with it, and is not quoted."""
    async with start(Say("never")) as (agent, _client):
        for content, status in CONTENTS:
            answer = await Caller(http, agent).send("POST", "/runs/wait", content=content)
            assert answer.status_code == status, content[:80]
            assert set(answer.json()) == {"detail"}
            assert len(answer.text) < 500
        assert agent.model.calls == []
