"""What nobody tells of is found all the same: left runs, ends that were not written, events of other processes."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, delete, select
from sqlalchemy.exc import IntegrityError

from muster_agent.runs import bus, queue, statements
from muster_agent.runs.events import EventLog, StoredEvent
from muster_agent.runs.records import (
    Cancel,
    Claimed,
    LeaseLostError,
    Multitask,
    NewRun,
    NewThread,
    Outcome,
    RunStatus,
    ThreadStatus,
)
from muster_agent.runs.tables import RUNS, SCHEMA, THREADS
from muster_agent.testing import Hold, ModelCall, Reply, Say
from muster_storage import Database, open_database
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_runs import asks


def late(_call: ModelCall) -> Reply:
    """The model has not answered yet."""
    return Hold(Say("late"))


def hello(_call: ModelCall) -> Reply:
    """The model answers."""
    return Say("Hello.")


async def test_more_runs_are_left_than_may_run_at_once(start: Start) -> None:
    """A process that takes them over in parts comes to all of them."""
    async with start(improvise=late) as (agent, client):
        threads = [(await client.threads.create())["thread_id"] for _ in range(5)]
        runs = [await client.runs.create(thread, "agent", input=asks("hi")) for thread in threads]
        for _ in runs:
            await agent.model.received()
    async with start(improvise=hello, runs_at_once=2) as (_agent, client):
        for run in runs:
            await client.runs.join(run["thread_id"], run["run_id"])
            assert (await client.runs.get(run["thread_id"], run["run_id"]))["status"] == "success"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_an_end_that_could_not_be_written(start: Start, database_url: str) -> None:
    """The run is taken up again when the disk has room again, and whoever waits for it hears of its end."""
    async with start(Say("Hello."), lease_s=1) as (_agent, client):
        with contextlib.closing(sqlite3.connect(database_url.removeprefix("sqlite:///"))) as file:
            file.execute(
                "CREATE TRIGGER full BEFORE UPDATE OF status ON agent_runs WHEN NEW.status = 'success' "
                "BEGIN SELECT RAISE(ABORT, 'disk full'); END"
            )
            file.commit()
            waiting = asyncio.create_task(client.runs.wait(None, "agent", input=asks("hi")))
            while file.execute("SELECT max(attempt) FROM agent_runs").fetchone()[0] != 2:
                assert not waiting.done()
                await asyncio.sleep(0)
            file.execute("DROP TRIGGER full")
            file.commit()
        values: Any = await waiting
        assert values["messages"][-1]["content"] == "Hello."


@pytest.fixture
async def database(database_url: str) -> AsyncGenerator[Database]:
    """A database of the service's, of each kind."""
    database = await asyncio.to_thread(open_database, database_url, SCHEMA)
    yield database
    await database.close()


def _new(name: str) -> NewRun:
    return NewRun(
        run_id=name,
        thread_id=f"thread of {name}",
        tenant="",
        assistant_id="assistant",
        kwargs={},
        metadata={},
        multitask=Multitask.ENQUEUE,
        timeout_s=60.0,
        request_id="request",
    )


async def _claimed(database: Database, *names: str) -> dict[str, Claimed]:
    """Runs that are under way, by their names."""
    for name in names:
        await database.run(queue.submit, _new(name), NewThread(f"thread of {name}", ""))
    taken = await database.run(queue.claim, "me", 10, 60.0)
    return {each.lease.run_id: each for each in taken.claimed}


async def test_events_of_a_thread_that_is_gone(database: Database) -> None:
    """They are refused, and those of other runs, stored in the same transaction, are not."""
    claimed = await _claimed(database, "gone", "there")
    await database.run(lambda connection: connection.execute(delete(THREADS).where(_is("gone"))))
    stored = await _written(database, claimed)
    assert [type(each) for each in stored] == [LeaseLostError, type(None)]


async def test_events_that_the_database_refuses(database: Database) -> None:
    """They are refused alone."""
    claimed = await _claimed(database, "doubled", "there")
    event = {"run_id": "doubled", "seq": 1, "protocol": 1, "event": "values", "data": b"{}"}
    await database.run(lambda connection: connection.execute(statements.INSERT_EVENTS, event))
    stored = await _written(database, claimed)
    assert [type(each) for each in stored] == [IntegrityError, type(None)]


def _is(name: str) -> Any:
    return THREADS.c.thread_id == f"thread of {name}"


async def _written(database: Database, claimed: dict[str, Claimed]) -> list[BaseException | None]:
    """What became of one event of each run, written together."""
    log = EventLog(database)
    event = StoredEvent(1, 1, "values", b"{}")
    stored = [log.put(each.lease, event) for each in claimed.values()]
    writing = asyncio.create_task(log.write_forever())
    await asyncio.wait(stored)
    writing.cancel()
    await asyncio.wait([writing])
    return [each.exception() for each in stored]


async def test_a_run_that_has_ended_is_not_begun(database: Database) -> None:
    """A process that has found it waiting does not take it when somebody has cancelled it meanwhile."""
    await database.run(queue.submit, _new("run"), NewThread("thread of run", ""))
    await database.run(queue.cancel, RUNS.c.run_id == "run", Cancel.INTERRUPT)

    def begin(connection: Connection) -> object:
        which = {"this_run": "run", "this_status": RunStatus.PENDING.value}
        return connection.execute(statements.take_run(connection), which).first()

    assert await database.run(begin) is None
    assert (await database.run(queue.claim, "me", 10, 60.0)).claimed == []
    status = select(RUNS.c.status)
    assert await database.run(lambda connection: connection.execute(status).scalar()) == "interrupted"


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_whoever_is_not_told_looks(database: Database, database_url: str) -> None:
    """A run's end is heard in a process that no notice reaches; and the others hear that somebody listens there."""
    claimed = (await _claimed(database, "run"))["run"]
    heard: asyncio.Queue[str] = asyncio.Queue()
    listening = asyncio.create_task(bus.listen(database, heard.put_nowait))
    assert await heard.get() == bus.ALL
    deaf = await asyncio.to_thread(open_database, database_url, SCHEMA)
    following = EventLog(deaf).follow("run")
    event = asyncio.ensure_future(anext(following))
    assert await heard.get() == "followed:run"
    outcome = Outcome(RunStatus.SUCCESS, ThreadStatus.IDLE, b"{}")
    await database.run(queue.finish, claimed.lease, outcome, 1)
    assert (await event).is_last
    await following.aclose()
    listening.cancel()
    await asyncio.wait([listening])
    await deaf.close()


async def test_whoever_comes_back_elsewhere_has_not_left(database: Database) -> None:
    """A run that a client has left goes on when it is listened to again, here or in another process."""
    log = EventLog(database)
    log.leave("run")
    assert log.is_left("run")
    log.leave("run")
    log.came_back("run")
    assert not log.is_left("run")
    log.leave("run")
    following = log.follow("run")
    assert not log.is_left("run")
    await following.aclose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_a_restarted_database_costs_no_run(start: Start, database_url: str) -> None:
    """Connections that it has dropped meanwhile are made anew before a state is written with them."""
    async with start(improvise=hello) as (_agent, client):
        threads = [(await client.threads.create())["thread_id"] for _ in range(4)]
        async with asyncio.TaskGroup() as group:
            for thread in threads:
                group.create_task(client.runs.wait(thread, "agent", input=asks("hi")))
        with psycopg.connect(database_url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        for thread in threads:
            values: Any = await client.runs.wait(thread, "agent", input=asks("again"))
            assert values["messages"][-1]["content"] == "Hello."
