"""The tools that read a database, on a real SQLite file and a real PostgreSQL server."""

import asyncio
import contextlib
import gc
import json
import logging
import logging.config
import signal
import sqlite3
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool
from pydantic import ValidationError

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.sql import SqlSettings, open_sql, sqlite_reader
from muster_agent.tools.sql.postgres import PostgresDatabase
from muster_agent.tools.sql.sqlite import SqliteDatabase
from muster_agent.tools.sql.statement import Dialect, Statement, check
from tests.postgres import new_database

SHOP = """
CREATE TABLE customers (id integer PRIMARY KEY, name text);
CREATE TABLE orders (id integer PRIMARY KEY, customer integer REFERENCES customers (id), cents integer);
CREATE TABLE secrets (word text);
CREATE TABLE shelves (id integer PRIMARY KEY, row integer, height integer);
CREATE VIEW spenders AS SELECT name FROM customers JOIN orders ON customer = customers.id WHERE cents > 1000;
CREATE VIEW told AS SELECT word FROM secrets;
INSERT INTO customers VALUES (1, 'Ann'), (2, NULL), (3, 'Cy');
INSERT INTO orders VALUES (10, 1, 4200), (11, 3, 99);
INSERT INTO secrets VALUES ('xyzzy');
"""
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x % 2 FROM n) SELECT count(*) FROM n"

ENDLESS_IN_FILE = (
    "WITH RECURSIVE n(x) AS (SELECT id FROM customers UNION ALL SELECT x % 2 FROM n) SELECT count(*) FROM n"
)
ONE_LONG_STEP = "SELECT instr(hex(zeroblob(1900000)), hex(zeroblob(900000)) || '1') FROM customers"


@dataclass(frozen=True)
class Shop:
    """The same small database, wherever it is.

    Attributes:
        url: How the tools reach it.
        dialect: Which SQL it speaks.
        state: All that could change in it.
    """

    url: str
    dialect: Dialect
    state: Callable[[], object]

    def tools(self, **fields: Any) -> AbstractAsyncContextManager[Sequence[BaseTool]]:
        """The tools on it."""
        return open_sql(SqlSettings.model_validate({"database": self.url, **fields}))


def sqlite_shop(folder: Path) -> Shop:
    """The shop in a file, alone in its folder."""
    file = folder / "shop.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(SHOP)

    def state() -> object:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return Shop(f"sqlite:///{file}", "sqlite", state)


def postgres_shop(server_url: str, database_url: str) -> Shop:
    """The shop on a server, as the role that owns its tables and so could write, were it let."""
    role = database_url.rpartition("/")[2]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'sesame'".encode())
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}".encode())
        connection.execute(f"SET ROLE {role}".encode())
        connection.execute(SHOP.encode())
        connection.execute("CREATE SEQUENCE counter")

    def state() -> object:
        with psycopg.connect(database_url) as connection:
            return [connection.execute(query.encode()).fetchall() for query in _STATE]

    host = server_url.rpartition("@")[2].rpartition("/")[0]
    return Shop(f"postgresql://{role}:sesame@{host}/{role}", "postgres", state)


_STATE = (
    "SELECT * FROM customers",
    "SELECT * FROM orders",
    "SELECT * FROM secrets",
    "SELECT last_value, is_called FROM counter",
    "SELECT oid, relname, relacl::text FROM pg_class ORDER BY oid",
    "SELECT oid, proname FROM pg_proc ORDER BY oid",
    "SELECT rolname, rolconfig FROM pg_roles ORDER BY oid",
    "SELECT oid, datname FROM pg_database WHERE datname = current_database()",
    "SELECT * FROM pg_largeobject_metadata",
    "SELECT setdatabase, setconfig FROM pg_db_role_setting",
    "SELECT objid FROM pg_locks WHERE locktype = 'advisory'",
)


@pytest.fixture(scope="module")
def on_postgres(postgres_url: str) -> Iterator[Shop]:
    """The shop on PostgreSQL; no test changes it."""
    with new_database(postgres_url) as url:
        yield postgres_shop(postgres_url, url)


