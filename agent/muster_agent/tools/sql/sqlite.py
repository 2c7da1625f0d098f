"""A SQLite database, opened so that nothing can be written; each question has a process of its own.

What is read and what is refused is `sqlite_reader.py`; here it is started, asked and ended.
"""

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import anyio
import anyio.abc

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.sql import sqlite_reader
from muster_agent.tools.sql.answer import CELL_CHARACTERS, Answer, QueryComplaint, cell
from muster_agent.tools.sql.sqlite_reader import Failure, Question, Reply
from muster_agent.tools.sql.statement import Dialect, Statement
from muster_observability import logs

_log = logs.get("agent")

_OLDEST: Final = (3, 37, 0)
"""The first that tells a virtual table's inner tables from others."""
_COMMAND: Final = (sys.executable, "-I", "-S", sqlite_reader.__file__)
_HANDED_ON: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""All that the process gets of our environment: where an interpreter may have its own libraries."""
_LEEWAY_S: Final = 5.0
"""The process ends itself so much later than it is ended, for the case that nobody is left to end it."""
_NO_QUERY: Final = Statement("", frozenset(), frozenset())


class SqliteDatabase:
    """A database file.

    Args:
        file: The file.
        tables: The tables and views that may be read; None for all. What an allowed view reads need not be
            among them.
        timeout_s: After which a query ends, whoever waits for it or not.
        most_at_once: Most queries at a time.
    """

    dialect: Dialect = "sqlite"
    title = "SQLite"

    def __init__(
        self, file: Path, tables: frozenset[str] | None, timeout_s: float, most_at_once: int
    ) -> None:
        self._url = f"{file.absolute().as_uri()}?mode=ro"
        self._tables = None if tables is None else sorted(name.lower() for name in tables)
        self._limit_s = timeout_s + _LEEWAY_S
        self._limiter = anyio.CapacityLimiter(most_at_once)
        self._readings: set[asyncio.Task[Reply]] = set()

    async def open(self) -> None:
        """See that it can be read.

        Raises:
            ToolkitError: It cannot.
        """
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ToolkitError(
                f"this Python has SQLite {sqlite3.sqlite_version}, and 3.37 is needed: take another build of Python"
            )
        reply = await self._asked("names")
        if "failure" in reply:
            raise ToolkitError(
                f"the SQLite database cannot be read ({reply['failure']['says']}): check its path and its rights,"
                " and that its folder can be written to where it is in WAL mode"
            )

    async def query(self, statement: Statement, most_rows: int) -> Answer:
        """The first rows that a statement finds. Cancelled, it is ended.

        Raises:
            ToolComplaint: The database refused it.
            TimeoutError: It ended for its time.
        """
        reply = await self._asked("rows", statement, most_rows)
        if "rows" not in reply:
            raise _complaint(reply)
        found = reply["rows"]
        rows = [[cell(value) for value in row] for row in found["rows"]]
        return Answer(found["columns"], rows, is_whole=found["is_whole"])

    async def describe(self) -> dict[str, str]:
        """The columns of each table and view, by its name."""
        reply = await self._asked("columns")
        if "columns" not in reply:
            raise _complaint(reply)
        return reply["columns"]

    async def _asked(
        self,
        what: Literal["names", "columns", "rows"],
        statement: Statement = _NO_QUERY,
        most_rows: int = 0,
    ) -> Reply:
        question = Question(
            what=what,
            url=self._url,
            tables=self._tables,
            limit_s=self._limit_s,
            sql=statement.sql,
            queries=sorted(statement.queries),
            most_rows=most_rows,
            most_characters=CELL_CHARACTERS + 1,  # one more than is shown says that there are more
        )
        # A task of its own holds the place among the queries until the process has ended, whatever becomes of who
        # asked: a cancellation comes again and again where it passes a task (as LangChain makes one for each
        # call), and would end any waiting here.
        reading = asyncio.create_task(self._read(question))
        self._readings.add(reading)  # the loop itself would not keep it
        reading.add_done_callback(self._readings.discard)
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            reading.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([reading])
            raise

    async def _read(self, question: Question) -> Reply:
        """Have a process read.

        Raises:
            TimeoutError: It ended for its time.
        """
        try:
            async with self._limiter:
                said, code = await _run(question)
        except OSError as error:
            says = f"its reader cannot be started: {error.strerror}"
            return Reply(failure=Failure(whose="database", says=says, name=type(error).__name__))
        return _understood(said, code)


async def _run(question: Question) -> tuple[bytes, int]:
    """What the reader says, and its exit code. However this is left, the process is gone."""
    env = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
    async with await anyio.open_process(
        _COMMAND, stderr=subprocess.DEVNULL, env=env, start_new_session=True
    ) as process:
        try:
            said = await _exchanged(process, json.dumps(question).encode() + b"\n")
            return said, await process.wait()
        finally:
            with suppress(ProcessLookupError):
                process.kill()


async def _exchanged(process: anyio.abc.Process, question: bytes) -> bytes:
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    assert process.stdout is not None  # noqa: S101 - likewise
    with suppress(anyio.BrokenResourceError, OSError):  # it has ended: its exit code tells
        await process.stdin.send(question)
    return b"".join([chunk async for chunk in process.stdout])


def _understood(said: bytes, code: int) -> Reply:
    if code == -signal.SIGALRM:
        raise TimeoutError
    if code:
        return Reply(failure=Failure(whose="database", says="its reader failed", name=f"exit code {code}"))
    reply: Reply = json.loads(said)
    return reply


def _complaint(reply: Reply) -> ToolComplaint:
    failure = reply.get("failure") or Failure(whose="database", says="", name="")
    match failure["whose"]:
        case "query":
            return QueryComplaint(failure["says"])
        case "asking":
            return ToolComplaint(failure["says"])
        case "database":
            _log.warning("database failed", error=failure["name"])
            return ToolComplaint("the database cannot answer now")
