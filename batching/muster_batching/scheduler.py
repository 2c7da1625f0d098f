"""The scheduler: it is told what happened and when, and returns what to do.

It does no IO, reads no clock and starts nothing, so a driver lends it both hands. The driver's duties:

1. Make the calls one after another, never two at a time.
2. Give each input the time `now_s`, in seconds of one monotonic clock that starts anywhere.
3. Carry out every action that an input returns, in order: send the ticket of a `Dispatch` to its upstream,
   give the client of a `TurnAway` its answer.
4. Call `finish` once for each dispatched ticket, when the last byte has come or the connection to the
   upstream is closed, and not before; or `cancel`, which does the same for a client that left.
5. Call `cancel` as soon as a client leaves, whether its ticket waits or is in flight.
6. Call `wake` at the time that `next_wakeup_s` tells, and ask for that time anew after each input.
7. Call `report` when an upstream comes or changes and `remove` when it goes; `sample` when an engine's metrics
   have been read, and `progress` when the first token of a stream comes (and now and then after it). The last two
   make it better; nothing depends on them.

Conservation: each submitted ticket comes to exactly one `Outcome`, so that at any moment

    submitted = waiting + in flight + completed + failed + cancelled + turned away

and a slot taken by a `Dispatch` is given back by the one `finish` or `cancel` of its ticket and by nothing
else: no timer, no removal of an upstream and no lowered limit gives a slot back.

A ticket waits only for a reason (`waits_for`): every available upstream of its pool is at its limit; or the free
slots are kept for others who are present and below their share, or the engine has as many prompts to compute as it
should (both `Upstream.takes`); or the session gate holds it. What is next when a slot comes free: the order of
`muster_batching.orders`. Where it goes: `upstreams.choose`. Pools that share an upstream share its slots by the same
order.

Cost: an input does not get dearer with the number waiting but for a logarithm. It is O(upstreams of the pool)
to submit and O(pools of the upstream that have tickets waiting) to give a slot back, plus the actions that it
returns.

Errors that inputs raise are in `muster_batching.errors`; an input that raises has changed nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from muster_batching.accounts import Charge
from muster_batching.errors import ClockWentBackError, DuplicateTicketError, UnknownTicketError, WeightError
from muster_batching.orders import Waiting
from muster_batching.policy import Policy
from muster_batching.samples import EngineSample
from muster_batching.sessions import Session, Sessions
from muster_batching.tickets import (
    CLASSES,
    Action,
    Dispatch,
    End,
    Outcome,
    PoolId,
    RequestClass,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import Upstream, UpstreamReport, Upstreams, choose
from muster_batching.waiting import Pool, WaitingRoom

NO_UPSTREAM_RETRY_S = 2
"""When an upstream comes back is not known. A failed probe mends within a second or two, so a longer wait
would leave an engine idle that has recovered; a shorter one would bring every client back before the next
probe."""

PREFILL_TOKENS_PER_S = 10_000.0
"""What a warm prefix saves: an 8B model on one data-centre GPU computes some 10,000 to 30,000 tokens of prompt
per second."""

MOST_SAVED_S = 2.0
"""However long its prefix, a session's ticket goes to another upstream if it is due this much earlier there."""

DEADLINE_MARGIN = 1.2
"""A wait is foreseen by the mean; a fifth more covers what varies in the seconds to come."""


class WaitReason(StrEnum):
    """Why a ticket waits."""

    AT_LIMIT = "at_limit"
    """Every available upstream of its pool is at its limit."""

    HEADROOM = "headroom"
    """The slots that are free are kept for others who are present and below their share."""

    PROMPTS = "prompts"
    """The engine has as many prompts to compute as it should."""

    SESSION_GATE = "session_gate"
    """The sessions that are resident fill the engine's KV cache."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What was sent to the engines so far.

    A *batch* is the set of requests admitted to an engine at a moment. The engine re-forms its own batch at
    every step, so this one is refilled at every completion: each time that a decision dispatches to an
    upstream, a batch is counted, and its size is what is in flight on that upstream afterwards.

    Attributes:
        total_requests: Tickets dispatched.
        total_batches: Decisions that dispatched at least one ticket to an upstream.
        avg_batch_size: Mean size of these batches, 0.0 before the first.
    """

    total_requests: int
    total_batches: int
    avg_batch_size: float