@pytest.fixture(params=["sqlite", "postgres"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Shop:
    """The shop, once in each kind of database."""
    if request.param == "sqlite":
        (tmp_path / "shop").mkdir()
        return sqlite_shop(tmp_path / "shop")
    found: Shop = request.getfixturevalue("on_postgres")
    return found


async def ask(tools: Sequence[BaseTool], sql: str) -> str:
    """What a query is answered."""
    return str(await tools[1].ainvoke({"sql": sql}))


async def told(tools: Sequence[BaseTool], sql: str) -> str:
    """What a query that may not run is answered."""
    with pytest.raises(ToolComplaint) as complaint:
        await ask(tools, sql)
    return str(complaint.value)


async def test_rows_are_shown_as_a_table_of_text(shop: Shop) -> None:
    """A header, a line for each row, and NULL by its name."""
    async with shop.tools() as tools:
        assert await ask(tools, "SELECT id, name AS who FROM customers ORDER BY id;") == (
            "id | who\n1 | Ann\n2 | NULL\n3 | Cy"
        )


async def test_tables_are_described_with_keys_and_references(shop: Shop) -> None:
    """The model sees what it needs for a join."""
    async with shop.tools(tables=["customers", "orders", "spenders"]) as tools:
        assert await tools[0].ainvoke({}) == (
            "customers: id integer primary key, name text\n"
            "orders: id integer primary key, customer integer -> customers.id, cents integer\n"
            "spenders: name text"
        )


async def test_all_tables_are_described_by_default(shop: Shop) -> None:
    """Without a list, everything that can be read is listed."""
    async with shop.tools() as tools:
        lines = str(await tools[0].ainvoke({})).splitlines()

    assert [line.partition(":")[0] for line in lines] == [
        "customers",
        "orders",
        "secrets",
        "shelves",
        "spenders",
        "told",
    ]


async def test_many_tables_are_named_where_their_columns_do_not_fit(shop: Shop) -> None:
    """The list keeps to its bound, and still tells what else there is."""
    async with shop.tools(most_characters=200) as tools:
        described = str(await tools[0].ainvoke({}))

    assert len(described) <= 200
    assert described.endswith("More tables: customers, orders, secrets, shelves, spenders, told")


async def test_no_rows_are_said(shop: Shop) -> None:
    """An empty answer cannot be taken for a failure."""
    async with shop.tools() as tools:
        assert await ask(tools, "SELECT name FROM customers WHERE id > 99") == "name\n(no rows)"


async def test_more_rows_than_shown_are_said(shop: Shop) -> None:
    """`rows` bounds the rows; exactly so many are all."""
    async with shop.tools(rows=2) as tools:
        assert await ask(tools, "SELECT id FROM customers ORDER BY id") == (
            "id\n1\n2\n(the first 2 rows; there are more)"
        )
        assert await ask(tools, "SELECT id FROM orders ORDER BY id") == "id\n10\n11"


async def test_wide_answers_keep_to_their_bounds(shop: Shop) -> None:
    """A cell is cut at 200 characters, an answer between rows at `most_characters`."""
    one_row = f"SELECT replace('{'a' * 100}', 'a', 'bbbbbbbbbb') AS b"
    async with shop.tools(most_characters=700) as tools:
        one = await ask(tools, one_row)
        many = await ask(tools, one_row + " FROM customers, orders")

    assert one == f"b\n{'b' * 199}…"
    assert many == "\n".join(["b", *[f"{'b' * 199}…"] * 3, "(the first 3 rows; there are more)"])


async def test_line_ends_in_values_are_spaces(shop: Shop) -> None:
    """A row is one line, whatever is in it."""
    async with shop.tools() as tools:
        assert await ask(tools, "SELECT 'a\nb\tc' AS x") == "x\na b c"


HUGE = {
    "sqlite": ["SELECT zeroblob(1000000000)", "SELECT replace(hex(zeroblob(1000000)), '0', 'ffffffff')"],
    "postgres": ["SELECT repeat('x', 20000000) FROM generate_series(1, 40)"],
}


async def test_huge_values_do_not_come_over(shop: Shop) -> None:
    """A value of gigabytes is refused, or cut where it is made."""
    async with shop.tools(most_characters=20_000) as tools:
        for sql in HUGE[shop.dialect]:
            try:
                answer = await ask(tools, sql)
            except ToolComplaint as complaint:
                answer = str(complaint)
            assert len(answer) < 10_000
            assert "too big" in answer or answer.count("…") == 40


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT nothing FROM customers", "SELECT * FROM nowhere", "SELECT count(*, 1, 2) FROM customers",
        "SELECT nofunction(1)", "SELECT id FROM customers UNION SELECT 1, 2", "SELECT FROM WHERE",
    ],
)  # fmt: skip
async def test_mistakes_are_told_in_the_databases_words(shop: Shop, sql: str) -> None:
    """The model learns what to mend, and nothing of where the database is."""
    async with shop.tools() as tools:
        complaint = await told(tools, sql)

    words, _, tables = complaint.partition("\n")
    assert words.startswith(("the database says: ", "this is not understood as SQL"))
    assert len(words) < 400
    assert ("customers: id " in tables) is words.startswith("the database says: ")
    assert "shop" not in complaint
    assert "127.0.0.1" not in complaint


