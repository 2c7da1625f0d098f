"""Streams: in each mode as a recorded LangGraph server writes them, and heard again without gaps or duplicates."""

import asyncio
import itertools
import json
from typing import Any

import httpx
import pytest

from muster_agent.testing import Hold, Say
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_runs import CALCULATE, asks

ANSWERS = (CALCULATE, Say("It is 161 ."))


def events_of(text: str) -> list[tuple[str, Any, str | None]]:
    """Name, data and id of each event of a stream."""
    found: list[tuple[str, Any, str | None]] = []
    for block in text.split("\r\n\r\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\r\n") if line and not line.startswith(":")
        )
        if fields:
            found.append((fields["event"], json.loads(fields["data"]), fields.get("id")))
    return found


@pytest.mark.parametrize(
    "mode", ["values", "updates", "messages", "messages-tuple", "events", "debug", "tasks", "checkpoints"]
)
async def test_each_mode_is_streamed(start: Start, mode: str) -> None:
    """A stream begins with its run, has its mode's events in between, and says how it ended."""
    async with start(*ANSWERS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        parts = [
            part async for part in client.runs.stream(thread, "agent", input=asks("hi"), stream_mode=mode)
        ]
        assert parts[0].event == "metadata"
        assert parts[-1].event == "end"
        assert parts[-1].data == {"status": "success"}
        names = {part.event.partition("/")[0] for part in parts[1:-1]}
        assert names == {"messages" if mode == "messages-tuple" else mode}


async def test_the_wire_of_messages(start: Start) -> None:
    """A message grows in the mode `messages`; in `messages-tuple` its pieces come as they are."""
    async with start(Say("The answer is 4."), Say("The answer is 4.")) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        grown = [
            part.data[0]["content"]
            async for part in client.runs.stream(thread, "agent", input=asks("hi"), stream_mode="messages")
            if part.event == "messages/partial"
        ]
        assert grown[-1] == "The answer is 4."
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(grown))
        pieces = [
            part.data
            async for part in client.runs.stream(
                thread, "agent", input=asks("hi"), stream_mode="messages-tuple"
            )
            if part.event == "messages"
        ]
        assert "".join(piece[0]["content"] for piece in pieces) == "The answer is 4."
        assert {piece[0]["type"] for piece in pieces} == {"AIMessageChunk"}
        assert {piece[1]["langgraph_node"] for piece in pieces} == {"model"}
        assert {piece[1]["thread_id"] for piece in pieces} == {thread}


async def test_what_happens_within_a_graph(start: Start) -> None:
    """The mode `events` has every call of a model and a tool; a mode beside it has what it has without it."""
    async with start(*ANSWERS, *ANSWERS) as (_agent, client):

        async def streamed(*modes: Any) -> list[Any]:
            return [
                part async for part in client.runs.stream(None, "agent", input=asks("hi"), stream_mode=modes)
            ]

        parts = await streamed("events", "updates")
        told = [part.data for part in parts if part.event == "events"]
        happened = [(each["event"], each["name"]) for each in told]
        assert happened.count(("on_tool_start", "calculator")) == 1
        assert happened.count(("on_tool_end", "calculator")) == 1
        said = [each["data"]["chunk"]["content"] for each in told if each["event"] == "on_chat_model_stream"]
        assert "".join(said) == "It is 161 ."
        assert not [each for each in told if "langsmith:hidden" in each["tags"]]
        others = [part.event for part in parts if part.event != "events"]
        assert others == [part.event for part in await streamed("updates")]


