"""An hour's traffic: whole answers and streams, come when they come, and some of them go wrong.

Arrivals are a Poisson process: they do not wait for each other, as users do not.
"""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass

from tests.benchmarks.peers.connection import Answer, Connection, request
from tests.benchmarks.peers.pace import Fault, Pace

STREAMED = 0.5
"""Share of the requests that ask for a stream."""

FIRST_MS = (50, 300)
STREAM_FIRST_MS = 50
TOKENS = (5, 60)
GAP_MS = 20

PATIENCE_S = 60.0
"""A client waits no longer."""

KEPT_S = 2.0
"""A connection that has been idle for longer is not used again: the server may be about to close it."""

ENGINE_FAULTS = (Fault.RESET, Fault.ERROR, Fault.SHORT, Fault.STALL)


def mean_service_s() -> float:
    """Seconds that the engine takes for a request of this mix, in the mean."""
    whole_ms = sum(FIRST_MS) / 2
    stream_ms = STREAM_FIRST_MS + GAP_MS * sum(TOKENS) / 2
    return (STREAMED * stream_ms + (1 - STREAMED) * whole_ms) / 1e3


@dataclass(frozen=True)
class Call:
    """One request of the traffic.

    Attributes:
        pace: What it asks for, the engine's fault with it.
        hangs_up_s: The client leaves so long after sending it; None: it stays.
    """

    pace: Pace
    hangs_up_s: float | None = None

    @property
    def fault(self) -> str | None:
        """What is made to go wrong, if anything."""
        if self.hangs_up_s is not None:
            return "hang up"
        return None if self.pace.fault is Fault.NONE else self.pace.fault.value


class Traffic:
    """Sends requests until it is told to stop, and counts how they end.

    Args:
        url: Root of the server.
        rate_per_s: Arrivals in a second, in the mean.
        faults: Share of the requests that go wrong, half of them hang-ups.
        key: API key to show.
        seed: Of everything random.

    Attributes:
        sent: Requests so far.
        faulted: Those that were made to go wrong, by what and how they ended.
        failed: Those that nothing was done to and that were not answered well, by how they ended.
    """

    def __init__(self, url: str, rate_per_s: float, faults: float, key: str | None, seed: int) -> None:
        self._url = url
        self._rate_per_s = rate_per_s
        self._faults = faults
        self._key = key
        self._random = random.Random(seed)  # noqa: S311  nothing secret hangs on it
        self._idle: list[tuple[float, Connection]] = []
        self.sent = 0
        self.faulted: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Send for so many seconds, then wait for what is still on its way."""
        now_s = due_s = time.monotonic()
        ends_s = now_s + seconds
        try:
            async with asyncio.TaskGroup() as calls:
                while due_s < ends_s:
                    await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                    calls.create_task(self._send(self._drawn()))
                    due_s += self._random.expovariate(self._rate_per_s)
        finally:
            self._close_idle(older_than_s=0.0)

    def _drawn(self) -> Call:
        pace = self._pace(Fault.NONE)
        if self._random.random() >= self._faults:
            return Call(pace)
        if self._random.random() < 0.5:
            service_ms = pace.first_ms + pace.tokens * pace.gap_ms
            return Call(pace, hangs_up_s=self._random.uniform(0.0, service_ms / 1e3))
        return Call(self._pace(self._random.choice(ENGINE_FAULTS)))

    def _pace(self, fault: Fault) -> Pace:
        draw = self._random
        if draw.random() >= STREAMED:
            return Pace(first_ms=draw.randint(*FIRST_MS), fault=fault)
        tokens = draw.randint(*TOKENS)
        return Pace(tokens, True, STREAM_FIRST_MS, GAP_MS, fault, draw.randrange(tokens))

    async def _send(self, call: Call) -> None:
        self.sent += 1
        end = await self._end(call)
        if call.fault is not None:
            self.faulted[f"{call.fault}: {end}"] += 1
        elif end != "good":
            self.failed[end] += 1

    async def _end(self, call: Call) -> str:
        """Send one request; how it ended."""
        try:
            async with asyncio.timeout(PATIENCE_S if call.hangs_up_s is None else call.hangs_up_s):
                answer = await self._answer(call.pace)
        except TimeoutError:
            return "no answer in time" if call.hangs_up_s is None else "left"
        except OSError as error:
            return type(error).__name__
        return "good" if answer.fits(call.pace) else answer.mishap

    async def _answer(self, pace: Pace) -> Answer:
        connection = await self._connection()
        try:
            answer = await connection.exchange(request(self._url, pace.body(), self._key))
        except BaseException:  # a client that leaves is cancelled
            connection.close()
            raise
        if connection.is_open:
            self._idle.append((time.monotonic(), connection))
        return answer

    async def _connection(self) -> Connection:
        """The connection that was used last, or a new one."""
        self._close_idle(older_than_s=KEPT_S)
        while self._idle:
            _, connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await Connection.open(self._url)

    def _close_idle(self, older_than_s: float) -> None:
        before_s = time.monotonic() - older_than_s
        while self._idle and self._idle[0][0] <= before_s:
            self._idle.pop(0)[1].close()