WRITING = [
    "INSERT INTO customers VALUES (9, 'x')",
    "UPDATE customers SET name = 'x'",
    "DELETE FROM customers",
    "DROP TABLE customers",
    "DROP VIEW told",
    "ALTER TABLE customers ADD COLUMN more text",
    "CREATE TABLE more (x integer)",
    "CREATE TEMP TABLE more AS SELECT 1",
    "CREATE INDEX more ON customers (name)",
    "CREATE VIEW more AS SELECT 1",
    "TRUNCATE customers",
    "REPLACE INTO customers VALUES (1, 'x')",
    "INSERT INTO customers SELECT 9, 'x' ON CONFLICT DO NOTHING RETURNING id",
    "MERGE INTO customers USING orders ON false WHEN NOT MATCHED THEN INSERT VALUES (9, 'x')",
    "SELECT * INTO more FROM customers",
    "SELECT 1 INTO TEMP more",
    "WITH gone AS (DELETE FROM customers RETURNING *) SELECT * FROM gone",
    "WITH new AS (INSERT INTO customers VALUES (9, 'x') RETURNING *) SELECT * FROM new",
    "WITH x AS (SELECT 1) DELETE FROM customers",
    "WITH x AS (SELECT 1) UPDATE customers SET name = 'x' RETURNING *",
    "SELECT 1; DELETE FROM customers",
    "SELECT 1; ; DROP TABLE customers --",
    "SELECT 1;\nDELETE FROM customers;",
    "/* SELECT 1 */ DELETE FROM customers",
    "/* /* */ DELETE FROM customers -- */",
    "SELECT 1 /*! ; DELETE FROM customers */; DELETE FROM customers",
    "-- SELECT 1\nDELETE FROM customers",
    "SELECT 1 --\r; DELETE FROM customers",
    "SELECT '\\'; DELETE FROM customers; --'",
    "SELECT E'\\'; DELETE FROM customers; --'",
    "SELECT $$;$$; DELETE FROM customers",
    "DELETE\N{NO-BREAK SPACE}FROM\N{NO-BREAK SPACE}customers",
    "\ufeffDELETE FROM customers",
    "\N{FULLWIDTH LATIN CAPITAL LETTER D}ELETE FROM customers",
    "SELECT 1\N{GREEK QUESTION MARK} DELETE FROM customers",
    "SELECT 1\N{FULLWIDTH SEMICOLON} DELETE FROM customers",
    "SELECT 1\0; DELETE FROM customers",
    "SELECT '\ud800'; DELETE FROM customers",
    "BEGIN; DELETE FROM customers; COMMIT",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT s",
    "END; DELETE FROM customers",
    "EXPLAIN ANALYZE DELETE FROM customers",
    "VACUUM",
    "ANALYZE",
    "REINDEX",
    # SQLite's
    "ATTACH DATABASE 'more.db' AS more",
    "ATTACH DATABASE ':memory:' AS more",
    "DETACH DATABASE main",
    "VACUUM INTO 'more.db'",
    "PRAGMA user_version = 7",
    "PRAGMA journal_mode = WAL",
    "PRAGMA query_only = OFF",
    "PRAGMA writable_schema = ON",
    "PRAGMA wal_checkpoint",
    "UPDATE sqlite_master SET sql = ''",
    "SELECT * FROM pragma_user_version(7)",
    "SELECT load_extension('more')",
    "SELECT writefile('more', 'x')",
    "SELECT fts3_tokenizer('simple', x'00')",
    "CREATE VIRTUAL TABLE more USING fts5 (x)",
    # PostgreSQL's
    "COPY customers TO PROGRAM 'touch more'",
    "COPY customers FROM PROGRAM 'echo 9'",
    "COPY (SELECT 1) TO '/tmp/more'",
    "DO $$ BEGIN DELETE FROM customers; END $$",
    "CALL more()",
    "SELECT nextval('counter')",
    "SELECT setval('counter', 99)",
    "SELECT lo_create(4711)",
    "SELECT lo_from_bytea(0, '\\x00')",
    "SELECT lo_import('/etc/hostname')",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT set_config('transaction_read_only', 'off', true), query_to_xml('DELETE FROM customers', true, true, '')",
    "SELECT query_to_xml('DELETE FROM customers RETURNING 1', true, true, '')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_catalog.pg_advisory_lock(2)",
    'SELECT "pg_advisory_lock"(3)',
    'SELECT U&"pg\\005fadvisory_lock"(4)',
    "SELECT * FROM pg_advisory_lock(5)",
    "SELECT * FROM ROWS FROM (pg_advisory_lock(6))",
    "SELECT {fn pg_advisory_lock(7)}",
    "SET ROLE postgres",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET TRANSACTION READ WRITE; DELETE FROM customers",
    "ALTER ROLE CURRENT_USER SET work_mem = '1MB'",
    "GRANT ALL ON customers TO public",
    "COMMENT ON TABLE customers IS 'x'",
    "CREATE FUNCTION more() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE EXTENSION dblink",
    "LOCK TABLE customers",
    "NOTIFY more",
    "LISTEN more",
    "PREPARE more AS DELETE FROM customers",
    "DECLARE more CURSOR FOR SELECT 1",
    "REFRESH MATERIALIZED VIEW more",
    "SELECT * FROM customers FOR UPDATE",
    "SELECT * FROM customers FOR KEY SHARE SKIP LOCKED",
]


async def test_no_statement_changes_anything(shop: Shop) -> None:
    """Whatever is tried, the database is as before: its file, and whatever lies beside it, to the byte."""
    before = shop.state()

    async with shop.tools() as tools:
        for sql in WRITING:
            try:
                answer = await ask(tools, sql)
            except ToolComplaint:
                continue
            assert "DELETE" in answer or "1" in answer, sql  # it was a SELECT all the same, of a text

    assert shop.state() == before


async def test_the_database_itself_refuses_to_write(shop: Shop) -> None:
    """With nothing looking at the statement before, the second line of defence holds alone."""
    before = shop.state()
    path = shop.url.removeprefix("sqlite:///")
    database = (
        SqliteDatabase(Path(path), None, 10, 1)
        if shop.dialect == "sqlite"
        else PostgresDatabase(shop.url, None, 10, 1)
    )

    for sql in WRITING:
        try:
            await database.query(Statement(sql, frozenset(), frozenset()), 5)
        except (ToolComplaint, sqlite3.Error, ValueError, TypeError):
            continue

    assert shop.state() == before


TOKENS = r"""
SELECT INSERT UPDATE DELETE DROP CREATE ATTACH PRAGMA VACUUM INTO FROM TABLE WITH AS RETURNING VALUES SET AND
customers name 'x' 1 ( ) ; , * -- /* */ " ' ` [ ] $$ \ = user_version journal_mode WAL
"""


