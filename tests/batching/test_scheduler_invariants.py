"""The scheduler's invariants, held against any history that Hypothesis can think of.

The machine keeps its own small account of every ticket and upstream, reads each action from the timeline's
log and checks it on the spot: may this ticket go now, to this upstream, or be turned away for this reason?
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_batching import (
    AimdLimit,
    ClassRule,
    Dispatch,
    End,
    EngineQueueLimit,
    EngineSample,
    FixedLimit,
    Outcome,
    Policy,
    PoolId,
    RequestClass,
    Scheduler,
    SessionId,
    SlotEnd,
    TenantId,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    UpstreamReport,
    Usage,
    WaitingLimits,
    WaitReason,
)
from muster_batching.accounts import PRESENCE_S
from muster_batching.testing import Timeline
from muster_batching.upstreams import FILL_PROMPT_TOKENS, FIRST_PROMPTS

POOLS = [PoolId(name) for name in ("chat", "code", "embed")]
UPSTREAMS = [UpstreamId(name) for name in ("east", "west", "north")]
TENANTS = [TenantId(name) for name in ("ann", "bob")]
SESSIONS = [SessionId(name) for name in ("s", "t", "u")]
CLASSES = list(RequestClass)
LIMITS = WaitingLimits(max_waiting=6, max_waiting_bytes=20, max_wait_s=10.0)
RULES = {
    RequestClass.STANDARD: ClassRule(ageing_s=2.0, share=0.4),
    RequestClass.BATCH: ClassRule(ageing_s=4.0, share=0.2),
}
POLICY = Policy(waiting=dict.fromkeys(CLASSES, LIMITS), rules=RULES, max_hold_s=5.0)
GONE = UpstreamReport(FixedLimit(1), pools=frozenset(), available=False)
ROUNDING_S = 1e-6

limits = st.one_of(
    st.builds(FixedLimit, st.integers(1, 3)),
    st.just(AimdLimit(initial=2, least=1, most=4)),
    st.just(EngineQueueLimit(initial=3, least=1, most=6)),
)
reports = st.builds(
    UpstreamReport,
    limit=limits,
    pools=st.frozensets(st.sampled_from(POOLS)),
    available=st.sampled_from([True, True, True, False]),
)
counts = st.integers(0, 8)
samples = st.builds(
    EngineSample,
    running=counts,
    waiting=counts,
    kv_tokens=st.one_of(st.none(), st.integers(100, 4000)),
    preemptions=st.one_of(st.none(), counts),
    prefix_queries=st.one_of(st.none(), st.integers(0, 10_000)),
    prefix_hits=st.one_of(st.none(), st.integers(0, 10_000)),
)
tickets = st.builds(
    Ticket,
    id=st.just(TicketId("")),
    pool=st.sampled_from(POOLS),
    size_bytes=st.integers(0, 12),
    request_class=st.sampled_from(CLASSES),
    tenant=st.sampled_from(TENANTS),
    weight=st.sampled_from([0.5, 1.0, 3.0]),
    session=st.one_of(st.none(), st.sampled_from(SESSIONS)),
    input_tokens=st.integers(0, 3000),
    max_output_tokens=st.one_of(st.none(), st.integers(1, 100)),
    is_stream=st.booleans(),
)


@dataclass
class Waiting:
    """A ticket that waits, and since when."""

    ticket: Ticket
    since_s: float


@dataclass
class InFlight:
    """A ticket in flight: where, and whether its first token has come."""

    ticket: Ticket
    upstream: UpstreamId
    has_begun: bool = field(default=False)


class SchedulerMachine(RuleBasedStateMachine):
    """Plays requests, tokens, ends, departures, reports, samples and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.timeline = Timeline(Scheduler(POLICY))
        self.read = 0
        self.submitted: list[Ticket] = []
        self.submitted_s: dict[TicketId, float] = {}
        self.waiting: dict[TicketId, Waiting] = {}
        self.in_flight: dict[TicketId, InFlight] = {}
        self.ends: dict[TicketId, Outcome] = {}
        self.upstreams: dict[UpstreamId, UpstreamReport] = {}
        self.known: set[PoolId] = set()
        self.slots_taken: Counter[UpstreamId] = Counter()
        self.slots_given_back: Counter[UpstreamId] = Counter()

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler under test."""
        return self.timeline.scheduler

    @rule(ticket=tickets, deadline_s=st.one_of(st.none(), st.floats(0.0, 12.0)))
    def submit(self, ticket: Ticket, deadline_s: float | None) -> None:
        """A request comes: it goes at once, waits, or is turned away for a reason that holds."""
        now_s = self.timeline.clock()
        ticket = replace(
            ticket,
            id=TicketId(str(len(self.submitted))),
            deadline_s=None if deadline_s is None else now_s + deadline_s,
        )
        self.submitted.append(ticket)
        self.submitted_s[ticket.id] = now_s
        self.waiting[ticket.id] = Waiting(ticket, now_s)
        self.timeline.submit(ticket)
        self.check_actions()

    @precondition(lambda self: self.in_flight)
    @rule(data=st.data(), output_tokens=st.integers(1, 50))
    def progress(self, data: st.DataObject, output_tokens: int) -> None:
        """Tokens of an answer come."""
        flight = self.in_flight[data.draw(st.sampled_from(sorted(self.in_flight)))]
        flight.has_begun = True
        self.timeline.progress(flight.ticket.id, output_tokens)
        self.check_actions()

    @precondition(lambda self: self.in_flight)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(get_args(SlotEnd)),
        usage=st.one_of(st.none(), st.builds(Usage, st.integers(0, 3000), st.integers(0, 300))),
        is_push_back=st.booleans(),
        is_session_over=st.booleans(),
    )
    def finish(
        self,
        data: st.DataObject,
        outcome: SlotEnd,
        usage: Usage | None,
        is_push_back: bool,
        is_session_over: bool,
    ) -> None:
        """An answer ends."""
        ticket_id = data.draw(st.sampled_from(sorted(self.in_flight)))
        self.end_in_flight(ticket_id, outcome)
        self.timeline.end(ticket_id, End(outcome, usage, is_push_back, is_session_over))
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

    @rule(upstream=st.sampled_from(UPSTREAMS), sample=samples)
    def sample(self, upstream: UpstreamId, sample: EngineSample) -> None:
        """An engine's metrics are read, true or not."""
        self.timeline.sample(upstream, sample)
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
        self.slots_given_back[self.in_flight.pop(ticket_id).upstream] += 1
        self.ends[ticket_id] = outcome

    def check_actions(self) -> None:
        """Read what is new in the log and check each action against the account."""
        new = self.timeline.log[self.read :]
        for number, (now_s, action) in enumerate(new):
            match action:
                case Dispatch(ticket_id, upstream):
                    later = {each.ticket_id for _, each in new[number + 1 :]}
                    self.check_dispatch(ticket_id, upstream, now_s, later)
                case TurnAway():
                    self.check_turn_away(action, now_s)
        for upstream in {action.upstream_id for _, action in new if isinstance(action, Dispatch)}:
            assert self.taken(upstream) <= self.scheduler.slots_on(upstream)
        self.read = len(self.timeline.log)

    def check_dispatch(
        self, ticket_id: TicketId, upstream: UpstreamId, now_s: float, later: set[TicketId]
    ) -> None:
        """A dispatched ticket waited, goes where it is served, and passes no more urgent one but by its share."""
        ticket = self.waiting[ticket_id].ticket
        assert self.upstreams[upstream].available
        assert ticket.pool in self.upstreams[upstream].pools
        for other in self.waiting.values():
            is_passed = (
                other.ticket.pool == ticket.pool
                and CLASSES.index(other.ticket.request_class) < CLASSES.index(ticket.request_class)
                and other.ticket.id not in later
                and self.scheduler.waits_for(other.ticket.id) is not WaitReason.SESSION_GATE
            )
            if is_passed:
                self.check_goes_ahead(ticket, upstream, now_s)
        del self.waiting[ticket_id]
        self.in_flight[ticket_id] = InFlight(ticket, upstream)
        self.slots_taken[upstream] += 1

    def check_goes_ahead(self, ticket: Ticket, upstream: UpstreamId, now_s: float) -> None:
        """A class that goes ahead of a more urgent one has aged, and holds less than its share."""
        rule = RULES[ticket.request_class]
        alike = [
            each
            for each in self.waiting.values()
            if (each.ticket.pool, each.ticket.request_class) == (ticket.pool, ticket.request_class)
        ]
        held = sum(
            flight.upstream == upstream and flight.ticket.request_class is ticket.request_class
            for flight in self.in_flight.values()
        )
        assert max(now_s - each.since_s for each in alike) >= rule.ageing_s
        assert held < max(1.0, rule.share * self.scheduler.slots_on(upstream))

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
        others = [
            each for each in self.waiting.values() if each.ticket.request_class is waited.ticket.request_class
        ]
        others_bytes = sum(each.ticket.size_bytes for each in others)
        holds = {
            TurnAwayReason.UNKNOWN_POOL: pool not in self.known,
            TurnAwayReason.NO_UPSTREAM: pool in self.known and not self.available(pool),
            TurnAwayReason.WAITING_FULL: len(others) == LIMITS.max_waiting,
            TurnAwayReason.WAITING_BYTES_FULL: (
                others_bytes + waited.ticket.size_bytes > LIMITS.max_waiting_bytes
            ),
            TurnAwayReason.WAITED_TOO_LONG: now_s in (waited.since_s, waited.since_s + LIMITS.max_wait_s),
            TurnAwayReason.DEADLINE: waited.ticket.deadline_s is not None,
        }
        return holds[reason]

    def available(self, pool: PoolId) -> list[UpstreamId]:
        """Find the upstreams that serve a pool now."""
        return [name for name, report in self.upstreams.items() if report.available and pool in report.pools]

    def with_room(self, pool: PoolId) -> list[UpstreamId]:
        """Find the upstreams of a pool that have a free slot."""
        return [each for each in self.available(pool) if self.taken(each) < self.scheduler.slots_on(each)]

    def taken(self, upstream: UpstreamId) -> int:
        """Count the slots taken on an upstream and not given back."""
        return self.slots_taken[upstream] - self.slots_given_back[upstream]

    def are_others_present(self, ticket: Ticket) -> bool:
        """Whether a request of a more urgent class, or of another tenant, came a short time ago."""
        return any(
            self.timeline.clock() < self.submitted_s[other.id] + PRESENCE_S
            and (
                CLASSES.index(other.request_class) < CLASSES.index(ticket.request_class)
                or other.tenant != ticket.tenant
            )
            for other in self.submitted
        )

    def has_enough_prompts(self, upstream: UpstreamId) -> bool:
        """Whether an upstream has enough prompts that it has not begun to answer, of those that tell."""
        tokens = [
            flight.ticket.input_tokens
            for flight in self.in_flight.values()
            if flight.upstream == upstream and flight.ticket.is_stream and not flight.has_begun
        ]
        return sum(tokens) >= FILL_PROMPT_TOKENS or len(tokens) >= FIRST_PROMPTS

    @invariant()
    def each_ticket_has_one_end_or_is_on_its_way(self) -> None:
        """Waiting, in flight and ended make up all that were submitted, and the scheduler counts the same."""
        assert len(self.waiting) + len(self.in_flight) + len(self.ends) == len(self.submitted)
        assert (self.scheduler.waiting, self.scheduler.in_flight) == (len(self.waiting), len(self.in_flight))
        assert +Counter(self.scheduler.ends) == Counter(self.ends.values())

    @invariant()
    def a_ticket_waits_only_for_a_reason(self) -> None:
        """Each that waits has an upstream to wait for, and the reason that the scheduler gives holds."""
        for each in self.waiting.values():
            ticket = each.ticket
            assert self.available(ticket.pool)
            match self.scheduler.waits_for(ticket.id):
                case WaitReason.AT_LIMIT:
                    assert not self.with_room(ticket.pool)
                case WaitReason.SESSION_GATE:
                    assert ticket.session is not None
                    assert self.timeline.clock() < each.since_s + POLICY.max_hold_s
                case WaitReason.HEADROOM:
                    assert self.are_others_present(ticket)
                case WaitReason.PROMPTS:
                    assert all(map(self.has_enough_prompts, self.with_room(ticket.pool)))
                case None:
                    raise AssertionError

    @invariant()
    def an_upstream_always_has_a_slot(self) -> None:
        """Whatever its metrics say, an upstream that serves has at least one slot."""
        for upstream, report in self.upstreams.items():
            if report.available and report.pools:
                assert self.scheduler.slots_on(upstream) >= 1

    @invariant()
    def slots_taken_are_given_back_or_held(self) -> None:
        """The scheduler holds exactly the slots that were taken and not given back."""
        for upstream in UPSTREAMS:
            assert self.scheduler.in_flight_on(upstream) == self.taken(upstream)

    @invariant()
    def waiting_is_bounded(self) -> None:
        """What waits keeps to its class's limits of count, bytes and time, and to its deadline."""
        now_s = self.timeline.clock()
        for request_class in CLASSES:
            alike = [
                each.ticket for each in self.waiting.values() if each.ticket.request_class is request_class
            ]
            assert self.scheduler.waiting_of(request_class) == len(alike) <= LIMITS.max_waiting
            assert sum(each.size_bytes for each in alike) <= LIMITS.max_waiting_bytes
        due_s = self.scheduler.next_wakeup_s()
        assert (due_s is None) == (not self.waiting)
        for each in self.waiting.values():
            assert due_s is not None
            assert now_s < each.since_s + LIMITS.max_wait_s
            assert due_s <= each.since_s + LIMITS.max_wait_s
            assert each.ticket.deadline_s is None or now_s < each.ticket.deadline_s + ROUNDING_S
        assert self.scheduler.waiting_bytes == sum(each.ticket.size_bytes for each in self.waiting.values())

    @invariant()
    def held_tickets_are_counted(self) -> None:
        """The scheduler counts as held those that it says the session gate holds."""
        held = [each for each in self.waiting if self.scheduler.waits_for(each) is WaitReason.SESSION_GATE]
        assert self.scheduler.held == len(held)

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
        assert (self.scheduler.waiting, self.scheduler.in_flight) == (0, 0)
        assert self.scheduler.next_wakeup_s() is None


TestSchedulerInvariants = SchedulerMachine.TestCase
TestSchedulerInvariants.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
