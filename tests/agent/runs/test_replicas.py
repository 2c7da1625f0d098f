"""Two processes on one PostgreSQL database: whichever runs a run, clients of both hear it to its end."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from muster_agent.app import create_app
from muster_agent.checkpoints import Memory, open_memory
from muster_agent.settings import AgentSettings
from muster_agent.testing import Hold, Reply, Say, ScriptedModel, serving
from tests.agent.runs.conftest import SECRET
from tests.agent.runs.test_runs import asks

RESUMABLE: dict[str, Any] = {"stream_mode": ["updates"], "stream_resumable": True}


@asynccontextmanager
async def two(database: str, reply: Reply) -> AsyncGenerator[tuple[LangGraphClient, LangGraphClient]]:
    """Clients of two services that think with the same model; either may run what is asked of the other."""
    async with serving(ScriptedModel([reply])) as proxy, asyncio.timeout(60):
        settings = {"proxy": proxy, "database_url": database, "secret": SECRET}
        async with client_of(settings) as one, client_of(settings) as other:
            yield one, other


@asynccontextmanager
async def client_of(settings: dict[str, Any]) -> AsyncGenerator[LangGraphClient]:
    """A client of a service that is started for it."""
    chosen = AgentSettings.model_validate(settings)
    app = await asyncio.to_thread(create_app, chosen)
    async with serving(app) as url, get_client(url=url, timeout=30) as client:
        yield client


class Listener:
    """A client that streams a run from its beginning.

    Args:
        client: Of one of the services.
        run: The run.
    """

    def __init__(self, client: LangGraphClient, run: Any) -> None:
        self._parts = client.runs.join_stream(run["thread_id"], run["run_id"], last_event_id="-1")

    async def listens(self) -> None:
        """Hear the run's first event: what is told later is told to a listener."""
        assert (await anext(self._parts)).event == "metadata"

    async def rest(self) -> list[str]:
        """The names of all later events."""
        return [part.event async for part in self._parts]


@asynccontextmanager
async def heard_by_both(
    one: LangGraphClient, other: LangGraphClient
) -> AsyncGenerator[tuple[Any, list[Listener]]]:
    """A run to which clients of both services listen; one of these has not got the run."""
    thread = (await one.threads.create())["thread_id"]
    run = await one.runs.create(thread, "agent", input=asks("hi"), **RESUMABLE)
    listeners = [Listener(one, run), Listener(other, run)]
    for listener in listeners:
        await listener.listens()
    yield run, listeners


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_both_hear_that_a_run_was_cancelled(postgres_database: str, action: Any) -> None:
    """A run whose end is all that it has still to say ends for the listeners of the other process too."""
    async with (
        two(postgres_database, Hold(Say("never"))) as (one, other),
        heard_by_both(one, other) as (run, listeners),
    ):
        await one.runs.cancel(run["thread_id"], run["run_id"], action=action)
        assert ["updates" in await listener.rest() for listener in listeners] == [False, False]


async def test_a_process_that_was_deaf_catches_up(postgres_database: str) -> None:
    """What was announced while a process was not connected is heard when it is again."""
    held = Hold(Say("Done."))
    async with (
        two(postgres_database, held) as (one, other),
        heard_by_both(one, other) as (_run, listeners),
    ):
        await asyncio.to_thread(_make_deaf, postgres_database)
        held.release.set()
        for listener in listeners:
            assert (await listener.rest())[-2:] == ["updates", "end"]


def _make_deaf(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'"
            " AND datname = current_database()"
        ).fetchall()
    assert len(ended) == 2


async def test_processes_that_start_together(postgres_database: str) -> None:
    """On an empty database all of them make their tables, or wait for the one that does."""

    async def start() -> None:
        async with open_memory(postgres_database) as memory:
            started.append(memory)

    started: list[Memory] = []
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(start())
    assert len(started) == 3