@given(tokens=st.lists(st.sampled_from(TOKENS.split()) | st.text(max_size=5), max_size=25))
async def test_no_text_changes_anything(tmp_path_factory: pytest.TempPathFactory, tokens: list[str]) -> None:
    """Any text is answered or refused, and the file stays as it is, to the byte."""
    shop = sqlite_shop(tmp_path_factory.mktemp("shop"))
    before = shop.state()

    async with shop.tools() as tools:
        with contextlib.suppress(ToolComplaint):
            await ask(tools, " ".join(tokens))

    assert shop.state() == before


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("", "empty"), (" ; ; ", "empty"), ("-- SELECT 1", "empty"),
        ("SELECT 1; SELECT 2", "several"),
        ("DELETE FROM customers", "only reading"), ("EXPLAIN SELECT 1", "only reading"),
        ("WITH x AS (DELETE FROM customers RETURNING *) SELECT * FROM x", "only reading"),
        ("SELECT * INTO more FROM customers", "only reading"),
        ("SELECT * FROM customers FOR UPDATE", "only reading"),
        ("SELECT pg_sleep(1)", "pg_sleep may not be called"),
        ("SELECT Load_Extension('x')", "load_extension may not be called"),
        ("SELECT :name", "placeholders"), ("SELECT ?", "placeholders"),
        ("SELECT (", "not understood as SQL at line 1"), ("SELECT 'x", "not understood"),
        ("SELECT " + "(" * 900 + "1" + ")" * 900, "nested too deeply"),
        ("SELECT '" + "x" * 5000 + "'", "longer than 5000"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_what_may_not_run_is_refused_in_a_sentence(dialect: Dialect, sql: str, said: str) -> None:
    """The model is told what is wrong with its statement."""
    with pytest.raises(ToolComplaint, match=said):
        check(sql, dialect)


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
def test_a_query_is_never_logged(dialect: Dialect, caplog: pytest.LogCaptureFixture) -> None:
    """The parser's own warnings quote what it reads; nobody sees them, whoever has configured logging since."""
    logging.config.dictConfig({"version": 1, "disable_existing_loggers": False})
    with caplog.at_level(logging.DEBUG):
        for sql in WRITING:
            try:
                check(sql, dialect)
            except ToolComplaint:
                continue

    assert not caplog.records


MEANING: dict[str, str] = {
    "both": """
SELECT 7 / 2, -7 / 2, 7 % 3, 2 + 3 * 4, (2 + 3) * 4, 1.5e1, 'it''s', 'a' || 'b' || NULL;
SELECT id, name FROM customers WHERE NOT id IN (SELECT customer FROM orders) OR name LIKE 'A%' ORDER BY 1;
SELECT c.name, count(o.id) AS n, sum(cents) FROM customers AS c LEFT JOIN orders o ON o.customer = c.id
  GROUP BY c.id, c.name HAVING count(o.id) >= 0 ORDER BY n DESC, c.id LIMIT 2 OFFSET 1;
SELECT id, row_number() OVER (ORDER BY cents DESC), lag(cents, 1, 0) OVER w, sum(cents) OVER
  (ORDER BY id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) FROM orders WINDOW w AS (ORDER BY id);
WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 5) SELECT * FROM n;
SELECT 1 UNION ALL SELECT 2 EXCEPT SELECT 3 ORDER BY 1;
VALUES (1, 'a'), (2, NULL);
SELECT CASE WHEN id = 1 THEN 'one' ELSE 'more' END, coalesce(name, '-'), nullif(id, 2) FROM customers;
SELECT count(DISTINCT name), count(*) FILTER (WHERE id > 1), max(id), min(name) FROM customers;
SELECT CAST('12' AS integer) + 1, round(2.567, 2), abs(-3), upper('a'), substr('hello', 2, 3), trim(' a ');
SELECT * FROM customers ORDER BY name DESC NULLS LAST, id;
SELECT * FROM customers ORDER BY name NULLS FIRST, id DESC;
SELECT EXISTS (SELECT 1 FROM orders), 2 BETWEEN 1 AND 3, NULL IS NULL, 1 <> 2, NOT 1 = 2;
SELECT * FROM customers, orders WHERE customers.id = orders.customer ORDER BY 1;
""",
    "sqlite": r"""
SELECT date('2026-11-23', 'start of month', '+1 month', '-1 day'), strftime('%Y-%m', '2026-11-23'),
  datetime('2026-11-23 10:00', '-7 days'), julianday('2026-11-23'), unixepoch('2026-11-23');
SELECT group_concat(name, '; '), total(id), typeof(id), iif(id > 1, 'x', 'y'), ifnull(name, 0) FROM customers;
SELECT x'00ff', 0x10, 1 == 1, 1 IS NOT 2, 'a' GLOB 'a*', 'b_c' LIKE 'b\_c' ESCAPE '\', 1 << 3, ~5, 6 & 3;
SELECT [name], `id`, "name", main.customers.id, rowid FROM customers LIMIT 1, 2;
SELECT json_extract('{"a": [1, 2]}', '$.a[1]'), '{"a": 1}' ->> 'a', '{"a": 1}' -> '$.a';
SELECT value, key FROM json_each('[3, 4]') UNION ALL SELECT value, 0 FROM json_tree('[5]');
SELECT printf('%.2f|%05d', 1.5, 42), instr('abc', 'c'), char(65), hex('a'), quote('a''b'), max(1, 2);
SELECT CAST('1.5x' AS REAL), CAST(3.7 AS integer), CAST('a' AS varchar(3)), name COLLATE NOCASE FROM customers;
""",
    "postgres": r"""
SELECT '2026-11-23'::date + interval '1 month', date_trunc('month', timestamp '2026-11-23 10:11:12');
SELECT extract(dow FROM date '2026-11-23'), to_char(date '2026-11-23', 'YYYY-MM'), age('2026-11-23', '2020-01-01');
SELECT timestamptz '2026-11-23 10:00+00' AT TIME ZONE 'UTC', interval '90 minutes', '1 day'::interval;
SELECT DISTINCT ON (customer) customer, id FROM orders ORDER BY customer, id DESC;
SELECT string_agg(name, '; ' ORDER BY id DESC), array_agg(id ORDER BY id), bool_or(id > 2) FROM customers;
SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY cents), stddev(cents) FROM orders;
SELECT '{"a": {"b": [1, 2]}}'::jsonb -> 'a' #>> '{b,1}', '{"a": 1}'::jsonb ? 'a', '{"a": 1}'::jsonb @> '{}';
SELECT jsonb_build_object('x', 1), jsonb_path_query('[1,2]', '$[*] ? (@ > 1)');
SELECT * FROM generate_series(1, 5, 2) AS g(n), LATERAL (SELECT n * 2 AS m) AS l ORDER BY n DESC;
SELECT * FROM generate_series(date '2026-01-01', date '2026-03-01', interval '1 month') AS month;
SELECT * FROM unnest(ARRAY['a', 'b']) WITH ORDINALITY AS t(x, n);
SELECT id FROM orders WHERE id = ANY (ARRAY[10, 11]) AND cents::text ~ '^4' FETCH FIRST 1 ROW ONLY;
SELECT (ARRAY[1, 2, 3])[2:3], 7 / 2.0, 2 ^ 3, 5 # 1, |/ 9, 'a' SIMILAR TO 'a|b', 'Ab' ILIKE 'a%';
SELECT $$it's$$, E'a\tb', U&'\00e4', B'101', chr(65), md5('a'), left('abc', 2), split_part('a,b', ',', 2);
SELECT customer, sum(cents) FROM orders GROUP BY GROUPING SETS ((customer), ()) ORDER BY 1 NULLS LAST;
SELECT to_tsvector('english', 'running dogs') @@ plainto_tsquery('english', 'dog'), ROW(1, 'a'), (1, 2) = (1, 2);
SELECT regexp_replace('abc', 'b', 'x'), regexp_matches('a1b2', '\d', 'g'), format('%s-%I', 'a', 'B');
SELECT width_bucket(5, 0, 10, 5), 1::numeric(5, 2), 'x'::varchar(3), '{1,2}'::int[], true IS NOT TRUE;
SELECT c.*, o FROM customers AS c JOIN orders AS o ON (c.id = o.customer) ORDER BY c.id;
TABLE orders;
""",
}


@pytest.mark.parametrize("dialect", ["sqlite", "postgres"])
async def test_what_runs_means_what_was_written(
    dialect: Dialect, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Written anew from its tree, a query finds just what it would have found as the model wrote it."""
    database: SqliteDatabase | PostgresDatabase
    if dialect == "sqlite":
        database = SqliteDatabase(Path(sqlite_shop(tmp_path).url.removeprefix("sqlite:///")), None, 10, 1)
    else:
        database = PostgresDatabase(request.getfixturevalue("on_postgres").url, None, 10, 1)

    for sql in (MEANING["both"] + MEANING[dialect]).split(";\n")[:-1]:
        as_written = await database.query(Statement(sql, frozenset(), frozenset()), 50)
        assert (await database.query(check(sql, dialect), 50)).rows == as_written.rows, sql
        assert as_written.rows, sql


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM secrets", "SELECT count(*) FROM secrets", "SELECT 1 FROM SECRETS", "SELECT * FROM told",
        "SELECT name, (SELECT word FROM secrets) FROM customers", 'SELECT * FROM "secrets"',
        "SELECT * FROM customers JOIN secrets ON true", "SELECT 1 UNION SELECT 2 FROM secrets",
        "WITH x AS (SELECT * FROM secrets) SELECT * FROM x",
        "WITH customers AS (SELECT * FROM secrets) SELECT * FROM customers",
        "WITH Customers AS (SELECT * FROM secrets) SELECT * FROM customers",
        "WITH secrets AS (SELECT * FROM secrets) SELECT * FROM secrets",
        "SELECT * FROM secrets UNION SELECT * FROM (WITH secrets AS (SELECT '1') SELECT * FROM secrets) AS s",
        "SELECT * FROM (SELECT * FROM secrets) AS customers",
        "SELECT * FROM customers WHERE EXISTS (SELECT 1 FROM secrets WHERE word LIKE 'x%')",
        "VALUES ((SELECT word FROM secrets))", "SELECT * FROM customers ORDER BY (SELECT word FROM secrets)",
        "SELECT * FROM sqlite_master", "SELECT * FROM sqlite_schema", "SELECT * FROM pragma_table_info('secrets')",
        "SELECT * FROM dbstat", "SELECT * FROM main.secrets", "SELECT * FROM public.secrets", "TABLE secrets",
        "SELECT * FROM pg_class", "SELECT * FROM pg_catalog.pg_stats", "SELECT * FROM information_schema.tables",
        "SELECT query_to_xml('SELECT * FROM secrets', true, true, '')",
        "SELECT table_to_xml('secrets', true, true, '')",
        "SELECT * FROM ts_stat('SELECT to_tsvector(word) FROM secrets')",
        "SELECT ts_rewrite('a'::tsquery, 'SELECT word::tsquery, word::tsquery FROM secrets')",
        "SELECT * FROM ONLY secrets", "SELECT * FROM secrets *", "SELECT secrets FROM secrets",
    ],
)  # fmt: skip
async def test_only_the_listed_tables_are_read(shop: Shop, sql: str) -> None:
    """However a table that is not listed is named, it is not read."""
    async with shop.tools(tables=["customers", "orders", "spenders"]) as tools:
        complaint = await told(tools, sql)

    assert "xyzzy" not in complaint


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT name FROM customers WHERE id = 1", "SELECT name FROM Customers WHERE id = 1",
        "SELECT name FROM customers AS secrets WHERE id = 1", "SELECT name FROM spenders",
        "WITH rich AS (SELECT * FROM spenders) SELECT name FROM rich AS secrets",
        "SELECT name FROM customers WHERE id IN (SELECT customer FROM orders WHERE cents > 1000)",
    ],
)  # fmt: skip
async def test_the_listed_tables_are_read(shop: Shop, sql: str) -> None:
    """A listed view may be read without the tables below it being listed."""
    tables = ["customers", "orders", "spenders"]
    if "spenders" in sql:
        tables = ["spenders"]
    async with shop.tools(tables=tables) as tools:
        assert await ask(tools, sql) == "name\nAnn"


async def test_full_text_tables_are_read(tmp_path: Path) -> None:
    """SQLite's full-text tables work, listed or not, and their inner tables are not described."""
    shop = sqlite_shop(tmp_path)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(
            "CREATE VIRTUAL TABLE notes USING fts5 (text); INSERT INTO notes VALUES ('late hops')"
        )
        connection.commit()

    for tables in (None, ["notes"]):
        async with shop.tools(tables=tables) as tools:
            assert await ask(tools, "SELECT text FROM notes WHERE notes MATCH 'hops' ORDER BY rank") == (
                "text\nlate hops"
            )
            assert "notes_data" not in str(await tools[0].ainvoke({}))


@pytest.fixture
def notes(tmp_path: Path) -> Shop:
    """The shop with two full-text tables, and tables of other names that begin like one of them."""
    shop = sqlite_shop(tmp_path)
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.executescript(
            "CREATE VIRTUAL TABLE notes USING fts5 (text); INSERT INTO notes VALUES ('late hops');"
            "CREATE VIRTUAL TABLE notes_of_others USING fts5 (text); INSERT INTO notes_of_others VALUES ('xyzzy');"
            "CREATE TABLE notes_private (word text); INSERT INTO notes_private VALUES ('xyzzy');"
            "CREATE VIEW notes_told AS SELECT word FROM notes_private"
        )
    return shop


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT word FROM notes_private", "SELECT word FROM Notes_Private", "SELECT word FROM notes_told",
        "SELECT text FROM notes_of_others", "SELECT c0 FROM notes_of_others_content",
    ],
)  # fmt: skip
async def test_what_merely_begins_like_a_full_text_table_is_not_read(notes: Shop, sql: str) -> None:
    """The list opens the inner tables of the full-text tables on it, and no others."""
    async with notes.tools(tables=["notes"]) as tools:
        assert "xyzzy" not in await told(tools, sql)
        assert await ask(tools, "SELECT text FROM notes WHERE notes MATCH 'hops'") == "text\nlate hops"


