"""The transactions on threads that need no run: making, reading, finding, changing and deleting them."""

import re
import typing
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError

from muster_agent.runs import bus, statements
from muster_agent.runs.records import (
    UNFINISHED,
    NewThread,
    Row,
    ThreadBusyError,
    ThreadExistsError,
    ThreadNotFoundError,
    ThreadStatus,
)
from muster_agent.runs.tables import GONE_THREADS, RUNS, THREADS
from muster_storage import now_s

SORTABLE = ("thread_id", "status", "created_at", "updated_at", "state_updated_at")

BY_HAND = "by-hand:"

# Keys of a filter become part of a JSON path; these need no quoting in it.
_KEY = re.compile(r"[A-Za-z0-9_.:/@-]{1,128}")


class FilterError(Exception):
    """A filter has a key that cannot be searched for."""


@dataclass(frozen=True, slots=True)
class ThreadQuery:
    """Which threads are meant.

    Attributes:
        metadata: What their metadata must contain.
        values: What their state's values must contain.
        status: Their status.
        ids: Their identifiers.
    """

    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    status: str | None = None
    ids: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """What lists show of a thread.

    Attributes:
        values: The state's values.
        interrupts: What waits for a person, by task.
        status: The thread's.
        due: When that is denied, of a question that comes from another thread.
    """

    values: object
    interrupts: object
    status: ThreadStatus
    due: float | None = None


def insert_thread(connection: Connection, thread: NewThread) -> Row:
    """Make a thread."""
    row: dict[str, Any] = {
        "thread_id": thread.thread_id,
        "tenant": thread.tenant,
        "metadata": thread.metadata,
        "config": {},
        "status": ThreadStatus.IDLE.value,
        "is_temporary": thread.is_temporary,
        "fence": 0,
    }
    return connection.execute(statements.insert_thread(connection), row).mappings().one()


def create_thread(connection: Connection, new: NewThread, *, may_exist: bool) -> tuple[Row, bool]:
    """Make a thread, or find the tenant's own where it may exist. Returns it, and whether it is new.

    Raises:
        ThreadExistsError: There is one of this identifier.
    """
    try:
        with connection.begin_nested():
            return insert_thread(connection, new), True
    except IntegrityError:
        known = thread(connection, new.tenant, new.thread_id)
        if known is None and not is_foreign(connection, new.tenant, new.thread_id):
            raise  # it is not the identifier
        if known is None or not may_exist:
            raise ThreadExistsError(new.thread_id) from None
        return known, False


def ensure_thread(connection: Connection, new: NewThread) -> Row:
    """Make a thread unless somebody has made it at this moment.

    Raises:
        ThreadNotFoundError: It is another tenant's.
    """
    try:
        with connection.begin_nested():
            return insert_thread(connection, new)
    except IntegrityError:
        known = locked_thread(connection, new.tenant, new.thread_id)
        if known is None and is_foreign(connection, new.tenant, new.thread_id):
            raise ThreadNotFoundError(new.thread_id) from None
        if known is None:
            raise  # it is not the identifier
        return known


def _is(tenant: str, thread_id: str) -> ColumnElement[bool]:
    return and_(THREADS.c.thread_id == thread_id, THREADS.c.tenant == tenant)


def thread(connection: Connection, tenant: str, thread_id: str) -> Row | None:
    """A tenant's thread."""
    which = {"this_thread": thread_id, "this_tenant": tenant}
    return connection.execute(statements.TENANTS_THREAD, which).mappings().first()


def locked_thread(connection: Connection, tenant: str, thread_id: str) -> Row | None:
    """A tenant's thread, which nobody else changes until the transaction ends."""
    which = {"this_thread": thread_id, "this_tenant": tenant}
    return connection.execute(statements.TENANTS_THREAD_LOCKED, which).mappings().first()


def is_foreign(connection: Connection, tenant: str, thread_id: str) -> bool:
    """Whether another tenant has a thread of this identifier."""
    theirs = select(THREADS.c.thread_id).where(THREADS.c.thread_id == thread_id, THREADS.c.tenant != tenant)
    return connection.execute(theirs).first() is not None


def search(
    connection: Connection, tenant: str, query: ThreadQuery, sort: tuple[str, bool], page: tuple[int, int]
) -> Sequence[Row]:
    """A page of the tenant's threads.

    Args:
        connection: In a transaction.
        tenant: Whose.
        query: Which.
        sort: A name of `SORTABLE`, and whether it falls.
        page: How many at most, and how many to leave out before them.

    Raises:
        FilterError: A key of the filters cannot be searched for.
    """
    name, falls = sort
    column = THREADS.c[name]
    order = (column.desc() if falls else column.asc(), THREADS.c.thread_id)
    found = (
        _matching(connection, select(THREADS), tenant, query).order_by(*order).limit(page[0]).offset(page[1])
    )
    return connection.execute(found).mappings().all()


def count(connection: Connection, tenant: str, query: ThreadQuery) -> int:
    """How many of the tenant's threads match.

    Raises:
        FilterError: A key of the filters cannot be searched for.
    """
    return connection.execute(_matching(connection, select(func.count()), tenant, query)).scalar_one()


def _matching(connection: Connection, rows: Select[Any], tenant: str, query: ThreadQuery) -> Select[Any]:
    found = rows.select_from(THREADS).where(THREADS.c.tenant == tenant, THREADS.c.is_temporary.is_(False))
    for column, wanted in ((THREADS.c.metadata, query.metadata), (THREADS.c["values"], query.values)):
        for condition in _contains(connection, column, wanted):
            found = found.where(condition)
    if query.status is not None:
        found = found.where(THREADS.c.status == query.status)
    return found if query.ids is None else found.where(THREADS.c.thread_id.in_(query.ids))


