"""Traffic with faults for an hour: does anything grow that should not?

    python -m tests.benchmarks.peers.soak [--minutes 60] [--rate 0.5] [--faults 0.01] [--json FILE]

Muster runs in front of an engine of 64 slots, at a share of what these can bear. Its memory, descriptors and gauges
are read every 10 s; a line a minute tells how it goes. At the end: how fast each grows (least squares), the means of
the first and of the last quarter, and what is left when all requests have ended.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
import uvloop
from rich.console import Console

from tests.benchmarks.peers.launch import allow_descriptors, end_orderly, paced_engine, pinned, two_cores
from tests.benchmarks.peers.proxies import MUSTER, MUSTER_KEY, Proxy, muster
from tests.benchmarks.peers.start import Started, StartError, started
from tests.benchmarks.peers.table import machine
from tests.benchmarks.peers.traffic import Traffic, mean_service_s
from tests.benchmarks.peers.watching import MIB, Sample, sample

SLOTS = 64
SAMPLE_EVERY_S = 10.0
LINE_EVERY = 6
"""Samples."""

SETTLES_S = 3.0
"""Between the end of the last request and the last sample: hung-up requests end a little later in Muster."""

TIMEOUTS = {"first_byte_timeout_s": 5, "idle_timeout_s": 5}
"""After which Muster gives up an engine that stalls. With the defaults, made for real engines, a stalled request would
stay for minutes."""

WATCHED = ("resident_bytes", "descriptors", "in_flight", "waiting", "tasks")


@dataclass(frozen=True)
class Trend:
    """Where a measure goes.

    Attributes:
        per_hour: Slope of the least-squares line.
        first_quarter: Mean of the first quarter of the samples.
        last_quarter: Mean of the last.
    """

    per_hour: float
    first_quarter: float
    last_quarter: float

    @classmethod
    def of(cls, points: Sequence[tuple[float, float]]) -> "Trend | None":
        """The trend of values over seconds; None for fewer than four points."""
        if len(points) < 4:
            return None
        times_s, values = zip(*points, strict=True)
        quarter = len(points) // 4
        slope = statistics.linear_regression(times_s, values).slope
        return cls(slope * 3600, statistics.fmean(values[:quarter]), statistics.fmean(values[-quarter:]))


class Soak:
    """Traffic on a running Muster, and what it is seen to hold meanwhile.

    Args:
        up: The Muster.
        traffic: On it.
        console: Told of the progress.
    """

    def __init__(self, up: Started, traffic: Traffic, console: Console) -> None:
        self._up = up
        self._traffic = traffic
        self._console = console
        self._began_s = time.monotonic()
        self.samples: list[Sample] = []
        self.after = Sample(0.0)

    async def run(self, seconds: float) -> None:
        """Run the traffic to its end, sampling."""
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(self._watch())
            await self._traffic.run(seconds)
            sampling.cancel()
        await asyncio.sleep(SETTLES_S)
        self.after = await self._sample()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_EVERY_S)
            self.samples.append(await self._sample())
            if len(self.samples) % LINE_EVERY == 0:
                self._console.print(self._line(self.samples[-1]), highlight=False)

    async def _sample(self) -> Sample:
        at_s = time.monotonic() - self._began_s
        return await asyncio.to_thread(sample, self._up.pid, self._up.url, at_s)

    def _line(self, last: Sample) -> str:
        traffic = self._traffic
        words = [
            f"{last.at_s / 60:5.0f} min",
            f"{traffic.sent:,} requests",
            f"{traffic.faulted.total():,} made to fail",
            f"{traffic.failed.total():,} others failed",
            f"{_told('resident_bytes', last.resident_bytes)} MiB",
            f"{_told('descriptors', last.descriptors)} descriptors",
            f"{_told('in_flight', last.in_flight)} in flight",
            f"{_told('waiting', last.waiting)} waiting",
        ]
        return ", ".join(words)

    def trends(self) -> dict[str, Trend | None]:
        """Of each measure, over the time of the traffic."""
        return {name: Trend.of(list(self._points(name))) for name in WATCHED}

    def _points(self, name: str) -> Iterator[tuple[float, float]]:
        for each in self.samples:
            value = getattr(each, name)
            if value is not None:
                yield each.at_s, value


def _told(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / MIB:,.1f}" if name == "resident_bytes" else f"{value:,.1f}".removesuffix(".0")


def _summary(soak: Soak, traffic: Traffic) -> Iterator[str]:
    yield f"{traffic.sent:,} requests; made to fail, and how they ended:"
    yield from (f"  {count:6,}  {what}" for what, count in sorted(traffic.faulted.items()))
    yield f"others that failed: {dict(traffic.failed) or 'none'}"
    yield "measure (memory in MiB): growth in an hour; mean of the first and the last quarter; after the end"
    for name, trend in soak.trends().items():
        after = _told(name, getattr(soak.after, name))
        if trend is None:
            yield f"  {name}: too few readings; {after}"
        else:
            parts = [
                _told(name, value) for value in (trend.per_hour, trend.first_quarter, trend.last_quarter)
            ]
            yield f"  {name}: {parts[0]}; {parts[1]} and {parts[2]}; {after}"


def main() -> int:
    """Run it; 0 if every request that nothing was done to was answered, and nothing was left in flight."""
    options = argparse.ArgumentParser(prog="soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    options.add_argument(
        "--rate", type=float, default=0.5, help="as a share of what the engine can bear (0.5)"
    )
    options.add_argument(
        "--faults", type=float, default=0.01, help="share of the requests that go wrong (0.01)"
    )
    options.add_argument("--seed", type=int, default=1, help="of everything random (1)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write every reading")
    chosen = options.parse_args()
    allow_descriptors()
    end_orderly()
    try:
        return _run(chosen, Console(soft_wrap=True))
    except StartError as error:
        print(f"soak: muster does not start: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace, console: Console) -> int:
    cores = two_cores()
    rate_per_s = chosen.rate * SLOTS / mean_service_s()
    proxy = Proxy(MUSTER, lambda place: muster(place, **TIMEOUTS), key=MUSTER_KEY)
    with (
        paced_engine(cores.load, SLOTS) as engine,
        tempfile.TemporaryDirectory() as directory,
        started(proxy, engine, Path(directory), cores) as up,
        pinned(cores.load),
    ):
        traffic = Traffic(up.url, rate_per_s, chosen.faults, MUSTER_KEY, chosen.seed)
        soak = Soak(up, traffic, console)
        console.print(f"{rate_per_s:.1f} requests/s for {chosen.minutes:g} min; {cores}", highlight=False)
        uvloop.run(soak.run(chosen.minutes * 60))
    for line in _summary(soak, traffic):
        console.print(line, highlight=False)
    if chosen.json is not None:
        chosen.json.write_bytes(_document(soak, traffic, rate_per_s))
    return int(bool(traffic.failed) or bool(soak.after.in_flight) or bool(soak.after.waiting))


def _document(soak: Soak, traffic: Traffic, rate_per_s: float) -> bytes:
    document = {
        "machine": machine(),
        "rate_per_s": rate_per_s,
        "sent": traffic.sent,
        "faulted": dict(traffic.faulted),
        "failed": dict(traffic.failed),
        "trends": {name: trend and asdict(trend) for name, trend in soak.trends().items()},
        "after": asdict(soak.after),
        "samples": [asdict(each) for each in soak.samples],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


if __name__ == "__main__":
    sys.exit(main())
