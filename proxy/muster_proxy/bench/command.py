"""`muster bench NAME`."""

from pathlib import Path
from typing import Annotated

import typer

bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@bench.callback()
def benchmarks() -> None:
    """Compare Muster with going to the engine directly, in one run."""


@bench.command()
def seed(
    upstream: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Root URL of an OpenAI-compatible server. Without it the embedded engine is started for the run.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the upstream. [its first]", show_default=False)
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests each way.")] = 50,
    rounds: Annotated[
        int,
        typer.Option(
            min=1, help="Times that the two concurrent ways are run, in turns, for a steadier ratio."
        ),
    ] = 1,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Muster's limit in flight. [engine's slots + 2, or 256]", show_default=False
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the figures as JSON too.", show_default=False)
    ] = None,
) -> None:
    """Run the original comparison: one at a time, all at once, one explicit batch, through Muster.

    50 requests of 10 to 150 tokens each way. The ratio is the requests per second over those of one at a time.
    """
    from muster_proxy.bench.seed import Plan, run_seed  # noqa: PLC0415  `muster --help` imports none of it

    plan = Plan(upstream=upstream, model=model, requests=requests, rounds=rounds, limit=limit)
    raise typer.Exit(run_seed(plan, json))
