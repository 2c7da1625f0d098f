"""How processes that share a PostgreSQL database tell each other that there is something to look at.

A process does not hear what it has announced itself: it has done by then what there is to do. Nothing depends on a
message: whoever is not told looks by itself a little later. A SQLite database has one process, and nobody to tell.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from muster_observability import logs
from muster_storage import KEPT_ALIVE, origin

if TYPE_CHECKING:
    from muster_storage import Database

ALL = "all"
"""The topic that stands for every other one."""

_CHANNEL = "muster_agent"
_NOTIFY = text("SELECT pg_notify(:channel, notice) FROM unnest(CAST(:notices AS text[])) AS notice")
_TRY_AGAIN_S = 1.0

_log = logs.get("agent")


def announce(connection: Connection, topics: Iterable[str]) -> None:
    """Tell every process of these topics when it commits: `runs`, `cancel:RUN`, `events:RUN`, `followed:RUN`."""
    if connection.dialect.name != "postgresql":
        return
    notices = [f"{origin(connection)} {topic}" for topic in topics]
    if notices:
        connection.execute(_NOTIFY, {"channel": _CHANNEL, "notices": notices})


async def listen(database: "Database", heard: Callable[[str], None]) -> None:
    """Call `heard` with every topic that others announce, until cancelled; it returns at once where nobody does.

    `all` is heard whenever listening begins: anything may have been announced before.
    """
    if not database.is_postgres:
        return
    import psycopg  # noqa: PLC0415 - in the extra `postgres`

    ours = origin(database.engine)
    url = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    kept_alive: dict[str, Any] = dict(KEPT_ALIVE)
    while True:
        try:
            async with await psycopg.AsyncConnection.connect(
                url, autocommit=True, **kept_alive
            ) as connection:
                await connection.execute(f"LISTEN {_CHANNEL}")
                heard(ALL)
                async for notice in connection.notifies():
                    sender, _, topic = notice.payload.partition(" ")
                    if sender != ours:
                        heard(topic)
        except psycopg.Error as error:
            _log.warning("listening to the database failed", error=type(error).__name__)
            await asyncio.sleep(_TRY_AGAIN_S)
