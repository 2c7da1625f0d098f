"""Checkpoints and the store in PostgreSQL, beside the service's own tables.

A process that has slept through the end of its lease does not know it. So every write asks for the thread's fence in
its own transaction and keeps it from changing until it has committed.

A write is one journey to the database and back: its statements are one after the other under way, and are one
transaction. The fence is asked for with the last of them, which fails where another process has it, and all before it
are undone. Asked for with the first, it would be locked for longer, and by a process that is stopped in between for as
long as that lasts.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.store.postgres.aio import AsyncPostgresStore
from psycopg import AsyncConnection, AsyncCursor, OperationalError, errors, sql
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from muster_agent.checkpoints.pending import OF_COMMANDS, Pending
from muster_agent.checkpoints.saver import Saver, serializer
from muster_agent.checkpoints.shortening import Known, superfluous
from muster_agent.runs import holds
from muster_agent.runs.records import LeaseLostError
from muster_storage import KEPT_ALIVE, SESSION, has_news

if TYPE_CHECKING:
    from langgraph.store.base import BaseStore

_CONNECTIONS = 10
_TRY_AGAIN_S = 0.1
# Replicas that start together set up one after the other. Any number that nothing else uses.
_LOCK = 0x4D_55_53_54_45_53

_WRITES = ("checkpoint_ns", "checkpoint_id", "task_id", "task_path", "idx", "channel", "type", "blob")
_NEWEST = "SELECT max(checkpoint_id) AS newest FROM checkpoints WHERE thread_id = %s AND checkpoint_ns = ''"
_KNOWN = (
    "SELECT checkpoint_ns AS namespace, checkpoint_id, parent_checkpoint_id AS parent_id, "
    "metadata -> 'counters_since_delta_snapshot' AS counters FROM checkpoints WHERE thread_id = %s"
)
# It divides by zero where another process has the thread.
_FENCE = (
    "SELECT 1 / count(*) FROM (SELECT FROM agent_threads "
    "WHERE thread_id = %s AND fence = %s AND running_run_id = %s FOR SHARE) AS held"
)


class PostgresSaver(Saver, AsyncPostgresSaver):
    """LangGraph's saver for PostgreSQL."""

    @asynccontextmanager
    async def _cursor(self, *, pipeline: bool = False) -> AsyncGenerator[AsyncCursor[DictRow]]:
        # LangGraph's has one lock for all readers and writers; each has a connection of the pool here. It asks for a
        # pipeline where it writes.
        pool = cast("AsyncConnectionPool[AsyncConnection[DictRow]]", self.conn)
        async with pool.connection() as connection:
            if not pipeline:
                async with connection.cursor(binary=True, row_factory=dict_row) as cursor:
                    yield cursor
                return
            async with (
                _fenced(),
                connection.pipeline(),
                connection.cursor(binary=True, row_factory=dict_row) as cursor,
            ):
                yield cursor
                if (hold := holds.peek()) is not None:
                    await cursor.execute(_FENCE, (hold.lease.thread_id, hold.lease.fence, hold.lease.run_id))

    async def take_back(self, thread_id: str, run_id: str) -> None:
        """Delete what a run has stored, so that its thread is as it was before."""
        ours = "thread_id = %(thread)s AND metadata ->> 'run_id' = %(run)s"
        given = {"thread": thread_id, "run": run_id}
        async with self._cursor(pipeline=True) as cursor:
            await cursor.execute(
                "DELETE FROM checkpoint_writes WHERE thread_id = %(thread)s AND (checkpoint_ns, checkpoint_id) IN "  # noqa: S608 - constants
                f"(SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE {ours})",
                given,
            )
            await cursor.execute(f"DELETE FROM checkpoints WHERE {ours}", given)  # noqa: S608 - likewise
            await _drop_unused_blobs(cursor, thread_id)

    async def pending(self, thread_id: str, checkpoint_id: str | None) -> Pending | None:
        """What stands beside a thread's newest checkpoint, or beside this one and those after it."""
        async with self._cursor() as cursor:
            await cursor.execute(_NEWEST, (thread_id,))
            newest = await cursor.fetchone()
            since = checkpoint_id or (newest or {}).get("newest")
            if since is None:
                return None
            await cursor.execute(
                f"SELECT {', '.join(_WRITES)} FROM checkpoint_writes WHERE thread_id = %s AND checkpoint_id >= %s",  # noqa: S608 - constants
                (thread_id, since),
            )
            return Pending(since, [tuple(row.values()) for row in await cursor.fetchall()])

    async def put_back(self, thread_id: str, pending: Pending, *, command_alone: bool) -> None:
        """Have what stood beside these checkpoints stand there again, and no more; or only what a command brings."""
        which = f" AND {OF_COMMANDS}" if command_alone else ""
        given = sql.SQL(", ").join([sql.Placeholder()] * (len(_WRITES) + 1))
        names = sql.SQL(", ").join(map(sql.Identifier, ("thread_id", *_WRITES)))
        insert = sql.SQL("INSERT INTO checkpoint_writes ({names}) VALUES ({given})")
        async with self._cursor(pipeline=True) as cursor:
            await cursor.execute(
                f"DELETE FROM checkpoint_writes WHERE thread_id = %s AND checkpoint_id >= %s{which}",  # noqa: S608 - constants
                (thread_id, pending.since),
            )
            for row in pending.chosen(command_alone=command_alone):
                await cursor.execute(insert.format(names=names, given=given), (thread_id, *row))

    async def copy(self, thread_id: str, to_thread_id: str) -> None:
        """Copy a thread's whole history to a thread that has none."""
        columns = {
            "checkpoints": "checkpoint_ns checkpoint_id parent_checkpoint_id type checkpoint metadata",
            "checkpoint_blobs": "checkpoint_ns channel version type blob",
            "checkpoint_writes": " ".join(_WRITES),
        }
        copied = sql.SQL(
            "INSERT INTO {table} (thread_id, {names}) SELECT %s, {names} FROM {table} WHERE thread_id = %s"
        )
        async with self._cursor(pipeline=True) as cursor:
            for table, names in columns.items():
                listed = sql.SQL(", ").join(map(sql.Identifier, names.split()))
                statement = copied.format(table=sql.Identifier(table), names=listed)
                await cursor.execute(statement, (to_thread_id, thread_id))

    async def shorten(self, thread_id: str, keep: int) -> None:
        """Delete what a thread's newest `keep` states do not need."""
        async with self._cursor() as cursor:
            await cursor.execute(_KNOWN, (thread_id,))
            gone = superfluous([Known(**row) for row in await cursor.fetchall()], keep)
        if not gone:
            return
        given = (thread_id, [namespace for namespace, _ in gone], [checkpoint for _, checkpoint in gone])
        async with self._cursor(pipeline=True) as cursor:
            for table in ("checkpoint_writes", "checkpoints"):
                await cursor.execute(
                    f"DELETE FROM {table} WHERE thread_id = %s AND (checkpoint_ns, checkpoint_id) IN "  # noqa: S608 - constants
                    "(SELECT * FROM unnest(%s::text[], %s::text[]))",
                    given,
                )
            await _drop_unused_blobs(cursor, thread_id)


