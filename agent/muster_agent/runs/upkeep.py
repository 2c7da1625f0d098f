"""What is done now and then: questions that nobody answers are denied, and what has had its time is deleted."""

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, and_, delete, exists, select, update

from muster_agent.runs import bus, queue
from muster_agent.runs.front import new_run_id
from muster_agent.runs.records import UNFINISHED, Multitask, NewRun, ThreadBusyError, ThreadStatus
from muster_agent.runs.tables import EVENTS, RESPONSES, RUNS, THREADS
from muster_observability import logs
from muster_storage import now_s

if TYPE_CHECKING:
    from muster_agent.checkpoints import Memory
    from muster_agent.runs.executor import Executor
    from muster_storage import Database

_LOOK_S = 1.0
_CLEAN_S = 60.0
_PAGE = 200

_log = logs.get("agent")


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things are kept.

    Attributes:
        events_s: Seconds that a finished run's events can be heard again.
        runs_s: Seconds that a finished run is listed; None for as long as its thread.
        threads_s: Seconds after its last change that a thread is kept; None for ever.
        states: Newest states of a thread that are kept.
    """

    events_s: float
    runs_s: float | None
    threads_s: float | None
    states: int


class Upkeep:
    """Does what is due.

    Args:
        database: Where threads and runs are.
        memory: Where states are.
        executor: Runs what a denial sets going.
        retention: What is kept.
    """

    def __init__(
        self, database: "Database", memory: "Memory", executor: "Executor", retention: Retention
    ) -> None:
        self._database = database
        self._memory = memory
        self._executor = executor
        self._retention = retention

    async def serve(self) -> None:
        """Do it until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._forever(self.deny, _LOOK_S))
            group.create_task(self._forever(self.clean, _CLEAN_S))

    async def _forever(self, work: Any, every_s: float) -> None:  # noqa: ANN401 - one of the two below
        while True:
            # Replicas that started together must not all look at the same moment.
            await asyncio.sleep(every_s * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - the database is away; it is asked again
                _log.error("upkeep failed", error=type(error).__name__)

    async def deny(self) -> None:
        """Answer questions whose time is over with no."""
        denied = await self._database.run(_deny)
        if denied:
            _log.info("questions were denied: nobody answered in time", count=denied)
            self._executor.wake()

    async def clean(self) -> None:
        """Delete what has had its time."""
        for thread_id in await self._database.run(_outdated, self._retention):
            await self._memory.saver.adelete_thread(thread_id)
        for thread_id in await self._database.run(_changed_lately, _CLEAN_S * 3):
            await self._memory.saver.shorten(thread_id, self._retention.states)


def _deny(connection: Connection) -> int:
    now = now_s(connection)
    due = (
        select(THREADS)
        .where(THREADS.c.approval_due < now, THREADS.c.status == ThreadStatus.INTERRUPTED.value)
        .limit(_PAGE)
        .with_for_update(skip_locked=True)
    )
    denied = 0
    for thread in connection.execute(due).mappings().all():
        last = (
            select(RUNS).where(RUNS.c.thread_id == thread["thread_id"]).order_by(RUNS.c.seq.desc()).limit(1)
        )
        asking = connection.execute(last).mappings().first()
        if asking is None:
            continue
        try:
            queue.submit(connection, _denial(thread, asking))
        except ThreadBusyError:  # somebody has answered at this moment
            continue
        denied += 1
    bus.announce(connection, ["runs"] * bool(denied))
    return denied


def _denial(thread: Mapping[Any, Any], asking: Mapping[Any, Any]) -> NewRun:
    """A run that answers no to everything that waits."""
    interrupts = cast("dict[str, list[dict[str, Any]]]", thread["interrupts"] or {})
    waiting = [each for task in interrupts.values() for each in task]
    resume = {each["id"]: {"decisions": _no_to(each["value"])} for each in waiting}
    kwargs = {
        **{
            name: value
            for name, value in asking["kwargs"].items()
            if name in {"config", "context", "stream_mode"}
        },
        "command": {"resume": resume},
        "answers": list(resume),
    }
    return NewRun(
        run_id=new_run_id(),
        thread_id=thread["thread_id"],
        tenant=thread["tenant"],
        assistant_id=asking["assistant_id"],
        kwargs=kwargs,
        metadata=asking["metadata"],
        multitask=Multitask.REJECT,
        timeout_s=asking["timeout_s"],
        request_id=asking["request_id"],
        sealed_key=asking["sealed_key"],
    )


def _no_to(question: Any) -> list[dict[str, str]]:  # noqa: ANN401 - what a graph asked
    requests: list[Any] = [None]
    if isinstance(question, dict):
        requests = cast("dict[str, Any]", question).get("action_requests", requests)
    message = "Nobody approved this call in time, so it was not carried out."
    return [{"type": "reject", "message": message} for _ in requests]


def _outdated(connection: Connection, kept: Retention) -> list[str]:
    """Delete rows that have had their time. Returns the threads that are gone, whose states are to go too."""
    now = now_s(connection)
    over = RUNS.c.status.not_in(UNFINISHED)
    # A response that nobody has finished yet is made of its run's events.
    told = exists().where(RESPONSES.c.run_id == RUNS.c.run_id, RESPONSES.c.is_finished.is_(False))
    heard = select(RUNS.c.run_id).where(over, RUNS.c.updated_at < now - kept.events_s, ~told)
    connection.execute(delete(EVENTS).where(EVENTS.c.run_id.in_(heard)))
    if kept.runs_s is not None:
        old = and_(over, RUNS.c.updated_at < now - kept.runs_s)
        # What still waits for a person is continued from the run that asked.
        asks = exists().where(THREADS.c.thread_id == RUNS.c.thread_id, THREADS.c.approval_due.is_not(None))
        connection.execute(delete(RUNS).where(old, ~asks))
    waits = exists().where(RUNS.c.thread_id == THREADS.c.thread_id, RUNS.c.status.in_(UNFINISHED))
    conditions = [and_(THREADS.c.is_temporary, THREADS.c.updated_at < now - kept.events_s)]
    if kept.threads_s is not None:
        conditions.append(THREADS.c.updated_at < now - kept.threads_s)
    gone: list[str] = []
    for condition in conditions:
        which = and_(condition, ~waits, THREADS.c.running_run_id.is_(None))
        gone += connection.execute(delete(THREADS).where(which).returning(THREADS.c.thread_id)).scalars()
    # A question that was answered or withdrawn needs its key no longer.
    answered = exists().where(THREADS.c.thread_id == RUNS.c.thread_id, THREADS.c.approval_due.is_not(None))
    forgotten = update(RUNS).where(over, RUNS.c.sealed_key.is_not(None), ~answered)
    connection.execute(forgotten.values(sealed_key=None))
    return gone


def _changed_lately(connection: Connection, seconds: float) -> list[str]:
    now = now_s(connection)
    idle = and_(THREADS.c.running_run_id.is_(None), THREADS.c.state_updated_at > now - seconds)
    return list(connection.execute(select(THREADS.c.thread_id).where(idle)).scalars())
