"""Runs over HTTP: statuses, headers and keys as a recorded LangGraph server has them, through its own client too."""

import asyncio
from typing import Any

import httpx
import pytest
from langgraph_sdk.errors import ConflictError, NotFoundError

from muster_agent.testing import Hold, Say
from tests.agent.langgraph_api.asking import MISSING, Caller, asks, improvise, keys, run
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_streams import events_of

RUN = {
    "run_id",
    "thread_id",
    "assistant_id",
    "metadata",
    "status",
    "kwargs",
    "multitask_strategy",
    "created_at",
    "updated_at",
}
WISHES = {
    "input",
    "command",
    "config",
    "context",
    "stream_mode",
    "subgraphs",
    "resumable",
    "interrupt_before",
    "interrupt_after",
    "checkpoint",
    "on_disconnect",
    "durability",
}
FAILING: dict[str, Any] = {"failing": {"graph": "tests.agent.runs.graphs:failing"}}
ASKING: dict[str, Any] = {"asking": {"graph": "tests.agent.langgraph_api.users_graphs:asking_inside"}}
OVER = (
    "No matching runs to cancel. Please verify the thread ID and run IDs are correct, and the runs haven't been "
    "deleted or completed."
)
NONE = "No runs found to cancel."


async def test_a_run_in_the_background(start: Start, http: httpx.AsyncClient) -> None:
    """A run is told as it was asked for, with nothing of what the service notes beside."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        body = run(metadata={"a": 1}, stream_mode=["updates"], context={}, stream_subgraphs=True)
        answer = await caller.send("POST", f"/threads/{thread}/runs", body)
        made = answer.json()
        assert answer.status_code == 200
        assert answer.headers["content-location"] == f"/threads/{thread}/runs/{made['run_id']}"
        assert "location" not in answer.headers
        assert set(made) == RUN
        assert made["status"] == "pending"
        assert made["multitask_strategy"] == "enqueue"
        (assistant,) = await client.assistants.search()
        names = {"graph_id": "agent", "assistant_id": assistant["assistant_id"]}
        assert made["metadata"] == {"created_by": "system", "a": 1, **names}
        assert set(made["kwargs"]) == WISHES
        assert made["kwargs"]["input"] == body["input"]
        assert (made["kwargs"]["subgraphs"], made["kwargs"]["stream_mode"]) == (True, ["updates"])
        await client.runs.join(thread, made["run_id"])
        done = await caller.get(f"/threads/{thread}/runs/{made['run_id']}")
        assert done["status"] == "success"
        assert {**done, "status": "pending", "updated_at": made["updated_at"]} == made


async def test_listing(start: Start, http: httpx.AsyncClient) -> None:
    """A thread's runs are listed newest first, by page and status, with the fields that are wanted."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        ids = [(await client.runs.create(thread, "agent", input=asks(str(n))))["run_id"] for n in range(3)]
        await client.runs.join(thread, ids[-1])
        assert [each["run_id"] for each in await client.runs.list(thread)] == ids[::-1]
        assert [each["run_id"] for each in await client.runs.list(thread, limit=1, offset=1)] == [ids[1]]
        assert len(await client.runs.list(thread, status="success")) == 3
        assert await client.runs.list(thread, status="pending") == []
        some = await client.runs.list(thread, select=["status"], limit=1)
        assert keys(some) == [{"run_id", "status"}]
        answer = await caller.send("GET", f"/threads/{thread}/runs?status=asleep")
        assert answer.status_code == 422


async def test_waiting_and_joining(start: Start, http: httpx.AsyncClient) -> None:
    """A result is the state's values; the answer says where the run is, and joining it later gives the same."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        answer = await caller.send("POST", f"/threads/{thread}/runs/wait", run())
        where = answer.headers["content-location"]
        assert answer.headers["location"] == f"{where}/join"
        assert answer.headers["content-type"] == "application/json"
        assert where.startswith(f"/threads/{thread}/runs/")
        assert answer.json() == (await caller.get(f"/threads/{thread}"))["values"]
        joined = await caller.send("GET", f"{where}/join")
        assert joined.json() == answer.json()
        assert joined.headers["location"] == f"{where}/join"
        assert (await caller.send("GET", f"{where[: where.rindex('/')]}/{MISSING}/join")).status_code == 404


async def test_results_of_runs_that_fail_or_ask(start: Start, http: httpx.AsyncClient) -> None:
    """An error and a question are told in the result, by LangGraph's names for them."""
    async with start(agents={**FAILING, **ASKING}) as (agent, _client):
        caller = Caller(http, agent)
        thread, other = await caller.thread(), await caller.thread()
        failed = await caller.post(
            f"/threads/{thread}/runs/wait", {"assistant_id": "failing", "input": {"text": "a"}}
        )
        assert failed == {"__error__": {"error": "ValueError", "message": "boom!"}}
        shown = await caller.get(f"/threads/{thread}")
        assert (shown["status"], shown["error"]) == ("error", {"error": "ValueError", "message": "boom!"})
        waits = await caller.post(
            f"/threads/{other}/runs/wait", {"assistant_id": "asking", "input": {"text": "a"}}
        )
        (question,) = waits.pop("__interrupt__")
        assert waits == {"text": "a"}
        assert (question["value"], set(question)) == ("Is it fine?", {"value", "id", "response_schema"})
        assert question["response_schema"]["properties"]["is_fine"]["type"] == "boolean"
        resume = {"assistant_id": "asking", "input": {}, "command": {"resume": {"is_fine": True}}}
        assert await caller.post(f"/threads/{other}/runs/wait", resume) == {"text": "a {'is_fine': True}"}


