"""Threads over HTTP: statuses, headers and keys as a recorded LangGraph server has them, through its own client too."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from langgraph_sdk.errors import ConflictError, NotFoundError, UnprocessableEntityError

from muster_agent.testing import CallTools, Hold, Say
from tests.agent.langgraph_api.asking import MISSING, Caller, asks, improvise, keys, run
from tests.agent.langgraph_api.graphs import Note
from tests.agent.runs.conftest import Start
from tests.agent.runs.tools import EFFECTS

THREAD = {
    "thread_id",
    "created_at",
    "updated_at",
    "state_updated_at",
    "metadata",
    "status",
    "config",
    "values",
    "error",
    "interrupts",
}
STATE = {
    "values",
    "next",
    "tasks",
    "metadata",
    "created_at",
    "checkpoint",
    "parent_checkpoint",
    "interrupts",
    "checkpoint_id",
    "parent_checkpoint_id",
}
TASK = {"id", "name", "path", "error", "interrupts", "checkpoint", "state", "result"}
CHECKPOINT = {"thread_id", "checkpoint_ns", "checkpoint_id"}
EMPTY = {name: [] if name in {"next", "tasks", "interrupts"} else None for name in STATE} | {"values": {}}
NESTED: dict[str, Any] = {"nested": {"graph": "tests.agent.langgraph_api.users_graphs:asking_inside"}}


async def test_a_new_thread(start: Start, http: httpx.AsyncClient) -> None:
    """A thread that nothing has run on is idle, has no values, and its state and history are empty."""
    async with start() as (agent, client):
        caller = Caller(http, agent)
        made = await client.threads.create(metadata={"a": 1}, graph_id="agent")
        assert set(made) == THREAD
        assert made["metadata"] == {"a": 1, "graph_id": "agent"}
        assert (made["status"], made["values"], made["interrupts"]) == ("idle", None, {})
        made_at = [
            datetime.fromisoformat(made[name]) for name in ("created_at", "updated_at", "state_updated_at")
        ]
        assert max(made_at) - min(made_at) < timedelta(seconds=1)
        assert made_at[0].utcoffset() == timedelta()
        thread = made["thread_id"]
        assert await client.threads.get(thread) == made
        assert await caller.get(f"/threads/{thread}/state") == EMPTY
        assert await client.threads.get_history(thread) == []


async def test_a_thread_that_exists(start: Start, http: httpx.AsyncClient) -> None:
    """A second thread of the same identifier is refused, or the first is returned as it is."""
    async with start() as (agent, client):
        made = await client.threads.create(thread_id=MISSING, metadata={"a": 1})
        answer = await Caller(http, agent).send("POST", "/threads", {"thread_id": MISSING})
        assert (answer.status_code, answer.json()) == (
            409,
            {"detail": f"Thread with ID {MISSING} already exists"},
        )
        again = await client.threads.create(
            thread_id=MISSING,
            metadata={"a": 2},
            if_exists="do_nothing",
            supersteps=[{"updates": [{"values": {}, "as_node": "nobody"}]}],
        )
        assert again == made


@pytest.mark.parametrize(("if_exists", "statuses"), [("do_nothing", [200] * 8), ("raise", [200] + [409] * 7)])
async def test_threads_made_at_the_same_moment(
    start: Start, http: httpx.AsyncClient, if_exists: str, statuses: list[int]
) -> None:
    """However many ask for one identifier at once, one of them makes the thread."""
    async with start() as (agent, _client), asyncio.TaskGroup() as group:
        caller, body = Caller(http, agent), {"thread_id": MISSING, "if_exists": if_exists}
        tasks = [group.create_task(caller.send("POST", "/threads", body)) for _ in range(8)]
        await asyncio.wait(tasks)
        assert sorted(task.result().status_code for task in tasks) == statuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/copy"),
        ("GET", "/state"),
        ("POST", "/state"),
        ("PATCH", "/state"),
        ("POST", "/state/checkpoint"),
        ("GET", f"/state/{MISSING}"),
        ("GET", "/history"),
        ("POST", "/history"),
        ("GET", "/runs"),
        ("POST", "/runs"),
        ("POST", "/runs/wait"),
        ("POST", "/runs/stream"),
    ],
)
async def test_no_such_thread(start: Start, http: httpx.AsyncClient, method: str, path: str) -> None:
    """A thread that does not exist is a 404 that names it; what is no UUID is a 422, before anything else."""
    body = None if method in {"GET", "DELETE"} else {**run(), "checkpoint": {}}
    async with start() as (agent, _client):
        caller = Caller(http, agent)
        answer = await caller.send(method, f"/threads/{MISSING}{path}", body)
        assert (answer.status_code, answer.json()) == (404, {"detail": f"Thread with ID {MISSING} not found"})
        answer = await caller.send(method, f"/threads/not-a-uuid{path}", body)
        assert (answer.status_code, answer.json()) == (422, {"detail": "Invalid thread ID: must be a UUID"})


async def test_a_used_thread(start: Start, http: httpx.AsyncClient) -> None:
    """What a run has left is in the thread, in its state, and step by step in its history."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("calc"))
        used = await caller.get(f"/threads/{thread}")
        assert set(used) == THREAD
        (assistant,) = await client.assistants.search()
        assert used["metadata"] == {"graph_id": "agent", "assistant_id": assistant["assistant_id"]}
        assert [message["type"] for message in used["values"]["messages"]] == ["human", "ai", "tool", "ai"]
        assert used["created_at"] < min(used["state_updated_at"], used["updated_at"])
        state = await caller.get(f"/threads/{thread}/state")
        assert set(state) == STATE
        assert state["values"] == used["values"]
        assert (state["next"], state["tasks"], state["interrupts"]) == ([], [], [])
        assert set(state["checkpoint"]) == set(state["parent_checkpoint"]) == CHECKPOINT
        assert state["checkpoint"]["checkpoint_id"] == state["checkpoint_id"]
        assert {"source", "step", "run_id", "graph_id", "assistant_id"} <= set(state["metadata"])
        history: Any = await client.threads.get_history(thread, limit=100)
        assert keys(history) == [STATE] * len(history)
        assert history[0] == state
        parents = [each["parent_checkpoint_id"] for each in history]
        assert parents == [*(each["checkpoint_id"] for each in history[1:]), None]
        (task,) = history[1]["tasks"]
        assert set(task) == TASK
        assert history[1]["next"] == [task["name"]] == ["model"]
        assert task["result"]["messages"][0]["content"] == "The answer is 4."


