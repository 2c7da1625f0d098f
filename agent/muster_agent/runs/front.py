"""Runs as the service's interfaces use them: made, looked at, listened to and cancelled."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import orjson
from langchain_core.utils.uuid import uuid7
from sqlalchemy import ColumnElement, Connection, and_, delete, func, select

from muster_agent.runs import bus, queue
from muster_agent.runs.events import StoredEvent
from muster_agent.runs.records import (
    UNFINISHED,
    Cancel,
    Multitask,
    NewRun,
    NewThread,
    Row,
    ThreadNotFoundError,
)
from muster_agent.runs.tables import EVENTS, RUNS
from muster_agent.runs.thread_rows import thread
from muster_storage import now_s

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant
    from muster_agent.callers import Caller
    from muster_agent.runs.events import EventLog
    from muster_agent.runs.executor import Executor
    from muster_agent.seals import Seals
    from muster_storage import Database


class NoRunError(Exception):
    """The tenant has no such run."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks to be run.

    Attributes:
        caller: Who asks.
        assistant: What is to run.
        kwargs: The client's wishes, as JSON; their names are those of LangGraph's API.
        request_id: Of the request.
        thread_id: On which thread; None for one of its own, which goes with it.
        metadata: The client's.
        multitask: What if another run is there.
        may_make_thread: Whether a thread that does not exist is made.
        keeps_thread: Whether a thread of its own stays.
        thread_metadata: What is noted on a thread of its own.
        delay_s: Seconds before it may start.
        idempotency_key: A second order with the same one is the first.
    """

    caller: "Caller"
    assistant: "Assistant"
    kwargs: Mapping[str, Any]
    request_id: str
    thread_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    multitask: Multitask = Multitask.ENQUEUE
    may_make_thread: bool = False
    keeps_thread: bool = False
    thread_metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    delay_s: float = 0.0
    idempotency_key: str | None = None


class Runs:
    """The runs of a service.

    Args:
        database: Where they are.
        log: Their events.
        executor: Runs them.
        seals: Encrypts callers' keys.
    """

    def __init__(self, database: "Database", log: "EventLog", executor: "Executor", seals: "Seals") -> None:
        self._database = database
        self._log = log
        self._executor = executor
        self._seals = seals

    async def submit(self, order: Order) -> Row:
        """Make a run. When this returns, it is stored and will be run.

        Raises:
            ThreadNotFoundError: The caller has no such thread.
            ThreadBusyError: Another run is there, and this one does not wait.
        """
        run, if_missing = self._new_run(order)
        made = await asyncio.shield(asyncio.ensure_future(self._submit(run, if_missing)))
        return made.run

    async def submit_and_follow(self, order: Order) -> tuple[Row, AsyncGenerator[StoredEvent]]:
        """Make a run and listen to it from its very beginning; the generator must be closed.

        Raises:
            ThreadNotFoundError: The caller has no such thread.
            ThreadBusyError: Another run is there, and this one does not wait.
        """
        run, if_missing = self._new_run(order)
        events = self._log.follow(run.run_id, is_new=True)
        try:
            made = await asyncio.shield(asyncio.ensure_future(self._submit(run, if_missing)))
        except BaseException:
            await events.aclose()
            raise
        if made.run["run_id"] != run.run_id:  # it was made before, by its idempotency key
            await events.aclose()
            events = self._log.follow(made.run["run_id"])
        return made.run, events

    async def _submit(self, run: NewRun, if_missing: NewThread | None) -> queue.Submitted:
        made = await self._database.run(_submitted, run, if_missing)
        keeps_input = run.multitask is Multitask.INTERRUPT
        cancel = Cancel.INTERRUPT if keeps_input else Cancel.ROLLBACK
        self._executor.cancel(made.cancelled, cancel, keeps_input=keeps_input)
        for changed in (run.thread_id, *made.ended):
            self._log.look(changed)
        self._executor.wake()
        return made

    def _new_run(self, order: Order) -> tuple[NewRun, NewThread | None]:
        is_own = order.thread_id is None
        thread_id = order.thread_id or str(uuid.uuid4())
        assistant = order.assistant
        metadata = {
            "created_by": "system",
            **order.metadata,
            "graph_id": assistant.graph_id,
            "assistant_id": assistant.assistant_id,
        }
        run = NewRun(
            run_id=new_run_id(),
            thread_id=thread_id,
            tenant=order.caller.tenant,
            assistant_id=assistant.assistant_id,
            kwargs=order.kwargs,
            metadata=metadata,
            multitask=order.multitask,
            timeout_s=assistant.declaration.limits.run_timeout_s,
            request_id=order.request_id,
            delay_s=order.delay_s,
            sealed_key=self._seals.seal(order.caller.key),
            idempotency_key=order.idempotency_key,
        )
        if not is_own and not order.may_make_thread:
            return run, None
        temporary = is_own and not order.keeps_thread
        noted: Mapping[str, Any] = order.thread_metadata if is_own else {}
        return run, NewThread(thread_id, order.caller.tenant, noted, is_temporary=temporary)

    async def get(self, tenant: str, run_id: str, thread_id: str | None = None) -> Row:
        """A run.

        Raises:
            NoRunError: The tenant has no such run.
        """
        row = await self._database.run(_one, _which(tenant, run_id, thread_id))
        if row is None:
            raise NoRunError(run_id)
        return row

    async def with_key(self, tenant: str, idempotency_key: str) -> Row | None:
        """The run that was made with a key; None where there is none, or it has given the key back."""
        return await self._database.run(queue.with_key, tenant, idempotency_key)

    async def list(
        self, tenant: str, thread_id: str, status: str | None, page: tuple[int, int]
    ) -> Sequence[Row]:
        """A page of a thread's runs, newest first: how many at most, and how many to leave out.

        Raises:
            ThreadNotFoundError: The tenant has no such thread.
        """
        return await self._database.run(_listed, tenant, thread_id, status, page)

    async def delete(self, tenant: str, run_id: str, thread_id: str) -> None:
        """Delete a run; one that is not over is cancelled first.

        Raises:
            NoRunError: The tenant has no such run.
        """
        run = await self.get(tenant, run_id, thread_id)
        if run["status"] in UNFINISHED:
            await self.cancel(_which(tenant, run_id, thread_id), Cancel.INTERRUPT)
            await self.ended(run_id)
        await self._database.run(_delete, run_id)
        self._log.look(run_id)

    async def cancel(self, which: ColumnElement[bool], action: Cancel) -> Sequence[str]:
        """Cancel runs; those in flight are told to stop now, and end a moment later. Returns all of them."""
        stopped = await self._database.run(_cancelled, which, action)
        self._executor.cancel(stopped.running, action)
        for run_id in stopped.ended:
            self._log.look(run_id)
        self._executor.wake()
        return [*stopped.running, *stopped.ended]

    async def cancel_one(self, tenant: str, run_id: str, thread_id: str | None, action: Cancel) -> None:
        """Cancel a run.

        Raises:
            NoRunError: The tenant has no such run that is not over.
        """
        if not await self.cancel(_which(tenant, run_id, thread_id), action):
            raise NoRunError(run_id)

    def events(self, run_id: str, after: int = 0) -> AsyncGenerator[StoredEvent]:
        """Everything that a run says behind event number `after`, until it has ended."""
        return self._log.follow(run_id, after)

    async def newest(self, run_id: str) -> int:
        """The number of the event before a run's newest: from there, its end is heard and little else."""
        return await self._database.run(_newest_event, run_id)

    async def ended(self, run_id: str) -> Mapping[str, Any] | None:
        """Wait for a run's end. Returns `{"status": ..., "result": ...}`, or None where it is gone."""
        newest = await self.newest(run_id)
        last: bytes | None = None
        async for event in self._log.follow(run_id, newest):
            if event.is_last:
                last = event.data
        return None if last is None else cast("dict[str, Any]", orjson.loads(last))