@dataclass(slots=True, eq=False)
class _Flight:
    """A ticket in flight."""

    ticket: Ticket
    upstream: Upstream
    charge: Charge
    session: Session | None
    since_s: float
    has_begun: bool = False


class Scheduler:
    """Decides which ticket goes to which upstream, and when; the module's docstring is its contract.

    Args:
        policy: How it treats classes and sessions.
    """

    def __init__(self, policy: Policy | None = None) -> None:
        self._policy = policy or Policy()
        self._room = WaitingRoom(self._policy.waiting, self._policy.rules)
        self._upstreams = Upstreams()
        self._sessions = Sessions()
        self._in_flight: dict[TicketId, _Flight] = {}
        self._ends = dict.fromkeys(Outcome, 0)
        self._now_s = -math.inf
        self._total_requests = 0
        self._total_batches = 0
        self._sum_of_batch_sizes = 0

    # Inputs

    def submit(self, ticket: Ticket, *, now_s: float) -> list[Action]:
        """Take in a new ticket: dispatch it, let it wait, or turn it away.

        Returns:
            Mostly one action, about this ticket, or none when it waits.

        Raises:
            DuplicateTicketError: A ticket with its id has not ended.
            WeightError: Its weight is not over 0 and finite.
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket.id in self._in_flight or ticket.id in self._room:
            raise DuplicateTicketError(ticket.id)
        if not 0 < ticket.weight < math.inf:
            raise WeightError(ticket.id, ticket.weight)
        self._set_clock(now_s)
        if not self._upstreams.serves(ticket.pool):
            return [self._turn_away_unserved(ticket)]
        pool = self._room.pool(ticket.pool)
        pool.accounts[ticket.request_class].see(ticket, now_s)
        session = self._sessions.of(ticket, now_s)
        if session is None:
            return self._enter(ticket, pool, None, None)
        session.calls += 1
        place = self._place(ticket, session, self._upstreams.of(ticket.pool))
        return self._enter(ticket, pool, session, place)

    def progress(self, ticket_id: TicketId, output_tokens: int, *, now_s: float) -> list[Action]:
        """Note that so many tokens of an answer have come so far; the first note is that of the first token.

        That may let a filling request go (`Upstream.takes`). One that is not in flight is ignored: its client's
        leaving may cross its tokens.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        flight = self._in_flight.get(ticket_id)
        if flight is None:
            return []
        pool = self._room.pool(flight.ticket.pool)
        request_class = flight.ticket.request_class
        pool.accounts[request_class].progress(flight.charge, output_tokens)
        if flight.has_begun:
            return []
        flight.has_begun = True
        flight.upstream.begin(flight.ticket)
        pool.flows[request_class].began(now_s - flight.since_s)
        return self._refill(flight.upstream)

    def finish(self, ticket_id: TicketId, end: End, *, now_s: float) -> list[Action]:
        """End a ticket in flight; its slot goes to the ticket that is next on this upstream.

        Raises:
            UnknownTicketError: The ticket is not in flight.
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket_id not in self._in_flight:
            raise UnknownTicketError(ticket_id)
        self._set_clock(now_s)
        flight = self._in_flight.pop(ticket_id)
        ticket, upstream = flight.ticket, flight.upstream
        upstream.limit.ended(upstream.load, now_s, is_push_back=end.is_push_back)
        upstream.give_back(ticket, has_begun=flight.has_begun)
        self._upstreams.forget_if_gone(upstream)
        self._ends[end.outcome] += 1
        pool = self._room.pool(ticket.pool)
        usage = end.usage
        pool.accounts[ticket.request_class].settle(
            flight.charge, None if usage is None else (usage.input_tokens, usage.output_tokens)
        )
        if flight.session is not None:
            self._end_call(flight, flight.session, end)
        return self._use_room(upstream)

    def cancel(self, ticket_id: TicketId, *, now_s: float) -> list[Action]:
        """End a ticket whose client left, whether it waits or is in flight.

        One that is not known has ended: the client's leaving may cross the end of its answer, or a `TurnAway`
        that it has not yet read, which is nobody's fault. Nothing happens then.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket_id in self._in_flight:
            return self.finish(ticket_id, End(Outcome.CANCELLED), now_s=now_s)
        self._set_clock(now_s)
        waiting = self._room.get(ticket_id)
        if waiting is None:
            return []
        self._leave(waiting)
        self._ends[Outcome.CANCELLED] += 1
        return self._admit_held(self._room.pool(waiting.ticket.pool))

    def report(self, upstream_id: UpstreamId, report: UpstreamReport, *, now_s: float) -> list[Action]:
        """Add an upstream or update it.

        A lowered limit cuts nothing: what is in flight goes on, and nothing is dispatched until it fits
        again. The waiting tickets of a pool that thereby has no available upstream are turned away, pool by
        pool.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        upstream, unserved = self._upstreams.update(upstream_id, report)
        self._room.join(report.pools)
        return self._abandon(unserved) + self._use_room(upstream)

    def sample(self, upstream_id: UpstreamId, sample: EngineSample, *, now_s: float) -> list[Action]:
        """Hear what an engine says of itself; one that is not known is ignored.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        upstream = self._upstreams.get(upstream_id)
        if upstream is None:
            return []
        upstream.limit.sampled(sample, upstream.load, now_s)
        upstream.load.unseen = upstream.load.moved = 0
        is_busy = upstream.load.prompts > 0 or sample.waiting > 0
        upstream.gate.learn(sample, now_s, is_busy=is_busy)
        return self._use_room(upstream)

    def remove(self, upstream_id: UpstreamId, *, now_s: float) -> list[Action]:
        """Take an upstream out of service for good; one that is not known is out of service already.

        Its tickets in flight still end by `finish` or `cancel`. The waiting tickets of a pool that thereby
        has no available upstream are turned away. A later report of the same id brings it back, with those
        in flight counted against its limit.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        return self._abandon(self._upstreams.remove(upstream_id))

    def wake(self, *, now_s: float) -> list[Action]:
        """Turn away the tickets that have waited too long, end the holds that are due, and give up room that is kept.

        No other input turns away for that reason: a slot that comes free before a late `wake` is given to the
        ticket all the same.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        actions: list[Action] = []
        while (waiting := self._room.expired(now_s)) is not None:
            self._leave(waiting)
            actions.append(self._turn_away(waiting.ticket, _why_expired(waiting)))
        for pool in self._room.pools():
            if len(pool.holds):
                actions += self._admit_held(pool)
            if len(pool.order):  # those for whom room was kept may be there no more
                for upstream in self._upstreams.of(pool.id):
                    actions += self._refill(upstream)
        return actions

    # What it knows

    def next_wakeup_s(self) -> float | None:
        """Tell when `wake` is due; None while nobody waits."""
        due_s = self._room.next_expiry_s
        if due_s is None:
            return None
        for pool in self._room.pools():
            if pool.holds_due_s is not None:
                due_s = min(due_s, pool.holds_due_s)
            if len(pool.order) and any(each.has_room for each in self._upstreams.of(pool.id)):
                due_s = min(due_s, *(each.next_absence_s(self._now_s) for each in pool.accounts.values()))
        return due_s

    def waits_for(self, ticket_id: TicketId) -> WaitReason | None:
        """Tell why a ticket waits; None for one that does not."""
        waiting = self._room.get(ticket_id)
        if waiting is None:
            return None
        if waiting.is_held:
            return WaitReason.SESSION_GATE
        with_room = [each for each in self._upstreams.of(waiting.ticket.pool) if each.has_room]
        if not with_room:
            return WaitReason.AT_LIMIT
        takes_others = any(upstream.takes(is_filling=False) for upstream in with_room)
        return WaitReason.HEADROOM if takes_others else WaitReason.PROMPTS

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._room)

    def waiting_of(self, request_class: RequestClass) -> int:
        """Tickets of a class that wait."""
        return self._room.waiting_of(request_class)

    @property
    def held(self) -> int:
        """Of the tickets that wait, those that the session gate holds."""
        return self._room.held

    @property
    def waiting_bytes(self) -> int:
        """Bytes held by the tickets that wait."""
        return self._room.size_bytes

    @property
    def in_flight(self) -> int:
        """Slots taken on all upstreams, removed ones included."""
        return len(self._in_flight)

    def in_flight_on(self, upstream_id: UpstreamId) -> int:
        """Count the slots taken on one upstream; 0 on one that is not known."""
        upstream = self._upstreams.get(upstream_id)
        return 0 if upstream is None else upstream.in_flight

    def slots_on(self, upstream_id: UpstreamId) -> int:
        """The slots that an upstream has now, its limit; 0 for one that is not known."""
        upstream = self._upstreams.get(upstream_id)
        return 0 if upstream is None else upstream.limit.slots()

    @property
    def ends(self) -> dict[Outcome, int]:
        """How many tickets came to each end so far (a copy)."""
        return dict(self._ends)

    @property
    def stats(self) -> Stats:
        """What was sent to the engines so far."""
        batches = self._total_batches
        mean = self._sum_of_batch_sizes / batches if batches else 0.0
        return Stats(self._total_requests, batches, mean)

    def __repr__(self) -> str:
        return (
            f"<Scheduler waiting={self.waiting} waiting_bytes={self.waiting_bytes}"
            f" in_flight={self.in_flight} upstreams={self._upstreams!r}>"
        )

    # A ticket's way

    def _set_clock(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ClockWentBackError(now_s, self._now_s)
        self._now_s = now_s

    def _enter(
        self, ticket: Ticket, pool: Pool, session: Session | None, place: Upstream | None
    ) -> list[Action]:
        """Dispatch a newcomer if nobody is before it, else let it wait, if it may."""
        is_held = session is not None and place is None
        home = None if place is None else place.id
        if not is_held and not len(pool.order):
            upstream = choose(
                self._upstreams.of(ticket.pool),
                home,
                is_filling=self._is_filling(ticket, pool),
                avoid=ticket.avoid,
            )
            if upstream is not None:
                dispatch = self._dispatch(ticket, session, upstream)
                self._count_batch(upstream, 1)
                return [dispatch]
        refusal = self._room.refusal(ticket) or self._foreseen(ticket, pool)
        if refusal is not None:
            self._give_up_place(session)
            return [self._turn_away(ticket, refusal)]
        waiting = self._room.add(ticket, self._now_s)
        waiting.session = session
        if is_held and session is not None:
            pool.holds.add(waiting, is_resumed=session.is_continuing)
            self._set_holds_due(pool)
            return []
        return self._queue(waiting, pool, place)

    def _queue(self, waiting: Waiting, pool: Pool, place: Upstream | None) -> list[Action]:
        """Let a ticket wait for a slot; give it one if there is one that only others may not have."""
        if place is not None and waiting.session is not None:
            waiting.home = place.id
            warm_tokens = place.gate.warm_tokens(waiting.session)
            waiting.saved_s = min(MOST_SAVED_S, warm_tokens / PREFILL_TOKENS_PER_S)
        self._room.queue(waiting, self._now_s)
        upstreams = self._upstreams.of(pool.id)
        actions: list[Action] = []
        while waiting.is_waiting:
            is_filling = self._is_filling(waiting.ticket, pool)
            upstream = choose(upstreams, waiting.home, is_filling=is_filling)
            sent = [] if upstream is None else self._refill(upstream)
            actions += sent
            if not sent:
                break
        for each in upstreams:
            each.note_if_limiting(is_waiting=waiting.is_waiting)
        return actions

    def _leave(self, waiting: Waiting) -> None:
        """Take out a ticket that waits and will not be dispatched."""
        self._room.take(waiting, self._now_s, is_dispatched=False)
        self._give_up_place(waiting.session)

    def _is_filling(self, ticket: Ticket, pool: Pool) -> bool:
        """Whether others are present who are more urgent, or below their share where its tenant is above."""
        accounts = pool.accounts[ticket.request_class]
        return self._are_others_more_urgent(ticket.request_class, pool) or accounts.is_over_share(
            ticket.tenant, self._now_s
        )

    def _are_others_more_urgent(self, request_class: RequestClass, pool: Pool) -> bool:
        for each in CLASSES:
            if each is request_class:
                return False
            if pool.accounts[each].is_anyone_present(self._now_s):
                return True
        raise AssertionError  # pragma: no cover  it is one of the classes

    def _foreseen(self, ticket: Ticket, pool: Pool) -> TurnAwayReason | None:
        """Refuse a ticket that is sure to miss its deadline, or to wait longer than its class may.

        Its turn would come after `DEADLINE_MARGIN * place / departures per second`, its first token the mean time
        to first token later. While no departure has been seen, as many with a deadline may wait as are in flight:
        one turnover.
        """
        flow = pool.flows[ticket.request_class]
        place = self._room.place(ticket)
        wait_s = flow.drain.wait_s(place, self._now_s)
        if wait_s is None:
            slots = sum(upstream.in_flight for upstream in self._upstreams.of(ticket.pool))
            is_sure = ticket.deadline_s is not None and place > max(1, slots)
            return TurnAwayReason.DEADLINE if is_sure else None
        wait_s *= DEADLINE_MARGIN
        first_token_s = self._now_s + wait_s + (flow.ttft_s or 0.0)
        if ticket.deadline_s is not None and first_token_s > ticket.deadline_s:
            return TurnAwayReason.DEADLINE
        is_too_long = wait_s > self._policy.waiting[ticket.request_class].max_wait_s
        return TurnAwayReason.WAITED_TOO_LONG if is_too_long else None

    def _use_room(self, upstream: Upstream) -> list[Action]:
        """Give what has come free on an upstream to those that wait, held ones among them."""
        if not len(self._room):
            upstream.note_if_limiting(is_waiting=False)
            return []
        return self._admit_on(upstream) + self._refill(upstream)

    def _refill(self, upstream: Upstream) -> list[Action]:
        """Give the free slots of an upstream to those that are next on it."""
        actions: list[Action] = []
        while len(self._room) and upstream.takes(is_filling=False):
            waiting = self._next(upstream)
            if waiting is None:
                break
            self._room.take(waiting, self._now_s, is_dispatched=True)
            actions.append(self._dispatch(waiting.ticket, waiting.session, upstream))
        self._count_batch(upstream, len(actions))
        upstream.note_if_limiting(is_waiting=len(self._room) > 0)
        return actions

    def _next(self, upstream: Upstream) -> Waiting | None:
        """The ticket that is next on an upstream and may go there now, over the pools that it serves."""
        found: Waiting | None = None
        least: tuple[int, float, int] | None = None
        for pool_id in upstream.serves:
            pool = self._room.pool(pool_id)
            chosen = pool.order.choose(upstream, self._now_s)
            if chosen is None:
                continue
            rank, request_class = chosen
            waiting = self._first_that_may_go(pool, request_class, upstream, is_ahead=rank < 0)
            if waiting is None:
                continue
            key = (rank, pool.accounts[request_class].counter(waiting.ticket.tenant), waiting.number)
            if least is None or key < least:
                found, least = waiting, key
        return found

    def _first_that_may_go(
        self, pool: Pool, request_class: RequestClass, upstream: Upstream, *, is_ahead: bool
    ) -> Waiting | None:
        """The first of a class that the upstream takes now; it takes those that fill nothing."""
        order = pool.order.of(request_class)
        waiting = order.first(upstream, self._now_s)
        if is_ahead or waiting is None or upstream.takes(is_filling=True):
            return waiting
        if self._are_others_more_urgent(request_class, pool):
            return None
        if not order.accounts.is_over_share(waiting.ticket.tenant, self._now_s):
            return waiting
        return order.first_below_share(upstream, self._now_s)

    def _dispatch(self, ticket: Ticket, session: Session | None, upstream: Upstream) -> Dispatch:
        upstream.take(ticket)
        charge = self._room.pool(ticket.pool).accounts[ticket.request_class].charge(ticket)
        if session is not None:
            self._move_in(ticket, session, upstream)
        self._in_flight[ticket.id] = _Flight(ticket, upstream, charge, session, self._now_s)
        return Dispatch(ticket.id, upstream.id)

    def _count_batch(self, upstream: Upstream, dispatched: int) -> None:
        if dispatched:
            self._total_requests += dispatched
            self._total_batches += 1
            self._sum_of_batch_sizes += upstream.in_flight

    def _abandon(self, pools: Iterable[PoolId]) -> list[Action]:
        # Nothing is known of when an upstream comes back, and a client that is told may go elsewhere.
        actions: list[Action] = []
        for pool in pools:
            for waiting in self._room.all_of(pool):
                self._leave(waiting)
                actions.append(self._turn_away_unserved(waiting.ticket))
            self._room.pool(pool).holds_due_s = None
        return actions

    def _turn_away_unserved(self, ticket: Ticket) -> TurnAway:
        self._ends[Outcome.TURNED_AWAY] += 1
        if self._upstreams.knows(ticket.pool):
            return TurnAway(ticket.id, TurnAwayReason.NO_UPSTREAM, NO_UPSTREAM_RETRY_S)
        return TurnAway(ticket.id, TurnAwayReason.UNKNOWN_POOL, None)

    def _turn_away(self, ticket: Ticket, reason: TurnAwayReason) -> TurnAway:
        self._ends[Outcome.TURNED_AWAY] += 1
        drain = self._room.pool(ticket.pool).flows[ticket.request_class].drain
        return TurnAway(ticket.id, reason, drain.retry_after_s(self._room.place(ticket), self._now_s))

    # Sessions

    def _place(self, ticket: Ticket, session: Session, among: Iterable[Upstream]) -> Upstream | None:
        """The upstream at which a session has its place, or gets one of these now; None if none has room for it."""
        tokens = _context_tokens(ticket, session)
        at = self._place_of(session)
        is_served = at is not None and ticket.pool in at.serves and at.gate.is_resident(session)
        if at is not None and is_served and at.gate.admit(session, tokens, self._now_s):
            return at
        for upstream in sorted(among, key=_used):
            if upstream.gate.admit(session, tokens, self._now_s):
                self._put(session, upstream)
                return upstream
        return None

    def _put(self, session: Session, upstream: Upstream) -> None:
        """Note where a session has been admitted; it leaves the place that it had."""
        at = self._place_of(session)
        if at is not None and at is not upstream:
            at.gate.rest(session, 0, self._now_s)
        session.place = upstream.id

    def _place_of(self, session: Session) -> Upstream | None:
        return None if session.place is None else self._upstreams.get(session.place)

    def _move_in(self, ticket: Ticket, session: Session, upstream: Upstream) -> None:
        """Let a session be at home on the upstream that one of its calls goes to."""
        if not upstream.gate.is_resident(session):
            upstream.gate.admit(session, _context_tokens(ticket, session), self._now_s, is_forced=True)
            self._put(session, upstream)
        upstream.gate.expect_hits(upstream.gate.warm_tokens(session))
        session.home = upstream.id

    def _end_call(self, flight: _Flight, session: Session, end: End) -> None:
        """Note what a call of a session has used, and let it rest if it was the only one."""
        usage = end.usage
        if usage is None and end.outcome is Outcome.COMPLETED:
            usage = Usage(flight.ticket.input_tokens, int(flight.charge.output_tokens))
        if usage is not None:
            session.serve(usage, self._now_s)
        self._end_one(session, 0 if end.is_session_over else session.context_tokens)

    def _give_up_place(self, session: Session | None) -> None:
        """Let a session rest as it was before a call that was not dispatched."""
        if session is None:
            return
        at = self._place_of(session)
        self._end_one(session, 0 if at is None else at.gate.warm_tokens(session))

    def _end_one(self, session: Session, tokens: float) -> None:
        session.calls -= 1
        session.touched_s = self._now_s
        at = self._place_of(session)
        if at is not None and not session.calls:
            at.gate.rest(session, tokens, self._now_s)

    def _admit_on(self, upstream: Upstream) -> list[Action]:
        """End the holds for which there is room now on an upstream."""
        actions: list[Action] = []
        for pool_id in sorted(upstream.serves):
            pool = self._room.pool(pool_id)
            if len(pool.holds):
                actions += self._admit_held(pool, upstream)
        return actions

    def _admit_held(self, pool: Pool, changed: Upstream | None = None) -> list[Action]:
        """End the holds of those for which there is room now, and of those that have lasted too long.

        Args:
            pool: The pool that they wait for.
            changed: The only upstream of which room may have come free; None for any.
        """
        actions: list[Action] = []
        among = self._upstreams.of(pool.id) if changed is None else (changed,)
        while (chosen := self._next_held(pool, among)) is not None:
            waiting, place = chosen
            pool.holds.remove(waiting)
            actions += self._queue(waiting, pool, place)
        self._set_holds_due(pool, changed if not actions else None)
        return actions

    def _next_held(self, pool: Pool, among: Iterable[Upstream]) -> tuple[Waiting, Upstream] | None:
        """The call whose hold ends now, with its place; None when the others have to go on."""
        first, longest = pool.holds.first(), pool.holds.longest()
        if first is None or longest is None:
            return None
        place = self._place(first.ticket, _session_of(first), among)
        if place is not None:
            return first, place
        session = _session_of(longest)
        tokens = _context_tokens(longest.ticket, session)
        upstream = min(among, key=_used)
        is_due = self._now_s >= longest.since_s + self._policy.max_hold_s
        if not is_due and not upstream.gate.may_displace(tokens, longest.since_s, self._now_s):
            return None
        upstream.gate.admit(session, tokens, self._now_s, is_forced=True)
        self._put(session, upstream)
        return longest, upstream

    def _set_holds_due(self, pool: Pool, changed: Upstream | None = None) -> None:
        """Note when the holds are to be looked at again: sooner, if only one upstream has changed."""
        first, longest = pool.holds.first(), pool.holds.longest()
        if first is None or longest is None:
            pool.holds_due_s = None
            return
        tokens = _context_tokens(first.ticket, _session_of(first))
        due_s = longest.since_s + self._policy.max_hold_s
        if changed is not None and pool.holds_due_s is not None:
            due_s = min(due_s, pool.holds_due_s)
        for upstream in self._upstreams.of(pool.id) if changed is None else (changed,):
            room_s = upstream.gate.room_at_s(tokens, self._now_s)
            due_s = min(due_s, room_s, upstream.gate.displaces_at_s(longest.since_s))
        pool.holds_due_s = due_s


def _session_of(held: Waiting) -> Session:
    assert held.session is not None  # noqa: S101  only sessions' calls are held
    return held.session


def _context_tokens(ticket: Ticket, session: Session) -> int:
    """What a session will hold of the KV cache during a call: what it holds now or the new prompt."""
    return max(ticket.input_tokens, session.context_tokens)


def _used(upstream: Upstream) -> float:
    return upstream.used


def _why_expired(waiting: Waiting) -> TurnAwayReason:
    return TurnAwayReason.DEADLINE if waiting.is_by_deadline else TurnAwayReason.WAITED_TOO_LONG
