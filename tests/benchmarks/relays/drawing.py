"""The table: the columns of the comparison with peers, less those of what is added to an engine's latency."""

from collections.abc import Sequence

from rich.table import Table

from tests.benchmarks.peers import table
from tests.benchmarks.peers.comparison import Row
from tests.benchmarks.relays.combinations import BASIS

SHOWN = tuple(column for column in table.COLUMNS if not column.is_added)


def drawn(rows: Sequence[Row]) -> Table:
    """A row each; `(N x)` after a value is its ratio to that of our server with our client."""
    return table.drawn(rows, SHOWN, BASIS, "server+client")
