"""Opening a database by its URL."""

import fcntl
import os
import select
import sqlite3
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

import orjson
from sqlalchemy import URL, Connection, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import StaticPool

from muster_storage.database import ORIGIN, Database
from muster_storage.errors import DatabaseInUseError, StorageError
from muster_storage.json_column import dumps
from muster_storage.migrations import Schema, migrate

_POSTGRES_CONNECTIONS = 8
_CONNECT_TIMEOUT_S = 5
SESSION = (
    # A process that is stopped in a transaction, or whose machine is gone, must not keep its locks for hours.
    "SELECT set_config('idle_in_transaction_session_timeout', '10s', false), "
    "set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false), "
    "set_config('tcp_keepalives_count', '3', false)"
)
"""What every connection to PostgreSQL begins with."""
KEPT_ALIVE = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,  # milliseconds; where the system knows it
}
"""How every connection to PostgreSQL is made: a server whose machine is gone is noticed within half a minute."""
_BUSY_TIMEOUT_MS = 10_000


class HasFileno(Protocol):
    """What has a socket: a connection of psycopg."""

    def fileno(self) -> int:
        """The socket's number."""
        ...


def open_database(url: str, schema: Schema) -> Database:
    """Open a database and bring it to the schema's version. It blocks: call it in a thread, or before the loop runs.

    Args:
        url: `sqlite:///relative.db`, `sqlite:////absolute.db`, or `postgresql://user:password@host:port/name`.
        schema: The tables that it must have.

    Raises:
        StorageError: It cannot be opened, is in use, is damaged, or is newer than this release.
    """
    parsed = _parse(url)
    with ExitStack() as opened:
        engine = _sqlite(parsed, opened) if parsed.get_backend_name() == "sqlite" else _postgres(parsed)
        opened.callback(engine.dispose)
        try:
            with engine.begin() as connection:
                migrate(connection, schema)
        except DBAPIError as error:
            raise StorageError(_explain(error, parsed)) from error
        keep = opened.pop_all()
    workers = 1 if engine.dialect.name == "sqlite" else _POSTGRES_CONNECTIONS
    return Database(engine, ThreadPoolExecutor(workers, f"{schema.part}-database"), keep.close)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StorageError(
            "expected a database URL such as sqlite:///muster.db or postgresql://host/name"
        ) from None
    match parsed.get_backend_name():
        case "sqlite" if parsed.database and parsed.database != ":memory:":
            return parsed
        case "postgresql":
            return parsed.set(drivername="postgresql+psycopg")
        case other:
            raise StorageError(f"{other} databases are not supported; use a SQLite file or PostgreSQL")


def _sqlite(url: URL, opened: ExitStack) -> Engine:
    path = Path(str(url.database))
    _lock(path, opened)
    # One connection, for one thread. More of them would write-lock each other out, and releases of SQLite before
    # 3.51.3 may damage a file when two connections reset its write-ahead log at once.
    engine = create_engine(
        url,
        hide_parameters=True,  # an error would quote what clients have written
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "isolation_level": None},
    )
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _lock(path: Path, opened: ExitStack) -> None:
    """Have the file to ourselves. The system gives the lock back when the process ends, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock: IO[bytes] = opened.enter_context(open(f"{path}.lock", "ab"))  # noqa: PTH123, SIM115 - appends a suffix; closed by the stack
        make_private(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise DatabaseInUseError(
            f"{path} is in use by another process. A SQLite database serves one process: stop that one, choose another "
            "file, or use PostgreSQL for several."
        ) from None


def make_private(path: Path) -> None:
    """Make a file for its owner alone, before SQLite makes it for everybody: it holds conversations.

    Raises:
        OSError: It cannot be made.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _prepare(connection: sqlite3.Connection, _record: Any) -> None:  # noqa: ANN401 - SQLAlchemy's own
    for pragma in (
        "journal_mode=WAL",
        # A killed process loses nothing; a power cut may lose the last moments, and never damages the file.
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={_BUSY_TIMEOUT_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    # Straight to the driver: SQLAlchemy's own way to run a statement costs more than this one does.
    connection.connection.cursor().execute("BEGIN IMMEDIATE")


def _postgres(url: URL) -> Engine:
    try:
        engine = create_engine(
            url,
            hide_parameters=True,  # as above
            pool_size=_POSTGRES_CONNECTIONS,
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, **KEPT_ALIVE},
            json_serializer=dumps,
            json_deserializer=orjson.loads,
            execution_options={ORIGIN: uuid.uuid4().hex},
        )
    except ModuleNotFoundError:
        raise StorageError("PostgreSQL needs the extra `postgres`: pip install 'muster[postgres]'") from None
    event.listen(engine, "connect", _begin_session)
    event.listen(engine, "checkout", partial(_ping, engine.dialect))
    return engine


def _begin_session(connection: Any, _record: object) -> None:  # noqa: ANN401 - the driver's
    connection.execute(SESSION)
    connection.commit()


def has_news(connection: HasFileno) -> bool:
    """Whether the server has said something on a connection that nobody uses: its last word, if it has been restarted.

    Asking it would be a journey to the server each time, and for nothing nearly always.
    """
    heard = select.poll()
    heard.register(connection, select.POLLIN)
    return bool(heard.poll(0))


def _ping(dialect: Dialect, connection: Any, _record: object, _proxy: object) -> None:  # noqa: ANN401 - the driver's
    """See that a connection is alive: a restarted server must not cost a request."""
    if not has_news(connection):
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error as error:
        raise InvalidatePoolError from error


def _explain(error: DBAPIError, url: URL) -> str:
    shown = url.render_as_string(hide_password=True)
    if isinstance(error, OperationalError) and url.get_backend_name() == "postgresql":
        return f"{shown} cannot be reached. Is the server up, and are host, port, name and password right?"
    return (
        f"{shown} cannot be read as a database of Muster: {error.orig}. If the file is damaged, restore a backup; "
        "it is never overwritten."
    )
