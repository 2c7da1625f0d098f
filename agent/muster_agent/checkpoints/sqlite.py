"""Checkpoints and the store in a SQLite file of their own.

LangGraph's saver commits after every write, so it shares a file with nothing else; it also locks itself, so there is
one in a process. One process has the file (`muster_storage` sees to that), so a hold that this process has not lost is
not lost: nothing need be asked of the database before a write.
"""

import asyncio
import importlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiosqlite
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from muster_agent.checkpoints.saver import Saver, serializer
from muster_storage import make_private

if TYPE_CHECKING:
    from langgraph.store.base import BaseStore

_OF_RUN = "json_extract(CAST(metadata AS TEXT), '$.run_id') = ?"


class SqliteSaver(Saver, AsyncSqliteSaver):
    """LangGraph's saver for SQLite."""

    async def take_back(self, thread_id: str, run_id: str) -> None:
        """Delete what a run has stored, so that its thread is as it was before."""
        await self.setup()
        async with self.lock:
            await self.conn.execute(
                "DELETE FROM writes WHERE thread_id = ? AND (checkpoint_ns, checkpoint_id) IN "  # noqa: S608 - a constant
                f"(SELECT checkpoint_ns, checkpoint_id FROM checkpoints WHERE thread_id = ? AND {_OF_RUN})",
                (thread_id, thread_id, run_id),
            )
            await self.conn.execute(
                f"DELETE FROM checkpoints WHERE thread_id = ? AND {_OF_RUN}",  # noqa: S608 - likewise
                (thread_id, run_id),
            )
            # An answer that the run had brought is taken back too, or the question would count as answered.
            await self.conn.execute(
                "DELETE FROM writes WHERE thread_id = ? AND channel = '__resume__'", (thread_id,)
            )
            await self.conn.commit()

    async def copy(self, thread_id: str, to_thread_id: str) -> None:
        """Copy a thread's whole history to a thread that has none."""
        await self.setup()
        columns = {
            "checkpoints": "checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, checkpoint, metadata",
            "writes": "checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, value",
        }
        async with self.lock:
            for table, names in columns.items():
                await self.conn.execute(
                    f"INSERT INTO {table} (thread_id, {names}) SELECT ?, {names} FROM {table} WHERE thread_id = ?",  # noqa: S608 - constants
                    (to_thread_id, thread_id),
                )
            await self.conn.commit()

    async def shorten(self, thread_id: str, keep: int) -> None:
        """Delete all but a thread's newest `keep` checkpoints."""
        await self.setup()
        # Identifiers of checkpoints grow with time, those of subgraphs among them.
        oldest = (
            "(SELECT checkpoint_id FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = '' "
            "ORDER BY checkpoint_id DESC LIMIT 1 OFFSET ?)"
        )
        async with self.lock:
            for table in ("writes", "checkpoints"):
                await self.conn.execute(
                    f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_id < {oldest}",  # noqa: S608 - constants
                    (thread_id, thread_id, keep - 1),
                )
            await self.conn.commit()


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncGenerator[tuple[Saver, "BaseStore"]]:
    """Open checkpoints in `path`, and the store in a file beside it."""
    # It loads a vector library; a thread, because importing reads files.
    stores = await asyncio.to_thread(importlib.import_module, "langgraph.store.sqlite.aio")
    items = path.with_name(f"{path.stem}-store{path.suffix}")
    for file in (path, items):
        await asyncio.to_thread(make_private, file)
    async with (
        aiosqlite.connect(path) as connection,
        stores.AsyncSqliteStore.from_conn_string(str(items)) as store,
    ):
        # As in muster_storage: a killed process loses nothing.
        await connection.execute("PRAGMA synchronous=NORMAL")
        saver = SqliteSaver(connection, serde=serializer())
        await saver.setup()
        await store.setup()
        yield saver, store
