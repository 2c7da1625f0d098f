"""How much Muster holds at once: many open streams, and many requests that wait for a slot.

    python -m tests.benchmarks.peers.capacity [--streams N] [--waiting N] [--json FILE]

Both run behind `muster proxy --limit N`, so that how many are open and how many wait does not depend on what is learned
about the engine. Memory for each is what the process holds when the most are in it, less what it held after a short
warm-up.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.benchmarks.peers import load
from tests.benchmarks.peers.launch import Cores, allow_descriptors, end_orderly, paced_engine, two_cores
from tests.benchmarks.peers.load import Result, Work
from tests.benchmarks.peers.pace import Pace
from tests.benchmarks.peers.proxies import MUSTER, MUSTER_KEY, Proxy, muster
from tests.benchmarks.peers.start import Started, StartError, started
from tests.benchmarks.peers.table import machine
from tests.benchmarks.peers.watching import MIB, Sample, sample

SAMPLE_EVERY_S = 0.25
WARM_UP = 64

STREAM = Pace(tokens=100, is_stream=True, gap_ms=100)
SLOW = Pace(first_ms=500)


@dataclass(frozen=True)
class Case:
    """Something to hold.

    Attributes:
        name: What it is.
        pace: Of each request.
        requests: All at once.
        limit: Of Muster on the engine.
    """

    name: str
    pace: Pace
    requests: int
    limit: int


@dataclass(frozen=True)
class Held:
    """How a case went.

    Attributes:
        case: Which.
        result: Of the load.
        before: Reading after the warm-up.
        fullest: The first reading with the most requests in Muster.
        peak: The reading with the most memory.
    """

    case: Case
    result: Result
    before: Sample
    fullest: Sample
    peak: Sample

    @property
    def is_whole(self) -> bool:
        """Whether every request was answered as it should be."""
        return self.result.good == self.case.requests

    @property
    def bytes_each(self) -> float | None:
        """Memory for each request that was held when the most were."""
        before, fullest = self.before.resident_bytes, self.fullest.resident_bytes
        held = _held_by(self.fullest)
        return (fullest - before) / held if before is not None and fullest is not None and held else None


def hold(case: Case, cores: Cores) -> Held:
    """Run a case on a Muster of its own."""
    proxy = Proxy(MUSTER, lambda place: muster(place, "--limit", str(case.limit)), key=MUSTER_KEY)
    with (
        paced_engine(cores.load) as engine,
        tempfile.TemporaryDirectory() as directory,
        started(proxy, engine, Path(directory), cores) as up,
    ):
        return _held(case, up, cores)


def _held(case: Case, up: Started, cores: Cores) -> Held:
    few = Pace(tokens=4, is_stream=case.pace.is_stream)
    load.measured(Work(up.url, few, WARM_UP, WARM_UP, key=MUSTER_KEY), cores.load)
    before = sample(up.pid, up.url, 0.0)
    work = Work(up.url, case.pace, case.requests, case.requests, key=MUSTER_KEY)
    with load.started(work, cores.load) as process:
        samples = [before]
        for at_s in _ticks():
            samples.append(sample(up.pid, up.url, at_s))
            if process.poll() is not None:
                break
        result = load.result(process)
    peak = max(samples, key=lambda each: each.resident_bytes or 0)
    return Held(case, result, before, max(samples, key=_held_by), peak)


def _held_by(sample: Sample) -> float:
    return (sample.in_flight or 0.0) + (sample.waiting or 0.0)


def _ticks() -> Iterator[float]:
    """The seconds gone by, now and again."""
    began_s = time.monotonic()
    while True:
        time.sleep(SAMPLE_EVERY_S)
        yield time.monotonic() - began_s


def told(held: Held) -> Iterator[str]:
    """A case's findings, a line each."""
    case, result = held.case, held.result
    yield f"{case.name}: {result.good:,} of {case.requests:,} complete"
    yield from (f"  {count:,} x {what}" for what, count in result.bad.items())
    if case.pace.is_stream and result.gap_ms is not None:
        yield f"  largest gap of a stream: p50 {result.gap_ms.p50:.0f} ms, p99 {result.gap_ms.p99:.0f} ms"
        yield f"  the engine sends a token each {case.pace.gap_ms} ms"
    if not case.pace.is_stream:
        yield f"  answered out of turn by {result.shift_p99} places (p99), {result.shift_max} at most"
    yield f"  most in Muster at a reading: {_number(_held_by(held.fullest))}"
    yield f"  memory for each then: {_number(held.bytes_each)} bytes; a request's body has {len(case.pace.body())}"
    before, peak = held.before.resident_bytes, held.peak.resident_bytes
    yield f"  memory before: {_mib(before)} MiB, at most: {_mib(peak)} MiB"


def _mib(size_bytes: int | None) -> str:
    return "not known here" if size_bytes is None else f"{size_bytes / MIB:.1f}"


def _number(value: float | None) -> str:
    return "not known here" if value is None else f"{value:,.0f}"


def main() -> int:
    """Run both; 0 if every request was answered."""
    options = argparse.ArgumentParser(prog="capacity", description=__doc__)
    options.add_argument("--streams", type=int, default=1000, help="that are open at once (1000)")
    options.add_argument("--waiting", type=int, default=5000, help="requests that are sent at once (5000)")
    options.add_argument("--limit", type=int, default=50, help="of which so many have a slot (50)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    chosen = options.parse_args()
    allow_descriptors()
    end_orderly()
    cases = [
        Case("open streams", STREAM, chosen.streams, chosen.streams),
        Case("waiting requests", SLOW, chosen.waiting, chosen.limit),
    ]
    try:
        found = _run(cases, two_cores(), Console())
    except StartError as error:
        print(f"capacity: muster does not start: {error}", file=sys.stderr)
        return 1
    if chosen.json is not None:
        document = {
            "machine": machine(),
            "cases": [{**asdict(each), "bytes_each": each.bytes_each} for each in found],
        }
        chosen.json.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    return int(not all(each.is_whole for each in found))


def _run(cases: list[Case], cores: Cores, console: Console) -> list[Held]:
    found: list[Held] = []
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            progress.update(task, description=case.name, refresh=True)
            found.append(hold(case, cores))
            progress.advance(task)
            for line in told(found[-1]):
                progress.console.print(line, highlight=False)
    console.print(f"{machine()}; {cores}.", highlight=False)
    return found


if __name__ == "__main__":
    sys.exit(main())
