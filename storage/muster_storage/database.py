"""A database as the services use it: short transactions, each a function that runs in a thread.

A transaction is a plain function of a connection, so it reads as SQL reads, and it costs one hop to a thread rather
than one a statement. Whoever awaits it may be cancelled; the transaction is not: it happens wholly or not at all.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Double, Engine, literal_column
from sqlalchemy.exc import OperationalError
from sqlalchemy.sql.elements import ColumnElement

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

_TRIES = 4
# PostgreSQL's "serialization_failure" and "deadlock_detected": nothing was done, and it may be tried again at once.
_MAY_TRY_AGAIN = frozenset({"40001", "40P01"})


class Database:
    """An open database.

    Args:
        engine: Connects to it.
        threads: Where transactions run. For SQLite it has one thread, so that there is one connection: writers that
            wait for each other inside SQLite would wait by sleeping.
        close: Called last.
    """

    def __init__(self, engine: Engine, threads: ThreadPoolExecutor, close: Callable[[], None]) -> None:
        self._engine = engine
        self._threads = threads
        self._close = close

    @property
    def is_postgres(self) -> bool:
        """Whether several processes may share it."""
        return self._engine.dialect.name == "postgresql"

    @property
    def engine(self) -> Engine:
        """The engine, for tests and tools."""
        return self._engine

    async def run(
        self,
        transaction: Callable[Concatenate[Connection, _Given], _Result],
        *given: _Given.args,
        **named: _Given.kwargs,
    ) -> _Result:
        """Run `transaction(connection, ...)` in a transaction of its own, and commit.

        A cancelled caller leaves at once; the transaction is finished without it.

        Raises:
            sqlalchemy.exc.DBAPIError: The database failed; nothing was written.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, lambda: self._transact(transaction, *given, **named))
        return await asyncio.shield(work)

    def _transact(
        self,
        transaction: Callable[Concatenate[Connection, _Given], _Result],
        *given: _Given.args,
        **named: _Given.kwargs,
    ) -> _Result:
        for tries_left in reversed(range(_TRIES)):
            try:
                with self._engine.begin() as connection:
                    return transaction(connection, *given, **named)
            except OperationalError as error:
                if not tries_left or getattr(error.orig, "sqlstate", None) not in _MAY_TRY_AGAIN:
                    raise
        raise AssertionError("unreachable")  # the last try returns or raises

    async def close(self) -> None:
        """Finish what runs, then close every connection."""
        await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._threads.shutdown(wait=True)
        self._engine.dispose()
        self._close()


def now_s(connection: Connection) -> ColumnElement[float]:
    """The database's own clock as SQL: seconds since 1970. Leases of several machines must go by one clock."""
    if connection.dialect.name == "postgresql":
        # Not the transaction's beginning, which now() would be: a transaction may have waited for a lock.
        return literal_column("extract(epoch from clock_timestamp())::double precision", Double)
    return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Double)


ORIGIN = "muster_origin"
"""The execution option in which an engine has its name."""


def origin(of: Connection | Engine) -> str:
    """A name of the open database that tells it from every other one, those of other processes included."""
    return str(of.get_execution_options()[ORIGIN])