async def test_streaming_again(start: Start, http: httpx.AsyncClient) -> None:
    """A finished stream is heard again from where one likes; a number that was never given out is not waited for."""
    held = Hold(Say("One."))
    async with start(held) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        made = await client.runs.create(thread, "agent", input=asks("hi"), stream_resumable=True)
        await agent.model.received()
        where, far = f"/threads/{thread}/runs/{made['run_id']}/stream", {"last-event-id": "999999"}
        async with http.stream("GET", f"{agent.url}{where}", headers=far) as waiting:
            held.release.set()
            assert events_of((await waiting.aread()).decode())[-1][0] == "end"
        joined = await caller.get(where.replace("/stream", "/join"))
        assert joined["messages"][-1]["content"] == "One."
        again = await caller.send("GET", f"{where}?stream_mode=values", headers={"last-event-id": "-1"})
        assert [name for name, _, _ in events_of(again.text)] == ["metadata", "values", "values", "end"]
        assert again.headers["location"] == where
        assert again.headers["content-location"] == where.removesuffix("/stream")
        assert again.headers["cache-control"] == "no-store"
        assert events_of((await caller.send("GET", where, headers=far)).text) == []


async def test_a_second_run_is_kept_out(start: Start, http: httpx.AsyncClient) -> None:
    """With `reject` it is a 409, before a stream begins, in the recorded words."""
    words = (
        "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."
    )
    async with start(Hold(Say("never"))) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.create(thread, "agent", input=asks("hi"))
        for path in ("", "/stream", "/wait"):
            answer = await caller.send(
                "POST", f"/threads/{thread}/runs{path}", run(multitask_strategy="reject")
            )
            assert (answer.status_code, answer.json()) == (409, {"detail": words})
        with pytest.raises(ConflictError):
            await client.runs.create(thread, "agent", multitask_strategy="reject")
        assert len(await client.runs.list(thread)) == 1


async def test_cancelling(start: Start, http: httpx.AsyncClient) -> None:
    """It is answered at once, or when the run has ended; a run that is over or not there is a 404 that says which."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        first = (await client.runs.create(thread, "agent", input=asks("slow")))["run_id"]
        await agent.model.received()
        answer = await caller.send("POST", f"/threads/{thread}/runs/{first}/cancel?wait=1&action=interrupt")
        assert (answer.status_code, answer.json()) == (200, {})
        assert answer.headers["location"] == f"/threads/{thread}/runs/{first}/join"
        assert (await client.runs.get(thread, first))["status"] == "interrupted"
        assert await caller.get(f"/threads/{thread}/runs/{first}/join") == {}
        answer = await caller.send("POST", f"/threads/{thread}/runs/{first}/cancel")
        assert (answer.status_code, answer.json()) == (404, {"detail": OVER})
        answer = await caller.send("POST", f"/threads/{thread}/runs/{MISSING}/cancel")
        assert (answer.status_code, answer.json()) == (404, {"detail": NONE})


async def test_taking_back(start: Start, http: httpx.AsyncClient) -> None:
    """A run that is cancelled with `rollback` is gone, and whoever waits for it is told so."""
    gone = {"__error__": {"error": "HTTPException", "message": "404: Run not found"}}
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        waiting = asyncio.create_task(caller.post(f"/threads/{thread}/runs/wait", run("slow")))
        await agent.model.received()
        (going,) = await client.runs.list(thread)
        where = f"/threads/{thread}/runs/{going['run_id']}"
        answer = await caller.send("POST", f"{where}/cancel?wait=0&action=rollback")
        assert (answer.status_code, answer.json()) == (202, {})
        assert await waiting == gone
        with pytest.raises(NotFoundError):
            await client.runs.get(thread, going["run_id"])
        assert (await caller.get(f"/threads/{thread}/state"))["values"] == {}


async def test_cancelling_many(start: Start, http: httpx.AsyncClient) -> None:
    """Runs are cancelled by status or by name, across threads; where there is none it is a 404."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        threads = [await caller.thread() for _ in range(2)]
        ids = [(await client.runs.create(each, "agent", input=asks("slow")))["run_id"] for each in threads]
        await client.runs.cancel_many(thread_id=threads[0], run_ids=[ids[0], MISSING])
        await client.runs.join(threads[0], ids[0])
        assert (await client.runs.get(threads[0], ids[0]))["status"] == "interrupted"
        await client.runs.cancel_many(status="all")
        await client.runs.join(threads[1], ids[1])
        assert (await client.runs.get(threads[1], ids[1]))["status"] == "interrupted"
        answer = await caller.send("POST", "/runs/cancel", {"status": "all"})
        assert (answer.status_code, answer.json()) == (404, {"detail": NONE})