def new_run_id() -> str:
    """An identifier for a run, greater than earlier ones."""
    return str(uuid7())


def of_status(tenant: str, status: str | None) -> ColumnElement[bool]:
    """A tenant's runs that are not over: `pending`, `running`, or both."""
    mine = RUNS.c.tenant == tenant
    return mine if status in {None, "all"} else and_(mine, RUNS.c.status == status)


def of_ids(tenant: str, thread_id: str | None, run_ids: Sequence[str]) -> ColumnElement[bool]:
    """A tenant's runs of these identifiers."""
    mine = and_(RUNS.c.tenant == tenant, RUNS.c.run_id.in_(run_ids))
    return mine if thread_id is None else and_(mine, RUNS.c.thread_id == thread_id)


def _which(tenant: str, run_id: str, thread_id: str | None) -> ColumnElement[bool]:
    return of_ids(tenant, thread_id, [run_id])


def _submitted(connection: Connection, run: NewRun, if_missing: NewThread | None) -> queue.Submitted:
    asked = _answered_questions(connection, run)
    changed = run if asked is None else replace(run, kwargs={**run.kwargs, "answers": asked})
    made = queue.submit(connection, changed, if_missing)
    bus.announce(connection, ["runs", *(f"cancel:{run_id}" for run_id in made.cancelled)])
    bus.announce(connection, [f"events:{changed}" for changed in (run.thread_id, *made.ended)])
    return made


def _answered_questions(connection: Connection, run: NewRun) -> list[str] | None:
    """What waits for a person at this moment: an answer is to nothing else, however long its run waits."""
    command = cast("Mapping[str, Any]", run.kwargs.get("command") or {})
    if command.get("resume") is None:
        return None
    known = thread(connection, run.tenant, run.thread_id) or {}
    due = known.get("approval_due")
    if due is not None and due < connection.execute(select(now_s(connection))).scalar_one():
        return []  # too late: the answer is no, though nobody has written it down yet
    interrupts = cast("dict[str, list[dict[str, Any]]]", known.get("interrupts") or {})
    return [each["id"] for task in interrupts.values() for each in task]


def _one(connection: Connection, which: ColumnElement[bool]) -> Row | None:
    return connection.execute(select(RUNS).where(which)).mappings().first()


def _listed(
    connection: Connection, tenant: str, thread_id: str, status: str | None, page: tuple[int, int]
) -> Sequence[Row]:
    if thread(connection, tenant, thread_id) is None:
        raise ThreadNotFoundError(thread_id)
    which = RUNS.c.thread_id == thread_id
    if status is not None:
        which = and_(which, RUNS.c.status == status)
    query = select(RUNS).where(which).order_by(RUNS.c.seq.desc()).limit(page[0]).offset(page[1])
    return connection.execute(query).mappings().all()


def _delete(connection: Connection, run_id: str) -> None:
    connection.execute(delete(RUNS).where(RUNS.c.run_id == run_id))


def _cancelled(connection: Connection, which: ColumnElement[bool], action: Cancel) -> queue.Stopped:
    stopped = queue.cancel(connection, which, action)
    bus.announce(connection, ["runs", *(f"cancel:{run_id}" for run_id in stopped.running)])
    bus.announce(connection, [f"events:{run_id}" for run_id in stopped.ended])
    return stopped


def _newest_event(connection: Connection, run_id: str) -> int:
    """The number of a run's newest event but one: whoever waits for the end need not hear the rest."""
    newest = connection.execute(select(func.max(EVENTS.c.seq)).where(EVENTS.c.run_id == run_id)).scalar()
    return max(0, (newest or 0) - 1)
