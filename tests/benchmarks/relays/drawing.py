"""The table: the columns of the comparison with peers, less those of what is added to an engine's latency."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from tests.benchmarks.peers.comparison import Row
from tests.benchmarks.peers.table import COLUMNS, Column, values
from tests.benchmarks.relays.combinations import BASIS

SHOWN = tuple(column for column in COLUMNS if not column.is_added)


def drawn(rows: Sequence[Row]) -> Table:
    """A row each, in Markdown; `(N x)` after a value is its ratio to that of our server with our client."""
    found = values(rows)
    basis = found.get(BASIS, {})
    table = Table(box=box.MARKDOWN)
    table.add_column("server+client")
    for column in SHOWN:
        table.add_column(column.title, justify="right")
    for name, row in found.items():
        table.add_row(name, *(_cell(column, row[column.name], basis.get(column.name)) for column in SHOWN))
    return table


def _cell(column: Column, value: float | None, basis: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.{column.digits}f}"
    return f"{text} ({value / basis:.2f} x)" if column.has_ratio and basis else text