async def test_deleting(start: Start, http: httpx.AsyncClient) -> None:
    """A run is deleted, also one that goes on, which is stopped; its thread and what it said stay."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        values = await client.runs.wait(thread, "agent", input=asks("hi"))
        (done,) = await client.runs.list(thread)
        answer = await caller.send("DELETE", f"/threads/{thread}/runs/{done['run_id']}")
        assert (answer.status_code, answer.content) == (204, b"")
        assert (await client.threads.get(thread))["values"] == values
        going = (await client.runs.create(thread, "agent", input=asks("slow")))["run_id"]
        for _ in range(2):
            await agent.model.received()
        await client.runs.delete(thread, going)
        await agent.model.aborted()
        assert await client.runs.list(thread) == []
        for method, path in (("GET", ""), ("GET", "/join"), ("GET", "/stream"), ("DELETE", "")):
            answer = await caller.send(method, f"/threads/{thread}/runs/{going}{path}")
            assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


async def test_assistants_that_there_are_not(start: Start, http: httpx.AsyncClient) -> None:
    """A run names its assistant by UUID or name; otherwise it is told which there are."""
    async with start(improvise=improvise) as (agent, client):
        caller, (assistant,) = Caller(http, agent), await client.assistants.search()
        assert "messages" in await caller.post("/runs/wait", run(assistant=assistant["assistant_id"]))
        answer = await caller.send("POST", "/runs/wait", run(assistant="nope"))
        words = "Must be either:\n- A valid assistant UUID, or\n- One of the registered graphs: agent"
        assert (answer.status_code, answer.json()) == (422, {"detail": f"Invalid assistant: 'nope'. {words}"})
        answer = await caller.send("POST", "/runs/wait", {"input": {}})
        assert (answer.status_code, answer.json()) == (422, {"detail": "assistant_id: Field required"})
        answer = await caller.send("POST", "/runs/wait", run(stream_mode=["tools"]))
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith(
            "stream_mode: 'tools' is no stream mode; expected some of values,"
        )


async def test_a_thread_is_made_for_a_run(start: Start, http: httpx.AsyncClient) -> None:
    """Only with `if_not_exists` does a run make the thread that it names."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        assert (await caller.send("POST", f"/threads/{MISSING}/runs", run())).status_code == 404
        await client.runs.wait(MISSING, "agent", input=asks("hi"), if_not_exists="create")
        assert (await client.threads.get(MISSING))["status"] == "idle"


async def test_runs_without_a_thread(start: Start, http: httpx.AsyncClient) -> None:
    """They run on threads of their own, which no list shows unless they are to be kept."""
    async with start(improvise=improvise) as (agent, client):
        caller = Caller(http, agent)
        streamed = await caller.send("POST", "/runs/stream", run(stream_mode=["updates"]))
        events = events_of(streamed.text)
        assert [name for name, _, _ in events] == ["metadata", "updates", "end"]
        where = f"/runs/{events[0][1]['run_id']}"
        assert streamed.headers["location"] == f"{where}/stream"
        assert streamed.headers["content-location"] == where
        waited = await caller.send("POST", "/runs/wait", run())
        assert waited.headers["location"].startswith("/threads/")
        assert waited.json()["messages"][-1]["content"] == "re: hi"
        made = await caller.post("/runs", run())
        assert (await caller.get(f"/runs/{made['run_id']}/join"))["messages"][-1]["content"] == "re: hi"
        assert await client.threads.count() == 0
        kept = await caller.post("/runs", run(on_completion="keep"))
        await client.runs.join(kept["thread_id"], kept["run_id"])
        (thread,) = await client.threads.search()
        assert thread["thread_id"] == kept["thread_id"]


