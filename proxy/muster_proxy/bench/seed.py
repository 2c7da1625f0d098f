"""The original comparison (`muster bench seed`): runs the ways in turn, prints the table, writes the JSON."""

import asyncio
import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from muster_observability import server
from muster_observability.server import ExitCode
from muster_proxy.bench import servers, ways
from muster_proxy.bench.benchmark import check_place, drawing
from muster_proxy.bench.figures import Figure, percentile
from muster_proxy.bench.labs import BenchmarkError
from muster_proxy.bench.ways import Result, Target
from muster_proxy.embedded.errors import EmbeddedError

ONE_AT_A_TIME = "one at a time"
ALL_AT_ONCE = "all at once"
EXPLICIT_BATCH = "one explicit batch"
THROUGH_MUSTER = "through Muster"
IN_WINDOWS = f"in windows of {ways.WINDOW}"

LEAST_SHARE = 0.99


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command's options ask for; their meaning is in its help."""

    upstream: str | None
    simulate: bool
    profile: str
    model: str | None
    requests: int
    rounds: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; times in seconds. `ratio` is over one at a time."""

    way: str
    wall_s: float
    requests_per_s: float
    ratio: float
    p50_s: float
    p95_s: float
    output_tokens_per_s: float
    batches: int | None
    mean_batch_size: float | None


_Way = Callable[[Target, list[ways.Request], Callable[[], None]], Awaitable[Result]]


def run_seed(plan: Plan, json_file: Path | None, plot_file: Path | None) -> ExitCode:
    """Run the comparison, print its table, and write its figures to the files that there are."""
    console = Console(stderr=True)
    try:
        check_place(plan.upstream, plan.profile, is_simulated=plan.simulate)
        draw = drawing() if plot_file is not None else None
        with _upstream(plan) as (url, limit):
            target = asyncio.run(ways.find_target(url, plan.model))
            results = _run_all(plan, target, limit, console)
    except (BenchmarkError, servers.ServerFailedError) as error:
        return server.refuse(error, ExitCode.FAILED)
    except EmbeddedError as error:
        return server.refuse(error, error.exit_code)
    except KeyboardInterrupt:
        return server.refuse("interrupted", ExitCode.INTERRUPTED)
    rows = _rows(results)
    _print(rows, plan, target)
    document = _document(rows, plan, target)
    if json_file is not None:
        json_file.write_bytes(document)
    if plot_file is not None and draw is not None:
        draw(document, plot_file)
    return ExitCode.OK


def _document(rows: list[Row], plan: Plan, target: Target) -> bytes:
    share = _share(rows)
    finding = f"Through Muster {share:.2f} of the throughput of all at once, straight to the engine"
    about = {"case": "seed", "finding": finding, "model": target.model}
    sizes = {"requests": plan.requests, "rounds": plan.rounds}
    figure = Figure("throughput over direct", share, LEAST_SHARE)
    return orjson.dumps(
        {
            **about,
            **sizes,
            "rows": [dataclasses.asdict(row) for row in rows],
            "figures": [{**dataclasses.asdict(figure), "holds": figure.holds}],
        },
        option=orjson.OPT_INDENT_2,
    )


def _share(rows: list[Row]) -> float:
    """Muster's throughput over that of going directly."""
    per_s = {row.way: row.requests_per_s for row in rows}
    return per_s[THROUGH_MUSTER] / per_s[ALL_AT_ONCE]


@contextlib.contextmanager
def _upstream(plan: Plan) -> Generator[tuple[str, int | None]]:
    """The engine's URL, and Muster's limit for it; where none is given, an engine is started."""
    if plan.upstream is not None:
        yield plan.upstream, plan.limit
        return
    if plan.simulate:
        with servers.modelled_engine(plan.profile) as url:
            yield url, plan.limit
        return
    with servers.embedded_engine() as (url, limit):
        yield url, plan.limit or limit


