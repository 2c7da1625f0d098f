"""A closed loop of clients: each sends its next request when it has the answer to its last.

    python -m tests.benchmarks.peers.load < work.json > result.json

It runs as a process of its own, so that nothing else's work is between an answer and the clock.
"""

import asyncio
import contextlib
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

import msgspec
import uvloop

from tests.benchmarks.peers import process_tree
from tests.benchmarks.peers.connection import Answer, Connection, request
from tests.benchmarks.peers.launch import own_process, pinned
from tests.benchmarks.peers.pace import Pace

CONNECTING = 64
"""Connections that are opened at a time: more would overflow a listener's backlog, and be tried again in seconds."""

WARM_UP_TOKENS = 10


@dataclass(frozen=True)
class Work:
    """What a load does.

    Attributes:
        url: Root of the server.
        pace: What each request asks for.
        clients: That send, each on its own connection.
        requests: How many they send together.
        warm_up: Requests before these, shorter ones, that nothing is measured of.
        starts_within_s: After this many seconds no request is begun; those that have begun are waited for.
        key: API key to show.
        pid: The process whose tree's CPU is read.
    """

    url: str
    pace: Pace
    clients: int
    requests: int
    warm_up: int = 0
    starts_within_s: float = 3600.0
    key: str | None = None
    pid: int | None = None


@dataclass(frozen=True)
class Spread:
    """Median and 99th percentile of something, in milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Result:
    """What a load found. Times are of the good answers alone; None where there was none.

    Attributes:
        good: Requests whose answer is what they asked for.
        bad: The others, by what came instead.
        requests_per_s: Good ones in a second.
        latency_ms: From sending to the answer's end.
        ttft_ms: From sending to the body's first byte.
        gap_ms: The longest wait within each answer.
        cpu_us: Of the measured process tree for each good answer, in microseconds.
        shift_p99: By how many places an answer came earlier or later than its request was sent (99th percentile).
        shift_max: Likewise, the greatest.
    """

    good: int
    bad: dict[str, int] = field(default_factory=dict[str, int])
    requests_per_s: float = 0.0
    latency_ms: Spread | None = None
    ttft_ms: Spread | None = None
    gap_ms: Spread | None = None
    cpu_us: float | None = None
    shift_p99: int = 0
    shift_max: int = 0


class Load:
    """Sends the requests of some work, and keeps what comes back."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._left = work.requests
        self._request = request(work.url, work.pace.body(), work.key)
        self._connecting = asyncio.Semaphore(CONNECTING)
        self._ends_s = math.inf
        self.good: list[Answer] = []
        self.bad: Counter[str] = Counter()

    async def run(self) -> float:
        """Send everything; the seconds that it took."""
        began_s = perf_counter()
        self._ends_s = began_s + self._work.starts_within_s
        async with asyncio.TaskGroup() as clients:
            for _ in range(min(self._work.clients, self._work.requests)):
                clients.create_task(self._client())
        return perf_counter() - began_s

    async def _client(self) -> None:
        connection: Connection | None = None
        while self._left > 0 and perf_counter() < self._ends_s:
            self._left -= 1
            try:
                if connection is None or not connection.is_open:
                    async with self._connecting:
                        connection = await Connection.open(self._work.url)
                self._keep(await connection.exchange(self._request))
            except OSError as error:
                self.bad[type(error).__name__] += 1
        if connection is not None:
            connection.close()

    def _keep(self, answer: Answer) -> None:
        if answer.fits(self._work.pace):
            self.good.append(answer)
        else:
            self.bad[answer.mishap] += 1


async def run(work: Work) -> Result:
    """Warm up, do the work, and tell what it came to."""
    if work.warm_up:
        short = replace(work.pace, tokens=min(work.pace.tokens, WARM_UP_TOKENS))
        await Load(replace(work, pace=short, requests=work.warm_up)).run()
    load = Load(work)
    before_s = _cpu_s(work.pid)
    took_s = await load.run()
    after_s = _cpu_s(work.pid)
    used_s = None if before_s is None or after_s is None else after_s - before_s
    return _result(load, took_s, used_s)


def _cpu_s(pid: int | None) -> float | None:
    return None if pid is None else process_tree.cpu_s(pid)


def _result(load: Load, took_s: float, used_s: float | None) -> Result:
    good = load.good
    if not good:
        return Result(0, dict(load.bad))
    shifts = sorted(_shifts(good))
    return Result(
        good=len(good),
        bad=dict(load.bad),
        requests_per_s=len(good) / took_s,
        latency_ms=_spread(each.last_s - each.sent_s for each in good),
        ttft_ms=_spread(each.first_s - each.sent_s for each in good),
        gap_ms=_spread(each.gap_s for each in good),
        cpu_us=None if used_s is None else used_s / len(good) * 1e6,
        shift_p99=int(percentile(shifts, 0.99)),
        shift_max=shifts[-1],
    )


def _shifts(answers: Sequence[Answer]) -> list[int]:
    """How far each answer's place in the order of the ends is from its place in the order of the beginnings."""
    by_sending = sorted(answers, key=lambda answer: answer.sent_s)
    by_end = sorted(range(len(by_sending)), key=lambda place: by_sending[place].last_s)
    return [abs(sent - ended) for ended, sent in enumerate(by_end)]


def _spread(seconds: Iterable[float]) -> Spread:
    ordered = sorted(seconds)
    return Spread(percentile(ordered, 0.5) * 1e3, percentile(ordered, 0.99) * 1e3)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values, of which there is at least one."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@contextlib.contextmanager
def started(work: Work, core: int | None) -> Generator[subprocess.Popen[bytes]]:
    """A process that does the work, killed with the block; `result` waits for it."""
    with pinned(core):
        process = own_process("load", takes_input=True)
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(work))
        process.stdin.close()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def result(process: subprocess.Popen[bytes]) -> Result:
    """What a started process found; waits for its end.

    Raises:
        RuntimeError: It ended without a result; its own error is on the terminal.
    """
    assert process.stdout is not None
    told = process.stdout.read()
    if process.wait() != 0:
        raise RuntimeError("the load generator failed")
    return msgspec.json.decode(told, type=Result)


def measured(work: Work, core: int | None) -> Result:
    """Do the work in a process on a core."""
    with started(work, core) as process:
        return result(process)


if __name__ == "__main__":
    sys.stdout.buffer.write(
        msgspec.json.encode(uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Work))))
    )
