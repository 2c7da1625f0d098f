"""Processes die: their runs go on in another one, which writes what they may not write any more."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import CallTools, Hold, ModelCall, Reply, Say, ScriptedModel, serving
from tests.agent.runs.conftest import SECRET
from tests.agent.runs.test_multitask import parents
from tests.agent.runs.test_runs import CALCULATE, asks
from tests.agent.runs.tools import EFFECTS, effects

OWN = {"own": ["tests.agent.runs.tools:send_mail", "tests.agent.runs.tools:send_slowly"], "calculator": True}
AGENTS: dict[str, Any] = {"agents": {"agent": {"tools": OWN, "approval": {"tools": "none"}}}}


class Replica:
    """A process of the service that can be killed."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def kill(self) -> None:
        """As the system does when memory runs out: it gets no chance to say anything."""
        self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def replica(
    proxy: str, database_url: str, folder: Path
) -> AsyncGenerator[tuple[Replica, LangGraphClient]]:
    """Run the service as a process of its own; it is killed at the end."""
    agents = folder / "agents.yaml"
    await asyncio.to_thread(agents.write_text, yaml.safe_dump(AGENTS))
    environment = {
        **os.environ,
        "MUSTER_AGENT_SECRET": SECRET,
        "MUSTER_AGENT_LEASE_S": "2",
        "MUSTER_LOG_FORMAT": "json",
        EFFECTS: str(folder / "effects"),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "muster_proxy", "agent", "--port", "0", "--proxy", proxy),
        *("--database", database_url, "--agents", str(agents)),
        env=environment,
        stderr=asyncio.subprocess.PIPE,
    )
    url = await _url(process)
    reading = asyncio.create_task(_drain(process))
    running = Replica(process, url)
    try:
        async with get_client(url=url, timeout=60) as client:
            yield running, client
    finally:
        if process.returncode is None:
            await running.kill()
        await reading


async def _url(process: asyncio.subprocess.Process) -> str:
    """Where it listens, by its log."""
    assert process.stderr is not None
    async for line in process.stderr:
        if b"listening" in line:
            told = yaml.safe_load(line)
            return str(told["url"])
    raise AssertionError("the service did not start")


async def _drain(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async for _ in process.stderr:
        pass


def held_at(step: int, held: Hold) -> Any:
    """A model that calculates twice, and is silent at one of its calls, once."""
    times = {"held": False}

    def reply(call: ModelCall) -> Reply:
        done = sum(role == "tool" for role, _ in call.messages)
        if done == step and not times["held"]:
            times["held"] = True
            return held
        return CALCULATE if done < 2 else Say("Done.")

    return reply


@pytest.mark.parametrize("step", [0, 1, 2])
async def test_a_killed_process_resumes_its_run(database_url: str, tmp_path: Path, step: int) -> None:
    """The run goes on at its last checkpoint: what was done is not done again, and a client hears the rest."""
    model = ScriptedModel(held_at(step, Hold(Say("never"))))
    async with serving(model) as proxy:
        async with replica(proxy, database_url, tmp_path) as (first, client):
            thread = (await client.threads.create())["thread_id"]
            run = await client.runs.create(
                thread, "agent", input=asks("hi"), stream_mode=["updates"], stream_resumable=True
            )
            for _ in range(step + 1):
                await model.received()
            # What has not been stored by then was told to nobody, and is not told later.
            async with aclosing(client.runs.join_stream(thread, run["run_id"], last_event_id="-1")) as heard:  # pyright: ignore[reportArgumentType] - it is a generator
                assert (await anext(aiter(heard))).event == "metadata"
            await first.kill()
        async with replica(proxy, database_url, tmp_path) as (_second, client):
            await client.runs.join(thread, run["run_id"])
            assert (await client.runs.get(thread, run["run_id"]))["status"] == "success"
            state: Any = await client.threads.get_state(thread)
            assert [m["type"] for m in state["values"]["messages"]] == [
                "human",
                "ai",
                "tool",
                "ai",
                "tool",
                "ai",
            ]
            assert max(parents(await client.threads.get_history(thread, limit=100)).values()) == 1
            assert len(model.calls) == 4  # three, and the one that was broken off
            told = [part async for part in client.runs.join_stream(thread, run["run_id"], last_event_id="-1")]
            attempts = [part.data["attempt"] for part in told if part.event == "metadata"]
            assert attempts == [1, 2]
            assert [part.id for part in told] == [str(n) for n in range(1, len(told) + 1)]


async def test_a_tool_that_was_broken_off(database_url: str, tmp_path: Path) -> None:
    """It is not carried out a second time; the model is told that nobody knows what it did."""
    script = [CallTools([("send_slowly", {"to": "ada"})]), Say("Hm.")]
    model = ScriptedModel(script)
    async with serving(model) as proxy:
        async with replica(proxy, database_url, tmp_path) as (first, client):
            thread = (await client.threads.create())["thread_id"]
            run = await client.runs.create(thread, "agent", input=asks("Write to Ada."))
            while not effects(tmp_path / "effects"):
                await asyncio.sleep(0.02)
            await first.kill()
        async with replica(proxy, database_url, tmp_path) as (_second, client):
            await client.runs.join(thread, run["run_id"])
            assert effects(tmp_path / "effects") == ["ada"]
            assert "Nobody knows whether it took effect" in model.calls[-1].messages[-1][1]


async def test_a_stale_process_writes_nothing(postgres_database: str, tmp_path: Path) -> None:
    """A process that slept through the end of its lease finds its run taken over, and leaves it alone."""
    held = Hold(CALCULATE)
    calls = iter([held, CALCULATE, Say("Mine."), Say("stale"), Say("stale")])
    model = ScriptedModel(lambda _call: next(calls))
    async with (
        serving(model) as proxy,
        replica(proxy, postgres_database, tmp_path) as (first, client),
    ):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "agent", input=asks("hi"))
        await model.received()
        first.process.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(_let_leases_run_out, postgres_database)
        async with replica(proxy, postgres_database, tmp_path) as (_second, other):
            values: Any = await other.runs.join(thread, run["run_id"])
            assert values["messages"][-1]["content"] == "Mine."
            history = await other.threads.get_history(thread, limit=100)
            held.release.set()  # the answer that the first one waited for
            first.process.send_signal(signal.SIGCONT)
            await client.threads.get(thread)  # it is awake again
            later: Any = await client.runs.wait(thread, "agent", input=asks("and now?"))
            assert [m["content"] for m in later["messages"][: len(values["messages"])]] == [
                m["content"] for m in values["messages"]
            ]
            now = await other.threads.get_history(thread, limit=100)
            assert now[-len(history) :] == history
            assert max(parents(now).values()) == 1


def _let_leases_run_out(url: str) -> None:
    import psycopg  # noqa: PLC0415 - used here alone

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE agent_threads SET lease_until = 0 WHERE running_run_id IS NOT NULL")