def _contains(
    connection: Connection, column: ColumnElement[Any], wanted: Mapping[str, Any]
) -> list[ColumnElement[bool]]:
    """That a JSON column has these entries, and objects in it theirs.

    A list must have the wanted one's items on PostgreSQL; on SQLite it must be equal to it.
    """
    _check_keys(wanted)
    if connection.dialect.name == "postgresql":
        return [cast(column, JSONB).contains(dict(wanted))] if wanted else []
    return list(_entries(column, "$", wanted))


def _check_keys(wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if not _KEY.fullmatch(key):
            raise FilterError(key)
        if isinstance(value, dict):
            _check_keys(typing.cast("dict[str, Any]", value))


def _entries(
    column: ColumnElement[Any], path: str, wanted: Mapping[str, Any]
) -> Generator[ColumnElement[bool]]:
    for key, value in wanted.items():
        yield from _entry(column, f'{path}."{key}"', value)


def _entry(column: ColumnElement[Any], path: str, value: object) -> Generator[ColumnElement[bool]]:
    found = func.json_extract(column, path)
    match value:
        case None:
            yield func.json_type(column, path) == "null"
        case bool():
            yield func.json_type(column, path) == str(value).lower()
        case int() | float():
            yield func.json_type(column, path).in_(("integer", "real"))
            # SQLite reads numbers that do not fit its integers as floating point, too.
            yield found == literal(value if abs(value) < 2**63 else float(value))
        case str():
            yield func.json_type(column, path) == "text"
            yield found == literal(value)
        case dict():
            yield func.json_type(column, path) == "object"
            yield from _entries(column, path, typing.cast("dict[str, Any]", value))
        case _:
            yield found == func.json(orjson.dumps(value).decode())


def patch(connection: Connection, tenant: str, thread_id: str, metadata: Mapping[str, Any]) -> Row | None:
    """Add to a thread's metadata. Returns the thread, or None if there is none."""
    known = locked_thread(connection, tenant, thread_id)
    if known is None:
        return None
    changed = update(THREADS).where(_is(tenant, thread_id))
    values = {"metadata": {**known["metadata"], **metadata}, "updated_at": now_s(connection)}
    return connection.execute(changed.values(**values).returning(THREADS)).mappings().one()


def remove(connection: Connection, tenant: str, thread_id: str) -> Sequence[str] | None:
    """Delete a thread with everything on it. Returns the runs that were in flight, or None if there is none."""
    if locked_thread(connection, tenant, thread_id) is None:
        return None
    running = select(RUNS.c.run_id).where(RUNS.c.thread_id == thread_id, RUNS.c.status.in_(UNFINISHED))
    in_flight = connection.execute(running).scalars().all()
    connection.execute(delete(THREADS).where(_is(tenant, thread_id)))
    note_gone(connection, thread_id)
    bus.announce(connection, [f"events:{run_id}" for run_id in in_flight])
    return in_flight


def note_gone(connection: Connection, thread_id: str) -> None:
    """Write down that a thread's states are to go too: they are not in this transaction."""
    if connection.execute(_GONE, {"this_thread": thread_id}).first() is None:
        connection.execute(insert(GONE_THREADS).values(thread_id=thread_id))


_GONE = select(GONE_THREADS).where(GONE_THREADS.c.thread_id == bindparam("this_thread"))


def buried(connection: Connection, thread_id: str) -> None:
    """The states of a thread that is gone are gone."""
    connection.execute(delete(GONE_THREADS).where(GONE_THREADS.c.thread_id == thread_id))


def show_state(
    connection: Connection,
    tenant: str,
    thread_id: str,
    state: Shown,
) -> None:
    """Make lists show a state that was written by hand. A question that it has answered is not denied later."""
    now = now_s(connection)
    shown: dict[str, Any] = {
        "values": state.values,
        "interrupts": state.interrupts or None,
        "status": state.status.value,
        "error": None,
    }
    if not state.interrupts or state.due is not None:
        shown["approval_due"] = state.due
    connection.execute(
        update(THREADS).where(_is(tenant, thread_id)).values(**shown, updated_at=now, state_updated_at=now)
    )


def by_hand(owner: str) -> str:
    """What stands in place of a run on a thread whose state is being written by hand."""
    return BY_HAND + owner


def hold(connection: Connection, tenant: str, thread_id: str, owner: str, hold_s: float) -> int:
    """Keep runs off a thread while its state is written by hand. Returns the fence, to be given to `let_go`.

    Raises:
        ThreadBusyError: A run waits or is there.
        ThreadNotFoundError: There is no such thread.
    """
    known = locked_thread(connection, tenant, thread_id)
    if known is None:
        raise ThreadNotFoundError(thread_id)
    held = known["running_run_id"] is not None
    busy = select(RUNS.c.run_id).where(RUNS.c.thread_id == thread_id, RUNS.c.status.in_(UNFINISHED))
    if held or connection.execute(busy.limit(1)).first() is not None:
        raise ThreadBusyError(thread_id)
    fence = int(known["fence"]) + 1
    until = now_s(connection) + hold_s
    lease = {"running_run_id": by_hand(owner), "fence": fence, "lease_owner": owner, "lease_until": until}
    connection.execute(update(THREADS).where(_is(tenant, thread_id)).values(**lease))
    return fence


def let_go(connection: Connection, thread_id: str, fence: int) -> None:
    """Let runs onto a thread again."""
    held = and_(THREADS.c.thread_id == thread_id, THREADS.c.fence == fence)
    connection.execute(
        update(THREADS).where(held).values(running_run_id=None, lease_owner=None, lease_until=None)
    )