async def test_a_batch(start: Start, http: httpx.AsyncClient) -> None:
    """All runs of a batch are made, or none where one of them cannot be."""
    async with start(improvise=improvise) as (agent, client):
        made: Any = await client.runs.create_batch(
            [{"assistant_id": "agent", "input": asks(text)} for text in ("one", "two")]
        )
        assert keys(made) == [RUN, RUN]
        results = [await Caller(http, agent).get(f"/runs/{each['run_id']}/join") for each in made]
        assert [each["messages"][-1]["content"] for each in results] == ["re: one", "re: two"]
        answer = await Caller(http, agent).send("POST", "/runs/batch", [run(), run(assistant="nope")])
        assert answer.status_code == 422
        assert len(agent.model.calls) == 2


async def test_a_run_that_begins_later(start: Start) -> None:
    """A delayed run waits for its time, and others of its thread do not wait for it."""
    async with start(improvise=improvise) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        later = await client.runs.create(thread, "agent", input=asks("later"), after_seconds=86_400)
        soon = await client.runs.create(thread, "agent", input=asks("soon"), after_seconds=1)
        values: Any = await client.runs.join(thread, soon["run_id"])
        assert values["messages"][-1]["content"] == "re: soon"
        assert (await client.runs.get(thread, later["run_id"]))["status"] == "pending"


async def test_the_same_request_again(start: Start, http: httpx.AsyncClient) -> None:
    """A request that is sent again with its idempotency key is the first one's run."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        answers = [
            await caller.send("POST", f"/threads/{thread}/runs/wait", run(), headers={"idempotency-key": "k"})
            for _ in range(2)
        ]
        assert answers[0].headers["location"] == answers[1].headers["location"]
        assert answers[0].json() == answers[1].json()
        assert len(await client.runs.list(thread)) == 1
        long = await caller.send("POST", "/runs", run(), headers={"idempotency-key": "k" * 256})
        assert long.status_code == 422


async def test_the_same_batch_again(start: Start, http: httpx.AsyncClient) -> None:
    """Each run of a batch is made once, however often the batch is sent; a run with the same key is another one."""
    async with start(improvise=improvise) as (agent, _client):
        caller, key = Caller(http, agent), {"idempotency-key": "k"}
        batch = [run(word, on_completion="keep") for word in ("one", "two", "three")]
        first, second = [(await caller.send("POST", "/runs/batch", batch, key)).json() for _ in range(2)]
        single = (await caller.send("POST", "/runs", run(), key)).json()
    words = [made["kwargs"]["input"]["messages"][0]["content"] for made in first]
    runs = [made["run_id"] for made in first]

    assert words == ["one", "two", "three"]
    assert [made["run_id"] for made in second] == runs
    assert single["run_id"] not in runs


@pytest.mark.parametrize("path", ["/runs", "/runs/wait", "/runs/stream"])
async def test_webhooks_are_refused(start: Start, http: httpx.AsyncClient, path: str) -> None:
    """Whoever names one would wait for a call that never comes, and is told; nothing is run."""
    async with start() as (agent, _client):
        answer = await Caller(http, agent).send("POST", path, run(webhook="http://127.0.0.1/"))

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("webhook: ")


async def test_going_on_from_a_checkpoint(start: Start, http: httpx.AsyncClient) -> None:
    """A run goes on from where it is told to in each way that clients do, and a place that is not there is a 404."""
    async with start(improvise=improvise) as (agent, client):
        caller, thread = Caller(http, agent), (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("one"))
        place = (await caller.get(f"/threads/{thread}/state"))["checkpoint"]
        await client.runs.wait(thread, "agent", input=asks("two"))
        places: list[dict[str, Any]] = [
            {"checkpoint": place},
            {"checkpoint_id": place["checkpoint_id"]},
            {"config": {"configurable": {"checkpoint_id": place["checkpoint_id"]}}},
        ]
        for named in places:
            values = await caller.post(f"/threads/{thread}/runs/wait", run("three", **named))
            texts = [message["content"] for message in values["messages"]]
            assert texts == ["one", "re: one", "three", "re: three"]
        answer = await caller.send("POST", f"/threads/{thread}/runs/wait", run(checkpoint_id=MISSING))
        assert (answer.status_code, answer.json()) == (404, {"detail": "Checkpoint not found."})
        agained = await caller.post(
            f"/threads/{thread}/runs/wait", {**run(), "input": None, "checkpoint": place}
        )
        assert [message["content"] for message in agained["messages"]] == ["one", "re: one"]
        ended = await caller.post(f"/threads/{thread}/runs/wait", run(input={}, command={"goto": "__end__"}))
        assert [message["content"] for message in ended["messages"]] == ["one", "re: one"]
        unasked = await caller.post(f"/threads/{thread}/runs/wait", run(input={}, command={"resume": "yes"}))
        assert unasked == ended
