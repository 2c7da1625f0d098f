"""The scheduler's invariants, held against any history that Hypothesis can think of.

The machine keeps its own small account of every ticket and upstream, reads each action from the timeline's
log and checks it on the spot: may this ticket go now, to this upstream, or be turned away for this reason?
"""

from collections import Counter
from dataclasses import dataclass
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_batching import (
    Dispatch,
    Outcome,
    PoolId,
    Scheduler,
    SlotEnd,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    UpstreamReport,
    WaitingLimits,
)
from muster_batching.testing import Timeline

POOLS = [PoolId(name) for name in ("chat", "code", "embed")]
UPSTREAMS = [UpstreamId(name) for name in ("east", "west", "north")]
LIMITS = WaitingLimits(max_waiting=6, max_waiting_bytes=20, max_wait_s=10.0)
GONE = UpstreamReport(limit=1, pools=frozenset(), available=False)

reports = st.builds(
    UpstreamReport,
    limit=st.integers(1, 3),
    pools=st.frozensets(st.sampled_from(POOLS)),
    available=st.sampled_from([True, True, True, False]),
)


@dataclass
class Waiting:
    """A ticket that waits, and since when."""

    ticket: Ticket
    since_s: float


class SchedulerMachine(RuleBasedStateMachine):
    """Plays requests, ends, departures, reports and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.timeline = Timeline(Scheduler(LIMITS))
        self.read = 0
        self.submitted: list[Ticket] = []
        self.waiting: dict[TicketId, Waiting] = {}
        self.in_flight: dict[TicketId, UpstreamId] = {}
        self.ends: dict[TicketId, Outcome] = {}
        self.upstreams: dict[UpstreamId, UpstreamReport] = {}
        self.known: set[PoolId] = set()
        self.slots_taken: Counter[UpstreamId] = Counter()
        self.slots_given_back: Counter[UpstreamId] = Counter()

    @rule(pool=st.sampled_from(POOLS), size_bytes=st.integers(0, 12))
    def submit(self, pool: PoolId, size_bytes: int) -> None:
        """A request comes: it goes at once, waits, or is turned away for a reason that holds."""
        ticket = Ticket(TicketId(str(len(self.submitted))), pool, size_bytes)
        self.submitted.append(ticket)
        self.waiting[ticket.id] = Waiting(ticket, self.timeline.clock())
        self.timeline.submit(ticket)
        self.check_actions()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), outcome=st.sampled_from(get_args(SlotEnd)))
    def finish(self, data: st.DataObject, outcome: SlotEnd) -> None:
        """An answer ends."""
        ticket_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.end_in_flight(ticket_id, outcome)
        self.timeline.finish(ticket_id, outcome)
        self.check_actions()

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """A client leaves, whatever has become of its ticket."""
        ticket_id = data.draw(st.sampled_from(self.submitted)).id
        if ticket_id in self.in_flight:
            self.end_in_flight(ticket_id, Outcome.CANCELLED)
        elif self.waiting.pop(ticket_id, None) is not None:
            self.ends[ticket_id] = Outcome.CANCELLED
        self.timeline.cancel(ticket_id)
        self.check_actions()

    @rule(upstream=st.sampled_from(UPSTREAMS), report=reports)
    def report(self, upstream: UpstreamId, report: UpstreamReport) -> None:
        """An upstream comes or changes."""
        self.upstreams[upstream] = report
        self.known |= report.pools
        self.timeline.report(upstream, report)
        self.check_actions()

    @rule(upstream=st.sampled_from(UPSTREAMS))
    def remove(self, upstream: UpstreamId) -> None:
        """An upstream goes, or one that is not there is removed."""
        self.upstreams[upstream] = GONE
        self.timeline.remove(upstream)
        self.check_actions()

    @rule(seconds=st.floats(0.0, 12.0))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.timeline.advance(seconds)
        self.check_actions()

    def end_in_flight(self, ticket_id: TicketId, outcome: Outcome) -> None:
        """Book the end of a ticket in flight."""
        self.slots_given_back[self.in_flight.pop(ticket_id)] += 1
        self.ends[ticket_id] = outcome

    def check_actions(self) -> None:
        """Read what is new in the log and check each action against the account."""
        for now_s, action in self.timeline.log[self.read :]:
            match action:
                case Dispatch(ticket_id, upstream):
                    self.check_dispatch(ticket_id, upstream)
                case TurnAway():
                    self.check_turn_away(action, now_s)
        self.read = len(self.timeline.log)

    def check_dispatch(self, ticket_id: TicketId, upstream: UpstreamId) -> None:
        """A dispatched ticket waited, came first of those that the upstream serves, and found room there."""
        ticket = self.waiting[ticket_id].ticket
        served = self.upstreams[upstream]
        eligible = [each.ticket.id for each in self.waiting.values() if each.ticket.pool in served.pools]
        assert served.available
        assert ticket.pool in served.pools
        assert ticket_id == eligible[0]
        assert self.load(upstream) == min(map(self.load, self.with_room(ticket.pool)))
        del self.waiting[ticket_id]
        self.in_flight[ticket_id] = upstream
        self.slots_taken[upstream] += 1

    def check_turn_away(self, action: TurnAway, now_s: float) -> None:
        """A ticket is turned away only while it waits, for a reason that holds, with a delay that fits it."""
        waited = self.waiting.pop(action.ticket_id)
        assert self.reason_holds(action.reason, waited, now_s)
        if action.reason is TurnAwayReason.UNKNOWN_POOL:
            assert action.retry_after_s is None
        else:
            assert action.retry_after_s in range(1, 61)
        self.ends[action.ticket_id] = Outcome.TURNED_AWAY

    def reason_holds(self, reason: TurnAwayReason, waited: Waiting, now_s: float) -> bool:
        """Tell from the account whether a ticket had to be turned away for this reason."""
        pool = waited.ticket.pool
        others_bytes = sum(each.ticket.size_bytes for each in self.waiting.values())
        holds = {
            TurnAwayReason.UNKNOWN_POOL: pool not in self.known,
            TurnAwayReason.NO_UPSTREAM: pool in self.known and not self.available(pool),
            TurnAwayReason.WAITING_FULL: len(self.waiting) == LIMITS.max_waiting,
            TurnAwayReason.WAITING_BYTES_FULL: (
                others_bytes + waited.ticket.size_bytes > LIMITS.max_waiting_bytes
            ),
            TurnAwayReason.WAITED_TOO_LONG: now_s == waited.since_s + LIMITS.max_wait_s,
        }
        return holds[reason] and not self.with_room(pool)

    def available(self, pool: PoolId) -> list[UpstreamId]:
        """Find the upstreams that serve a pool now."""
        return [name for name, report in self.upstreams.items() if report.available and pool in report.pools]

    def with_room(self, pool: PoolId) -> list[UpstreamId]:
        """Find the upstreams of a pool that have a free slot."""
        return [name for name in self.available(pool) if self.load(name) < 1]

    def load(self, upstream: UpstreamId) -> float:
        """Divide what is in flight on an upstream by its limit."""
        return self.taken(upstream) / self.upstreams[upstream].limit

    def taken(self, upstream: UpstreamId) -> int:
        """Count the slots taken on an upstream and not given back."""
        return self.slots_taken[upstream] - self.slots_given_back[upstream]

    @invariant()
    def each_ticket_has_one_end_or_is_on_its_way(self) -> None:
        """Waiting, in flight and ended make up all that were submitted, and the scheduler counts the same."""
        scheduler = self.timeline.scheduler
        assert len(self.waiting) + len(self.in_flight) + len(self.ends) == len(self.submitted)
        assert (scheduler.waiting, scheduler.in_flight) == (len(self.waiting), len(self.in_flight))
        assert +Counter(scheduler.ends) == Counter(self.ends.values())

    @invariant()
    def a_ticket_waits_only_while_its_upstreams_are_full(self) -> None:
        """Each that waits has an upstream to wait for, and none that would take it now."""
        for each in self.waiting.values():
            assert self.available(each.ticket.pool)
            assert not self.with_room(each.ticket.pool)

    @invariant()
    def slots_taken_are_given_back_or_held(self) -> None:
        """The scheduler holds exactly the slots that were taken and not given back."""
        for upstream in UPSTREAMS:
            assert self.timeline.scheduler.in_flight_on(upstream) == self.taken(upstream)

    @invariant()
    def waiting_is_bounded(self) -> None:
        """What waits keeps to its limits of count, bytes and time, and the next wake-up is the first's."""
        size_bytes = sum(each.ticket.size_bytes for each in self.waiting.values())
        expiries = [each.since_s + LIMITS.max_wait_s for each in self.waiting.values()]
        assert len(self.waiting) <= LIMITS.max_waiting
        assert self.timeline.scheduler.waiting_bytes == size_bytes <= LIMITS.max_waiting_bytes
        assert all(expiry > self.timeline.clock() for expiry in expiries)
        assert self.timeline.scheduler.next_wakeup_s() == min(expiries, default=None)

    def teardown(self) -> None:
        """When every client has gone, nothing is left: all slots are back and each ticket has its end."""
        for ticket in self.submitted:
            if ticket.id in self.in_flight:
                self.end_in_flight(ticket.id, Outcome.CANCELLED)
            elif self.waiting.pop(ticket.id, None) is not None:
                self.ends[ticket.id] = Outcome.CANCELLED
            self.timeline.cancel(ticket.id)
            self.check_actions()
        assert len(self.ends) == len(self.submitted)
        assert self.slots_taken == self.slots_given_back
        assert (self.timeline.scheduler.waiting, self.timeline.scheduler.in_flight) == (0, 0)


TestSchedulerInvariants = SchedulerMachine.TestCase
TestSchedulerInvariants.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