async def test_what_merely_begins_like_a_full_text_table_is_described(notes: Shop) -> None:
    """Only SQLite's inner tables are left out."""
    async with notes.tools() as tools:
        lines = str(await tools[0].ainvoke({})).splitlines()

    assert [line.partition(":")[0] for line in lines if line.startswith("notes")] == [
        "notes",
        "notes_of_others",
        "notes_private",
        "notes_told",
    ]


async def test_other_schemas_are_named_in_full(on_postgres: Shop, postgres_url: str) -> None:
    """A table of another schema is described, listed and read by its full name."""
    with new_database(postgres_url) as url:
        shop = postgres_shop(postgres_url, url)
        role = url.rpartition("/")[2]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE SCHEMA sales; CREATE TABLE hidden (id int)")
            connection.execute("CREATE TABLE sales.leads AS SELECT 5 AS id")
            connection.execute(
                f"GRANT USAGE ON SCHEMA sales TO {role}; GRANT SELECT ON sales.leads TO {role}".encode()
            )
        async with shop.tools(tables=["sales.leads", "public.orders"]) as tools:
            assert await tools[0].ainvoke({}) == (
                "orders: id integer primary key, customer integer -> customers.id, cents integer\n"
                "sales.leads: id integer"
            )
            assert await ask(tools, "SELECT id FROM sales.leads") == "id\n5"
            assert await ask(tools, "SELECT count(*) AS n FROM public.orders") == "n\n2"
            assert "leads" in await told(tools, "SELECT id FROM leads")
        async with shop.tools() as tools:
            assert "hidden" not in str(await tools[0].ainvoke({}))
            assert "permission denied" in await told(tools, "SELECT * FROM hidden")
    assert on_postgres.url != shop.url


