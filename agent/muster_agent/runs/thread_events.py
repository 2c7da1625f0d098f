"""What is said on a thread: what its runs say, one run after the other, those to come included."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select

from muster_agent.runs import thread_rows
from muster_agent.runs.records import UNFINISHED, RunStatus, ThreadNotFoundError
from muster_agent.runs.tables import EVENTS, RUNS
from muster_storage import now_s

if TYPE_CHECKING:
    from muster_agent.runs.events import EventLog, StoredEvent
    from muster_storage import Database

# Other processes tell of new runs; should a message be lost, the run is found a little later.
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Place:
    """How far somebody has listened to a thread.

    Attributes:
        run: The number of a run among all runs.
        event: The number of an event in it; 0 before the first.
    """

    run: int = 0
    event: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """One event of a thread.

    Attributes:
        place: Where it is.
        run: What was known of its run when it began, or has ended. None where it has been taken back or deleted.
        run_id: The run.
        event: What was said; None where the run is gone without an end.
    """

    place: Place
    run: Mapping[Any, Any] | None
    run_id: str
    event: "StoredEvent | None"


@dataclass(slots=True)
class Heard:
    """What somebody needs not hear.

    Attributes:
        below: Runs with a lower number.
        runs: Further runs. A delayed run may begin after one that was made later, so a number is not enough.
        events: How far he has listened to a run.
    """

    below: int
    runs: set[int] = field(default_factory=set[int])
    events: Mapping[int, int] = field(default_factory=dict[int, int])

    @classmethod
    def until(cls, place: Place) -> "Heard":
        """Everything up to a place."""
        return cls(place.run, events={place.run: place.event})

    def forget(self) -> None:
        """Nothing is left below the newest of these runs, and later ones have higher numbers."""
        self.below = max([self.below - 1, *self.runs]) + 1
        self.runs.clear()


class ThreadEvents:
    """The events of threads.

    Args:
        database: Where runs are.
        log: Their events.
    """

    def __init__(self, database: "Database", log: "EventLog") -> None:
        self._database = database
        self._log = log

    async def heard_by_now(self, tenant: str, thread_id: str) -> Heard:
        """All that has been said on a tenant's thread."""
        return await self._database.run(_heard_by_now, tenant, thread_id)

    async def follow(self, tenant: str, thread_id: str, heard: Heard) -> AsyncGenerator[Said]:
        """Everything that is said on a tenant's thread but for what has been heard; it does not end by itself.

        A thread that does not exist is silent until it does. Whoever has heard enough must close the generator.
        """
        with self._log.listening(thread_id) as news:
            while True:
                news.clear()
                found, wait_s = await self._database.run(_next, tenant, thread_id, heard)
                if found is None:
                    if wait_s is None:
                        heard.forget()
                    await self._news(news, wait_s)
                    continue
                async with aclosing(self._run(found, heard.events.get(found["seq"], 0))) as events:
                    async for said in events:
                        yield said
                heard.runs.add(found["seq"])

    async def check(self, tenant: str, thread_id: str) -> None:
        """See that a thread is the tenant's, or nobody's yet.

        Raises:
            ThreadNotFoundError: It is another's.
        """
        if await self._database.run(thread_rows.is_foreign, tenant, thread_id):
            raise ThreadNotFoundError(thread_id)

    async def _news(self, news: asyncio.Event, wait_s: float | None) -> None:
        if self._database.is_postgres:
            wait_s = _LOOK_S if wait_s is None else min(wait_s, _LOOK_S)
        try:
            async with asyncio.timeout(wait_s):
                await news.wait()
        except TimeoutError:
            return

    async def _run(self, run: Mapping[Any, Any], seq: int) -> AsyncGenerator[Said]:
        run_id: str = run["run_id"]
        number: int = run["seq"]
        async with aclosing(self._log.follow(run_id, seq)) as events:
            async for event in events:
                seq = event.seq
                if event.is_last or event.event == "metadata":  # it says when the run began or ended
                    run = await self._database.run(_one, run_id) or run
                yield Said(Place(number, seq), run, run_id, event)
                if event.is_last:
                    return
        if await self._database.run(_one, run_id) is None:
            yield Said(Place(number, seq + 1), None, run_id, None)


_NAMES = ("seq", "run_id", "status", "metadata", "started_at", "updated_at", "error", "cancel")
_COLUMNS = [RUNS.c[name] for name in _NAMES]


def _next(
    connection: Connection, tenant: str, thread_id: str, heard: Heard
) -> tuple[Mapping[Any, Any] | None, float | None]:
    """The first run that has not been heard, and the seconds until there may be one without anybody telling."""
    now = now_s(connection)
    unheard = and_(_of(tenant, thread_id), RUNS.c.seq >= heard.below, RUNS.c.seq.not_in(heard.runs))
    has_begun = or_(RUNS.c.status != RunStatus.PENDING.value, RUNS.c.not_before <= now)
    query = select(*_COLUMNS).where(unheard, has_begun).order_by(RUNS.c.seq).limit(1)
    found = connection.execute(query).mappings().first()
    if found is not None:
        return found, None
    return None, connection.execute(select(func.min(RUNS.c.not_before) - now).where(unheard)).scalar()


def _of(tenant: str, thread_id: str) -> ColumnElement[bool]:
    return and_(RUNS.c.thread_id == thread_id, RUNS.c.tenant == tenant)


def _heard_by_now(connection: Connection, tenant: str, thread_id: str) -> Heard:
    """All that has been said until now."""
    mine, goes_on = _of(tenant, thread_id), RUNS.c.status.in_(UNFINISHED)
    newest = connection.execute(select(func.max(RUNS.c.seq)).where(mine)).scalar() or 0
    below = connection.execute(select(func.min(RUNS.c.seq)).where(mine, goes_on)).scalar() or newest + 1
    over = connection.execute(select(RUNS.c.seq).where(mine, ~goes_on, RUNS.c.seq > below)).scalars()
    said = (
        select(RUNS.c.seq, func.max(EVENTS.c.seq))
        .join(EVENTS, EVENTS.c.run_id == RUNS.c.run_id)
        .where(mine, goes_on)
        .group_by(RUNS.c.seq)
    )
    return Heard(below, set(over), {row[0]: row[1] for row in connection.execute(said)})


def _one(connection: Connection, run_id: str) -> Mapping[Any, Any] | None:
    return connection.execute(select(*_COLUMNS).where(RUNS.c.run_id == run_id)).mappings().first()