@asynccontextmanager
async def _fenced() -> AsyncGenerator[None]:
    try:
        yield
    except errors.DivisionByZero:
        raise LeaseLostError(holds.current().lease.run_id) from None


async def _prepare(connection: AsyncConnection[Any]) -> None:
    await connection.execute(SESSION)


async def _check(pool: AsyncConnectionPool[Any], connection: AsyncConnection[Any]) -> None:
    """See that a connection is alive: a restarted server must not cost a run.

    Where one is dead, so are the others: the pool would find them one after the other, waiting longer each time.
    """
    if not has_news(connection):
        return
    try:
        await AsyncConnectionPool.check_connection(connection)
    except OperationalError:
        await pool.check()
        raise


async def _drop_unused_blobs(cursor: AsyncCursor[Any], thread_id: str) -> None:
    await cursor.execute(
        "DELETE FROM checkpoint_blobs AS b WHERE thread_id = %s AND NOT EXISTS (SELECT 1 FROM checkpoints AS c "
        "WHERE c.thread_id = b.thread_id AND c.checkpoint_ns = b.checkpoint_ns "
        "AND c.checkpoint -> 'channel_versions' ->> b.channel = b.version)",
        (thread_id,),
    )


@asynccontextmanager
async def open_postgres(url: str) -> AsyncGenerator[tuple[Saver, "BaseStore"]]:
    """Open checkpoints and the store in the database of this URL."""
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row, **KEPT_ALIVE}
    pool: AsyncConnectionPool[AsyncConnection[DictRow]] = AsyncConnectionPool(
        url,
        min_size=1,
        max_size=_CONNECTIONS,
        kwargs=options,
        configure=_prepare,
        check=lambda connection: _check(pool, connection),
        open=False,
    )
    async with pool:
        saver = PostgresSaver(cast("Any", pool), serde=serializer())
        store = AsyncPostgresStore(cast("Any", pool))
        async with pool.connection() as connection, _locked(connection):
            await saver.setup()
            await store.setup()
        yield saver, store


@asynccontextmanager
async def _locked(connection: AsyncConnection[DictRow]) -> AsyncGenerator[None]:
    """Let one process at a time into the block.

    It asks again and again. One that waited inside PostgreSQL would wait in a transaction, and LangGraph's set-up
    makes an index that waits for the end of every transaction: each would wait for the other, unseen by PostgreSQL.
    """
    while not await _try_lock(connection):  # noqa: ASYNC110 - another process holds it
        await asyncio.sleep(_TRY_AGAIN_S)
    try:
        yield
    finally:
        await connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


async def _try_lock(connection: AsyncConnection[DictRow]) -> bool:
    row = await (await connection.execute("SELECT pg_try_advisory_lock(%s) AS got", (_LOCK,))).fetchone()
    return row is not None and bool(row["got"])
