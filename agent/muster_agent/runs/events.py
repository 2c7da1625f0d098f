"""The event log: what a run says, stored before anybody hears it.

Every event has a number in its run, from 1 without gaps, and is delivered only once it is stored. So a client that
comes back with the number of the last event it has seen gets exactly the rest, from this process or another, whatever
died in between. A run whose client does not want to come back (`stream_resumable` is false), in a database that no
other process reads, is heard only while it goes: of its events the last one is stored.

Writing is one transaction at a time for all runs: while one is being committed the next ones gather, and for a few
milliseconds before it, so that many runs share one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from sqlalchemy import Connection, bindparam, select, text
from sqlalchemy.exc import InterfaceError, OperationalError

from muster_agent.runs import bus, statements
from muster_agent.runs.queue import END_EVENT
from muster_agent.runs.records import Lease, LeaseLostError, RunStatus
from muster_agent.runs.tables import EVENTS, RUNS

if TYPE_CHECKING:
    from muster_storage import Database

_PAGE = 500
_MOST_BUFFERED = 2_000
# Models write a token every 10 to 50 ms. A transaction costs CPU time whatever is in it: half a millisecond on SQLite,
# more on PostgreSQL, where other processes are told besides.
_GATHER_S, _GATHER_ON_POSTGRES_S = 0.005, 0.02
# How long a listener trusts that he would be told, where other processes write too: a notice may be lost.
_LOOK_S = 5.0
# The database is not there, for any of them.
_AWAY = (InterfaceError, OperationalError)
_FINISHED = frozenset({RunStatus.SUCCESS, RunStatus.ERROR, RunStatus.TIMEOUT, RunStatus.INTERRUPTED})


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One event of a run.

    Attributes:
        seq: Its number in the run, from 1.
        protocol: Which of LangGraph's protocols it is written in: 1 (of runs) or 2 (of threads).
        event: Its name.
        data: JSON.
    """

    seq: int
    protocol: int
    event: str
    data: bytes

    @property
    def is_last(self) -> bool:
        """Whether the run has ended with it."""
        return self.event == END_EVENT and self.protocol == 1


@dataclass(slots=True)
class _Entry:
    lease: Lease
    event: StoredEvent
    stored: asyncio.Future[None]