async def test_a_query_that_takes_too_long_is_stopped(shop: Shop) -> None:
    """The model is told to ask for less."""
    async with shop.tools(timeout_s=0.3) as tools:
        assert "took longer than 0.3 s" in await told(tools, ENDLESS)


async def test_a_query_is_stopped_within_one_step_of_sqlites(tmp_path: Path) -> None:
    """Where SQLite itself looks at nothing for minutes, the file is free as soon as the model is told."""
    shop = sqlite_shop(tmp_path)

    async with shop.tools(timeout_s=0.5) as tools:
        assert "took longer than 0.5 s" in await told(tools, ONE_LONG_STEP)
        with closing(sqlite3.connect(tmp_path / "shop.db", timeout=0, isolation_level=None)) as other:
            assert not is_locked(other)


@pytest.mark.parametrize("sql", [ENDLESS_IN_FILE, ONE_LONG_STEP], ids=["steps", "step"])
@pytest.mark.parametrize("way", ["scope", "task"])
async def test_a_cancelled_query_is_ended_in_a_file(tmp_path: Path, sql: str, way: str) -> None:
    """Whoever cancels, anyio or asyncio: afterwards nothing reads the file any more."""
    shop = sqlite_shop(tmp_path)

    async with shop.tools(timeout_s=600) as tools:
        with closing(sqlite3.connect(tmp_path / "shop.db", timeout=0, isolation_level=None)) as other:
            scope = anyio.CancelScope()
            task = asyncio.create_task(asked_within(scope, tools, sql))
            while not is_locked(other):
                await anyio.sleep(0.01)
            scope.cancel() if way == "scope" else task.cancel()
            await asyncio.wait([task])
            while is_locked(other):
                await anyio.sleep(0.01)

    assert task.cancelled() == (way == "task")


