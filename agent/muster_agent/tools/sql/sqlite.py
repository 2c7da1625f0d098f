"""A SQLite database, opened so that nothing can be written.

What holds, whatever gets past `statement.py`: the file is opened for reading only, and SQLite asks about each
thing that a statement is about to do when it is prepared (its *authorizer*): reading is allowed and nothing
else, so neither another file (ATTACH, VACUUM INTO), nor a setting (PRAGMA), nor an extension is ever reached.
"""

import contextlib
import itertools
import sqlite3
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.sql.answer import Answer, QueryComplaint, cell
from muster_agent.tools.sql.statement import MOST_CHARACTERS, Dialect, Statement, is_refused
from muster_observability import logs

_log = logs.get("agent")

_STEPS_PER_LOOK: Final = 10_000
"""Of SQLite's machine, between two looks whether to go on: a third of a millisecond."""
_LOCK_TIMEOUT_S: Final = 5.0
_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4_000_000,  # bytes of a value or a row: what one query holds in memory
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 2 * MOST_CHARACTERS * 4,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,  # matching a long one may take for ever in one step
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
_MODELS_FAULT: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_RANGE,
    }
)
_ANYBODYS_TABLES: Final = frozenset({"json_each", "json_tree"})
"""Functions in a table's place."""
_OBJECTS: Final = """
SELECT name, type, sql LIKE 'CREATE VIRTUAL TABLE%' FROM sqlite_master
WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name
"""
_COLUMNS: Final = "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid"
_REFERENCES: Final = 'SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)'