def _run_all(plan: Plan, target: Target, limit: int | None, console: Console) -> dict[str, list[Result]]:
    """Run every way; those that are compared closely run in turns, so that both see the same machine."""
    turns: list[tuple[str, _Way]] = [
        (ONE_AT_A_TIME, ways.one_at_a_time),
        (EXPLICIT_BATCH, ways.explicit_batch),
        (IN_WINDOWS, ways.windows),
    ]
    close: list[tuple[str, _Way]] = [
        (ALL_AT_ONCE, ways.all_at_once),
        (THROUGH_MUSTER, functools.partial(_through_muster, limit)),
    ]
    for number in range(plan.rounds):
        turns += close if number % 2 == 0 else close[::-1]
    results: dict[str, list[Result]] = {}
    columns = (TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        for number, (name, way) in enumerate(turns):
            task = progress.add_task(name, total=plan.requests)
            mix = ways.requests(plan.requests, f"run {number}")
            result = asyncio.run(_ran(way(target, mix, _advance(progress, task))))
            results.setdefault(name, []).append(result)
    return results


def _advance(progress: Progress, task: TaskID) -> Callable[[], None]:
    return lambda: progress.advance(task)


async def _ran(work: Awaitable[Result]) -> Result:
    try:
        return await work
    except ExceptionGroup as group:  # of the requests that ran together, the first that failed tells enough
        raise group.exceptions[0] from None
    except httpx.HTTPError as error:
        raise BenchmarkError(f"a request failed: {type(error).__name__}") from error


async def _through_muster(
    limit: int | None, target: Target, mix: list[ways.Request], advance: Callable[[], None]
) -> Result:
    """All at once, through a proxy of its own, whose batches are read from its metrics."""
    options = ("--limit", str(limit)) if limit is not None else ()
    with servers.muster("proxy", "--upstream", target.url, *options, ready_path="/health/ready") as url:
        result = await ways.all_at_once(dataclasses.replace(target, url=url), mix, advance)
        async with ways.client() as http:
            metrics = _metrics((await http.get(f"{url}/metrics")).text)
    return dataclasses.replace(
        result,
        batches=int(metrics["muster_batches"]),
        mean_batch_size=metrics["muster_batch_size_mean"],
    )


def _metrics(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _rows(results: dict[str, list[Result]]) -> list[Row]:
    """A row for each way, with the median over its rounds."""
    order = (ONE_AT_A_TIME, ALL_AT_ONCE, EXPLICIT_BATCH, THROUGH_MUSTER, IN_WINDOWS)
    base = statistics.median(len(each.latencies_s) / each.wall_s for each in results[ONE_AT_A_TIME])
    return [_row(name, results[name], base) for name in order]


def _row(name: str, rounds: list[Result], base_per_s: float) -> Row:
    latencies_s = [latency for each in rounds for latency in each.latencies_s]
    per_s = statistics.median(len(each.latencies_s) / each.wall_s for each in rounds)
    sizes = [each.mean_batch_size for each in rounds if each.mean_batch_size is not None]
    return Row(
        way=name,
        wall_s=statistics.median(each.wall_s for each in rounds),
        requests_per_s=per_s,
        ratio=per_s / base_per_s,
        p50_s=percentile(latencies_s, 50),
        p95_s=percentile(latencies_s, 95),
        output_tokens_per_s=statistics.median(each.output_tokens / each.wall_s for each in rounds),
        batches=rounds[0].batches,
        mean_batch_size=statistics.mean(sizes) if sizes else None,
    )


def _print(rows: list[Row], plan: Plan, target: Target) -> None:
    title = f"{plan.requests} requests of 10 to 150 tokens, {target.model}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("way", no_wrap=True)
    for heading in ("time s", "req/s", "ratio", "p50 s", "p95 s", "tok/s", "batches", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.way,
            f"{row.wall_s:.1f}",
            f"{row.requests_per_s:.2f}",
            f"{row.ratio:.2f}x",
            f"{row.p50_s:.2f}",
            f"{row.p95_s:.2f}",
            f"{row.output_tokens_per_s:.1f}",
            "-" if row.batches is None else str(row.batches),
            "-" if row.mean_batch_size is None else f"{row.mean_batch_size:.1f}",
        )
    console = Console()
    console.print(table)
    console.print(f"{THROUGH_MUSTER} / {ALL_AT_ONCE}: {_share(rows):.3f}", highlight=False)
