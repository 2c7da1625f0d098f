"""The model's SQL: read into a syntax tree, and let through only where it is one statement that reads.

What is run is written anew from the tree that was looked at, without comments: a difference between what this
parser and the database understand by a text cannot carry anything past.

This is the first line of defence and not the one that counts: that is the database's own (see `sqlite.py` and
`postgres.py`). It is what gives the model a sentence to mend its query by.
"""

import logging
from dataclasses import dataclass
from typing import Final, Literal

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError

from muster_agent.tools.complaints import ToolComplaint
from muster_agent.tools.sql import sqlite_reader

Dialect = Literal["sqlite", "postgres"]

MOST_CHARACTERS: Final = 5000
"""Of a query: four times what a model with a context of 4,000 tokens has room to write."""
_ONLY_READING: Final = (
    "only reading is possible: write one SELECT statement, and nothing that changes, locks or administers"
)
_READING: Final = (exp.Select, exp.SetOperation, exp.Values, exp.Subquery)
_CHANGING: Final = (
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
    exp.DDL,
    exp.Drop,
    exp.Alter,
    exp.Command,
    exp.Into,
    exp.Lock,
    exp.Copy,
)

_REFUSED_PREFIXES: Final = (
    "pg_",  # files, other sessions, settings, sleeping, and whatever the next version brings
    "lo_",
    "dblink",
    "postgres_fdw",
    "query_to_xml",  # these run SQL that they are given as text
    "table_to_xml",
    "cursor_to_xml",
    "schema_to_xml",
    "database_to_xml",
    "crosstab",
    "connectby",
    "http",
)
_REFUSED: Final = sqlite_reader.REFUSED | frozenset(
    {
        "current_setting",
        "inet_client_addr",
        "inet_server_addr",
        "loread",
        "lowrite",
        "nextval",
        "set_config",
        "setval",
        "ts_rewrite",
        "ts_stat",
    }
)
_HARMLESS: Final = frozenset(
    {
        "pg_column_size",
        "pg_database_size",
        "pg_relation_size",
        "pg_size_pretty",
        "pg_table_size",
        "pg_total_relation_size",
        "pg_typeof",
    }
)

# It warns of what it does not know by quoting it, and a query may hold what nobody's log should. (`disabled` would be
# undone by whoever configures logging later, uvicorn for one.)
logging.getLogger("sqlglot").addFilter(lambda _: False)


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement that reads.

    Attributes:
        sql: Its text, written anew.
        tables: The tables it names, as the database takes the names, with their schema where it is written.
        queries: The names that it gives to queries of its own (`WITH name AS ...`), which are not in `tables`.
    """

    sql: str
    tables: frozenset[str]
    queries: frozenset[str]


def check(sql: str, dialect: Dialect) -> Statement:
    """Read the model's SQL: takes up to 0.1 s, and Python's whole stack.

    Raises:
        ToolComplaint: It is not exactly one statement that reads, or it calls what may not be called.
    """
    if len(sql) > MOST_CHARACTERS:
        raise ToolComplaint(f"the query is longer than {MOST_CHARACTERS} characters")
    if "\0" in sql or sql.encode(errors="replace").decode() != sql:
        raise ToolComplaint("the query holds a sign that is no text")
    try:
        tree = _parsed(sql, dialect)
        _check_nodes(tree, dialect)
        written = tree.sql(
            dialect=dialect, comments=False, normalize_functions=False, unsupported_level=ErrorLevel.RAISE
        )
    except ParseError as error:
        raise _syntax_error(error) from None
    except SqlglotError:
        raise ToolComplaint("this is not understood as SQL") from None
    except RecursionError:
        raise ToolComplaint("the query is nested too deeply; write a simpler one") from None
    queries = frozenset(_name(cte.args["alias"].this, dialect) for cte in tree.find_all(exp.CTE))
    return Statement(written, _tables(tree, dialect) - queries, queries)


def _parsed(sql: str, dialect: Dialect) -> exp.Expr:
    statements = [
        statement
        for statement in sqlglot.parse(sql, read=dialect)
        if statement is not None and not isinstance(statement, exp.Semicolon)
    ]
    if not statements:
        raise ToolComplaint("the query is empty; write one SELECT statement")
    if len(statements) > 1:
        raise ToolComplaint("these are several statements; write exactly one")
    return statements[0]


def _check_nodes(tree: exp.Expr, dialect: Dialect) -> None:
    if not isinstance(tree, _READING):
        raise ToolComplaint(_ONLY_READING)
    for node in tree.walk():
        if isinstance(node, _CHANGING):
            raise ToolComplaint(_ONLY_READING)
        if isinstance(node, exp.Placeholder | exp.Parameter):
            raise ToolComplaint("there is nothing to fill placeholders with; write the values themselves")
        if isinstance(node, exp.Func):
            _check_function(node)
        if isinstance(node, exp.Table) and dialect == "postgres" and _is_of_the_system(node):
            raise ToolComplaint(
                "the system's own tables may not be read; describe_tables tells what there is"
            )


def _check_function(function: exp.Func) -> None:
    names = [function.name] if isinstance(function, exp.Anonymous) else type(function).sql_names()
    for name in names:
        if _is_refused(name.lower()):
            raise ToolComplaint(f"the function {name[:64].lower()} may not be called")


def _is_refused(name: str) -> bool:
    """It reaches out of the tables, or runs text as SQL."""
    return name in _REFUSED or (name.startswith(_REFUSED_PREFIXES) and name not in _HARMLESS)


def _is_of_the_system(table: exp.Table) -> bool:
    return any(name.lower().startswith("pg_") for name in (table.name, table.db, table.catalog))


def _tables(tree: exp.Expr, dialect: Dialect) -> frozenset[str]:
    return frozenset(
        ".".join(_name(part, dialect) for part in table.parts)
        for table in tree.find_all(exp.Table)
        if isinstance(table.this, exp.Identifier)  # others are functions in a table's place
    )


def _name(identifier: exp.Expr, dialect: Dialect) -> str:
    """The name as the database compares it."""
    is_exact = dialect == "postgres" and bool(identifier.args.get("quoted"))
    return identifier.name if is_exact else identifier.name.lower()


def _syntax_error(error: ParseError) -> ToolComplaint:
    first = error.errors[0] if error.errors else {}
    place = f" at line {first['line']}, column {first['col']}" if first.get("line") else ""
    return ToolComplaint(f"this is not understood as SQL{place}: {str(first.get('description', ''))[:200]}")