class Writer:
    """Writes one run's events; made for one attempt.

    Args:
        log: The log.
        lease: The run's lease.
        seq: The number of the newest event that is there already.
        is_stored: Whether events are stored. Where they are not, those who listen now hear them, and nobody later.
    """

    def __init__(self, log: "EventLog", lease: Lease, seq: int, *, is_stored: bool) -> None:
        self._log = log
        self._is_stored = is_stored
        self.lease = lease
        self.seq = seq
        self._unstored: deque[asyncio.Future[None]] = deque()

    async def write(self, event: str, data: bytes, protocol: int = 1) -> None:
        """Put an event behind the others. It waits only when the database is far behind.

        Raises:
            LeaseLostError: The run is another process's.
        """
        self.seq += 1
        if not self._is_stored:
            self._log.tell(self.lease.run_id, [StoredEvent(self.seq, protocol, event, data)])
            return
        self._unstored.append(self._log.put(self.lease, StoredEvent(self.seq, protocol, event, data)))
        while self._unstored and (self._unstored[0].done() or len(self._unstored) > _MOST_BUFFERED // 4):
            await self._unstored.popleft()

    async def flush(self) -> None:
        """Wait until all is stored.

        Raises:
            LeaseLostError: The run is another process's.
        """
        while self._unstored:
            await self._unstored.popleft()


@dataclass(slots=True, eq=False)
class _Follower:
    """Somebody who listens to a run: what has been stored since he was last served."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    events: deque[StoredEvent] = field(default_factory=deque[StoredEvent])
    must_look: bool = False
    is_announced: bool = False
    """Whether other processes have been told of him."""

    def tell(self, events: Iterable[StoredEvent]) -> None:
        self.events.extend(events)
        if len(self.events) > _MOST_BUFFERED:  # he is slow; the log keeps for him what it keeps at all
            self.events.clear()
            self.must_look = True
        self.arrived.set()

    def look(self) -> None:
        self.must_look = True
        self.arrived.set()


class EventLog:
    """The events of all runs.

    Args:
        database: Where they are.
    """

    def __init__(self, database: "Database") -> None:
        self._database = database
        self._gather_s = _GATHER_ON_POSTGRES_S if database.is_postgres else _GATHER_S
        self._waiting: list[_Entry] = []
        self._has_some = asyncio.Event()
        self._followers: dict[str, set[_Follower]] = {}
        self._told: dict[str, int] = {}
        self._left: set[str] = set()

    def __repr__(self) -> str:
        return f"<EventLog {len(self._waiting)} to write, {len(self._followers)} runs followed>"

    def put(self, lease: Lease, event: StoredEvent) -> "asyncio.Future[None]":
        """Have an event written; the future is done when it is stored, or has `LeaseLostError`."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(lease, event, stored))
        self._has_some.set()
        return stored

    async def write_forever(self) -> None:
        """Write what is put, until cancelled; then write what is left."""
        try:
            while True:
                await self._has_some.wait()
                await asyncio.sleep(self._gather_s)
                self._has_some.clear()
                await self._write_batch()
        finally:
            if self._waiting:
                await self._write_batch()

    async def _write_batch(self) -> None:
        batch, self._waiting = self._waiting, []
        of_runs: dict[str, list[_Entry]] = {}
        for entry in batch:
            of_runs.setdefault(entry.lease.run_id, []).append(entry)
        try:
            await self._store(batch)
        except Exception as error:  # noqa: BLE001 - whoever waits for the event is told, whatever it is
            if len(of_runs) == 1 or isinstance(error, _AWAY):
                for entry in batch:
                    _settle(entry.stored, error)
                return
            # What one run's events are refused for must not cost the others theirs.
            for entries in of_runs.values():
                await self._store_alone(entries)

    async def _store_alone(self, entries: Sequence[_Entry]) -> None:
        try:
            await self._store(entries)
        except Exception as error:  # noqa: BLE001 - as above
            for entry in entries:
                _settle(entry.stored, error)

    async def _store(self, batch: Sequence[_Entry]) -> None:
        lost = await self._database.run(_append, batch)
        told: dict[str, list[StoredEvent]] = {}
        for entry in batch:
            if entry.lease.run_id in lost:
                _settle(entry.stored, LeaseLostError(entry.lease.run_id))
            else:
                _settle(entry.stored, None)
                told.setdefault(entry.lease.run_id, []).append(entry.event)
        for run_id, events in told.items():
            self.tell(run_id, events)

    def tell(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        """Tell a run's followers of events that have been stored."""
        if (followers := self._followers.get(run_id)) is None:
            return
        self._told[run_id] = events[-1].seq
        for follower in followers:
            follower.tell(events)

    def last_told(self, run_id: str) -> int:
        """The number of the last event that somebody who still listens has heard: the next attempt goes on behind it.

        Of a run whose events are not stored nothing else knows it.
        """
        return self._told.get(run_id, 0)

    def look(self, name: str) -> None:
        """Have the followers of a run look into the log: another process has written, or the run is gone.

        Or those of a thread: there is another run on it.
        """
        for follower in self._followers.get(name, ()):
            follower.look()

    def look_everywhere(self) -> None:
        """Have all followers look into the log: anything may have been written unheard."""
        for name in list(self._followers):
            self.look(name)

    def is_followed(self, run_id: str) -> bool:
        """Whether anybody listens to a run in this process."""
        return run_id in self._followers

    def leave(self, run_id: str) -> None:
        """Somebody has hung up who may come back, to this process or to another."""
        self._left.add(run_id)

    def came_back(self, run_id: str) -> None:
        """Somebody listens to a run in another process."""
        self._left.discard(run_id)

    def is_left(self, run_id: str) -> bool:
        """Whether nobody has come back since `leave`; whoever asks has waited long enough."""
        is_left = run_id in self._left and not self.is_followed(run_id)
        self._left.discard(run_id)
        return is_left

    def follow(self, run_id: str, after: int = 0, *, is_new: bool = False) -> AsyncGenerator[StoredEvent]:
        """Every event of a run behind number `after`, those to come included; ends with the run.

        It listens from this call on, so nothing is missed of a run that is made after it (`is_new`). Whoever does not
        iterate to the end must close it.
        """
        follower = _Follower(must_look=not is_new)
        self._followers.setdefault(run_id, set()).add(follower)
        return _Following(self._heard(run_id, follower, after), lambda: self._forget(run_id, follower))

    @contextmanager
    def listening(self, thread_id: str) -> Generator[asyncio.Event]:
        """An event that is set when there may be a new run on a thread; whoever waits clears it."""
        follower = _Follower()
        self._followers.setdefault(thread_id, set()).add(follower)
        try:
            yield follower.arrived
        finally:
            self._forget(thread_id, follower)

    async def _heard(self, run_id: str, follower: _Follower, seq: int) -> AsyncGenerator[StoredEvent]:
        """What the follower has not heard yet, in order, until the run's last event."""
        is_over = False
        while not is_over:
            events, is_over = await self._next(run_id, follower, seq)
            for event in events:
                if event.seq > seq:
                    seq = event.seq
                    yield event
                    is_over |= event.is_last

    async def _next(self, run_id: str, follower: _Follower, seq: int) -> tuple[Sequence[StoredEvent], bool]:
        """The next events, from the log or as they were told, and whether there will be none after them."""
        if not follower.must_look and not follower.events:
            await self._arrival(follower)
        if follower.must_look:
            follower.must_look = False
            is_first, follower.is_announced = not follower.is_announced, True
            events, has_ended = await self._database.run(_look_at, run_id, seq, is_first)
            is_whole = len(events) < _PAGE
            follower.must_look |= not is_whole
            return events, has_ended and is_whole
        told = list(follower.events)
        follower.events.clear()
        return told, False

    async def _arrival(self, follower: _Follower) -> None:
        """Wait until there is something for the follower."""
        try:
            async with asyncio.timeout(_LOOK_S if self._database.is_postgres else None):
                await follower.arrived.wait()
        except TimeoutError:
            follower.must_look = True
        follower.arrived.clear()

    def _forget(self, run_id: str, follower: _Follower) -> None:
        followers = self._followers.get(run_id, set())
        followers.discard(follower)
        if not followers:
            self._followers.pop(run_id, None)
            self._told.pop(run_id, None)


class _Following(AsyncGenerator[StoredEvent]):
    """A generator that tells when it is closed, also one that was never started."""

    def __init__(self, inner: AsyncGenerator[StoredEvent], closed: Callable[[], None]) -> None:
        self._inner = inner
        self._closed = closed

    async def asend(self, value: None) -> StoredEvent:
        """The next event."""
        try:
            return await self._inner.asend(value)
        except BaseException:
            self._closed()
            raise

    async def athrow(self, *error: Any) -> StoredEvent:  # noqa: ANN401 - as the base class has it
        """Raise in the generator."""
        self._closed()
        return await self._inner.athrow(*error)

    async def aclose(self) -> None:
        """Stop listening."""
        self._closed()
        await self._inner.aclose()


def _settle(stored: "asyncio.Future[None]", error: Exception | None) -> None:
    if stored.done():
        return
    if error is None:
        stored.set_result(None)
        return
    stored.set_exception(error)
    stored.exception()  # a run that was cancelled does not ask any more, which is no fault


_FENCES = {
    # As text: SQLAlchemy would write a list of so many parameters anew for each transaction.
    "postgresql": text(
        "SELECT running_run_id, fence FROM agent_threads WHERE thread_id = ANY(:threads) ORDER BY thread_id FOR SHARE"
    ),
    "sqlite": text(
        "SELECT running_run_id, fence FROM agent_threads WHERE thread_id IN (SELECT value FROM json_each(:threads))"
    ),
}


def _append(connection: Connection, batch: Sequence[_Entry]) -> set[str]:
    """Store events. Returns the runs whose lease is lost; theirs are not stored."""
    lost = _lost(connection, {entry.lease for entry in batch})
    rows = [
        {
            "run_id": entry.lease.run_id,
            "seq": entry.event.seq,
            "protocol": entry.event.protocol,
            "event": entry.event.event,
            "data": entry.event.data,
        }
        for entry in batch
        if entry.lease.run_id not in lost
    ]
    if rows:
        connection.execute(statements.INSERT_EVENTS, rows)
    stored = {entry.lease.run_id for entry in batch} - lost
    bus.announce(connection, (f"events:{run_id}" for run_id in stored))
    return lost


def _lost(connection: Connection, leases: set[Lease]) -> set[str]:
    """The runs that another attempt has taken over, or whose thread is gone."""
    kind, threads = connection.dialect.name, [lease.thread_id for lease in leases]
    given = {"threads": threads if kind == "postgresql" else orjson.dumps(threads).decode()}
    held = {(row.running_run_id, row.fence) for row in connection.execute(_FENCES[kind], given)}
    return {lease.run_id for lease in leases if (lease.run_id, lease.fence) not in held}


_STATUS = select(RUNS.c.status).where(RUNS.c.run_id == bindparam("this_run"))
_EVENTS_BEHIND = (
    select(EVENTS.c.seq, EVENTS.c.protocol, EVENTS.c.event, EVENTS.c.data)
    .where(EVENTS.c.run_id == bindparam("this_run"), EVENTS.c.seq > bindparam("after"))
    .order_by(EVENTS.c.seq)
    .limit(bindparam("most"))
)


def _look_at(
    connection: Connection,
    run_id: str,
    after: int,
    is_first: bool,  # noqa: FBT001 - a transaction's argument
) -> tuple[list[StoredEvent], bool]:
    """What there is to hear of a run; whoever looks for the first time is back from wherever he has left."""
    if is_first:
        bus.announce(connection, [f"followed:{run_id}"])
    return read_events(connection, run_id, after)


def read_events(
    connection: Connection, run_id: str, after: int, most: int = _PAGE
) -> tuple[list[StoredEvent], bool]:
    """Stored events behind number `after`, and whether none will follow them."""
    # Before the events: a run that ends in between has them all by then.
    status = connection.execute(_STATUS, {"this_run": run_id}).scalar()
    found = connection.execute(_EVENTS_BEHIND, {"this_run": run_id, "after": after, "most": most})
    return [StoredEvent(*row) for row in found], status is None or status in _FINISHED
