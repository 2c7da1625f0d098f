"""The tickets that wait: in which order, and how many, how large and how long at most."""

import math
from collections import OrderedDict, defaultdict
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from operator import attrgetter

from muster_batching.drain import DrainRate
from muster_batching.errors import LimitError
from muster_batching.tickets import PoolId, Ticket, TicketId, TurnAwayReason


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How much may wait.

    Attributes:
        max_waiting: Tickets. An engine with 256 slots and answers of 20 s works off the default in 80 s; each
            also holds a client's connection, and many systems let a process have 1024 open files.
        max_waiting_bytes: Bytes of all waiting tickets together. The default is 256 KiB for each of 1000
            tickets, room for a prompt of some 60,000 tokens.
        max_wait_s: Seconds that one ticket waits. The default is half of the 600 s for which the OpenAI SDKs
            wait, so that the other half is left for the answer.

    Raises:
        LimitError: A limit is negative or not finite.
    """

    max_waiting: int = 1000
    max_waiting_bytes: int = 256 * 1024 * 1024
    max_wait_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_waiting_bytes", "max_wait_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise LimitError(name, value, 0)


@dataclass(frozen=True, slots=True)
class _Place:
    ticket: Ticket
    number: int
    expires_s: float


class WaitingRoom:
    """The waiting tickets, first come, first served over the pools that have a slot to give.

    Every method takes time that does not depend on how many wait. The queues are OrderedDicts, not dicts: a
    plain dict's first key is found by walking over the ones deleted before it, which makes a queue
    quadratic.
    """

    def __init__(self, limits: WaitingLimits) -> None:
        self._limits = limits
        # All tickets may wait equally long, so the order of arrival is also that of expiry.
        self._arrivals: OrderedDict[TicketId, _Place] = OrderedDict()
        self._queues: dict[PoolId, OrderedDict[TicketId, _Place]] = {}  # of pools with a ticket waiting
        self._drains: defaultdict[PoolId, DrainRate] = defaultdict(DrainRate)
        self._last_number = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    def __contains__(self, ticket_id: TicketId) -> bool:
        return ticket_id in self._arrivals

    @property
    def size_bytes(self) -> int:
        """Bytes held by all that wait."""
        return self._bytes

    @property
    def next_expiry_s(self) -> float | None:
        """When the first of the waiting has waited too long; None when nobody waits."""
        return None if not self._arrivals else next(iter(self._arrivals.values())).expires_s

    def refusal(self, ticket: Ticket) -> TurnAwayReason | None:
        """Say which limit keeps the ticket out, if one does."""
        if len(self._arrivals) >= self._limits.max_waiting:
            return TurnAwayReason.WAITING_FULL
        if self._bytes + ticket.size_bytes > self._limits.max_waiting_bytes:
            return TurnAwayReason.WAITING_BYTES_FULL
        return None

    def add(self, ticket: Ticket, now_s: float) -> None:
        """Put the ticket last."""
        self._last_number += 1
        place = _Place(ticket, self._last_number, now_s + self._limits.max_wait_s)
        self._arrivals[ticket.id] = place
        if ticket.pool not in self._queues:
            self._queues[ticket.pool] = OrderedDict()
            self._drains[ticket.pool].begin(now_s)
        self._queues[ticket.pool][ticket.id] = place
        self._bytes += ticket.size_bytes

    def take_first(self, pools: AbstractSet[PoolId], now_s: float) -> Ticket | None:
        """Take out the ticket of these pools that came first, to dispatch it; O(pools with one waiting)."""
        heads = [next(iter(self._queues[pool].values())) for pool in self._queues.keys() & pools]
        if not heads:
            return None
        ticket = min(heads, key=attrgetter("number")).ticket
        self._drains[ticket.pool].count(now_s)
        self._take_out(ticket.id, now_s)
        return ticket

    def discard(self, ticket_id: TicketId, now_s: float) -> bool:
        """Take out a ticket that will not be dispatched; tell whether it was waiting."""
        if ticket_id not in self._arrivals:
            return False
        self._take_out(ticket_id, now_s)
        return True

    def take_expired(self, now_s: float) -> Ticket | None:
        """Take out the first ticket that has waited too long, if any has."""
        first = next(iter(self._arrivals.values()), None)
        if first is None or first.expires_s > now_s:
            return None
        return self._take_out(first.ticket.id, now_s)

    def take_all_of(self, pool: PoolId, now_s: float) -> list[Ticket]:
        """Take out every ticket of the pool, in the order in which they came."""
        return [self._take_out(ticket_id, now_s) for ticket_id in list(self._queues.get(pool, ()))]

    def retry_after_s(self, pool: PoolId, now_s: float) -> int:
        """Estimate after how many seconds a newcomer of the pool would get its turn."""
        place = len(self._queues.get(pool, ())) + 1
        return self._drains[pool].retry_after_s(place, now_s)

    def _take_out(self, ticket_id: TicketId, now_s: float) -> Ticket:
        ticket = self._arrivals.pop(ticket_id).ticket
        queue = self._queues[ticket.pool]
        del queue[ticket_id]
        if not queue:
            del self._queues[ticket.pool]
            self._drains[ticket.pool].end(now_s)
        self._bytes -= ticket.size_bytes
        return ticket