async def asked_within(scope: anyio.CancelScope, tools: Sequence[BaseTool], sql: str) -> None:
    """Ask, until the scope is cancelled."""
    with scope:
        await ask(tools, sql)


@pytest.mark.parametrize(
    "sql",
    [
        f"SELECT {', '.join(['hex(zeroblob(1500000))'] * 40)}",
        "WITH n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 200) SELECT 1 FROM n ORDER BY zeroblob(x + 999999)",
        "WITH n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 200) SELECT DISTINCT zeroblob(x + 1999999) FROM n",
    ],
    ids=["values", "sorting", "distinct"],
)
async def test_a_query_in_a_file_has_a_bound_in_memory_and_none_of_it_on_the_disk(
    tmp_path: Path, sql: str
) -> None:
    """A wide row, and what SQLite would sort or keep in a temporary file, is told to be too much."""
    async with sqlite_shop(tmp_path).tools(timeout_s=60) as tools:
        assert "more than 64 MB of memory" in await told(tools, sql)


async def test_an_answer_of_many_wide_rows_is_cut_where_it_is_read(tmp_path: Path) -> None:
    """No setting makes the process that reads send more than a million characters and a row."""
    sql = "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n LIMIT 99) SELECT ... FROM n"
    sql = sql.replace("...", ", ".join(["printf('%.200c', 'x')"] * 100))
    async with sqlite_shop(tmp_path).tools(rows=1000, most_characters=10_000_000, timeout_s=60) as tools:
        answer = await ask(tools, sql)

    assert answer.endswith("(the first 51 rows; there are more)")


async def test_a_reader_that_nobody_ends_ends_itself() -> None:
    """Where the service died in the middle of a query, an alarm of the system's is what ends it."""
    question = sqlite_reader.Question(
        what="rows", url="file::memory:", tables=None, limit_s=0.5, sql=ONE_LONG_STEP.replace("FROM customers", ""),
        queries=[], most_rows=1, most_characters=1,
    )  # fmt: skip
    reader = await anyio.open_process([sys.executable, "-I", "-S", sqlite_reader.__file__])
    async with reader:
        assert reader.stdin is not None
        await reader.stdin.send(json.dumps(question).encode() + b"\n")

        assert await reader.wait() == -signal.SIGALRM


_environments: list[Any] = []


