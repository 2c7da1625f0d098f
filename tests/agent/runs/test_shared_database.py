"""What processes do that share a PostgreSQL database: they tell each other what happens, and respect the fence."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, empty_checkpoint
from sqlalchemy import Connection, update

from muster_agent.checkpoints import Memory, open_memory
from muster_agent.runs import bus, holds
from muster_agent.runs.records import Lease, LeaseLostError, NewThread
from muster_agent.runs.tables import SCHEMA, THREADS
from muster_agent.runs.thread_rows import insert_thread
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
