"""Databases: opened, migrated, used by one process or several, and refused when something is wrong with them."""

import asyncio
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Integer,
    MetaData,
    Select,
    Table,
    create_engine,
    insert,
    make_url,
    select,
    text,
)

from muster_agent.runs.records import NewThread
from muster_agent.runs.tables import METADATA, SCHEMA
from muster_agent.runs.thread_rows import ThreadQuery, insert_thread, search
from muster_storage import Database, DatabaseInUseError, Json, Prepared, StorageError, now_s, open_database
from tests.postgres import new_database

_NOTES = Table("notes", MetaData(), Column("id", Integer, primary_key=True), Column("body", Json))


@pytest.fixture
async def database(database_url: str) -> Any:
    """A database with a table of notes."""
    opened = await asyncio.to_thread(open_database, database_url, SCHEMA)
    await opened.run(_NOTES.metadata.create_all)
    yield opened
    await opened.close()


def _write(connection: Connection, body: object) -> None:
    connection.execute(insert(_NOTES).values(body=body))


def _read(connection: Connection) -> list[Any]:
    return list(connection.execute(select(_NOTES.c.body).order_by(_NOTES.c.id)).scalars())


def test_the_code_expects_the_newest_revision() -> None:
    """The revision that the code names is the last of the scripts."""
    assert ScriptDirectory(str(SCHEMA.scripts)).get_current_head() == SCHEMA.head


def test_migrations_make_the_tables_that_the_code_uses(database_url: str) -> None:
    """Alembic finds no difference between what its scripts have made and what the code declares."""
    database = open_database(database_url, SCHEMA)
    try:
        with database.engine.connect() as connection:
            ours = MigrationContext.configure(
                connection,
                opts={"include_name": _is_ours},
            )
            assert compare_metadata(ours, METADATA) == []
    finally:
        asyncio.run(database.close())


async def test_a_database_of_an_earlier_revision(database_url: str) -> None:
    """It is brought to the newest one with all that is in it, and can be written to."""
    earlier = await asyncio.to_thread(open_database, database_url, replace(SCHEMA, head="0001"))
    row = (
        "INSERT INTO agent_threads (thread_id, tenant, created_at, updated_at, state_updated_at, metadata, config, "
        "status, is_temporary, fence, events_before) VALUES ('old', '', 1, 1, 1, '{}', '{}', 'idle', false, 0, 0)"
    )
    await earlier.run(lambda connection: connection.execute(text(row)))
    await earlier.close()

    database = await asyncio.to_thread(open_database, database_url, SCHEMA)
    await database.run(insert_thread, NewThread("new", ""))
    threads = await database.run(search, "", ThreadQuery(), ("thread_id", False), (10, 0))
    assert [each["thread_id"] for each in threads] == ["new", "old"]
    await database.close()


def _is_ours(name: str | None, kind: str, _parents: object) -> bool:
    return kind != "table" or name in METADATA.tables


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        1,
        1.5,
        True,
        [],
        {"a": [1, {"b": None}]},
        {"ключ": "значение", "nul": "a\0\0b"},
        r"\u0000",
        "\\\0",
    ],
)
async def test_json_comes_back(database: Database, value: object) -> None:
    """What is stored as JSON is read as what it was; only NUL, which PostgreSQL cannot hold, is replaced."""
    await database.run(_write, value)
    (read,) = await database.run(_read)
    assert read == _without_nul(value)


def _without_nul(value: object) -> object:
    match value:
        case str():
            return value.replace("\0", "\ufffd")
        case {"nul": str(text), **others}:
            return {**others, "nul": _without_nul(text)}
        case _:
            return value