class SqliteDatabase:
    """A database file; each query has a connection and a thread of its own.

    Args:
        file: The file.
        tables: The tables and views that may be read; None for all. What an allowed view reads need not be
            among them.
        most_at_once: Most queries at a time.
    """

    dialect: Dialect = "sqlite"
    title = "SQLite"

    def __init__(self, file: Path, tables: frozenset[str] | None, most_at_once: int) -> None:
        self._url = f"{file.absolute().as_uri()}?mode=ro"
        self._tables = None if tables is None else frozenset(name.lower() for name in tables)
        self._limiter = anyio.CapacityLimiter(most_at_once)

    async def open(self) -> None:
        """See that it can be read.

        Raises:
            ToolkitError: It cannot.
        """
        try:
            await anyio.to_thread.run_sync(self._objects)
        except sqlite3.Error as error:
            raise ToolkitError(
                f"the SQLite database cannot be read ({error}): check its path and its rights, and that its"
                " folder can be written to where it is in WAL mode"
            ) from None

    async def query(self, statement: Statement, most_rows: int) -> Answer:
        """The first rows that a statement finds. Cancelled, it is stopped.

        Raises:
            ToolComplaint: The database refused it.
        """
        stop = threading.Event()
        try:
            return await anyio.to_thread.run_sync(
                self._answer, statement, most_rows, stop, abandon_on_cancel=True, limiter=self._limiter
            )
        except sqlite3.Error as error:
            raise _complaint(error) from None
        finally:
            # Not `interrupt()`: that is lost on a query which has not begun. The thread looks at this at once
            # when it begins and often afterwards, and closes its connection itself.
            stop.set()

    async def describe(self) -> dict[str, str]:
        """The columns of each table and view, by its name."""
        try:
            return await anyio.to_thread.run_sync(self._described, limiter=self._limiter)
        except sqlite3.Error as error:
            raise _complaint(error) from None

    def _answer(self, statement: Statement, most_rows: int, stop: threading.Event) -> Answer:
        allowed = None if self._tables is None else self._readable(self._tables)
        if allowed is not None:
            _refuse_disguise(statement, allowed)
        with self._connected() as connection:
            connection.set_progress_handler(stop.is_set, _STEPS_PER_LOOK)
            connection.set_authorizer(_Authorizer(allowed))
            cursor = connection.execute(statement.sql)
            columns = [str(column[0]) for column in cursor.description]
            # Cut one by one: only one row is ever held whole.
            rows = [[cell(value) for value in row] for row in itertools.islice(cursor, most_rows + 1)]
        return Answer(columns, rows[:most_rows], is_whole=len(rows) <= most_rows)

    def _described(self) -> dict[str, str]:
        with self._connected() as connection:
            return {name: _columns(connection, name) for name in self._listed(connection)}

    def _listed(self, connection: sqlite3.Connection) -> list[str]:
        rows = connection.execute(_OBJECTS).fetchall()
        virtual = tuple(f"{name}_" for name, _, is_virtual in rows if is_virtual)
        own = [str(name) for name, _, _ in rows if not name.startswith(virtual)]
        return [name for name in own if self._tables is None or name.lower() in self._tables]

    def _objects(self) -> list[tuple[str, bool]]:
        """Names of all tables and views, and whether they are virtual."""
        with self._connected() as connection:
            return [(str(name), bool(virtual)) for name, _, virtual in connection.execute(_OBJECTS)]

    def _readable(self, tables: frozenset[str]) -> frozenset[str]:
        """The allowed tables, and those in which allowed full-text and other virtual tables keep theirs."""
        objects = self._objects()
        virtual = tuple(
            f"{name.lower()}_" for name, is_virtual in objects if is_virtual and name.lower() in tables
        )
        return tables | {name.lower() for name, _ in objects if name.lower().startswith(virtual)}

    @contextlib.contextmanager
    def _connected(self) -> Generator[sqlite3.Connection]:
        connection = sqlite3.connect(self._url, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
        with contextlib.closing(connection):
            connection.text_factory = _decoded
            for limit, value in _LIMITS.items():
                connection.setlimit(limit, value)
            connection.execute("PRAGMA query_only = ON")
            connection.execute("PRAGMA trusted_schema = OFF")  # functions in views are anybody's, too
            yield connection


class _Authorizer:
    """Says what a statement may do, one thing at a time.

    Args:
        tables: What may be read, in lower case; None for everything.
    """

    def __init__(self, tables: frozenset[str] | None) -> None:
        self._tables = tables

    def __call__(
        self, action: int, first: str | None, second: str | None, _database: str | None, source: str | None
    ) -> int:
        match action:
            case sqlite3.SQLITE_SELECT | sqlite3.SQLITE_RECURSIVE:
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_READ:
                return self._may_read(first or "", second or "", source)
            case sqlite3.SQLITE_FUNCTION if not is_refused(second or ""):
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_PRAGMA if first == "data_version":  # full-text tables ask for it themselves
                return sqlite3.SQLITE_OK
            case sqlite3.SQLITE_UPDATE if first == "sqlite_master":
                # So a virtual table makes itself known to the connection; nothing of it is run. Ignored, a
                # real one would change nothing either.
                return sqlite3.SQLITE_IGNORE
            case _:
                return sqlite3.SQLITE_DENY

    def _may_read(self, table: str, column: str, source: str | None) -> int:
        """By the table, or by the view through which it is read; `_refuse_disguise` sees that it is one."""
        if self._tables is None or table.lower() in self._tables | _ANYBODYS_TABLES:
            return sqlite3.SQLITE_OK
        if source is not None and source.lower() in self._tables:
            return sqlite3.SQLITE_OK
        is_row_number = table == "sqlite_master" and column == "ROWID"  # what virtual tables ask for
        return sqlite3.SQLITE_OK if is_row_number else sqlite3.SQLITE_DENY


def _refuse_disguise(statement: Statement, allowed: frozenset[str]) -> None:
    """SQLite tells a view and a query of the statement's own apart by nothing: not by name, then."""
    for name in statement.queries & allowed:
        raise ToolComplaint(
            f"give the query {name[:64]!a} in WITH another name: there is a table of that name"
        )


def _columns(connection: sqlite3.Connection, table: str) -> str:
    references = {
        str(column).lower(): f" -> {other}" + (f".{key}" if key else "")
        for column, other, key in connection.execute(_REFERENCES, (table,))
    }
    return ", ".join(
        f"{name} {str(kind).lower()}".rstrip()
        + (" primary key" if key else "")
        + references.get(str(name).lower(), "")
        for name, kind, key in connection.execute(_COLUMNS, (table,))
    )


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _complaint(error: sqlite3.Error) -> ToolComplaint:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _MODELS_FAULT:
        return QueryComplaint(f"the database says: {str(error)[:300]}")
    _log.warning("database failed", error=type(error).__name__, code=getattr(error, "sqlite_errorname", ""))
    return ToolComplaint("the database cannot answer now")
