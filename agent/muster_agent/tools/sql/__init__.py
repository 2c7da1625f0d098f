"""Questions to a database: `describe_tables` tells what there is, `query_database` runs one SELECT.

Nothing can be written, by several lines of defence one behind the other: see `statement.py`, `sqlite.py` and
`postgres.py`.
"""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Final, Protocol

import anyio
import anyio.to_thread
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.sql.answer import Answer, QueryComplaint, as_text, fitting
from muster_agent.tools.sql.sqlite import SqliteDatabase
from muster_agent.tools.sql.statement import Dialect, Statement, check

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")
_MOST_AT_ONCE: Final = 4
"""Queries at a time: an agent's questions must not be what the database is busy with."""
_NAMES_CHARACTERS: Final = 500
"""For the names of tables whose columns do not fit."""


class Database(Protocol):
    """A database that can be read."""

    dialect: Dialect
    title: str

    async def open(self) -> None:
        """See that it can be used; else a ToolkitError."""
        ...

    async def query(self, statement: Statement, most_rows: int) -> Answer:
        """The first rows of a checked statement; else a ToolComplaint or a TimeoutError."""
        ...

    async def describe(self) -> dict[str, str]:
        """The columns of each table, by its name."""
        ...


def _known_kind(url: SecretStr) -> SecretStr:
    text = url.get_secret_value()
    has_file = text.startswith(_SQLITE) and text != _SQLITE and "\0" not in text
    if not has_file and not text.startswith(_POSTGRES):
        raise ValueError("expected sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE")
    return url


class SqlSettings(BaseModel):
    """A database that the agent may ask questions."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    database: Annotated[SecretStr, AfterValidator(_known_kind)] = Field(
        description="`sqlite:///PATH` (four slashes for an absolute path), or `postgresql://...` with a role that"
        " may read the tables and nothing else."
    )
    name: str = Field(
        default="database",
        pattern=r"^[a-z][a-z0-9_]{0,39}$",
        description="Names the tools: query_<name> and describe_<name>; describe_tables for the default.",
    )
    rows: int = Field(default=50, ge=1, le=1000, description="Most rows that a query returns.")
    most_characters: int = Field(
        default=4000, ge=200, description="Most characters that a tool returns; four are about a token."
    )
    timeout_s: float = Field(
        default=10.0, gt=0, le=600, allow_inf_nan=False, description="Seconds after which a query is stopped."
    )
    tables: list[str] | None = Field(
        default=None,
        min_length=1,
        description="The tables and views that may be read (`name`, or `schema.name`); unset, all. With PostgreSQL"
        " the query's text is held to it, and only the role's own grants are a boundary.",
    )
    about: str = Field(
        default="", max_length=300, description="What the data are about, for the model to know."
    )


@asynccontextmanager
async def open_sql(settings: SqlSettings) -> AsyncGenerator[Sequence[BaseTool]]:
    """Try the database and yield the two tools.

    Raises:
        ToolkitError: The database cannot be used, or its role may do too much.
    """
    database = _database(settings)
    await database.open()

    async def describe() -> str:
        with _within(settings.timeout_s):
            tables = await database.describe()
        return _shown(tables, settings.most_characters)

    async def query(sql: Annotated[str, "One SELECT statement"]) -> str:
        with _within(settings.timeout_s):
            statement = await anyio.to_thread.run_sync(check, sql, database.dialect)
            try:
                answer = await database.query(statement, settings.rows)
            except QueryComplaint as complaint:  # of a name that there is not, more often than not
                tables = _shown(await database.describe(), settings.most_characters)
                raise ToolComplaint(f"{complaint}\nThe tables:\n{tables}") from None
        return as_text(answer, settings.most_characters)

    about = f" The data are about: {settings.about}" if settings.about else ""
    describing = "describe_tables" if settings.name == "database" else f"describe_{settings.name}"
    yield [
        StructuredTool.from_function(
            coroutine=describe,
            name=describing,
            description=f"List the database's tables and their columns. Use it before a query.{about}",
            metadata={"changes_world": False},
        ),
        StructuredTool.from_function(
            coroutine=query,
            name=f"query_{settings.name}",
            description=f"Read from the database by one SELECT in the SQL of {database.title}."
            f" {describing} tells the tables.",
            metadata={"changes_world": False},
        ),
    ]


def _database(settings: SqlSettings) -> Database:
    url = settings.database.get_secret_value()
    tables = None if settings.tables is None else frozenset(settings.tables)
    if url.startswith(_SQLITE):
        return SqliteDatabase(Path(url.removeprefix(_SQLITE)), tables, settings.timeout_s, _MOST_AT_ONCE)
    try:
        from muster_agent.tools.sql.postgres import PostgresDatabase  # noqa: PLC0415 - needs an extra
    except ImportError:
        raise ToolkitError("PostgreSQL needs an extra: pip install 'muster[postgres]'") from None
    return PostgresDatabase(url, tables, settings.timeout_s, _MOST_AT_ONCE)


@contextmanager
def _within(timeout_s: float) -> Generator[None]:
    """Stop what takes too long, and say so."""
    try:
        with anyio.fail_after(timeout_s):
            yield
    except TimeoutError:
        raise ToolComplaint(f"this took longer than {timeout_s:g} s; ask for less at once") from None


def _shown(tables: dict[str, str], most_characters: int) -> str:
    """A line for each table; those that do not fit are named at least."""
    if not tables:
        return "There are no tables to read."
    lines = [f"{name}: {columns}" for name, columns in tables.items()]
    shown = fitting(lines, most_characters)
    if len(shown) < len(lines):
        shown = fitting(lines, most_characters - _NAMES_CHARACTERS)
        shown.append(f"More tables: {', '.join(list(tables)[len(shown) :])}")
    return "\n".join(shown)[:most_characters]
