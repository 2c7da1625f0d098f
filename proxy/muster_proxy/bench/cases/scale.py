"""`muster bench scale`: what one decision of the scheduler costs while many tickets wait."""

import random
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from muster_batching.limits import FixedLimit
from muster_batching.policy import Policy, WaitingLimits
from muster_batching.scheduler import Scheduler
from muster_batching.tickets import (
    CLASSES,
    Dispatch,
    End,
    Outcome,
    PoolId,
    SessionId,
    TenantId,
    Ticket,
    TicketId,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import UpstreamReport
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, ratio
from muster_proxy.bench.workloads import draws

MOST_US = 20.0
MOST_GROWTH, GROWTH_FROM, GROWTH_TO = 2.0, 1_000, 100_000

DECISIONS = ("submit", "finish", "cancel")

_POOL, _ENGINE = PoolId("pool"), UpstreamId("engine")
_SLOTS = 256
_STEP_S = 0.001


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked.

    Attributes:
        waiting: How many tickets wait, in turns.
        decisions: How many of each kind are timed with so many waiting.
        seed: Of all draws.
    """

    waiting: tuple[int, ...] = (10, 100, 1_000, 10_000, 100_000)
    decisions: int = 5_000
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "quick": Plan(waiting=(10, 1_000), decisions=200),
}


@dataclass(frozen=True, slots=True)
class _Cost:
    """Microseconds of each decision, by kind, and bytes per waiting ticket."""

    us: Mapping[str, Sequence[float]]
    ticket_bytes: float

    @property
    def median_us(self) -> float:
        """Of the dearest kind."""
        return max(percentile(each, 50) for each in self.us.values())


def run(plan: Plan, advance: Callable[[str], None]) -> Findings:
    """Time decisions with more and more tickets waiting.

    Args:
        plan: How much is asked.
        advance: Told of each size before it is measured.
    """
    costs: dict[int, _Cost] = {}
    for waiting in plan.waiting:
        advance(f"{waiting:,} waiting")
        costs[waiting] = _Cost(_timed(plan, waiting), _ticket_bytes(plan, waiting))
    figures = _figures(costs)
    most = max(plan.waiting)
    return Findings(
        case="scale",
        finding=f"A decision takes {costs[most].median_us:.1f} us with {most:,} tickets waiting, "
        f"{costs[min(plan.waiting)].median_us:.1f} us with {min(plan.waiting):,}",
        rows=[Row(f"{waiting:,} waiting", _values(cost)) for waiting, cost in costs.items()],
        figures=figures,
        curves={
            "waiting": list(plan.waiting),
            "median_us": {
                kind: [percentile(costs[each].us[kind], 50) for each in costs] for kind in DECISIONS
            },
            "p99_us": {kind: [percentile(costs[each].us[kind], 99) for each in costs] for kind in DECISIONS},
            "ticket_bytes": [cost.ticket_bytes for cost in costs.values()],
        },
        notes=[
            "submit: a ticket that must wait; finish: a slot goes to the next ticket; cancel: one that waits leaves",
            "tickets of three classes and up to 1,000 tenants, half of them in sessions",
            "bytes include the ticket and its names",
        ],
    )


class _Crowd:
    """A scheduler with all slots taken and a number of tickets waiting."""

    def __init__(self, plan: Plan, waiting: int) -> None:
        room = WaitingLimits(max_waiting=4 * waiting + _SLOTS, max_waiting_bytes=1 << 50, max_wait_s=1e9)
        self._scheduler = Scheduler(Policy.of(room))
        self._source = draws(f"{plan.seed} scale {waiting}")
        self._tenants = max(1, min(1_000, waiting // 20))
        self._submitted = 0
        self._now_s = 0.0
        self.in_flight: list[TicketId] = []
        self.waiting: dict[TicketId, None] = {}
        report = UpstreamReport(FixedLimit(_SLOTS), frozenset({_POOL}), available=True)
        self._scheduler.report(_ENGINE, report, now_s=0.0)
        for _ in range(_SLOTS + waiting):
            self.submit(self.ticket())

    def ticket(self) -> Ticket:
        """Draw a ticket."""
        self._submitted += 1
        tenant = self._source.randrange(self._tenants)
        talk = self._source.randrange(8)
        return Ticket(
            TicketId(f"request-{self._submitted}"),
            _POOL,
            size_bytes=2_000,
            request_class=self._source.choice(CLASSES),
            tenant=TenantId(f"tenant-{tenant}"),
            session=SessionId(f"session-{tenant}-{talk}") if talk < 4 else None,  # noqa: PLR2004  half of them
            input_tokens=self._source.randrange(50, 4_000),
            max_output_tokens=500,
        )

    def submit(self, ticket: Ticket) -> float:
        """Submit it; seconds that this took."""
        self._now_s += _STEP_S
        began_s = time.perf_counter()
        actions = self._scheduler.submit(ticket, now_s=self._now_s)
        took_s = time.perf_counter() - began_s
        self.waiting[ticket.id] = None
        self._heed(actions)
        return took_s

    def finish(self) -> float:
        """End a request in flight; seconds that this took, with the dispatch that follows."""
        self._now_s += _STEP_S
        place = self._source.randrange(len(self.in_flight))
        self.in_flight[place], self.in_flight[-1] = self.in_flight[-1], self.in_flight[place]
        ticket_id = self.in_flight.pop()
        end = End(Outcome.COMPLETED, usage=Usage(500, 150))
        began_s = time.perf_counter()
        actions = self._scheduler.finish(ticket_id, end, now_s=self._now_s)
        took_s = time.perf_counter() - began_s
        self._heed(actions)
        return took_s

    def cancel(self, ticket_id: TicketId) -> float:
        """A client that waits leaves; seconds that this took."""
        self._now_s += _STEP_S
        began_s = time.perf_counter()
        actions = self._scheduler.cancel(ticket_id, now_s=self._now_s)
        took_s = time.perf_counter() - began_s
        del self.waiting[ticket_id]
        self._heed(actions)
        return took_s

    def _heed(self, actions: Sequence[object]) -> None:
        for action in actions:
            if isinstance(action, Dispatch):
                self.in_flight.append(action.ticket_id)
                del self.waiting[action.ticket_id]


def _timed(plan: Plan, waiting: int) -> dict[str, list[float]]:
    crowd = _Crowd(plan, waiting)
    us: dict[str, list[float]] = {kind: [] for kind in DECISIONS}
    for _ in range(plan.decisions):
        us["finish"].append(1e6 * crowd.finish())
        us["submit"].append(1e6 * crowd.submit(crowd.ticket()))
    source = draws(f"{plan.seed} leavers {waiting}")
    while len(us["cancel"]) < plan.decisions:
        us["cancel"] += _leaving(crowd, plan.decisions - len(us["cancel"]), source)
    return us


def _leaving(crowd: _Crowd, count: int, source: random.Random) -> list[float]:
    """Cancel tickets that wait, drawn from all of them, each replaced by another; microseconds of each."""
    waiting = list(crowd.waiting)
    us: list[float] = []
    for ticket_id in source.sample(waiting, min(count, len(waiting))):
        if ticket_id in crowd.waiting:  # and was not dispatched as others left
            us.append(1e6 * crowd.cancel(ticket_id))
            crowd.submit(crowd.ticket())
    return us


def _ticket_bytes(plan: Plan, waiting: int) -> float:
    """Memory of a crowd beyond that of a small one, for each ticket."""
    few = min(plan.waiting)
    if waiting <= few:
        return float("nan")
    tracemalloc.start()
    try:
        small = _Crowd(plan, few)
        small_bytes = tracemalloc.get_traced_memory()[0]
        large = _Crowd(plan, waiting)
        large_bytes = tracemalloc.get_traced_memory()[0] - small_bytes
    finally:
        tracemalloc.stop()
    return (large_bytes - small_bytes) / (len(large.waiting) - len(small.waiting))


def _values(cost: _Cost) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for kind in DECISIONS:
        values[f"{kind} p50 us"] = percentile(cost.us[kind], 50)
        values[f"{kind} p99 us"] = percentile(cost.us[kind], 99)
    return {**values, "bytes/ticket": cost.ticket_bytes}


def _figures(costs: Mapping[int, _Cost]) -> list[Figure]:
    most = max(costs)
    figures = [
        Figure(
            "dearest decision at any size, median (us)",
            max(c.median_us for c in costs.values()),
            MOST_US,
            "at most",
        ),
        Figure(f"bytes per ticket with {most:,} waiting", costs[most].ticket_bytes),
    ]
    if GROWTH_FROM in costs and GROWTH_TO in costs:
        growth = max(
            ratio(percentile(costs[GROWTH_TO].us[kind], 50), percentile(costs[GROWTH_FROM].us[kind], 50))
            for kind in DECISIONS
        )
        figures.insert(1, Figure("growth from 1,000 to 100,000 waiting", growth, MOST_GROWTH, "at most"))
    return figures
