"""Rounds over all proxies: in each, every proxy is started, loaded in three ways and stopped.

The rounds are interleaved, so that what else happens on the machine happens to all of them, and one proxy runs at a
time, so that none disturbs another. Each round begins with the next one, so that none is always first.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks.peers.install import InstallError, installed
from tests.benchmarks.peers.launch import Cores
from tests.benchmarks.peers.load import Result, Work, measured
from tests.benchmarks.peers.pace import Pace
from tests.benchmarks.peers.proxies import DIRECT, Proxy
from tests.benchmarks.peers.start import Started, StartError, started

CLIENTS = 16
STREAMS = 64
STREAM_TOKENS = 100
STREAM_GAP_MS = 20
THINKING_MS = 100

STARTS_WITHIN_S = 10.0
"""A slow proxy answers fewer requests than it is to, rather than that all wait for it."""


@dataclass(frozen=True)
class Sizes:
    """How much is sent to each proxy in each round.

    Attributes:
        rounds: How often.
        unary: Whole answers at once.
        streams: Streams.
        delayed: Whole answers from an engine that takes its time.
    """

    rounds: int
    unary: int
    streams: int
    delayed: int

    @classmethod
    def of(cls, rounds: int, requests: int) -> "Sizes":
        """In proportion to the whole answers; at least one for each client where there are as many."""
        return cls(rounds, requests, min(requests, max(STREAMS, requests // 24)), max(1, requests // 8))


@dataclass(frozen=True)
class Round:
    """What one round found of one proxy.

    Attributes:
        ready_s: Seconds from start to the first answer; None of direct calls.
        idle_bytes: Memory at rest.
        unary: Whole answers that the engine gives at once.
        streams: Streams.
        delayed: Whole answers that the engine takes a while for.
    """

    ready_s: float | None
    idle_bytes: int | None
    unary: Result
    streams: Result
    delayed: Result


@dataclass
class Row:
    """What all rounds found of one proxy.

    Attributes:
        name: Of the proxy.
        rounds: Those that went through.
        failure: Why it has no more of them, if so.
    """

    name: str
    rounds: list[Round] = field(default_factory=list[Round])
    failure: str | None = None

    @property
    def bad(self) -> int:
        """Requests that were not answered as they should be."""
        results = (result for each in self.rounds for result in (each.unary, each.streams, each.delayed))
        return sum(sum(result.bad.values()) for result in results)


Get = Callable[[Round], float | None]


def median(rounds: Iterable[Round], get: Get) -> float | None:
    """Median over those rounds that have the value; None where none has."""
    values = [value for each in rounds if (value := get(each)) is not None]
    return statistics.median(values) if values else None


def added_ms(row: Row, direct: Row, get: Get) -> float | None:
    """Median over the rounds of what a proxy adds to the direct calls of the same round, in milliseconds."""
    pairs = [(get(one), get(other)) for one, other in zip(row.rounds, direct.rounds, strict=False)]
    values = [one - other for one, other in pairs if one is not None and other is not None]
    return statistics.median(values) if values else None


@dataclass
class Comparison:
    """A run of the comparison.

    Attributes:
        engine: Root URL of the paced engine.
        cores: Where what runs.
        sizes: How much is sent.
        say: Told what happens.
        step: Called after each of the `steps` of the run.
    """

    engine: str
    cores: Cores
    sizes: Sizes
    say: Callable[[str], None]
    step: Callable[[], None]

    def run(self, proxies: Sequence[Proxy]) -> list[Row]:
        """Measure them all, and the direct calls; a row each, direct calls first."""
        rows = {name: Row(name) for name in (DIRECT, *(proxy.name for proxy in proxies))}
        programs = dict(self._installed(proxies, rows))
        for number in range(self.sizes.rounds):
            for place in range(len(proxies) + 1):
                self._turn([None, *proxies][(number + place) % (len(proxies) + 1)], rows, programs)
                self.step()
        return list(rows.values())

    def _installed(self, proxies: Iterable[Proxy], rows: dict[str, Row]) -> Iterator[tuple[str, Path]]:
        for proxy in proxies:
            if proxy.requirement is not None:
                try:
                    yield proxy.name, installed(proxy.requirement, self.say)
                except InstallError as error:
                    rows[proxy.name].failure = f"cannot be installed: {error}"

    def _turn(self, proxy: Proxy | None, rows: dict[str, Row], programs: dict[str, Path]) -> None:
        """One round of one proxy; None: of direct calls."""
        if proxy is None:
            rows[DIRECT].rounds.append(self._round(self.engine))
            return
        row = rows[proxy.name]
        if row.failure is not None:
            return
        try:
            with (
                tempfile.TemporaryDirectory() as directory,
                started(proxy, self.engine, Path(directory), self.cores, programs.get(proxy.name)) as up,
            ):
                row.rounds.append(self._round(up.url, proxy.key, up))
        except (StartError, OSError) as error:
            row.failure = f"does not start: {error}"

    def _round(self, url: str, key: str | None = None, up: Started | None = None) -> Round:
        def load(pace: Pace, clients: int, requests: int) -> Result:
            work = Work(
                url=url,
                pace=pace,
                clients=clients,
                requests=requests,
                warm_up=min(4 * clients, requests),
                starts_within_s=STARTS_WITHIN_S,
                key=key,
                pid=up.pid if up else None,
            )
            return measured(work, self.cores.load)

        stream = Pace(tokens=STREAM_TOKENS, is_stream=True, gap_ms=STREAM_GAP_MS)
        return Round(
            ready_s=up.ready_s if up else None,
            idle_bytes=up.idle_bytes if up else None,
            unary=load(Pace(), CLIENTS, self.sizes.unary),
            streams=load(stream, STREAMS, self.sizes.streams),
            delayed=load(Pace(first_ms=THINKING_MS), CLIENTS, self.sizes.delayed),
        )
