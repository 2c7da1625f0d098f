"""HTTP servers and clients in a bare relay, beside direct calls: `python -m tests.benchmarks.relays --help`."""

import sys
from dataclasses import replace
from functools import partial

from rich.console import Console

from tests.benchmarks.peers import table
from tests.benchmarks.peers.comparison import Sizes
from tests.benchmarks.peers.console import Say, compared, options
from tests.benchmarks.peers.install import InstallError
from tests.benchmarks.peers.launch import two_cores
from tests.benchmarks.peers.proxies import Proxy
from tests.benchmarks.relays.combinations import ALL, Combination
from tests.benchmarks.relays.drawing import drawn
from tests.benchmarks.relays.environment import interpreter


def main() -> int:
    """Run the comparison; 0 if every relay ran and answered every request as it should."""
    chosen = options("relays", __doc__, "relays", [each.name for each in ALL])
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


if __name__ == "__main__":
    sys.exit(main())
