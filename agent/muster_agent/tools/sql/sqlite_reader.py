"""A program that reads a SQLite file: it is asked one thing, answers it and ends.

It is a process of its own because nothing less ends a query. SQLite looks whether to go on between two steps of its
machine only, and one step may take minutes: `instr` and `ltrim` are quadratic. A thread in such a step cannot be
stopped, and keeps the service from ending; a process is killed.

What holds, whatever gets past `statement.py`:

* Reading alone. The file is opened for it, and SQLite asks about each thing that a statement is about to do when it
  is prepared (its *authorizer*): reading is allowed and nothing else, so neither another file (ATTACH, VACUUM INTO),
  nor a setting (PRAGMA), nor an extension is ever reached.
* Time. `sqlite.py` kills the process; should that be dead itself, an alarm of the system's does.
* Memory. SQLite keeps to a limit, on Linux the process does, too. (An SQLite built without statistics of its memory,
  as the one that comes with macOS, keeps to none; Python's own builds bring another.)
* Disk. What SQLite would put into a temporary file stays in that memory.

`sqlite.py` runs this file by its path and without site packages, so that it starts within 20 ms: it stands on the
standard library alone. Question and answer are JSON, on standard input and output.
"""

import json
import resource
import signal
import sqlite3
import sys
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Final, Literal, TypedDict

MOST_MEMORY_BYTES: Final = 64 * 2**20
"""What SQLite holds for a query: half a million rows that are sorted."""
REFUSED: Final = frozenset(
    {"edit", "eval", "fsdir", "fts3_tokenizer", "load_extension", "readfile", "writefile"}
)
"""Functions that reach out of the tables; most are the command line tool's, or of extensions."""

_MOST_ADDRESSES_BYTES: Final = 6 * MOST_MEMORY_BYTES
"""For the process: Python and its copy of one row come on top."""
_MOST_FILE_BYTES: Final = 16 * 2**20
"""Nothing is written but the shared memory of a file in WAL mode: this is enough for a WAL of 2 GB."""
_MOST_ANSWER_CHARACTERS: Final = 1_000_000
_LOCK_TIMEOUT_S: Final = 5.0
_LIMITS: Final = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4_000_000,  # bytes of a value or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 40_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
}
_SETTINGS: Final = (
    f"PRAGMA hard_heap_limit = {MOST_MEMORY_BYTES}",
    "PRAGMA temp_store = MEMORY",
    "PRAGMA query_only = ON",
    "PRAGMA trusted_schema = OFF",  # functions in views are anybody's, too
)
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
SELECT name, type FROM pragma_table_list
WHERE schema = 'main' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name
"""
_COLUMNS: Final = "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid"
_REFERENCES: Final = 'SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)'

Value = str | int | float | None


class Question(TypedDict):
    """What is asked.

    Attributes:
        what: The names of the tables, their columns, or the rows of a query.
        url: The file, as a URL for reading.
        tables: The tables and views that may be read, in lower case; None for all.
        limit_s: Seconds after which the process ends, whatever it is doing.
        sql: The query.
        queries: The names that it gives to queries of its own.
        most_rows: Of the answer.
        most_characters: Of a value; a longer text is cut.
    """

    what: Literal["names", "columns", "rows"]
    url: str
    tables: list[str] | None
    limit_s: float
    sql: str
    queries: list[str]
    most_rows: int
    most_characters: int


class Found(TypedDict):
    """The rows of a query, their values cut; a blob is told as text."""

    columns: list[str]
    rows: list[list[Value]]
    is_whole: bool


class Failure(TypedDict):
    """Why there is no answer.

    Attributes:
        whose: The model's, by its query or by what it asks for, or the database's.
        says: A sentence; of a database's failure, SQLite's own.
        name: SQLite's name for a failure of the database's.
    """

    whose: Literal["query", "asking", "database"]
    says: str
    name: str


class Reply(TypedDict, total=False):
    """One of these."""

    names: list[str]
    columns: dict[str, str]
    rows: Found
    failure: Failure


class _AskingError(Exception):
    """What is asked for cannot be had; the text says why."""


def main() -> None:
    """Answer the question."""
    question: Question = json.loads(sys.stdin.buffer.readline())
    _bind(question["limit_s"])
    sys.stdout.write(_reply(question))


def _bind(limit_s: float) -> None:
    """Have the system end the process in time, and refuse it memory and files."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # its default is the end, also in the middle of a step
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    _keep_to(resource.RLIMIT_FSIZE, _MOST_FILE_BYTES)
    if sys.platform == "linux":  # macOS takes it for another limit, or not at all
        _keep_to(resource.RLIMIT_AS, _MOST_ADDRESSES_BYTES)


