"""What a transaction of four statements costs in CPU time, by four ways of reaching SQLite from asyncio.

Run it: `.venv/bin/python -m tests.benchmarks.storage`. The figures are in docs/decisions/0006-storage.md.
"""

import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiosqlite
from sqlalchemy import Column, Connection, Integer, MetaData, Table, Text, bindparam, insert, select, update

from muster_agent.runs.tables import SCHEMA
from muster_storage import Prepared, open_database

_TRANSACTIONS = 1500
_ROUNDS = 5
_TABLE = Table("bench", MetaData(), Column("id", Integer, primary_key=True), Column("body", Text))
_CREATE = "CREATE TABLE bench (id INTEGER PRIMARY KEY, body TEXT)"

Way = Callable[[], Awaitable[None]]


async def _cpu_us(way: Way) -> float:
    """Microseconds of this process's CPU time for one transaction."""
    before = time.process_time()
    for _ in range(_TRANSACTIONS):
        await way()
    return (time.process_time() - before) / _TRANSACTIONS * 1e6


def _with_core(connection: Connection) -> None:
    row = connection.execute(insert(_TABLE).values(body="x").returning(_TABLE.c.id)).scalar_one()
    connection.execute(select(_TABLE).where(_TABLE.c.id == row)).all()
    connection.execute(update(_TABLE).where(_TABLE.c.id == row).values(body="y"))
    connection.execute(select(_TABLE.c.body).where(_TABLE.c.id == row)).scalar()


_THIS = _TABLE.c.id == bindparam("this")
_insert = Prepared(lambda _now: insert(_TABLE).returning(_TABLE.c.id))
_select = Prepared(lambda _now: select(_TABLE).where(_THIS))
_update = Prepared(lambda _now: update(_TABLE).where(_THIS).values(body=bindparam("new_body")))
_body = Prepared(lambda _now: select(_TABLE.c.body).where(_THIS))


def _with_prepared(connection: Connection) -> None:
    row = connection.execute(_insert(connection), {"body": "x"}).scalar_one()
    connection.execute(_select(connection), {"this": row}).all()
    connection.execute(_update(connection), {"this": row, "new_body": "y"})
    connection.execute(_body(connection), {"this": row}).scalar()


def _bare(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    (row,) = connection.execute("INSERT INTO bench (body) VALUES (?) RETURNING id", ("x",)).fetchone()
    connection.execute("SELECT * FROM bench WHERE id = ?", (row,)).fetchall()
    connection.execute("UPDATE bench SET body = ? WHERE id = ?", ("y", row))
    connection.execute("SELECT body FROM bench WHERE id = ?", (row,)).fetchone()
    connection.execute("COMMIT")


async def _hopping(connection: aiosqlite.Connection) -> None:
    await connection.execute("BEGIN IMMEDIATE")
    async with connection.execute("INSERT INTO bench (body) VALUES (?) RETURNING id", ("x",)) as cursor:
        found = await cursor.fetchone()
    row = found[0] if found is not None else 0
    async with connection.execute("SELECT * FROM bench WHERE id = ?", (row,)) as cursor:
        await cursor.fetchall()
    await connection.execute("UPDATE bench SET body = ? WHERE id = ?", ("y", row))
    async with connection.execute("SELECT body FROM bench WHERE id = ?", (row,)) as cursor:
        await cursor.fetchone()
    await connection.commit()


async def _measure(folder: Path) -> dict[str, list[float]]:
    database = await asyncio.to_thread(open_database, f"sqlite:///{folder}/core.db", SCHEMA)
    await database.run(_TABLE.metadata.create_all)
    threads = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    bare = await loop.run_in_executor(
        threads, lambda: sqlite3.connect(folder / "bare.db", isolation_level=None, check_same_thread=False)
    )
    bare.execute("PRAGMA journal_mode=WAL")
    bare.execute("PRAGMA synchronous=NORMAL")
    bare.execute(_CREATE)

    async def in_thread() -> None:
        await loop.run_in_executor(threads, _bare, bare)

    async with aiosqlite.connect(folder / "hops.db", isolation_level=None) as hops:
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL", _CREATE):
            await hops.execute(statement)
        ways: dict[str, Way] = {
            "sqlite3, one hop to a thread": in_thread,
            "SQLAlchemy Core, one hop to a thread": lambda: database.run(_with_core),
            "the same, statements built once": lambda: database.run(_with_prepared),
            "aiosqlite, a hop for each statement": lambda: _hopping(hops),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                found[name].append(await _cpu_us(way))
    await database.close()
    threads.shutdown()
    return found


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(_measure(Path(folder)))
    print(
        f"CPU us a transaction of four statements; {_ROUNDS} rounds of {_TRANSACTIONS}, {os.cpu_count()} cores"
    )
    for name, figures in found.items():
        print(
            f"  {name:40} median {statistics.median(figures):6.0f}  ({min(figures):.0f} to {max(figures):.0f})"
        )


if __name__ == "__main__":
    main()
