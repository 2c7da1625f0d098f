"""HTTP servers and clients in a bare relay, beside direct calls: `python -m tests.benchmarks.relays --help`."""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.benchmarks.peers import table
from tests.benchmarks.peers.comparison import Sizes
from tests.benchmarks.peers.console import Say, compared
from tests.benchmarks.peers.install import InstallError
from tests.benchmarks.peers.launch import two_cores
from tests.benchmarks.peers.proxies import Proxy
from tests.benchmarks.relays.combinations import ALL, Combination
from tests.benchmarks.relays.drawing import drawn
from tests.benchmarks.relays.environment import interpreter


def main() -> int:
    """Run the comparison; 0 if every relay ran and answered every request as it should."""
    chosen = _options()
    console = Console(width=180)
    # How much an engine's own latency grows is not asked here.
    sizes = replace(Sizes.of(chosen.rounds, chosen.requests), delayed=0)
    combinations = [each for each in ALL if chosen.only is None or each.name in chosen.only]
    try:
        rows = compared(len(combinations), partial(_relays, combinations), sizes, console)
    except InstallError as error:
        print(f"relays: the servers and clients cannot be installed: {error}", file=sys.stderr)
        return 1
    cores = two_cores()
    console.print(drawn(rows))
    for note in table.notes(rows, cores):
        console.print(note, highlight=False)
    if chosen.json is not None:
        chosen.json.write_bytes(table.as_json(rows, sizes, cores))
    return int(any(row.failure is not None or row.bad > 0 for row in rows))


def _relays(combinations: list[Combination], engine: str, say: Say) -> list[Proxy]:
    python = interpreter(say)
    return [each.relay(engine, python) for each in combinations]


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(prog="relays", description=__doc__)
    options.add_argument("--rounds", type=int, default=5, help="rounds over all relays (5)")
    options.add_argument(
        "--requests",
        type=int,
        default=3000,
        help="whole answers of each relay in each round (3000); streams are in proportion",
    )
    options.add_argument(
        "--only",
        nargs="+",
        choices=[each.name for each in ALL],
        help="these relays alone, and direct calls",
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    return options.parse_args()


if __name__ == "__main__":
    sys.exit(main())
