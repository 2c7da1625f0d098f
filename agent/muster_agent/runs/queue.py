"""The transactions by which runs are made, claimed, kept and ended.

Each is a function of a connection (see `muster_storage.Database`), and each leaves these true:

1. A thread has at most one running run: `running_run_id` is set only where it was empty, and `fence` rises with it.
2. Runs of a thread start in the order in which they were made.
3. What an owner writes, it writes only while the thread still has its fence.
4. A run's end is written once, with its last event, in one transaction.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)

from muster_agent.runs import bus, statements
from muster_agent.runs.records import (
    UNFINISHED,
    Cancel,
    Claimed,
    Lease,
    LeaseLostError,
    Multitask,
    NewRun,
    NewThread,
    Outcome,
    Row,
    RunStatus,
    ThreadBusyError,
    ThreadNotFoundError,
    ThreadStatus,
)
from muster_agent.runs.tables import EVENTS, IDEMPOTENCY, RUNS, STARTS, THREADS
from muster_agent.runs.thread_rows import BY_HAND, ensure_thread, locked_thread
from muster_storage import now_s

END_EVENT = "end"
"""The last event of every run; its data is `{"status": ...}`."""

_FAILED = (RunStatus.ERROR, RunStatus.TIMEOUT)


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that was made, or found by its idempotency key.

    Attributes:
        run: Its row.
        cancelled: Runs in flight that must be told to stop.
        ended: Runs that waited and have ended now.
    """

    run: Row
    cancelled: Sequence[str] = ()
    ended: Sequence[str] = ()


def submit(connection: Connection, run: NewRun, if_missing: NewThread | None = None) -> Submitted:
    """Make a run; what is on its thread already makes way, waits, or keeps it out.

    Args:
        connection: In a transaction.
        run: The run.
        if_missing: The thread to make where there is none.

    Raises:
        ThreadNotFoundError: The tenant has no such thread.
        ThreadBusyError: Another run is there, and this one does not wait.
    """
    if run.idempotency_key is not None:
        known = with_key(connection, run.tenant, run.idempotency_key)
        if known is not None:
            return Submitted(known)
    thread = locked_thread(connection, run.tenant, run.thread_id)
    if thread is None:
        if if_missing is None:
            raise ThreadNotFoundError(run.thread_id)
        thread = ensure_thread(connection, if_missing)
    others = unfinished(connection, run.thread_id)
    if others and run.multitask is Multitask.REJECT:
        raise ThreadBusyError(run.thread_id)
    cancelled, ended = _make_way(connection, run.multitask, others)
    row = _insert_run(connection, run)
    metadata = {
        name: row["metadata"][name] for name in ("graph_id", "assistant_id") if name in row["metadata"]
    }
    touched = {"this_thread": run.thread_id, "new_metadata": {**thread["metadata"], **metadata}}
    connection.execute(statements.touch_thread(connection), touched)
    return Submitted(row, cancelled, ended)


def with_key(connection: Connection, tenant: str, idempotency_key: str) -> Row | None:
    """The run that was made with a key.

    One that failed or was cancelled gives the key back: a second try is what the client wants then.
    """
    if connection.dialect.name == "postgresql":  # a second request with the key waits for the first
        name = f"{tenant}\n{idempotency_key}"
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(name, 0))))
    key = and_(IDEMPOTENCY.c.tenant == tenant, IDEMPOTENCY.c.key == idempotency_key)
    query = select(RUNS).join(IDEMPOTENCY, IDEMPOTENCY.c.run_id == RUNS.c.run_id).where(key)
    known = connection.execute(query).mappings().first()
    if known is not None and (known["status"] in _FAILED or known["cancel"] is not None):
        connection.execute(delete(IDEMPOTENCY).where(key))
        return None
    return known


