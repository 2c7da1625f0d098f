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
from muster_agent.runs.tables import EVENTS, GONE_THREADS, RESPONSES, RUNS, STARTS, THREADS
from muster_agent.runs.thread_rows import buried, note_gone
from muster_observability import logs
from muster_storage import now_s

if TYPE_CHECKING:
    from muster_agent.checkpoints import Memory
    from muster_agent.runs.executor import Executor
    from muster_storage import Database

_LOOK_S = 1.0
_CLEAN_S = 60.0
_PAGE = 200
_TIMEOUT_S = 300.0

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
        self._cleaned_s: float | None = None

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
        self._cleaned_s = await self._database.run(_clean, self._retention, self._cleaned_s)
        await self.bury()
        for thread_id in await self._database.run(_changed_lately, _CLEAN_S * 3):
            await self._memory.saver.shorten(thread_id, self._retention.states)

    async def bury(self) -> None:
        """Delete the states of threads that are gone: they may be in another file, and their process may have died."""
        for thread_id in await self._database.run(_unburied):
            await self._memory.saver.adelete_thread(thread_id)
            await self._database.run(buried, thread_id)


def _deny(connection: Connection) -> int:
    now = now_s(connection)
    at_rest = (ThreadStatus.INTERRUPTED.value, ThreadStatus.ERROR.value)
    due = (
        select(THREADS)
        .where(THREADS.c.approval_due < now, THREADS.c.status.in_(at_rest))
        .order_by(THREADS.c.approval_due)
        .limit(_PAGE)
        .with_for_update(skip_locked=True)
    )
    denied = 0
    for thread in connection.execute(due).mappings().all():
        asking = _asking(connection, thread)
        try:
            queue.submit(connection, _denial(thread, asking))
        except ThreadBusyError:  # somebody has answered at this moment
            continue
        denied += 1
    bus.announce(connection, ["runs"] * bool(denied))
    return denied


def _asking(connection: Connection, thread: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The thread's newest run; where all have been deleted, what its question can be answered with even so."""
    last = select(RUNS).where(RUNS.c.thread_id == thread["thread_id"]).order_by(RUNS.c.seq.desc()).limit(1)
    found = connection.execute(last).mappings().first()
    if found is not None:
        return found
    metadata = thread["metadata"]
    return {
        "assistant_id": str(metadata.get("assistant_id")),
        "kwargs": {},
        "metadata": {name: metadata[name] for name in ("graph_id", "assistant_id") if name in metadata},
        "timeout_s": _TIMEOUT_S,
        "request_id": "",
        "sealed_key": None,
    }


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
        "is_denial": True,
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


def _clean(connection: Connection, kept: Retention, since_s: float | None) -> float:
    """Delete rows that have had their time.

    Args:
        connection: In a transaction.
        kept: What is kept.
        since_s: When that was last done; None where it is not known, and all is looked through.

    Returns:
        The time, in seconds since 1970.
    """
    began_s = connection.execute(select(now_s(connection))).scalar_one()
    _delete_runs(connection, kept, since_s)
    _delete_threads(connection, kept)
    return began_s


def _delete_runs(connection: Connection, kept: Retention, since_s: float | None) -> None:
    now = now_s(connection)
    over = RUNS.c.status.not_in(UNFINISHED)
    # A response that nobody has finished yet is made of its run's events.
    told = exists().where(RESPONSES.c.run_id == RUNS.c.run_id, RESPONSES.c.is_finished.is_(False))
    heard = select(RUNS.c.run_id).where(over, RUNS.c.updated_at < now - kept.events_s, ~told)
    if since_s is not None:
        heard = heard.where(RUNS.c.updated_at >= since_s - kept.events_s)
    connection.execute(delete(EVENTS).where(EVENTS.c.run_id.in_(heard)))
    connection.execute(delete(STARTS).where(STARTS.c.run_id.in_(heard)))
    if kept.runs_s is not None:
        old = and_(over, RUNS.c.updated_at < now - kept.runs_s)
        # What still waits for a person is continued from the run that asked.
        asks = exists().where(THREADS.c.thread_id == RUNS.c.thread_id, THREADS.c.approval_due.is_not(None))
        connection.execute(delete(RUNS).where(old, ~asks))
    # A question that was answered or withdrawn needs its key no longer.
    answered = exists().where(THREADS.c.thread_id == RUNS.c.thread_id, THREADS.c.approval_due.is_not(None))
    forgotten = update(RUNS).where(over, RUNS.c.sealed_key.is_not(None), ~answered)
    connection.execute(forgotten.values(sealed_key=None))


def _delete_threads(connection: Connection, kept: Retention) -> None:
    now = now_s(connection)
    waits = exists().where(RUNS.c.thread_id == THREADS.c.thread_id, RUNS.c.status.in_(UNFINISHED))
    conditions = [and_(THREADS.c.is_temporary, THREADS.c.updated_at < now - kept.events_s)]
    if kept.threads_s is not None:
        conditions.append(THREADS.c.updated_at < now - kept.threads_s)
    for condition in conditions:
        which = and_(condition, ~waits, THREADS.c.running_run_id.is_(None))
        gone = connection.execute(delete(THREADS).where(which).returning(THREADS.c.thread_id)).scalars().all()
        for thread_id in gone:
            note_gone(connection, thread_id)


def _unburied(connection: Connection) -> list[str]:
    """Threads that are gone and whose states are not; of one that has been made again, its states are its own."""
    made_again = select(THREADS.c.thread_id)
    connection.execute(delete(GONE_THREADS).where(GONE_THREADS.c.thread_id.in_(made_again)))
    return list(connection.execute(select(GONE_THREADS.c.thread_id)).scalars())


def _changed_lately(connection: Connection, seconds: float) -> list[str]:
    now = now_s(connection)
    idle = and_(THREADS.c.running_run_id.is_(None), THREADS.c.state_updated_at > now - seconds)
    return list(connection.execute(select(THREADS.c.thread_id).where(idle)).scalars())
