"""A PostgreSQL database, asked within transactions that cannot write and are never committed.

What holds, whatever gets past `statement.py`: the transaction is read-only, PostgreSQL stops it after its time,
and the role may do what it has been granted, which is the real boundary. A role that could reach the server's
files or programs is refused at the start: for such a one a transaction that only reads means little.

To make a role for this::

    CREATE ROLE reader LOGIN PASSWORD '...';
    GRANT USAGE ON SCHEMA public TO reader;
    GRANT SELECT ON orders, customers TO reader;
"""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import psycopg
from psycopg.types.string import TextLoader

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.sql.answer import CELL_CHARACTERS, Answer, QueryComplaint, cell
from muster_agent.tools.sql.statement import Dialect, Statement
from muster_observability import logs

_log = logs.get("agent")

_NOTICE_HANG_UP: Final = b"SET LOCAL client_connection_check_interval = '500ms'"
"""So that a query ends when we hang up, as we do on one that is cancelled. (The driver would ask the server to
stop it, but gives up when it is cancelled again, which anyio does until a task has ended.)
"""

_TOO_LONG: Final = "57014"
_MODELS_FAULT: Final = ("0A", "20", "21", "22", "25006", "2F", "42", "54", "P0")
"""SQLSTATEs, or the classes of them, that the query itself leads to."""
_POWERFUL: Final = """
SELECT EXISTS (
  SELECT FROM pg_catalog.pg_roles
  WHERE rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
    AND pg_catalog.pg_has_role(current_user, oid, 'MEMBER')
)
"""
_TAKEN: Final = """
SELECT name FROM pg_catalog.unnest(%s::text[]) AS name
WHERE pg_catalog.to_regclass(pg_catalog.quote_ident(name)) IS NOT NULL
"""
_DESCRIBE: Final = """
SELECT
  CASE WHEN pg_catalog.pg_table_is_visible(relation.oid) THEN relname ELSE nspname || '.' || relname END,
  nspname || '.' || relname,
  pg_catalog.string_agg(
    attname || ' ' || pg_catalog.format_type(atttypid, atttypmod)
      || CASE WHEN EXISTS (
        SELECT FROM pg_catalog.pg_constraint
        WHERE conrelid = relation.oid AND contype = 'p' AND attnum = ANY (conkey)
      ) THEN ' primary key' ELSE '' END
      || coalesce((
        SELECT ' -> ' || confrelid::regclass::text || '.' || target.attname
        FROM pg_catalog.pg_constraint
        JOIN pg_catalog.pg_attribute AS target ON target.attrelid = confrelid AND target.attnum = confkey[1]
        WHERE conrelid = relation.oid AND contype = 'f' AND conkey = ARRAY[attribute.attnum] LIMIT 1
      ), ''),
    ', ' ORDER BY attnum
  )
FROM pg_catalog.pg_class AS relation
JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = relnamespace
JOIN pg_catalog.pg_attribute AS attribute ON attrelid = relation.oid AND attnum > 0 AND NOT attisdropped
WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT relispartition
  AND nspname <> 'information_schema' AND nspname NOT LIKE 'pg\\_%'
  AND pg_catalog.has_schema_privilege(namespace.oid, 'USAGE')
  AND pg_catalog.has_column_privilege(relation.oid, attnum, 'SELECT')
GROUP BY relation.oid, relname, nspname ORDER BY 1
"""


