"""Muster beside its peers and beside direct calls, in one run: `python -m tests.benchmarks.peers --help`."""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from tests.benchmarks.peers import table
from tests.benchmarks.peers.comparison import Sizes
from tests.benchmarks.peers.console import compared
from tests.benchmarks.peers.launch import two_cores
from tests.benchmarks.peers.proxies import ALL, MUSTER


def main() -> int:
    """Run the comparison; 0 unless Muster itself failed."""
    chosen = _options()
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


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="peers", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="rounds over all proxies (5)")
    options.add_argument(
        "--requests",
        type=int,
        default=3000,
        help="whole answers of each proxy in each round (3000); streams and delayed answers are in proportion",
    )
    options.add_argument(
        "--only",
        nargs="+",
        choices=[proxy.name for proxy in ALL],
        help="these proxies alone, and direct calls",
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
