"""Checkpoints and the store in a SQLite file of their own.

LangGraph's saver commits after every write, so it shares a file with nothing else; it also locks itself, so there is
one in a process. One process has the file (`muster_storage` sees to that), so a hold that this process has not lost is
not lost: nothing need be asked of the database before a write.

Whatever is done to the file is done in one thread, whole: LangGraph's own saver for asyncio goes to a thread and back
for each statement, cursor and commit, five times for a state that is read.
"""

import asyncio
import importlib
import json
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint import sqlite
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)

from muster_agent.checkpoints.pending import OF_COMMANDS, Pending
from muster_agent.checkpoints.saver import Saver, serializer
from muster_agent.checkpoints.shortening import Known, superfluous
from muster_agent.runs import holds
from muster_storage import make_private

if TYPE_CHECKING:
    from langgraph.store.base import BaseStore

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

_OF_RUN = "json_extract(CAST(metadata AS TEXT), '$.run_id') = ?"
_NEWEST = "SELECT max(checkpoint_id) FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ''"
_KNOWN = (
    "SELECT checkpoint_ns, checkpoint_id, parent_checkpoint_id, "
    "json_extract(CAST(metadata AS TEXT), '$.counters_since_delta_snapshot') FROM checkpoints WHERE thread_id = ?"
)
_COLUMNS = {
    "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata",
    "writes": "checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value",
}


class _ThreadedSaver(sqlite.SqliteSaver):
    """LangGraph's saver for SQLite, its methods for asyncio done by the others in a thread.

    Args:
        connection: To the file.
        thread: A pool of one thread.
    """

    def __init__(self, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        super().__init__(connection, serde=serializer())
        self._thread = thread

    async def _run(
        self,
        work: Callable[_Given, _Result],
        *given: _Given.args,
        **named: _Given.kwargs,
    ) -> _Result:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: work(*given, **named))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return await self._run(self.get_tuple, config)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - as the base class has it
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        found = await self._run(lambda: [*self.list(config, filter=filter, before=before, limit=limit)])
        for each in found:
            yield each

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        return await self._run(super().put, config, checkpoint, metadata, new_versions)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        await self._run(super().put_writes, config, writes, task_id, task_path)

    async def adelete_thread(self, thread_id: str) -> None:
        await self._run(self.delete_thread, thread_id)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        return await self._run(self.get_delta_channel_history, config=config, channels=channels)