class PostgresDatabase:
    """A database server; each query has a connection of its own, so that nothing is left to the next.

    Args:
        url: `postgresql://...`, as libpq takes it.
        tables: The tables that may be named in a query; None for all that the role may read.
        timeout_s: After which the server stops a query.
        most_at_once: Most connections at a time.
    """

    dialect: Dialect = "postgres"
    title = "PostgreSQL"

    def __init__(self, url: str, tables: frozenset[str] | None, timeout_s: float, most_at_once: int) -> None:
        self._url = url
        self._tables = None if tables is None else frozenset(name.removeprefix("public.") for name in tables)
        self._timeout_s = timeout_s
        self._limiter = anyio.CapacityLimiter(most_at_once)
        self._notices_hang_up = False

    async def open(self) -> None:
        """See that it can be reached, and that the role is one for reading.

        Raises:
            ToolkitError: It cannot, or it is not.
        """
        try:
            with anyio.fail_after(self._timeout_s):
                async with self._reading() as connection:
                    cursor = await connection.execute(_POWERFUL)
                    is_powerful = await cursor.fetchone() != (False,)
                    with contextlib.suppress(psycopg.ProgrammingError, psycopg.DataError):
                        await connection.execute(_NOTICE_HANG_UP)
                        self._notices_hang_up = True  # a server on Windows cannot
        except (psycopg.Error, TimeoutError) as error:
            raise ToolkitError(
                f"the PostgreSQL database cannot be used ({type(error).__name__}): check that it runs, and the"
                " address, name and password"
            ) from None
        if is_powerful:
            raise ToolkitError(
                "the database's role may use the server's files or programs, as a superuser may: make a role"
                " that has SELECT on the tables to be read, and nothing else"
            )

    async def query(self, statement: Statement, most_rows: int) -> Answer:
        """The first rows that a statement finds. Cancelled, it is stopped.

        Raises:
            ToolComplaint: The database refused it, or it names a table that may not be read.
            TimeoutError: The server stopped it for its time.
        """
        self._refuse_others(statement)
        try:
            async with self._limiter, self._reading() as connection:
                await self._refuse_disguise(connection, statement)
                return await _answer(connection, statement.sql, most_rows)
        except psycopg.Error as error:
            raise _told(error) from None

    async def describe(self) -> dict[str, str]:
        """The columns of each table and view that the role may read, by its name."""
        try:
            async with self._limiter, self._reading() as connection:
                cursor = await connection.execute(_DESCRIBE)
                rows: list[tuple[str, str, str]] = await cursor.fetchall()
        except psycopg.Error as error:
            raise _told(error) from None
        return {name: columns for name, full_name, columns in rows if self._may_name(full_name)}

    def _may_name(self, table: str) -> bool:
        return self._tables is None or table.removeprefix("public.") in self._tables

    def _refuse_others(self, statement: Statement) -> None:
        for table in sorted(statement.tables):
            if not self._may_name(table):
                raise ToolComplaint(
                    f"the table {table[:64]!a} may not be read; describe_tables tells which may"
                )

    async def _refuse_disguise(self, connection: psycopg.AsyncConnection[Any], statement: Statement) -> None:
        """What the statement calls by a table's name may be that table: it depends on where it stands."""
        if self._tables is None or not statement.queries:
            return
        cursor = await connection.execute(_TAKEN, (sorted(statement.queries),))
        for (name,) in await cursor.fetchall():
            raise ToolComplaint(
                f"give the query {name[:64]!a} in WITH another name: there is a table of that name"
            )

    @asynccontextmanager
    async def _reading(self) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
        """A connection in a transaction that cannot write. It ends by hanging up: nothing is committed."""
        timeout_ms = max(int(self._timeout_s * 1000), 1)
        connection = await psycopg.AsyncConnection[Any].connect(
            self._url,
            autocommit=True,
            connect_timeout=max(int(self._timeout_s), 2),
            client_encoding="utf8",
            application_name="muster",
        )
        # What comes over is text. The driver's own reading of this type looks up the time zone on the disk.
        connection.adapters.register_loader("timestamptz", TextLoader)
        try:
            # Set for the transaction alone: through a pooler, the session may be somebody else's next.
            await connection.execute(
                "BEGIN READ ONLY; SET LOCAL default_transaction_read_only = on;"
                f" SET LOCAL statement_timeout = {timeout_ms}; SET LOCAL lock_timeout = {timeout_ms};"
                f" SET LOCAL idle_in_transaction_session_timeout = {2 * timeout_ms};"
                " SET LOCAL standard_conforming_strings = on".encode()
            )
            if self._notices_hang_up:
                await connection.execute(_NOTICE_HANG_UP)
            yield connection
        finally:
            await connection.close()


async def _answer(connection: psycopg.AsyncConnection[Any], sql: str, most_rows: int) -> Answer:
    """Run a query through a cursor of the server's, with each cell cut there: little comes over, whatever it is."""
    async with connection.cursor(name="shape") as shape:
        await shape.execute(sql.encode())  # planned, not run: it tells which columns there are
        columns = [column.name for column in shape.description or ()]
    if not columns:
        raise ToolComplaint("the query selects no columns")
    names = [f"c{number}" for number in range(len(columns))]
    cells = ", ".join(f"pg_catalog.left({name}::pg_catalog.text, {CELL_CHARACTERS + 1})" for name in names)
    cut = f"SELECT {cells} FROM ({sql}) AS answer ({', '.join(names)})"  # noqa: S608 - `sql` is checked
    async with connection.cursor(name="answer") as cursor:
        await cursor.execute(cut.encode())
        rows: list[tuple[object, ...]] = await cursor.fetchmany(most_rows + 1)
    shown = [[cell(value) for value in row] for row in rows[:most_rows]]
    return Answer(columns, shown, is_whole=len(rows) <= most_rows)


def _told(error: psycopg.Error) -> Exception:
    """What the model is told: its own fault in the database's words, anything else without."""
    state = error.sqlstate or ""
    if state == _TOO_LONG:
        return TimeoutError()
    if state.startswith(_MODELS_FAULT):
        return QueryComplaint(f"the database says: {(error.diag.message_primary or 'no reason')[:300]}")
    _log.warning("database failed", error=type(error).__name__, code=state)
    return ToolComplaint("the database cannot answer now")
