"""The tickets that wait: in which order, how many, how large and how long at most."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from muster_batching.accounts import TenantAccounts
from muster_batching.drain import DrainRate
from muster_batching.gate import Holds
from muster_batching.orders import ClassOrder, ClassRule, TenantOrder, Waiting, WaitingHeap
from muster_batching.policy import WaitingLimits
from muster_batching.tickets import CLASSES, PoolId, RequestClass, Ticket, TicketId, TurnAwayReason

TTFT_LEARNING_RATE = 0.1
"""Of the mean time to first token: about the last ten answers count."""


@dataclass(slots=True, eq=False)
class Flow:
    """How fast the tickets of one class go through one pool.

    Attributes:
        drain: How fast those that wait get their turn.
        ttft_s: Mean seconds from the dispatch to the first token; None before the first.
    """

    drain: DrainRate = field(default_factory=DrainRate)
    ttft_s: float | None = None

    def began(self, ttft_s: float) -> None:
        """Note how long a first token took."""
        if self.ttft_s is None:
            self.ttft_s = ttft_s
        self.ttft_s += TTFT_LEARNING_RATE * (ttft_s - self.ttft_s)


@dataclass(slots=True, eq=False)
class Pool:
    """What waits for one pool.

    Attributes:
        id: Its name.
        accounts: The tenants' accounts by class, shared with the pools that compete for the same engines.
        order: Who is next of those that wait for a slot.
        holds: Those that the session gate holds.
        flows: How fast each class goes through.
        holds_due_s: When the holds are to be looked at again.
    """

    id: PoolId
    accounts: dict[RequestClass, TenantAccounts]
    order: ClassOrder
    flows: dict[RequestClass, Flow]
    holds: Holds = field(default_factory=Holds)
    holds_due_s: float | None = None


@dataclass(slots=True, eq=False)
class _Count:
    tickets: int = 0
    size_bytes: int = 0


class WaitingRoom:
    """The waiting tickets of every pool. Every method takes O(log n) of what waits, amortised, or less.

    Args:
        limits: How much of each class may wait.
        rules: How the classes stand beside each other.
    """

    def __init__(
        self, limits: Mapping[RequestClass, WaitingLimits], rules: Mapping[RequestClass, ClassRule]
    ) -> None:
        self._limits = limits
        self._rules = dict(rules)
        self._waiting: dict[TicketId, Waiting] = {}
        self._counts = {each: _Count() for each in CLASSES}
        self._expiries = WaitingHeap()
        self._pools: dict[PoolId, Pool] = {}
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, ticket_id: TicketId) -> bool:
        return ticket_id in self._waiting

    def get(self, ticket_id: TicketId) -> Waiting | None:
        """The ticket of that name, if it waits."""
        return self._waiting.get(ticket_id)

    @property
    def size_bytes(self) -> int:
        """Bytes held by all that wait."""
        return sum(each.size_bytes for each in self._counts.values())

    def waiting_of(self, request_class: RequestClass) -> int:
        """How many tickets of a class wait."""
        return self._counts[request_class].tickets

    @property
    def held(self) -> int:
        """How many of the waiting the session gate holds."""
        return sum(len(pool.holds) for pool in self._pools.values())

    def pool(self, pool_id: PoolId) -> Pool:
        """What waits for a pool."""
        pool = self._pools.get(pool_id)
        if pool is None:
            pool = self._pools[pool_id] = self._new_pool(pool_id)
        return pool

    def pools(self) -> Iterable[Pool]:
        """Every pool that a ticket ever came for."""
        return self._pools.values()

    def join(self, pool_ids: Iterable[PoolId]) -> None:
        """Let these pools share one set of accounts from now on: they compete for the same engine."""
        pools = [self.pool(each) for each in sorted(pool_ids)]
        for request_class in CLASSES:
            for one in pools[1:]:
                _join(self._pools.values(), pools[0], one, request_class)

    def refusal(self, ticket: Ticket) -> TurnAwayReason | None:
        """Say which limit keeps the ticket out, if one does."""
        limits, count = self._limits[ticket.request_class], self._counts[ticket.request_class]
        if count.tickets >= limits.max_waiting:
            return TurnAwayReason.WAITING_FULL
        if count.size_bytes + ticket.size_bytes > limits.max_waiting_bytes:
            return TurnAwayReason.WAITING_BYTES_FULL
        return None

    def add(self, ticket: Ticket, now_s: float) -> Waiting:
        """Take in a ticket; it is in no order until it is `queue`d or held."""
        self._last_number += 1
        flow = self.pool(ticket.pool).flows[ticket.request_class]
        expires_s = now_s + self._limits[ticket.request_class].max_wait_s
        waiting = Waiting(ticket, self._last_number, now_s, expires_s)
        if ticket.deadline_s is not None and ticket.deadline_s - (flow.ttft_s or 0.0) < expires_s:
            waiting.expires_s = max(now_s, ticket.deadline_s - (flow.ttft_s or 0.0))
            waiting.is_by_deadline = True
        self._waiting[ticket.id] = waiting
        count = self._counts[ticket.request_class]
        count.tickets += 1
        count.size_bytes += ticket.size_bytes
        self._expiries.push(waiting.expires_s, waiting)
        return waiting

    def queue(self, waiting: Waiting, now_s: float) -> None:
        """Let a ticket wait for a slot."""
        pool = self.pool(waiting.ticket.pool)
        request_class = waiting.ticket.request_class
        if not len(pool.order.of(request_class)):
            pool.flows[request_class].drain.begin(now_s)
        pool.order.add(waiting)

    def take(self, waiting: Waiting, now_s: float, *, is_dispatched: bool) -> None:
        """Take out a ticket."""
        ticket = waiting.ticket
        waiting.is_waiting = False
        del self._waiting[ticket.id]
        count = self._counts[ticket.request_class]
        count.tickets -= 1
        count.size_bytes -= ticket.size_bytes
        pool = self.pool(ticket.pool)
        if waiting.is_held:
            pool.holds.remove(waiting)
            return
        pool.order.left(waiting)
        drain = pool.flows[ticket.request_class].drain
        if is_dispatched:
            drain.count(now_s)
        if not len(pool.order.of(ticket.request_class)):
            drain.end(now_s)

    @property
    def next_expiry_s(self) -> float | None:
        """When the first of the waiting is to be turned away; None when nobody waits."""
        first = self._expiries.first()
        return None if first is None else first[0]

    def expired(self, now_s: float) -> Waiting | None:
        """The first ticket that has waited too long, if any has."""
        first = self._expiries.first()
        return None if first is None or first[0] > now_s else first[2]

    def all_of(self, pool_id: PoolId) -> list[Waiting]:
        """Every ticket of a pool, in the order in which they came."""
        return [each for each in self._waiting.values() if each.ticket.pool == pool_id]

    def place(self, ticket: Ticket) -> int:
        """The place in its class's queue that a newcomer would get, 1 for the next.

        At most behind all; and behind as many of each other tenant as it has waiting itself, since they take
        turns:  min(waiting of the class, tenants waiting * own waiting + tenants waiting - 1) + 1.
        """
        order = self.pool(ticket.pool).order.of(ticket.request_class)
        own = order.waiting_of(ticket.tenant)
        tenants = order.accounts.backlogged + (own == 0)
        return min(len(order), tenants * (own + 1) - 1) + 1

    def _new_pool(self, pool_id: PoolId) -> Pool:
        accounts = {each: TenantAccounts() for each in CLASSES}
        order = ClassOrder(lambda each: TenantOrder(accounts[each]), self._rules)
        return Pool(pool_id, accounts, order, {each: Flow() for each in CLASSES})


def _join(pools: Iterable[Pool], one: Pool, other: Pool, request_class: RequestClass) -> None:
    kept, dropped = one.accounts[request_class], other.accounts[request_class]
    if kept is dropped:
        return
    if kept.virtual_time < dropped.virtual_time:
        kept, dropped = dropped, kept
    kept.join(dropped)
    for pool in pools:
        if pool.accounts[request_class] is dropped:
            pool.accounts[request_class] = kept
            pool.order.of(request_class).accounts = kept