async def test_a_failed_transaction_writes_nothing(database: Database) -> None:
    """An exception takes back what came before it."""

    def fail(connection: Connection) -> None:
        _write(connection, "half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await database.run(fail)
    assert await database.run(_read) == []


async def test_a_cancelled_caller_does_not_stop_its_transaction(database: Database) -> None:
    """It is finished without the caller."""
    has_begun, may_end = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        has_begun.set()
        assert may_end.wait(30)
        _write(connection, "whole")

    writing = asyncio.create_task(database.run(slow))
    await asyncio.to_thread(has_begun.wait, 30)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    may_end.set()
    while await database.run(_read) != ["whole"]:
        await asyncio.sleep(0)


async def test_many_transactions_at_once(database: Database) -> None:
    """None is lost, and none fails because another one writes."""
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(database.run(_write, number))
    assert sorted(await database.run(_read)) == list(range(50))


async def test_the_clock_is_the_databases(database: Database) -> None:
    """It gives seconds since 1970, and does not stand still."""
    first, second = [
        await database.run(lambda connection: connection.execute(select(now_s(connection))).scalar_one())
        for _ in range(2)
    ]
    assert 1_700_000_000 < first <= second


def test_a_database_of_a_newer_release_is_left_alone(database_url: str) -> None:
    """The error says that a newer release wrote it."""
    asyncio.run(open_database(database_url, SCHEMA).close())
    url = make_url(database_url)
    engine = create_engine(
        url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url
    )
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {SCHEMA.version_table} SET version_num = '9999'"))  # noqa: S608 - a name of ours
    engine.dispose()
    with pytest.raises(StorageError, match="written by a newer release"):
        open_database(database_url, SCHEMA)


def test_replicas_that_start_together(postgres_url: str) -> None:
    """Each finds or makes the tables; none fails because another one is making them."""
    with new_database(postgres_url) as url, ThreadPoolExecutor(4) as threads:
        for database in threads.map(open_database, [url] * 4, [SCHEMA] * 4):
            asyncio.run(database.close())


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """A SQLite database serves one process; it is free again when that one has closed it."""
    url = f"sqlite:///{tmp_path}/test.db"
    first = open_database(url, SCHEMA)
    with pytest.raises(DatabaseInUseError, match="in use by another process"):
        open_database(url, SCHEMA)
    asyncio.run(first.close())
    asyncio.run(open_database(url, SCHEMA).close())


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """It is told, and not overwritten."""
    path = tmp_path / "test.db"
    path.write_bytes(b"these are my notes, not a database\n" * 100)
    before = path.read_bytes()
    with pytest.raises(StorageError, match="cannot be read as a database"):
        open_database(f"sqlite:///{path}", SCHEMA)
    assert path.read_bytes() == before


def test_conversations_are_for_their_owner_alone(tmp_path: Path) -> None:
    """No other account of the machine can read the file."""
    path = tmp_path / "new" / "test.db"
    asyncio.run(open_database(f"sqlite:///{path}", SCHEMA).close())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "expected a database URL"),
        ("mysql://host/name", "not supported"),
        ("sqlite://", "not supported"),
        ("sqlite:////proc/nowhere/test.db", "cannot be written"),
        ("postgresql://user:secret@127.0.0.1:1/name", "cannot be reached"),
    ],
)
def test_what_cannot_be_opened(url: str, words: str) -> None:
    """The error says what to do, without the password."""
    with pytest.raises(StorageError, match=words) as raised:
        open_database(url, SCHEMA)
    assert "secret" not in str(raised.value)


async def test_a_restarted_server_costs_nothing(postgres_url: str) -> None:
    """Connections that the server has dropped meanwhile are made anew, and nobody hears of it."""
    with new_database(postgres_url) as url:
        database = open_database(url, SCHEMA)
        await database.run(_NOTES.metadata.create_all)
        await database.run(_write, 1)
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert await database.run(_read) == [1]
        await database.close()


async def test_locks_do_not_outlive_their_owner_for_long(postgres_url: str) -> None:
    """The server ends a transaction that is left open, and notices when the machine behind it is gone."""
    settings = "idle_in_transaction_session_timeout", "tcp_keepalives_idle", "tcp_keepalives_interval"
    with new_database(postgres_url) as url:
        database = open_database(url, SCHEMA)

        def shown(connection: Connection) -> list[str]:
            return [connection.execute(text(f"SHOW {name}")).scalar_one() for name in settings]

        assert await database.run(shown) == ["10s", "10", "5"]
        await database.close()


async def test_a_statement_is_built_once(database: Database) -> None:
    """And has the clock of its database in it."""
    built: list[Select[float]] = []

    @Prepared
    def clock(now: ColumnElement[float]) -> Select[float]:
        built.append(select(now))
        return built[-1]

    def read(connection: Connection) -> float:
        return connection.execute(clock(connection)).scalar_one()

    assert await database.run(read) <= await database.run(read)
    assert len(built) == 1
