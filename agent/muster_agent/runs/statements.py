"""The statements of every run's way: those that are run for each of them, and so are built once.

Parameters are named after their columns with `new_` before it where SQLAlchemy keeps the plain name for itself.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Insert,
    Select,
    Update,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from muster_agent.runs.records import UNFINISHED, RunStatus, ThreadStatus
from muster_agent.runs.tables import EVENTS, RUNS, THREADS
from muster_storage import Prepared

_THIS_THREAD = THREADS.c.thread_id == bindparam("this_thread")
_THIS_RUN = RUNS.c.run_id == bindparam("this_run")

IS_HELD = and_(
    _THIS_THREAD,
    THREADS.c.fence == bindparam("this_fence"),
    THREADS.c.running_run_id == bindparam("this_run"),
)
"""That a thread is held by a run, with a fence."""

TENANTS_THREAD = select(THREADS).where(_THIS_THREAD, THREADS.c.tenant == bindparam("this_tenant"))
"""A tenant's thread."""

TENANTS_THREAD_LOCKED = TENANTS_THREAD.with_for_update()
"""A tenant's thread, which nobody else changes until the transaction ends."""

UNFINISHED_RUNS = (
    select(RUNS.c.run_id, RUNS.c.status)
    .where(RUNS.c.thread_id == bindparam("this_thread"), RUNS.c.status.in_(UNFINISHED))
    .order_by(RUNS.c.seq)
)
"""A thread's runs that wait or run, oldest first."""

INSERT_EVENTS = insert(EVENTS)
"""New events."""


@Prepared
def insert_thread(now: ColumnElement[float]) -> Insert:
    """A new thread."""
    return insert(THREADS).values(created_at=now, updated_at=now, state_updated_at=now).returning(THREADS)


@Prepared
def insert_run(now: ColumnElement[float]) -> Insert:
    """A new run, which may start `delay_s` seconds from now."""
    later = now + bindparam("delay_s")
    return insert(RUNS).values(created_at=now, updated_at=now, not_before=later).returning(RUNS)


@Prepared
def touch_thread(now: ColumnElement[float]) -> Update:
    """A run is on the thread."""
    return (
        update(THREADS)
        .where(_THIS_THREAD)
        .values(
            status=ThreadStatus.BUSY.value,
            updated_at=now,
            metadata=bindparam("new_metadata"),
        )
    )


@Prepared
def ready(now: ColumnElement[float]) -> Select[Any]:
    """Runs that may start, oldest first; the fences of their threads, and what these ask."""
    earlier = RUNS.alias()
    is_first = ~exists().where(
        earlier.c.thread_id == RUNS.c.thread_id,
        earlier.c.status == RunStatus.PENDING.value,
        earlier.c.seq < RUNS.c.seq,
        earlier.c.not_before <= now,
    )
    return (
        select(RUNS, THREADS.c.fence, THREADS.c.interrupts)
        .join(THREADS, THREADS.c.thread_id == RUNS.c.thread_id)
        .where(RUNS.c.status == RunStatus.PENDING.value, RUNS.c.not_before <= now, is_first)
        .where(THREADS.c.running_run_id.is_(None))
        .order_by(RUNS.c.seq)
        .limit(bindparam("most"))
        .with_for_update(of=THREADS, skip_locked=True)
    )


@Prepared
def next_start(now: ColumnElement[float]) -> Select[Any]:
    """Seconds until the next delayed run may start."""
    waits = and_(RUNS.c.status == RunStatus.PENDING.value, RUNS.c.not_before > now)
    return select(func.min(RUNS.c.not_before) - now).where(waits)


@Prepared
def take_thread(now: ColumnElement[float]) -> Update:
    """A process has the thread from now on."""
    return (
        update(THREADS)
        .where(_THIS_THREAD)
        .values(
            running_run_id=bindparam("this_run"),
            fence=bindparam("this_fence"),
            lease_owner=bindparam("owner"),
            lease_until=now + bindparam("lease_s"),
            status=ThreadStatus.BUSY.value,
        )
    )


@Prepared
def take_run(now: ColumnElement[float]) -> Update:
    """An attempt at the run begins, if it still has this status; `left_s` are the seconds to its deadline."""
    return (
        update(RUNS)
        .where(_THIS_RUN, RUNS.c.status == bindparam("this_status"))
        .values(
            status=RunStatus.RUNNING.value,
            attempt=RUNS.c.attempt + 1,
            started_at=func.coalesce(RUNS.c.started_at, now),
            updated_at=now,
        )
        .returning(RUNS, (RUNS.c.started_at + RUNS.c.timeout_s - now).label("left_s"))
    )


@Prepared
def release_thread(now: ColumnElement[float]) -> Update:
    """The thread is free; it shows the state that it showed before."""
    return _released(now)


@Prepared
def release_thread_with_state(now: ColumnElement[float]) -> Update:
    """The thread is free; it shows another state."""
    return _released(now).values(values=bindparam("new_values"), state_updated_at=now)


def _released(now: ColumnElement[float]) -> Update:
    waiting = exists().where(
        RUNS.c.thread_id == bindparam("this_thread"), RUNS.c.status == RunStatus.PENDING.value
    )
    due = now + bindparam("approval_s", type_=THREADS.c.approval_due.type)
    keeps_due = bindparam("keeps_due", type_=RUNS.c.keeps_input.type)
    busy, status = literal(ThreadStatus.BUSY.value), bindparam("new_status", type_=THREADS.c.status.type)
    return (
        update(THREADS)
        .where(IS_HELD)
        .values(
            running_run_id=None,
            lease_owner=None,
            lease_until=None,
            updated_at=now,
            status=case((waiting, busy), else_=status),
            interrupts=bindparam("new_interrupts"),
            error=bindparam("new_error"),
            approval_due=case((keeps_due, func.coalesce(THREADS.c.approval_due, due)), else_=due),
        )
        .returning(THREADS.c.status)
    )


@Prepared
def end_run(now: ColumnElement[float]) -> Update:
    """The run is over. Its caller's key goes, unless a denial in the caller's name may need it."""
    key = case((bindparam("keeps_key", type_=RUNS.c.keeps_input.type), RUNS.c.sealed_key), else_=None)
    return (
        update(RUNS)
        .where(_THIS_RUN)
        .values(status=bindparam("new_status"), error=bindparam("new_error"), sealed_key=key, updated_at=now)
    )