class SqliteSaver(Saver, _ThreadedSaver):
    """What the service needs of it.

    The methods that are not for asyncio serve graphs that a graph's node runs in its own thread.
    """

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint.

        Raises:
            LeaseLostError: The thread is another process's.
        """
        holds.current()
        return super().put(config, checkpoint, metadata, new_versions)

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store what tasks have written.

        Raises:
            LeaseLostError: The thread is another process's.
        """
        holds.current()
        super().put_writes(config, writes, task_id, task_path)

    async def take_back(self, thread_id: str, run_id: str) -> None:
        """Delete what a run has stored, so that its thread is as it was before."""
        await self._run(self._take_back, thread_id, run_id)

    async def copy(self, thread_id: str, to_thread_id: str) -> None:
        """Copy a thread's whole history to a thread that has none."""
        await self._run(self._copy, thread_id, to_thread_id)

    async def shorten(self, thread_id: str, keep: int) -> None:
        """Delete what a thread's newest `keep` states do not need."""
        await self._run(self._shorten, thread_id, keep)

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        # The connection's own block commits, or takes everything back where something fails.
        with self.lock, self.conn as connection:
            yield connection

    def _take_back(self, thread_id: str, run_id: str) -> None:
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM writes WHERE thread_id = ? AND (checkpoint_ns, checkpoint_id) IN "  # noqa: S608 - a constant
                f"(SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = ? AND {_OF_RUN})",
                (thread_id, thread_id, run_id),
            )
            connection.execute(
                f"DELETE FROM checkpoints WHERE thread_id = ? AND {_OF_RUN}",  # noqa: S608 - likewise
                (thread_id, run_id),
            )

    async def pending(self, thread_id: str, checkpoint_id: str | None) -> Pending | None:
        """What stands beside a thread's newest checkpoint, or beside this one and those after it."""
        return await self._run(self._pending, thread_id, checkpoint_id)

    async def put_back(self, thread_id: str, pending: Pending, *, command_alone: bool) -> None:
        """Have what stood beside these checkpoints stand there again, and no more; or only what a command brings."""
        await self._run(self._put_back, thread_id, pending, command_alone=command_alone)

    def _pending(self, thread_id: str, checkpoint_id: str | None) -> Pending | None:
        with self._transaction() as connection:
            since = checkpoint_id or connection.execute(_NEWEST, (thread_id,)).fetchone()[0]
            if since is None:
                return None
            found = connection.execute(
                f"SELECT {_COLUMNS['writes']} FROM writes WHERE thread_id = ? AND checkpoint_id >= ?",  # noqa: S608 - constants
                (thread_id, since),
            )
            return Pending(since, found.fetchall())

    def _put_back(self, thread_id: str, pending: Pending, *, command_alone: bool) -> None:
        rows = [(thread_id, *row) for row in pending.chosen(command_alone=command_alone)]
        which = f" AND {OF_COMMANDS}" if command_alone else ""
        names = _COLUMNS["writes"]
        given = ", ".join("?" * (names.count(",") + 2))
        with self._transaction() as connection:
            connection.execute(
                f"DELETE FROM writes WHERE thread_id = ? AND checkpoint_id >= ?{which}",  # noqa: S608 - constants
                (thread_id, pending.since),
            )
            connection.executemany(f"INSERT INTO writes (thread_id, {names}) VALUES ({given})", rows)  # noqa: S608 - likewise

    def _copy(self, thread_id: str, to_thread_id: str) -> None:
        with self._transaction() as connection:
            for table, names in _COLUMNS.items():
                connection.execute(
                    f"INSERT INTO {table} (thread_id, {names}) SELECT ?, {names} FROM {table} WHERE thread_id = ?",  # noqa: S608 - constants
                    (to_thread_id, thread_id),
                )

    def _shorten(self, thread_id: str, keep: int) -> None:
        with self._transaction() as connection:
            known = [
                Known(namespace, checkpoint_id, parent_id, json.loads(counters) if counters else None)
                for namespace, checkpoint_id, parent_id, counters in connection.execute(_KNOWN, (thread_id,))
            ]
            gone = [(thread_id, *key) for key in superfluous(known, keep)]
            for table in _COLUMNS:
                connection.executemany(
                    f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?",  # noqa: S608 - constants
                    gone,
                )


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncGenerator[tuple[Saver, "BaseStore"]]:
    """Open checkpoints in `path`, and the store in a file beside it."""
    # It loads a vector library; a thread, because importing reads files.
    stores = await asyncio.to_thread(importlib.import_module, "langgraph.store.sqlite.aio")
    items = path.with_name(f"{path.stem}-store{path.suffix}")
    for file in (path, items):
        await asyncio.to_thread(make_private, file)
    async with _opened(path) as saver, stores.AsyncSqliteStore.from_conn_string(str(items)) as store:
        await store.setup()
        yield saver, store


@asynccontextmanager
async def _opened(path: Path) -> AsyncGenerator[SqliteSaver]:
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, "checkpoints")
    saver = await loop.run_in_executor(thread, _open, path, thread)
    try:
        yield saver
    finally:
        await loop.run_in_executor(thread, saver.conn.close)
        thread.shutdown()


def _open(path: Path, thread: ThreadPoolExecutor) -> SqliteSaver:
    connection = sqlite3.connect(path, check_same_thread=False)  # the saver has a lock
    # As in muster_storage: a killed process loses nothing.
    connection.execute("PRAGMA synchronous=NORMAL")
    saver = SqliteSaver(connection, thread)
    saver.setup()
    return saver
