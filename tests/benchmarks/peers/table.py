"""The comparison as a table, which is Markdown so that it can be put into a document, and as JSON."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import orjson
from rich import box
from rich.table import Table

from tests.benchmarks.peers.comparison import Get, Row, Sizes, added_ms, median
from tests.benchmarks.peers.launch import Cores
from tests.benchmarks.peers.load import Spread
from tests.benchmarks.peers.proxies import BASIS, DIRECT

_MIB = 1024 * 1024


def _p50(spread: Spread | None) -> float | None:
    return spread and spread.p50


def _p99(spread: Spread | None) -> float | None:
    return spread and spread.p99


@dataclass(frozen=True)
class Column:
    """One measure.

    Attributes:
        name: In JSON.
        title: In the table.
        get: The value of a round.
        digits: After the point.
        is_added: What counts is how much more it is than the direct calls' in the same round.
        has_ratio: It is shown beside the basis's.
    """

    name: str
    title: str
    get: Get
    digits: int
    is_added: bool = False
    has_ratio: bool = False


COLUMNS = (
    Column("unary_cpu_us", "CPU us/request", lambda r: r.unary.cpu_us, 0, has_ratio=True),
    Column("unary_per_s", "requests/s", lambda r: r.unary.requests_per_s, 0, has_ratio=True),
    Column(
        "stream_cpu_ms",
        "CPU ms/stream",
        lambda r: None if r.streams.cpu_us is None else r.streams.cpu_us / 1e3,
        2,
        has_ratio=True,
    ),
    Column("stream_gap_p99_ms", "worst gap p99 ms", lambda r: _p99(r.streams.gap_ms), 1),
    Column("added_p50_ms", "added p50 ms", lambda r: _p50(r.delayed.latency_ms), 2, is_added=True),
    Column("added_p99_ms", "added p99 ms", lambda r: _p99(r.delayed.latency_ms), 2, is_added=True),
    Column("ready_s", "start s", lambda r: r.ready_s, 2),
    Column("idle_mib", "idle MiB", lambda r: None if r.idle_bytes is None else r.idle_bytes / _MIB, 0),
)


def values(rows: Sequence[Row]) -> dict[str, dict[str, float | None]]:
    """Every measure of every row, by their names."""
    direct = next(row for row in rows if row.name == DIRECT)
    return {row.name: {column.name: _value(column, row, direct) for column in COLUMNS} for row in rows}


def _value(column: Column, row: Row, direct: Row) -> float | None:
    if not column.is_added:
        return median(row.rounds, column.get)
    return None if row is direct else added_ms(row, direct, column.get)


def drawn(
    rows: Sequence[Row], columns: Sequence[Column] = COLUMNS, basis: str = BASIS, title: str = ""
) -> Table:
    """The table in Markdown: a row each, `(N x)` after a value is its ratio to the basis's.

    Args:
        rows: Of the comparison.
        columns: Those that are shown.
        basis: The name of the row that ratios are to.
        title: Of the names.
    """
    shown = values(rows)
    base = shown.get(basis, {})
    table = Table(box=box.MARKDOWN)
    table.add_column(title)
    for column in columns:
        table.add_column(column.title, justify="right")
    for name, row in shown.items():
        table.add_row(name, *(_cell(column, row[column.name], base.get(column.name)) for column in columns))
    return table


def _cell(column: Column, value: float | None, basis: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.{column.digits}f}"
    return f"{text} ({value / basis:.2f} x)" if column.has_ratio and basis else text


def notes(rows: Sequence[Row], cores: Cores) -> list[str]:
    """What has to be known to read the table."""
    told = [f"{row.name}: {row.failure}" for row in rows if row.failure]
    told += [f"{row.name}: {row.bad} requests were not answered as they should be" for row in rows if row.bad]
    told.append(f"{machine()}; {cores}.")
    if sys.platform != "linux":
        told.append("CPU and memory are read from /proc: these columns need Linux.")
    return told


def machine() -> str:
    """What this runs on."""
    return f"Python {platform.python_version()}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def as_json(rows: Sequence[Row], sizes: Sizes, cores: Cores) -> bytes:
    """Everything, with each round's results."""
    document = {
        "machine": machine(),
        "cores": asdict(cores),
        "sizes": asdict(sizes),
        "medians": values(rows),
        "rows": [asdict(row) for row in rows],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)