def _keep_to(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _reply(question: Question) -> str:
    try:
        return json.dumps(_answer(question))
    except _AskingError as error:
        failure = Failure(whose="asking", says=str(error), name="")
    except MemoryError:
        most = f"{MOST_MEMORY_BYTES // 2**20} MB"
        says = f"this takes more than {most} of memory; ask for fewer or shorter values, or sort less at once"
        failure = Failure(whose="asking", says=says, name="")
    except sqlite3.Error as error:
        failure = _told(error)
    return json.dumps(Reply(failure=failure))


def _answer(question: Question) -> Reply:
    tables = None if question["tables"] is None else frozenset(question["tables"])
    with _connected(question["url"]) as connection:
        match question["what"]:
            case "names":
                return Reply(names=_listed(connection, tables))
            case "columns":
                names = _listed(connection, tables)
                return Reply(columns={name: _columns(connection, name) for name in names})
            case "rows":
                return Reply(rows=_rows(connection, question, tables))


@contextmanager
def _connected(url: str) -> Generator[sqlite3.Connection]:
    connection = sqlite3.connect(url, uri=True, timeout=_LOCK_TIMEOUT_S, isolation_level=None)
    with closing(connection):
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        for setting in _SETTINGS:
            connection.execute(setting)
        yield connection


def _rows(connection: sqlite3.Connection, question: Question, tables: frozenset[str] | None) -> Found:
    allowed = None if tables is None else _readable(connection, tables)
    if allowed is not None:
        _refuse_disguise(question["queries"], allowed)
    connection.text_factory = _beginning(question["most_characters"])
    connection.set_authorizer(_Authorizer(allowed))
    cursor = connection.execute(question["sql"])
    found = Found(columns=[str(column[0]) for column in cursor.description], rows=[], is_whole=True)
    characters = 0
    for row in cursor:  # cut one by one: only one is ever held whole
        if len(found["rows"]) == question["most_rows"] or characters > _MOST_ANSWER_CHARACTERS:
            found["is_whole"] = False
            break
        values: list[Value] = [f"<{len(each)} bytes>" if isinstance(each, bytes) else each for each in row]
        found["rows"].append(values)
        characters += sum(len(str(value)) for value in values)
    return found


def _refuse_disguise(queries: list[str], allowed: frozenset[str]) -> None:
    """SQLite tells a view and a query of the statement's own apart by nothing: not by name, then."""
    for name in allowed.intersection(queries):
        raise _AskingError(
            f"give the query {name[:64]!a} in WITH another name: there is a table of that name"
        )


def _listed(connection: sqlite3.Connection, tables: frozenset[str] | None) -> list[str]:
    """The tables and views that may be read, without those in which virtual ones keep theirs."""
    names = [str(name) for name, kind in connection.execute(_OBJECTS) if kind != "shadow"]
    return [name for name in names if tables is None or name.lower() in tables]


def _readable(connection: sqlite3.Connection, tables: frozenset[str]) -> frozenset[str]:
    """The allowed tables, and those in which allowed full-text and other virtual tables keep theirs.

    Which these are is for SQLite to say: another table may merely begin alike. They are called after their table,
    with one word more.
    """
    shadows = [str(name).lower() for name, kind in connection.execute(_OBJECTS) if kind == "shadow"]
    return tables | {name for name in shadows if name.rpartition("_")[0] in tables}


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
            case sqlite3.SQLITE_FUNCTION if (second or "").lower() not in REFUSED:
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


def _beginning(most_characters: int) -> Callable[[bytes], str]:
    """Reads a text no further than it is shown."""

    def read(text: bytes) -> str:
        longest = text[: 4 * most_characters]  # no character has more bytes
        return longest.decode("utf-8", "replace")[:most_characters]

    return read


def _told(error: sqlite3.Error) -> Failure:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _MODELS_FAULT:
        return Failure(whose="query", says=f"the database says: {str(error)[:300]}", name="")
    return Failure(whose="database", says=str(error), name=getattr(error, "sqlite_errorname", ""))


if __name__ == "__main__":
    main()
