"""A comparison with its progress on the terminal."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.peers.comparison import Comparison, Row, Sizes
from tests.benchmarks.peers.launch import allow_descriptors, end_orderly, paced_engine, two_cores
from tests.benchmarks.peers.proxies import Proxy

Say = Callable[[str], None]


def options(prog: str, doc: str | None, what: str, names: Sequence[str]) -> argparse.Namespace:
    """Read the command line of a comparison.

    Args:
        prog: Its name.
        doc: What it does.
        what: What is compared, in the plural.
        names: Of these.
    """
    parser = argparse.ArgumentParser(prog=prog, description=doc)
    parser.add_argument("--rounds", type=int, default=5, help=f"rounds over all {what} (5)")
    parser.add_argument(
        "--requests",
        type=int,
        default=3000,
        help=f"whole answers of each of the {what} in each round (3000); what else is sent is in proportion",
    )
    parser.add_argument("--only", nargs="+", choices=names, help=f"these {what} alone, and direct calls")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    return parser.parse_args()


def compared(
    count: int, proxies: Callable[[str, Say], Sequence[Proxy]], sizes: Sizes, console: Console
) -> list[Row]:
    """Run a comparison.

    Args:
        count: How many proxies there are.
        proxies: Makes them, given the root URL of the paced engine and whom to tell what takes long.
        sizes: How much is sent.
        console: Where progress is shown.
    """
    cores = two_cores()
    allow_descriptors()
    end_orderly()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # Drawn between two measurements only: drawing would take time from the core of the load.
    with (
        paced_engine(cores.load) as engine,
        Progress(*columns, console=console, auto_refresh=False) as progress,
    ):
        task = progress.add_task("rounds", total=sizes.rounds * (count + 1))
        progress.refresh()

        def step() -> None:
            progress.advance(task)
            progress.refresh()

        def say(text: str) -> None:
            progress.console.print(text, highlight=False)

        return Comparison(engine, cores, sizes, say, step).run(proxies(engine, say))