def _make_way(
    connection: Connection, multitask: Multitask, others: Sequence[Row]
) -> tuple[list[str], list[str]]:
    """Cancel the unfinished runs of a thread for a new one. Returns those in flight, and those that are gone."""
    if multitask is Multitask.ENQUEUE:
        return [], []
    cancel = Cancel.ROLLBACK if multitask is Multitask.ROLLBACK else Cancel.INTERRUPT
    waiting = [run["run_id"] for run in others if run["status"] == RunStatus.PENDING]
    running = [run["run_id"] for run in others if run["status"] == RunStatus.RUNNING]
    if cancel is Cancel.ROLLBACK:
        connection.execute(delete(RUNS).where(RUNS.c.run_id.in_(waiting)))
        ask_to_stop(connection, running, cancel)
        return running, waiting
    # What a person wrote stays in the thread though nothing has answered it: a run that has not begun yet begins,
    # adds its input, and ends.
    ask_to_stop(connection, [*waiting, *running], cancel, keeps_input=True)
    return running, []


def ask_to_stop(
    connection: Connection, run_ids: Sequence[str], cancel: Cancel, *, keeps_input: bool = False
) -> None:
    """Write down that these runs are to stop, for whichever process runs them."""
    connection.execute(
        update(RUNS)
        .where(RUNS.c.run_id.in_(run_ids), RUNS.c.status.in_(UNFINISHED))
        .values(cancel=cancel.value, keeps_input=keeps_input)
    )


def _insert_run(connection: Connection, run: NewRun) -> Row:
    row = {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "tenant": run.tenant,
        "assistant_id": run.assistant_id,
        "status": RunStatus.PENDING.value,
        "metadata": run.metadata,
        "kwargs": run.kwargs,
        "multitask_strategy": run.multitask.value,
        "timeout_s": run.timeout_s,
        "attempt": 0,
        "stalls": 0,
        "keeps_input": False,
        "sealed_key": run.sealed_key,
        "request_id": run.request_id,
        "delay_s": run.delay_s,
    }
    made = connection.execute(statements.insert_run(connection), row).mappings().one()
    if run.idempotency_key is not None:
        connection.execute(
            insert(IDEMPOTENCY).values(tenant=run.tenant, key=run.idempotency_key, run_id=run.run_id)
        )
    return made


def unfinished(connection: Connection, thread_id: str) -> Sequence[Row]:
    """A thread's runs that wait or run, oldest first."""
    return connection.execute(statements.UNFINISHED_RUNS, {"this_thread": thread_id}).mappings().all()


@dataclass(frozen=True, slots=True)
class Taken:
    """What a process took.

    Attributes:
        claimed: Runs.
        next_s: Seconds until a delayed run may start; None where none waits for its time.
    """

    claimed: list[Claimed]
    next_s: float | None = None


def claim(connection: Connection, owner: str, most: int, lease_s: float) -> Taken:
    """Take runs that may start, oldest first.

    Args:
        connection: In a transaction.
        owner: This process.
        most: How many at most.
        lease_s: Seconds that the leases last unless they are renewed.
    """
    found = connection.execute(statements.ready(connection), {"most": most}).mappings().all()
    taken = [_take(connection, run, owner, lease_s, RunStatus.PENDING) for run in found]
    claimed = [each for each in taken if each is not None]
    return Taken(claimed, connection.execute(statements.next_start(connection)).scalar())


def take_over(
    connection: Connection, owner: str, most: int, lease_s: float, mine: Collection[str] = ()
) -> Taken:
    """Take runs whose owner has let its lease run out, oldest first; and threads held by hand are let go.

    Args:
        connection: In a transaction.
        owner: This process.
        most: How many at most.
        lease_s: Seconds that the leases last unless they are renewed.
        mine: Runs that this process is running: late with its renewals, it must not take over from itself.
    """
    now = now_s(connection)
    by_hand = THREADS.c.running_run_id.startswith(BY_HAND)
    left = update(THREADS).where(by_hand, THREADS.c.lease_until < now)
    connection.execute(left.values(running_run_id=None, lease_owner=None, lease_until=None))
    abandoned = _abandoned(now).where(RUNS.c.run_id.not_in(mine)).order_by(RUNS.c.seq).limit(most)
    found = connection.execute(abandoned).mappings().all()
    taken = [_take(connection, run, owner, lease_s, RunStatus.RUNNING) for run in found]
    return Taken([each for each in taken if each is not None])


def _abandoned(now: ColumnElement[float]) -> Select[Any]:
    return (
        select(RUNS, THREADS.c.fence, THREADS.c.interrupts)
        .join(THREADS, THREADS.c.running_run_id == RUNS.c.run_id)
        .where(THREADS.c.lease_until < now)
        .with_for_update(of=THREADS, skip_locked=True)
    )


