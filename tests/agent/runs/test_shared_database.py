"""What processes do that share a PostgreSQL database: they tell each other what happens, and respect the fence."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, empty_checkpoint
from sqlalchemy import Connection, text, update

from muster_agent.checkpoints import Memory, open_memory
from muster_agent.runs import bus, holds, queue
from muster_agent.runs.records import Lease, LeaseLostError, Multitask, NewRun, NewThread, ThreadNotFoundError
from muster_agent.runs.tables import SCHEMA, THREADS
from muster_agent.runs.thread_rows import insert_thread, thread
from muster_storage import Database, open_database

pytestmark = pytest.mark.anyio

LEASE = Lease("thread", "run", 1)
PLACE = RunnableConfig(configurable={"thread_id": "thread", "checkpoint_ns": ""})


@pytest.fixture
async def database(postgres_database: str) -> AsyncGenerator[Database]:
    """A database of the service's."""
    database = await asyncio.to_thread(open_database, postgres_database, SCHEMA)
    yield database
    await database.close()


async def test_a_process_hears_the_others(database: Database, postgres_database: str) -> None:
    """It is told what others announce, and not what it has announced itself."""
    other = await asyncio.to_thread(open_database, postgres_database, SCHEMA)
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(bus.listen(database, heard.put_nowait))
    assert await heard.get() == bus.ALL
    await database.run(bus.announce, ["runs", "events:mine"])
    await other.run(bus.announce, ["cancel:one", "events:two"])
    assert [await heard.get(), await heard.get()] == ["cancel:one", "events:two"]
    await other.run(bus.announce, [])
    await other.run(bus.announce, ["runs"])
    assert await heard.get() == "runs"
    listening.cancel()
    await asyncio.wait([listening])
    await other.close()


def _held(connection: Connection, fence: int) -> None:
    connection.execute(update(THREADS).values(running_run_id="run", fence=fence))


async def _put(memory: Memory) -> RunnableConfig:
    with holds.assumed(holds.Hold(LEASE)):
        return await memory.saver.aput(
            PLACE, empty_checkpoint(), CheckpointMetadata(source="loop", step=1), {}
        )


async def test_a_state_is_written_under_the_fence_alone(database: Database, postgres_database: str) -> None:
    """A process whose lease is another's writes neither a state nor a step's results; its connections go on."""
    await database.run(insert_thread, NewThread("thread", ""))
    await database.run(_held, 1)
    async with open_memory(postgres_database) as memory:
        written = await _put(memory)
        await database.run(_held, 2)
        for _ in range(3):
            with pytest.raises(LeaseLostError):
                await _put(memory)
        with holds.assumed(holds.Hold(LEASE)), pytest.raises(LeaseLostError):
            await memory.saver.aput_writes(written, [("messages", "late")], "task")
        stored = [state async for state in memory.saver.alist(PLACE)]
        assert [(state.config, state.pending_writes) for state in stored] == [(written, [])]
        await database.run(_held, 1)
        await _put(memory)
        assert len([state async for state in memory.saver.alist(PLACE)]) == 2


NEW_RUN = NewRun(
    run_id="run",
    thread_id="thread",
    tenant="mine",
    assistant_id="assistant",
    kwargs={},
    metadata={"graph_id": "agent"},
    multitask=Multitask.ENQUEUE,
    timeout_s=60.0,
    request_id="request",
)


def _waiting(connection: Connection) -> int:
    """How many transactions wait for another's end."""
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
    return int(connection.execute(waits).scalar_one())


async def _submitted_meanwhile(database: Database, tenant: str) -> queue.Submitted:
    """A run on a thread that another process has made and not committed when the run is submitted."""
    is_made, may_commit = threading.Event(), threading.Event()

    def make(connection: Connection) -> None:
        insert_thread(connection, NewThread("thread", tenant, {"title": "theirs"}))
        is_made.set()
        may_commit.wait()

    making = asyncio.create_task(database.run(make))
    await asyncio.to_thread(is_made.wait)
    submitting = asyncio.create_task(database.run(queue.submit, NEW_RUN, NewThread("thread", "mine")))
    try:
        while not await database.run(_waiting):
            assert not submitting.done()
    finally:
        may_commit.set()
        await making
    return await submitting


def _metadata(connection: Connection) -> Any:
    known = thread(connection, "mine", "thread")
    return known and known["metadata"]


async def test_a_thread_that_two_make_at_once(database: Database) -> None:
    """It is one thread, with what the other has written on it."""
    made = await _submitted_meanwhile(database, "mine")
    assert made.run["run_id"] == "run"
    assert await database.run(_metadata) == {"title": "theirs", "graph_id": "agent"}


async def test_a_thread_that_two_tenants_make_at_once(database: Database) -> None:
    """It is the first one's, and the second is told that there is none."""
    with pytest.raises(ThreadNotFoundError):
        await _submitted_meanwhile(database, "theirs")