def _note_environments(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        _environments.append(arguments[3])


sys.addaudithook(_note_environments)  # the interpreter's own report of every process that it starts


async def test_the_process_that_reads_a_file_has_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and addresses of ours are not in it."""
    for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MUSTER_AGENT_SECRET", "sesame")
    async with sqlite_shop(tmp_path).tools() as tools:
        _environments.clear()
        await ask(tools, "SELECT 1")

    assert _environments == [{}]


def is_locked(connection: sqlite3.Connection) -> bool:
    """Whether somebody reads the database."""
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return True
    connection.execute("ROLLBACK")
    return False


async def test_a_cancelled_query_is_stopped_on_a_server(on_postgres: Shop, postgres_url: str) -> None:
    """After a cancellation our query soon no longer runs on the server."""
    async with (
        on_postgres.tools(timeout_s=600) as tools,
        await psycopg.AsyncConnection[Any].connect(postgres_url, autocommit=True) as other,
    ):
        async with anyio.create_task_group() as group:
            group.start_soon(ask, tools, ENDLESS)
            while not await is_busy(other):
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        while await is_busy(other):
            await anyio.sleep(0.01)


async def is_busy(connection: psycopg.AsyncConnection[Any]) -> bool:
    """Whether a query of ours runs on the server."""
    cursor = await connection.execute(
        "SELECT FROM pg_stat_activity WHERE query LIKE 'FETCH%' AND state = 'active' AND application_name = 'muster'"
    )
    return await cursor.fetchone() is not None


async def test_many_ask_at_once(shop: Shop) -> None:
    """Questions side by side are all answered, each its own."""
    answers: list[str] = []

    async def put(tools: Sequence[BaseTool], number: int) -> None:
        answers.append(await ask(tools, f"SELECT {number} AS n"))

    async with shop.tools() as tools, anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(put, tools, number)

    assert sorted(answers) == sorted(f"n\n{number}" for number in range(20))


@pytest.fixture
async def in_use(tmp_path: Path) -> AsyncGenerator[tuple[Shop, sqlite3.Connection]]:
    """A file in WAL mode that its owner has open."""
    shop = sqlite_shop(tmp_path)
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as owner:
        owner.execute("PRAGMA journal_mode = WAL")
        yield shop, owner


async def test_a_file_that_is_being_written_is_read(in_use: tuple[Shop, sqlite3.Connection]) -> None:
    """Readers neither wait for the writer nor keep it waiting, and see what was committed last."""
    shop, owner = in_use
    async with shop.tools() as tools:
        owner.execute("INSERT INTO customers VALUES (4, 'Di')")
        owner.execute("BEGIN IMMEDIATE")
        owner.execute("DELETE FROM customers")
        assert await ask(tools, "SELECT max(id) AS m FROM customers") == "m\n4"
        owner.execute("ROLLBACK")


async def test_a_file_named_oddly_is_opened(tmp_path: Path) -> None:
    """Signs that mean something in a URL are part of the name."""
    shop = sqlite_shop(tmp_path)
    odd = tmp_path / "a?b#c%20d é.db"
    odd.write_bytes((tmp_path / "shop.db").read_bytes())

    async with open_sql(SqlSettings.model_validate({"database": f"sqlite:///{odd}"})) as tools:
        assert await ask(tools, "SELECT word FROM secrets") == "word\nxyzzy"

    assert "xyzzy" in str(shop.state())


@pytest.mark.parametrize("what", ["nothing", "folder", "text"])
async def test_a_file_that_is_no_database_cannot_be_opened(tmp_path: Path, what: str) -> None:
    """The operator is told, and nothing is made in its place."""
    place = tmp_path / "place"
    if what == "folder":
        place.mkdir()
    elif what == "text":
        place.write_text("no database at all, but long enough to be one " * 99, "utf-8")

    with pytest.raises(ToolkitError, match="cannot be read"):
        async with open_sql(SqlSettings.model_validate({"database": f"sqlite:///{place}"})):
            pass

    assert place.exists() == (what != "nothing")


async def test_a_server_that_is_not_there_cannot_be_opened(on_postgres: Shop) -> None:
    """A wrong password and a wrong port are told without the address."""
    for url in (
        on_postgres.url.replace("sesame", "wrong"),
        "postgresql://reader:sesame@127.0.0.1:9/shop",
        "postgresql://127.0.0.1:port/",
    ):
        with pytest.raises(ToolkitError, match="cannot be used") as error:
            async with open_sql(SqlSettings.model_validate({"database": url})):
                pass
        assert "127.0.0.1" not in str(error.value)
        assert "sesame" not in str(error.value)


async def test_a_superuser_cannot_be_used(postgres_url: str) -> None:
    """A role that could read the server's files is refused, with what to do."""
    with pytest.raises(ToolkitError, match="make a role that has SELECT"):
        async with open_sql(SqlSettings.model_validate({"database": postgres_url})):
            pass


async def test_a_server_that_goes_away_is_a_complaint(tmp_path: Path) -> None:
    """The model is told that there is no answer now, and not where the database was."""
    shop = sqlite_shop(tmp_path)
    async with shop.tools() as tools:
        (tmp_path / "shop.db").unlink()
        assert str(tmp_path) not in await told(tools, "SELECT 1")


async def test_postgresql_without_its_extra_is_told(tmp_path: Path) -> None:
    """Where the driver is not installed, the operator is told what to install."""
    program = (
        "import asyncio, sys\n"
        "sys.modules['psycopg'] = None\n"
        "from muster_agent.tools.sql import SqlSettings, open_sql\n"
        "async def run():\n"
        "    async with open_sql(SqlSettings(database='postgresql://x@127.0.0.1/x')): pass\n"
        "asyncio.run(run())\n"
    )
    process = await anyio.run_process([sys.executable, "-c", program], check=False, cwd=tmp_path)

    assert b"ToolkitError: PostgreSQL needs an extra: pip install 'muster[postgres]'" in process.stderr


@pytest.mark.parametrize(
    "url", ["mysql://x", "sqlite://", "sqlite:///", "shop.db", "sqlite:///a\0b", "http://x"]
)
def test_other_databases_are_refused(url: str) -> None:
    """Settings name what is expected, and never repeat a URL, which may hold a password."""
    with pytest.raises(ValidationError, match="expected sqlite:///PATH or postgresql://") as error:
        SqlSettings.model_validate({"database": f"{url}sesame"} if "http" in url else {"database": url})

    assert "sesame" not in str(error.value)


async def test_the_tools_are_named_and_described(tmp_path: Path) -> None:
    """Two databases have tools of different names, and the model learns which SQL to write."""
    shop = sqlite_shop(tmp_path)
    async with shop.tools() as plain, shop.tools(name="sales", about="orders") as named:
        assert [tool.name for tool in plain] == ["describe_tables", "query_database"]
        assert [tool.name for tool in named] == ["describe_sales", "query_sales"]
        assert "orders" in named[0].description
        assert "SQLite" in plain[1].description
        assert all(tool.metadata == {"changes_world": False} for tool in [*plain, *named])


async def test_nothing_is_left_open(shop: Shop) -> None:
    """Connections are closed by whoever opened them, after answers and after complaints: warnings are errors."""
    async with shop.tools() as tools:
        await ask(tools, "SELECT 1")
        await told(tools, "SELECT nothing")
    gc.collect()
