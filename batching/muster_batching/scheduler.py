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
7. Call `report` when an upstream comes or changes and `remove` when it goes.

Conservation: each submitted ticket comes to exactly one `Outcome`, so that at any moment

    submitted = waiting + in flight + completed + failed + cancelled + turned away

and a slot taken by a `Dispatch` is given back by the one `finish` or `cancel` of its ticket and by nothing
else: no timer, no removal of an upstream and no lowered limit gives a slot back.

Order: first come, first served among the tickets for which some upstream has room. A ticket waits only
while every available upstream of its pool is at its limit, so one pool's queue never holds up another's
tickets. Of several upstreams with room, the least loaded (`in_flight / limit`) gets the ticket, the
longest-serving among equals.

Cost: an input does not get dearer with the number waiting. It is O(upstreams of the pool) to submit and
O(pools of the upstream that have tickets waiting) to give a slot back, plus the actions that it returns.

Errors that inputs raise are in `muster_batching.errors`; an input that raises has changed nothing.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from muster_batching.errors import ClockWentBackError, DuplicateTicketError, UnknownTicketError
from muster_batching.tickets import (
    Action,
    Dispatch,
    Outcome,
    PoolId,
    SlotEnd,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
)
from muster_batching.upstreams import Upstream, UpstreamReport, Upstreams
from muster_batching.waiting import WaitingLimits, WaitingRoom

NO_UPSTREAM_RETRY_S = 2
"""When an upstream comes back is not known. A failed probe mends within a second or two, so a longer wait
would leave an engine idle that has recovered; a shorter one would bring every client back before the next
probe."""


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


class Scheduler:
    """Decides which ticket goes to which upstream, and when; the module's docstring is its contract.

    Args:
        waiting_limits: How many tickets may wait, how large and how long. A ticket that is dispatched as it
            comes
            never waits and is held to none of them.
    """

    def __init__(self, waiting_limits: WaitingLimits) -> None:
        self._room = WaitingRoom(waiting_limits)
        self._upstreams = Upstreams()
        self._in_flight: dict[TicketId, Upstream] = {}
        self._ends = dict.fromkeys(Outcome, 0)
        self._now_s = -math.inf
        self._total_requests = 0
        self._total_batches = 0
        self._sum_of_batch_sizes = 0

    def submit(self, ticket: Ticket, *, now_s: float) -> list[Action]:
        """Take in a new ticket: dispatch it, let it wait, or turn it away.

        Returns:
            At most one action, which is about this ticket; none when it waits.

        Raises:
            DuplicateTicketError: A ticket with its id has not ended.
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket.id in self._in_flight or ticket.id in self._room:
            raise DuplicateTicketError(ticket.id)
        self._set_clock(now_s)
        if not self._upstreams.serves(ticket.pool):
            return [self._turn_away_unserved(ticket)]
        upstream = self._upstreams.least_loaded(ticket.pool)
        if upstream is not None:
            return self._dispatch([ticket], upstream)
        reason = self._room.refusal(ticket)
        if reason is not None:
            return [self._turn_away(ticket, reason)]
        self._room.add(ticket, now_s)
        return []

    def finish(self, ticket_id: TicketId, outcome: SlotEnd, *, now_s: float) -> list[Action]:
        """End a ticket in flight; its slot goes to the ticket that waits longest for one of this upstream.

        Raises:
            UnknownTicketError: The ticket is not in flight.
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket_id not in self._in_flight:
            raise UnknownTicketError(ticket_id)
        self._set_clock(now_s)
        upstream = self._in_flight.pop(ticket_id)
        self._upstreams.give_back(upstream)
        self._ends[outcome] += 1
        return self._refill(upstream)

    def cancel(self, ticket_id: TicketId, *, now_s: float) -> list[Action]:
        """End a ticket whose client left, whether it waits or is in flight.

        One that waits holds no slot, so no action follows. One that is not known has ended: the client's
        leaving may cross the end of its answer, or a `TurnAway` that it has not yet read, which is nobody's
        fault. Nothing happens then.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        if ticket_id in self._in_flight:
            return self.finish(ticket_id, Outcome.CANCELLED, now_s=now_s)
        self._set_clock(now_s)
        if self._room.discard(ticket_id, now_s):
            self._ends[Outcome.CANCELLED] += 1
        return []

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
        return [*self._abandon(unserved), *self._refill(upstream)]

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
        """Turn away the tickets that have waited too long.

        No other input does: a slot that comes free before a late `wake` is given to the ticket all the same.

        Raises:
            ClockWentBackError: `now_s` lies before an earlier input's.
        """
        self._set_clock(now_s)
        actions: list[Action] = []
        while (ticket := self._room.take_expired(now_s)) is not None:
            actions.append(self._turn_away(ticket, TurnAwayReason.WAITED_TOO_LONG))
        return actions

    def next_wakeup_s(self) -> float | None:
        """Tell when `wake` is due; None while nobody waits."""
        return self._room.next_expiry_s

    @property
    def waiting(self) -> int:
        """Tickets that wait."""
        return len(self._room)

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
        return self._upstreams.in_flight_on(upstream_id)

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

    def _set_clock(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ClockWentBackError(now_s, self._now_s)
        self._now_s = now_s

    def _refill(self, upstream: Upstream) -> list[Action]:
        # Only this upstream has new room, and before that every ticket waited because all were at their
        # limit: so no other upstream needs a look.
        free = upstream.report.limit - upstream.in_flight
        tickets: list[Ticket] = []
        while len(tickets) < free:
            ticket = self._room.take_first(upstream.serves, self._now_s)
            if ticket is None:
                break
            tickets.append(ticket)
        return self._dispatch(tickets, upstream)

    def _dispatch(self, tickets: list[Ticket], upstream: Upstream) -> list[Action]:
        if not tickets:
            return []
        for ticket in tickets:
            self._in_flight[ticket.id] = upstream
        upstream.in_flight += len(tickets)
        self._total_requests += len(tickets)
        self._total_batches += 1
        self._sum_of_batch_sizes += upstream.in_flight
        return [Dispatch(ticket.id, upstream.id) for ticket in tickets]

    def _abandon(self, pools: Iterable[PoolId]) -> list[Action]:
        # Nothing is known of when an upstream comes back, and a client that is told may go elsewhere.
        return [
            self._turn_away_unserved(ticket)
            for pool in pools
            for ticket in self._room.take_all_of(pool, self._now_s)
        ]

    def _turn_away_unserved(self, ticket: Ticket) -> TurnAway:
        self._ends[Outcome.TURNED_AWAY] += 1
        if self._upstreams.knows(ticket.pool):
            return TurnAway(ticket.id, TurnAwayReason.NO_UPSTREAM, NO_UPSTREAM_RETRY_S)
        return TurnAway(ticket.id, TurnAwayReason.UNKNOWN_POOL, None)

    def _turn_away(self, ticket: Ticket, reason: TurnAwayReason) -> TurnAway:
        self._ends[Outcome.TURNED_AWAY] += 1
        return TurnAway(ticket.id, reason, self._room.retry_after_s(ticket.pool, self._now_s))