def _take(connection: Connection, run: Row, owner: str, lease_s: float, status: RunStatus) -> Claimed | None:
    """Take a run that has been found; None where it has ended since: what finds it locks its thread and not itself."""
    lease = Lease(run["thread_id"], run["run_id"], run["fence"] + 1)
    which = {"this_run": lease.run_id, "this_status": status.value}
    begun = connection.execute(statements.take_run(connection), which).mappings().first()
    if begun is None:
        return None
    taken = {**_names(lease), "owner": owner, "lease_s": lease_s}
    connection.execute(statements.take_thread(connection), taken)
    row = dict(begun)
    events = 0
    if row["attempt"] > 1:
        newest = select(func.max(EVENTS.c.seq)).where(EVENTS.c.run_id == lease.run_id)
        events = connection.execute(newest).scalar() or 0
    return Claimed(lease, row, events, row.pop("left_s"), run["interrupts"])


def _names(lease: Lease) -> dict[str, Any]:
    return {"this_thread": lease.thread_id, "this_run": lease.run_id, "this_fence": lease.fence}


def renew(
    connection: Connection, owner: str, leases: Sequence[Lease], lease_s: float
) -> tuple[set[str], list[str]]:
    """Keep leases.

    Returns:
        The runs that are still the owner's, and those of them that are to stop.
    """
    fences = {lease.run_id: lease.fence for lease in leases}
    threads = THREADS.c.thread_id.in_([lease.thread_id for lease in leases])  # which has an index
    held = and_(threads, THREADS.c.running_run_id.in_(fences), THREADS.c.lease_owner == owner)
    connection.execute(update(THREADS).where(held).values(lease_until=now_s(connection) + lease_s))
    query = select(THREADS.c.running_run_id, THREADS.c.fence, RUNS.c.cancel).join(
        RUNS, RUNS.c.run_id == THREADS.c.running_run_id
    )
    rows = connection.execute(query.where(held)).all()
    kept = {run_id: cancel for run_id, fence, cancel in rows if fences[run_id] == fence}
    return set(kept), [run_id for run_id, cancel in kept.items() if cancel is not None]


def disown(connection: Connection, owner: str | None = None) -> None:
    """Let every lease of this owner, or of everybody, run out at once."""
    leased = THREADS.c.running_run_id.is_not(None)
    mine = leased if owner is None else and_(leased, THREADS.c.lease_owner == owner)
    connection.execute(update(THREADS).where(mine).values(lease_until=0.0))


def check(connection: Connection, lease: Lease) -> None:
    """Hold the lease until the transaction ends.

    Raises:
        LeaseLostError: It is another's.
    """
    query = select(THREADS.c.thread_id).where(statements.IS_HELD).with_for_update(read=True)
    if connection.execute(query, _names(lease)).first() is None:
        raise LeaseLostError(lease.run_id)


def note_progress(connection: Connection, lease: Lease, checkpoint_id: str | None) -> int:
    """Write down how far a run has come when an attempt begins.

    Returns:
        How many attempts, this one included, have begun at that checkpoint.
    """
    check(connection, lease)
    row = connection.execute(
        select(RUNS.c.progress, RUNS.c.stalls).where(RUNS.c.run_id == lease.run_id)
    ).one()
    stalls = row.stalls + 1 if row.progress == checkpoint_id else 1
    connection.execute(
        update(RUNS).where(RUNS.c.run_id == lease.run_id).values(progress=checkpoint_id, stalls=stalls)
    )
    return stalls


def note_start(connection: Connection, lease: Lease, pending: bytes) -> None:
    """Keep what a run has found when it began; an earlier attempt may have done so."""
    check(connection, lease)
    if start(connection, lease.run_id) is None:
        connection.execute(insert(STARTS).values(run_id=lease.run_id, pending=pending))


def start(connection: Connection, run_id: str) -> bytes | None:
    """What a run had found when it began, where that was noted."""
    return connection.execute(select(STARTS.c.pending).where(STARTS.c.run_id == run_id)).scalar()


