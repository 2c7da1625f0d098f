"""Joining a thread: what its runs say, one after the other, from now on or from where a client has left."""

import json
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from muster_agent.testing import Hold, Say
from tests.agent.langgraph_api.listening import ask, frames
from tests.agent.runs.conftest import Start

INPUT = ask("hi")["input"]


async def test_every_run_is_heard(start: Start, http: httpx.AsyncClient) -> None:
    """A client hears the runs that are made after it has come, each to its end, and not those before."""
    async with start(Say("One."), Say("Two."), Say("Three.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=INPUT)
        heard: list[Any] = []
        async with frames(http, "GET", f"{agent.url}/threads/{thread}/stream") as events:
            for _ in range(2):
                await client.runs.wait(thread, "agent", input=INPUT)
                begun, ended = await anext(events), await anext(events)
                while ended["event"] != "metadata":
                    ended = await anext(events)
                heard += [json.loads(begun["data"]), json.loads(ended["data"])]
        second, first = [run["run_id"] for run in await client.runs.list(thread, limit=2)]

    assert heard == [
        {"run_id": first, "attempt": 1},
        {"status": "run_done", "run_id": first},
        {"run_id": second, "attempt": 1},
        {"status": "run_done", "run_id": second},
    ]


async def test_the_sdk_joins(start: Start) -> None:
    """LangGraph's client reads it."""
    async with start(Say("One.")) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "agent", input=INPUT, stream_resumable=True)
        await client.runs.join(thread, run["run_id"])
        parts = client.threads.join_stream(thread, last_event_id="-1", stream_mode="lifecycle")
        async with aclosing(await parts) as stream:
            assert [(await anext(stream)).data.get("status") for _ in range(2)] == [None, "run_done"]


async def test_a_client_comes_back(start: Start, http: httpx.AsyncClient) -> None:
    """Whoever names the last event that he has gets exactly the rest, of every run."""
    async with start(Say("One."), Say("Two.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        for _ in range(2):
            parts = client.runs.stream(
                thread, "agent", input=INPUT, stream_mode="values", stream_resumable=True
            )
            assert [part.event async for part in parts][-1] == "end"
        url = f"{agent.url}/threads/{thread}/stream"
        heard = await _read(http, url, "-1", 2)
        for seen in range(len(heard) - 1):
            assert await _read(http, url, heard[seen]["id"], 2 if seen < 3 else 1) == heard[seen + 1 :]

    assert [fields["event"] for fields in heard] == ["metadata", "values", "values", "metadata"] * 2


async def _read(
    http: httpx.AsyncClient, url: str, last: str, runs: int, **params: Any
) -> list[dict[str, str]]:
    """The events until so many runs have ended."""
    heard: list[dict[str, str]] = []
    async with frames(http, "GET", url, headers={"last-event-id": last}, params=params) as events:
        async for fields in events:
            heard.append(fields)
            runs -= json.loads(fields["data"]).get("status") == "run_done"
            if not runs:
                break
    return heard


async def test_modes_of_a_thread(start: Start, http: httpx.AsyncClient) -> None:
    """A client may want the beginnings and ends alone, or the states."""
    async with start(Say("One.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        parts = client.runs.stream(thread, "agent", input=INPUT, stream_mode="values", stream_resumable=True)
        assert [part.event async for part in parts][-1] == "end"
        url = f"{agent.url}/threads/{thread}/stream"
        begun_and_ended = await _read(http, url, "-1", 1, stream_mode="lifecycle")
        both = await _read(http, url, "-1", 1, stream_mode='["lifecycle","state_update"]')
        wrong = await http.get(url, params={"stream_mode": "everything"})

    assert [fields["event"] for fields in begun_and_ended] == ["metadata", "metadata"]
    assert [fields["event"] for fields in both] == ["metadata", "values", "values", "metadata"]
    assert wrong.status_code == 422


async def test_a_silent_thread_is_kept_alive(start: Start, http: httpx.AsyncClient) -> None:
    """While nothing is said, a comment is sent now and then."""
    async with start(Hold(Say("never")), keep_alive_s=0.05) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        async with http.stream("GET", f"{agent.url}/threads/{thread}/stream") as answer:
            lines = answer.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == [": heartbeat", "", ": heartbeat"]


@pytest.mark.parametrize("thread", ["01a20830-2f5a-4575-baa7-1c43a8437cf9", "nowhere"])
async def test_what_is_no_thread(start: Start, http: httpx.AsyncClient, thread: str) -> None:
    """There is nothing to join."""
    async with start() as (agent, _client):
        answer = await http.get(f"{agent.url}/threads/{thread}/stream")

    assert answer.status_code in {404, 422}
