"""Muster beside its peers and beside direct calls, in one run: `python -m tests.benchmarks.peers --help`."""

import sys

from rich.console import Console

from tests.benchmarks.peers import table
from tests.benchmarks.peers.comparison import Sizes
from tests.benchmarks.peers.console import compared, options
from tests.benchmarks.peers.launch import two_cores
from tests.benchmarks.peers.proxies import ALL, MUSTER


def main() -> int:
    """Run the comparison; 0 unless Muster itself failed."""
    chosen = options("peers", __doc__, "proxies", [proxy.name for proxy in ALL])
    console = Console(width=180)
    sizes = Sizes.of(chosen.rounds, chosen.requests)
    proxies = [proxy for proxy in ALL if chosen.only is None or proxy.name in chosen.only]
    rows = compared(len(proxies), lambda _engine, _say: proxies, sizes, console)
    cores = two_cores()
    console.print(table.drawn(rows))
    for note in table.notes(rows, cores):
        console.print(note, highlight=False)
    if chosen.json is not None:
        chosen.json.write_bytes(table.as_json(rows, sizes, cores))
    return int(any(row.name == MUSTER and (row.failure is not None or row.bad > 0) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