def finish(connection: Connection, lease: Lease, outcome: Outcome, seq: int, *, forget: bool = False) -> bool:
    """End a run.

    Args:
        connection: In a transaction.
        lease: The run's.
        outcome: How it ended.
        seq: The number of its last event.
        forget: Whether the run is deleted: it was rolled back.

    Returns:
        Whether another run waits on the thread.

    Raises:
        LeaseLostError: Another process runs it.
    """
    shown = {
        **_names(lease),
        "new_status": outcome.thread_status.value,
        "new_interrupts": outcome.interrupts,
        "new_error": outcome.error,
        "approval_s": outcome.approval_s,
        "keeps_due": outcome.keeps_due,
    }
    released = statements.release_thread(connection)
    if outcome.values is not None:
        released = statements.release_thread_with_state(connection)
        shown["new_values"] = outcome.values
    status = connection.execute(released, shown).scalar()
    if status is None:
        raise LeaseLostError(lease.run_id)
    bus.announce(connection, [f"events:{lease.run_id}"])  # whoever listens in another process hears the end
    if forget:
        connection.execute(delete(RUNS).where(RUNS.c.run_id == lease.run_id))
    else:
        _end(connection, lease.run_id, outcome, seq)
    return status == ThreadStatus.BUSY


def _end(connection: Connection, run_id: str, outcome: Outcome, seq: int) -> None:
    ended = {
        "this_run": run_id,
        "new_status": outcome.status.value,
        "new_error": outcome.error,
        "keeps_key": outcome.approval_s is not None,
    }
    connection.execute(statements.end_run(connection), ended)
    last = {"run_id": run_id, "seq": seq, "protocol": 1, "event": END_EVENT, "data": outcome.final}
    connection.execute(statements.INSERT_EVENTS, last)


def release(connection: Connection, lease: Lease) -> None:
    """Give a run back unfinished: the next process that looks resumes it."""
    connection.execute(update(THREADS).where(statements.IS_HELD).values(lease_until=0.0), _names(lease))


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a cancellation found.

    Attributes:
        running: Runs in flight: they have been asked to stop.
        ended: Runs that waited; they have ended.
    """

    running: Sequence[str]
    ended: Sequence[str]


def cancel(connection: Connection, which: ColumnElement[bool], action: Cancel) -> Stopped:
    """Cancel unfinished runs: those that wait end at once, those in flight are asked to."""
    query = select(RUNS.c.run_id, RUNS.c.status, RUNS.c.thread_id).where(which, RUNS.c.status.in_(UNFINISHED))
    found = connection.execute(query.order_by(RUNS.c.seq).with_for_update()).all()
    running = [run.run_id for run in found if run.status == RunStatus.RUNNING]
    ask_to_stop(connection, running, action)
    waiting = [run for run in found if run.status == RunStatus.PENDING]
    for run in waiting:
        if action is Cancel.ROLLBACK:
            connection.execute(delete(RUNS).where(RUNS.c.run_id == run.run_id))
        else:
            final = orjson.dumps({"status": RunStatus.INTERRUPTED.value})
            _end(connection, run.run_id, Outcome(RunStatus.INTERRUPTED, ThreadStatus.IDLE, final), 1)
    _settle(connection, {run.thread_id for run in waiting})
    return Stopped(running, [run.run_id for run in waiting])


def _settle(connection: Connection, thread_ids: set[str]) -> None:
    """Threads on which nothing waits or runs any more are no longer busy."""
    for thread_id in thread_ids:
        if unfinished(connection, thread_id):
            continue
        thread = and_(THREADS.c.thread_id == thread_id, THREADS.c.status == ThreadStatus.BUSY.value)
        waits = connection.execute(select(THREADS.c.interrupts).where(thread)).scalar()
        status = ThreadStatus.INTERRUPTED if waits else ThreadStatus.IDLE
        connection.execute(update(THREADS).where(thread).values(status=status.value))


def cancellations(connection: Connection, run_ids: Sequence[str]) -> dict[str, tuple[Cancel, bool]]:
    """Which of these runs have been asked to do what, and whether their input is kept."""
    asked = and_(RUNS.c.run_id.in_(run_ids), RUNS.c.cancel.is_not(None))
    rows = connection.execute(select(RUNS.c.run_id, RUNS.c.cancel, RUNS.c.keeps_input).where(asked))
    return {row.run_id: (Cancel(row.cancel), bool(row.keeps_input)) for row in rows}