async def test_a_busy_thread(start: Start, http: httpx.AsyncClient) -> None:
    """While a run goes on its thread is busy, its state is not changed by hand, and its metadata may be."""
    async with start(Hold(Say("never"))) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.create(thread, "agent", input=asks("hi"))
        await agent.model.received()
        busy = await client.threads.get(thread)
        assert (busy["status"], busy["values"]) == ("busy", None)
        answer = await caller.send("POST", f"/threads/{thread}/state", {"values": {"messages": []}})
        assert answer.status_code == 409
        assert answer.json()["detail"].startswith("Thread is already running a task.")
        assert (await client.threads.update(thread, metadata={"a": 1}))["metadata"]["a"] == 1
        await client.threads.delete(thread)
        await agent.model.aborted()
        assert (await caller.send("GET", f"/threads/{thread}")).status_code == 404


async def test_a_thread_that_waits_for_a_person(
    start: Start, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked stands in the thread by task, in its state, and in its state's tasks, each the same."""
    monkeypatch.setenv(EFFECTS, "unused")
    agents = {"agent": {"tools": {"own": ["tests.agent.runs.tools:send_mail"]}}}
    async with start(CallTools([("send_mail", {"to": "ada"})]), agents=agents) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        shown, state = await caller.get(f"/threads/{thread}"), await caller.get(f"/threads/{thread}/state")
        (task,) = state["tasks"]
        (question,) = state["interrupts"]
        assert set(question) == {"id", "value"}
        assert set(question["value"]) == {"action_requests", "review_configs"}
        assert shown["status"] == "interrupted"
        assert shown["interrupts"] == {task["id"]: [question]}
        assert task["interrupts"] == [question]
        assert state["next"] == [task["name"]]
        found = await client.threads.search(status="interrupted")
        assert [each["thread_id"] for each in found] == [thread]


async def test_searching(start: Start, http: httpx.AsyncClient) -> None:
    """Threads are found by metadata, status, identifiers and values, sorted and page by page, with the count told."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        ids = [await caller.thread(metadata={"n": n, "even": n % 2 == 0, "in": {"n": n}}) for n in range(5)]
        await client.runs.wait(ids[3], "agent", input=asks("hi"))

        async def found(**query: Any) -> list[int]:
            return [ids.index(each["thread_id"]) for each in await caller.post("/threads/search", query)]

        by_age = {"sort_by": "created_at", "sort_order": "asc"}
        assert await found() == [3, 4, 2, 1, 0]
        assert await found(**by_age) == [0, 1, 2, 3, 4]
        assert await found(metadata={"even": True}, **by_age) == [0, 2, 4]
        assert await found(metadata={"even": 1}, **by_age) == []
        assert await found(metadata={"n": 1, "even": False}) == [1]
        assert await found(metadata={"in": {"n": 2}}) == [2]
        assert await found(metadata={"n": None}) == []
        assert await found(metadata={"graph_id": "agent"}) == [3]
        assert await found(status="busy") == []
        assert await found(ids=[ids[1], MISSING]) == [1]
        messages = (await caller.get(f"/threads/{ids[3]}"))["values"]["messages"]
        assert await found(values={"messages": messages}) == [3]
        page = await caller.send("POST", "/threads/search", {"limit": 2, "offset": 2, **by_age})
        assert [ids.index(each["thread_id"]) for each in page.json()] == [2, 3]
        assert (page.headers["x-pagination-total"], page.headers["x-pagination-next"]) == ("5", "4")
        last = await caller.send("POST", "/threads/search", {"limit": 2, "offset": 4, **by_age})
        assert "x-pagination-next" not in last.headers
        some: Any = await client.threads.search(select=["status", "values"], limit=1)
        assert keys(some) == [{"thread_id", "status", "values"}]
        assert await caller.post("/threads/count", {}) == 5
        assert await client.threads.count(metadata={"even": False}) == 2


async def test_metadata_is_added(start: Start) -> None:
    """A patch adds to the metadata and leaves the state's time alone."""
    async with start() as (_agent, client):
        made = await client.threads.create(metadata={"a": 1, "b": 2})
        patched = await client.threads.update(made["thread_id"], metadata={"b": 3, "c": 4})
        assert patched["metadata"] == {"a": 1, "b": 3, "c": 4}
        assert patched["state_updated_at"] == made["state_updated_at"]
        assert patched["updated_at"] >= made["updated_at"]


async def test_a_state_written_by_hand(start: Start, http: httpx.AsyncClient) -> None:
    """It continues the newest checkpoint, or the one that is named, and a run goes on from it."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create(graph_id="agent"))["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        before = (await client.threads.get_state(thread))["checkpoint"]
        told: Any = await client.threads.update_state(thread, asks("two"), as_node="__start__")
        assert set(told) == {"checkpoint", "configurable", "checkpoint_id"}
        assert told["checkpoint"] == told["configurable"]
        assert set(told["checkpoint"]) == CHECKPOINT
        state = await client.threads.get_state(thread)
        assert state["checkpoint"] == told["checkpoint"]
        assert state["parent_checkpoint"] == before
        assert (await client.threads.get(thread))["values"] == state["values"]
        fork: Any = await client.threads.update_state(thread, asks("other"), checkpoint=before)
        state = await client.threads.get_state(thread)
        assert state["checkpoint"] == fork["checkpoint"]
        values: Any = await client.runs.wait(thread, "agent", input=asks("three"))
        texts = [message["content"] for message in values["messages"]]
        assert texts == ["one", "re: one", "other", "three", "re: three"]
        missing = {"values": asks("x"), "checkpoint": {"checkpoint_id": MISSING}}
        assert (await caller.send("POST", f"/threads/{thread}/state", missing)).status_code == 404


async def test_states_that_no_graph_takes(start: Start, http: httpx.AsyncClient) -> None:
    """They are refused with the reason and without their text, and leave the thread as it was."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        fresh = await caller.thread()
        answer = await caller.send("POST", f"/threads/{fresh}/state", {"values": {}})
        assert answer.status_code == 422
        assert "nothing has run on this thread" in answer.json()["detail"]
        thread = await caller.thread(graph_id="agent")
        await client.runs.wait(thread, "agent", input=asks("one"))
        before = await caller.get(f"/threads/{thread}/state")
        bad = {"values": {"messages": [{"role": "SECRET", "content": "SECRET"}]}, "as_node": "model"}
        answer = await caller.send("POST", f"/threads/{thread}/state", bad)
        assert answer.status_code == 422
        assert "SECRET" not in answer.text
        assert await caller.get(f"/threads/{thread}/state") == before
        await client.runs.wait(thread, "agent", input=asks("two"))


async def test_a_thread_made_with_a_state(start: Start, http: httpx.AsyncClient) -> None:
    """Supersteps are written in their order; where one cannot be, there is no thread."""
    steps: Any = [
        {"updates": [{"values": asks("one"), "as_node": "__start__"}]},
        {
            "updates": [
                {"values": {"messages": [{"role": "assistant", "content": "uno"}]}, "as_node": "model"}
            ]
        },
    ]
    async with start(improvise=improvise) as (agent, client):
        made: Any = await client.threads.create(graph_id="agent", supersteps=steps)
        assert [message["content"] for message in made["values"]["messages"]] == ["one", "uno"]
        values: Any = await client.runs.wait(made["thread_id"], "agent", input=asks("two"))
        assert [message["content"] for message in values["messages"]] == ["one", "uno", "two", "re: two"]
        steps[1]["updates"][0]["as_node"] = "nobody"
        body = {"thread_id": MISSING, "graph_id": "agent", "supersteps": steps}
        answer = await Caller(http, agent).send("POST", "/threads", body)
        assert answer.status_code == 422
        with pytest.raises(NotFoundError):
            await client.threads.get(MISSING)


async def test_a_thread_made_with_commands(start: Start, http: httpx.AsyncClient) -> None:
    """A superstep may have a command in the place of values: its update is written, and its nodes come next."""
    two = {"two": {"graph": "tests.agent.langgraph_api.graphs:two_questions"}}
    async with start(agents=two) as (agent, client):
        caller = Caller(http, agent)
        command = {"update": {"text": "given "}, "goto": "echo"}
        steps: Any = [{"updates": [{"values": None, "command": command, "as_node": "a"}]}]
        made: Any = await client.threads.create(graph_id="two", supersteps=steps)
        state = await caller.get(f"/threads/{made['thread_id']}/state")
        result: Any = await client.runs.wait(made["thread_id"], "two", input=None)
        steps[0]["updates"][0]["command"] = {"resume": "yes"}
        refused = await caller.send("POST", "/threads", {"graph_id": "two", "supersteps": steps})

    assert (made["values"], state["next"]) == ({"text": "given "}, ["echo"])
    assert result["text"] == "given echo given  "
    assert refused.status_code == 422


async def test_a_patch_without_an_answer(start: Start) -> None:
    """A client that does not want the thread back gets a 204, and the thread is changed."""
    async with start() as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        assert await client.threads.update(thread, metadata={"a": 1}, return_minimal=True) is None
        assert (await client.threads.get(thread))["metadata"] == {"a": 1}


async def test_parts_of_a_state(start: Start, http: httpx.AsyncClient) -> None:
    """A client that names parts of a state gets those, one value among them, from wherever states are shown."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        whole: Any = await client.threads.get_state(thread)
        wanted = ["next", "values.messages", "values.nothing", "nothing"]
        shown: list[Any] = [
            await client.threads.get_state(thread, select=wanted),
            await client.threads.get_state(thread, checkpoint=whole["checkpoint"], select=wanted),
            await client.threads.get_state(thread, checkpoint_id=whole["checkpoint_id"], select=wanted),
            (await client.threads.get_history(thread, limit=1, select=wanted))[0],
            (await caller.get(f"/threads/{thread}/history?select=next&select=values.messages"))[0],
        ]
        only: Any = await client.threads.get_state(thread, select=["values"])

    assert shown == [{"next": [], "values": {"messages": whole["values"]["messages"]}}] * 5
    assert only == {"values": whole["values"]}


async def test_extracts_of_threads(start: Start, http: httpx.AsyncClient) -> None:
    """A search tells what is at a path under the client's name for it; what is no path is refused."""
    async with start(improvise=improvise) as (agent, client):
        thread = (await client.threads.create(metadata={"title": "mine"}))["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        paths = {
            "last": "values.messages[-1].content",
            "title": "metadata.title",
            "none": "values.messages[7].content",
            "lost": "values.messages.content",
        }
        found: Any = await client.threads.search(extract=paths, select=["status"])
        wrong = [
            await Caller(http, agent).send("POST", "/threads/search", {"extract": {"a": path}})
            for path in ("", "values[", "values..a", "a[x]", "a[1" + "0" * 20 + "]", "a" * 1000)
        ]

    extracted = {"last": "re: one", "title": "mine", "none": None, "lost": None}
    assert found == [{"thread_id": thread, "status": "idle", "extracted": extracted}]
    assert [answer.status_code for answer in wrong] == [422] * 6


async def test_a_page_of_history_reads_a_page(start: Start, http: httpx.AsyncClient) -> None:
    """A client that wants the newest state does not have all the others read; with a filter, a few more are."""
    noting = {"noting": {"graph": "tests.agent.langgraph_api.graphs:noting"}}
    async with start(agents=noting) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        for turn in range(30):
            kind = {"kind": "even" if turn % 2 == 0 else "odd"}
            await client.runs.wait(thread, "noting", input={"count": turn}, metadata=kind)
        path = f"/threads/{thread}/history"
        Note.read.clear()
        newest = await caller.post(path, {"limit": 1})
        read_for_one = len(Note.read)
        odd = await caller.post(path, {"limit": 25, "metadata": {"kind": "odd", "source": "loop"}})
        every = await caller.post(path, {"limit": 1000})
        before = await caller.post(path, {"limit": 2, "before": every[3]["checkpoint"]})

    assert newest == every[:1]
    assert read_for_one <= 2
    wanted = [
        each for each in every if (each["metadata"]["kind"], each["metadata"]["source"]) == ("odd", "loop")
    ]
    assert odd == wanted[:25]
    assert before == every[4:6]


async def test_states_of_the_past(start: Start, http: httpx.AsyncClient) -> None:
    """A state is got by its checkpoint in each way that clients name one; one that is not there is empty."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"), metadata={"kind": "first"})
        await client.runs.wait(thread, "agent", input=asks("two"), metadata={"kind": "second"})
        history: Any = await client.threads.get_history(thread, limit=100)
        past = history[3]
        name = past["checkpoint_id"]
        assert await client.threads.get_state(thread, checkpoint=past["checkpoint"]) == past
        assert await client.threads.get_state(thread, checkpoint_id=name) == past
        where = f"/threads/{thread}/history"
        for before in (name, past["checkpoint"], {"configurable": {"checkpoint_id": name}}):
            assert await caller.post(where, {"before": before, "limit": 2}) == history[4:6]
        assert await caller.get(f"{where}?before={name}&limit=2") == history[4:6]
        seconds: Any = await client.threads.get_history(thread, metadata={"kind": "second"})
        assert seconds == [each for each in history if each["metadata"]["kind"] == "second"]
        assert await caller.get(f"/threads/{thread}/state/{MISSING}") == EMPTY
        with pytest.raises(UnprocessableEntityError):
            await client.threads.get_state(thread, checkpoint_id="nonsense")


async def test_states_of_subgraphs(start: Start, http: httpx.AsyncClient) -> None:
    """With `subgraphs` a task has the state of the graph inside it; without, the place where that is."""
    async with start(agents=NESTED) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "nested", input={"text": "a"})
        (task,) = (await caller.get(f"/threads/{thread}/state"))["tasks"]
        assert task["state"] is None
        assert task["checkpoint"]["checkpoint_ns"].startswith("inner:")
        (task,) = (await caller.get(f"/threads/{thread}/state?subgraphs=true"))["tasks"]
        assert set(task["state"]) == STATE
        assert task["state"]["next"] == ["deep"]
        inner = task["state"]["checkpoint"]
        state: Any = await client.threads.get_state(thread, checkpoint=inner, subgraphs=True)
        assert (state["next"], state["values"]) == (["deep"], {"text": "a"})
        of_inner: Any = await client.threads.get_history(
            thread, checkpoint={"checkpoint_ns": inner["checkpoint_ns"]}
        )
        assert of_inner[0]["checkpoint"]["checkpoint_ns"] == inner["checkpoint_ns"]


async def test_a_copy(start: Start, http: httpx.AsyncClient) -> None:
    """A copy has the history, and goes on by itself."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create(metadata={"a": 1}))["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        made = await caller.post(f"/threads/{thread}/copy", {})
        assert set(made) == THREAD
        original = await caller.get(f"/threads/{thread}")
        for name in ("metadata", "values", "status", "interrupts"):
            assert made[name] == original[name]
        copied = await caller.post(f"/threads/{made['thread_id']}/history", {"limit": 100})
        history = await caller.post(f"/threads/{thread}/history", {"limit": 100})
        assert [each["checkpoint_id"] for each in copied] == [each["checkpoint_id"] for each in history]
        await client.runs.wait(made["thread_id"], "agent", input=asks("two"))
        assert await caller.get(f"/threads/{thread}") == original


async def test_pruning(start: Start, http: httpx.AsyncClient) -> None:
    """Pruning deletes threads, or their past; it tells how many there were, and does not mind those there are not."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        ids = [await caller.thread() for _ in range(2)]
        for thread in ids:
            await client.runs.wait(thread, "agent", input=asks("one"))
        before = await client.threads.get_state(ids[0])
        told = await caller.post(
            "/threads/prune", {"thread_ids": [ids[0], MISSING], "strategy": "keep_latest"}
        )
        assert told == {"pruned_count": 1}
        (left,) = await client.threads.get_history(ids[0])
        assert left["values"] == before["values"]
        assert await client.threads.prune(ids) == {"pruned_count": 2}
        assert await client.threads.count() == 0


async def test_deleting(start: Start, http: httpx.AsyncClient) -> None:
    """A deleted thread is gone with its state and runs, and one of the same identifier begins empty."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create(thread_id=MISSING))["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        answer = await caller.send("DELETE", f"/threads/{thread}")
        assert (answer.status_code, answer.content) == (204, b"")
        with pytest.raises(NotFoundError):
            await client.threads.delete(thread)
        await client.threads.create(thread_id=MISSING, graph_id="agent")
        assert await caller.get(f"/threads/{thread}/state") == EMPTY
        assert await client.runs.list(thread) == []
        with pytest.raises(ConflictError):
            await client.threads.create(thread_id=MISSING)