async def test_headers_of_a_stream(start: Start, http: httpx.AsyncClient) -> None:
    """Clients find their run in the headers, and its events are framed with CRLF and have ids when asked for."""
    async with start(Say("Hi.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        body = {
            "assistant_id": "agent",
            "input": asks("hi"),
            "stream_mode": ["values"],
            "stream_resumable": True,
        }
        answer = await http.post(f"{agent.url}/threads/{thread}/runs/stream", json=body)
        (run,) = await client.runs.list(thread)
        here = f"/threads/{thread}/runs/{run['run_id']}"
        assert answer.headers["content-location"] == here
        assert answer.headers["location"] == f"{here}/stream"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert [identifier for _, _, identifier in events_of(answer.text)] == [str(n) for n in range(1, 5)]


async def hear(http: httpx.AsyncClient, where: str, most: int) -> None:
    """Listen to a stream until so many events have come, then hang up."""
    heard = 0
    async with http.stream("GET", where, headers={"last-event-id": "-1"}) as answer:
        lines = answer.aiter_lines()
        while heard < most:
            heard += (await anext(lines)).startswith("id: ")


@pytest.mark.parametrize("seen", range(0, 12, 3))
async def test_a_stream_is_resumed(start: Start, http: httpx.AsyncClient, seen: int) -> None:
    """Whoever comes back with the number of the last event gets exactly the rest, while the run goes and after it."""
    held = Hold(Say("It is 161 ."), said="So,")
    async with start(CALCULATE, held) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        modes = ["messages-tuple", "values", "updates"]
        body = {"assistant_id": "agent", "input": asks("hi"), "stream_mode": modes, "stream_resumable": True}
        run = (await http.post(f"{agent.url}/threads/{thread}/runs", json=body)).json()
        where = f"{agent.url}/threads/{thread}/runs/{run['run_id']}/stream"
        for _ in range(2):
            await agent.model.received()
        await hear(http, where, seen)
        resumed = asyncio.create_task(http.get(where, headers={"last-event-id": str(seen or -1)}))
        held.release.set()
        during = events_of((await resumed).text)
        whole = events_of((await http.get(where, headers={"last-event-id": "-1"})).text)
        assert during == whole[seen:]
        assert [identifier for _, _, identifier in whole] == [str(n) for n in range(1, len(whole) + 1)]
        after = events_of((await http.get(where, headers={"last-event-id": str(len(whole))})).text)
        assert after == []


async def test_a_waiting_client_is_kept_alive(start: Start, http: httpx.AsyncClient) -> None:
    """Newlines come before a result, and comments between events."""
    held = Hold(Say("Hi."))
    async with start(held, Say("Ho."), keep_alive_s=0.05) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        body = {"assistant_id": "agent", "input": asks("hi")}
        async with http.stream("POST", f"{agent.url}/threads/{thread}/runs/wait", json=body) as answer:
            pieces = answer.aiter_raw()
            assert set(await anext(pieces)) == set(b"\n")  # one, or on a busy machine some at once
            held.release.set()
            text = b"".join([piece async for piece in pieces])
        assert json.loads(text)["messages"][-1]["content"] == "Hi."


async def test_custom_events_and_subgraphs(start: Start) -> None:
    """A user's own graph streams what it writes, and what its subgraphs do under their names."""
    agents = {"mine": {"graph": "tests.agent.runs.graphs:nested"}}
    async with start(agents=agents) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        modes = ["custom", "updates"]
        parts = [
            part
            async for part in client.runs.stream(
                thread, "mine", input={"text": "a"}, stream_mode=modes, stream_subgraphs=True
            )
        ]
        assert [part.data for part in parts if part.event == "custom"] == [{"step": "outer"}]
        inner = [part.event for part in parts if part.event.startswith("updates|inner:")]
        assert len(inner) == 1


async def test_a_graph_that_a_node_calls(start: Start) -> None:
    """It runs in the node's thread, asks there, and goes on where it was when it is answered."""
    agents = {"mine": {"graph": "tests.agent.runs.graphs:calling"}}
    async with start(agents=agents) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        asked: Any = await client.runs.wait(thread, "mine", input={"text": "a"})
        assert [each["value"] for each in asked["__interrupt__"]] == ["which?"]
        answered: Any = await client.runs.wait(thread, "mine", command={"resume": "X"})
        assert answered["text"] == "aXbb"


@pytest.mark.parametrize("mode", ["values", "events"])
async def test_a_failing_graph(start: Start, mode: Any) -> None:
    """An exception ends the run as an error that is told, streamed or waited for, and shows in its thread."""
    agents = {"mine": {"graph": "tests.agent.runs.graphs:failing"}}
    async with start(agents=agents) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        parts = [
            part
            async for part in client.runs.stream(thread, "mine", input={"text": "boom"}, stream_mode=mode)
        ]
        assert [part.event for part in parts][-2:] == ["error", "end"]
        assert parts[-2].data["error"] == "ValueError"
        assert parts[-2].data["message"] == "boom!"
        waited: Any = await client.runs.wait(thread, "mine", input={"text": "boom"}, raise_error=False)
        assert waited["__error__"]["message"] == "boom!"
        assert (await client.threads.get(thread))["status"] == "error"


async def test_a_graph_made_for_each_run(start: Start) -> None:
    """A factory is called with the run's configuration."""
    agents = {"mine": {"graph": "tests.agent.runs.graphs:factory"}}
    async with start(agents=agents) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        config: Any = {"configurable": {"suffix": "!"}}
        values = await client.runs.wait(thread, "mine", input={"text": "a"}, config=config)
        assert values["text"] == "a!"
