"""Joining a thread: what its runs say, one after the other, from now on or from where a client has left."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from muster_agent.testing import Hold, Say
from tests.agent.langgraph_api.listening import ask, frames, new_thread
from tests.agent.runs.conftest import Start

INPUT = ask("hi")["input"]


async def test_every_run_is_heard(start: Start) -> None:
    """A client hears the runs that are made after it has come, each to its end, and not those before."""
    async with start(Say("One."), Say("Two."), Say("Three.")) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=INPUT)
        parts = client.threads.join_stream(thread)
        heard: list[Any] = []
        async with asyncio.TaskGroup() as group:
            group.create_task(_runs_until(heard, parts, 2))
            while not heard:  # a run that is made before the client has come is not heard
                run = await client.runs.create(thread, "agent", input=INPUT, stream_mode="values")
                await client.runs.join(thread, run["run_id"])

    ids = [part.data["run_id"] for part in heard if part.event == "metadata"]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    done = [part.data.get("status") for part in heard if part.event == "metadata"]
    assert done == [None, "run_done", None, "run_done"]


async def _runs_until(heard: list[Any], parts: Any, runs: int) -> None:
    async for part in parts:
        heard.append(part)
        if [each.data.get("status") for each in heard if each.event == "metadata"].count("run_done") == runs:
            return


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
            assert await _read(http, url, heard[seen]["id"], 2 if seen < 4 else 1) == heard[seen + 1 :]

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


@pytest.mark.parametrize("thread", [new_thread(), "nowhere"])
async def test_what_is_no_thread(start: Start, http: httpx.AsyncClient, thread: str) -> None:
    """There is nothing to join."""
    async with start() as (agent, _client):
        answer = await http.get(f"{agent.url}/threads/{thread}/stream")

    assert answer.status_code in {404, 422}
