"""Who is next: three orders, one inside the other.

    ClassOrder      between classes: strict, with ageing and shares
      TenantOrder   between tenants of a class: the least virtual tokens first
        SessionOrder  between tickets of a tenant: the least attained service first

Each is an `Order`: tickets are added, the first is asked for, and those that left are told of. An order never
takes a ticket out by itself, and never says that nobody is next while somebody waits: it decides who, the
scheduler decides whether. None reads a clock. Every method costs O(log n) of what waits, amortised.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Protocol

from muster_batching.accounts import TenantAccounts
from muster_batching.sessions import Session
from muster_batching.tickets import CLASSES, RequestClass, TenantId, Ticket, UpstreamId

STEP_S = 1.0
"""What a level of attained service is worth in waiting time."""

QUANTUM_TOKENS = 4096
"""Sessions whose attained service differs by less have an equal claim: about one turn of an agent."""

MOST_LEVELS = 8
"""No session falls further behind a new one than this, about 500,000 tokens of recent service."""

_SWEEP_FROM = 64
_RANKS = {each: rank for rank, each in enumerate(CLASSES)}


@dataclass(slots=True, eq=False)
class Waiting:
    """A ticket that waits.

    Attributes:
        ticket: The ticket.
        number: Counts arrivals.
        since_s: When it came.
        expires_s: When it is turned away, if it still waits.
        is_by_deadline: Whether that is for its deadline's sake.
        session: The session it belongs to, if any.
        home: The upstream that holds its prefix, if any.
        saved_s: Seconds of prefill that its home saves it, 0 without one.
        is_waiting: False once it has left; heaps forget it when they come across it.
        is_held: Whether the session gate holds it: then it is in no order.
    """

    ticket: Ticket
    number: int
    since_s: float
    expires_s: float
    is_by_deadline: bool = False
    session: Session | None = None
    home: UpstreamId | None = None
    saved_s: float = 0.0
    is_waiting: bool = True
    is_held: bool = False


class WaitingHeap:
    """A heap of waiting tickets by a key that does not change; those that left are forgotten in passing.

    Half of what it holds may be tickets that left: when it has doubled since it was last swept, it is swept.
    """

    __slots__ = ("_entries", "_sweep_at")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Waiting]] = []
        self._sweep_at = _SWEEP_FROM

    def push(self, key: float, waiting: Waiting) -> None:
        """Add a ticket."""
        entries = self._entries
        if len(entries) >= self._sweep_at:
            entries[:] = [entry for entry in entries if entry[2].is_waiting]
            heapify(entries)
            self._sweep_at = max(_SWEEP_FROM, 2 * len(entries))
        heappush(entries, (key, waiting.number, waiting))

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()

    def first(self) -> tuple[float, int, Waiting] | None:
        """The entry with the least key, the earliest among equals."""
        entries = self._entries
        while entries:
            if entries[0][2].is_waiting:
                return entries[0]
            heappop(entries)
        return None


class Seat(Protocol):
    """What an order asks of the upstream that has a slot to give."""

    @property
    def id(self) -> UpstreamId:
        """Its name."""
        ...

    def has_share_left(self, request_class: RequestClass, share: float) -> bool:
        """Whether a class holds less than this share of its slots."""
        ...


class Order(Protocol):
    """Says which of the tickets that wait is next."""

    def add(self, waiting: Waiting) -> None:
        """Take in a ticket."""
        ...

    def first(self, seat: Seat, now_s: float) -> Waiting | None:
        """The ticket that is next on this upstream; None only when nobody waits."""
        ...

    def left(self, waiting: Waiting) -> None:
        """Hear that a ticket no longer waits; `waiting.is_waiting` is False by then."""
        ...

    def __len__(self) -> int: ...


def due_s(claim_s: float, attained_tokens: float) -> float:
    """When a session's turn is due: the time of its claim, later by what it has had.

        due = claim + STEP_S * level
        level = min(MOST_LEVELS, floor(log2(1 + attained / QUANTUM_TOKENS)))

    By sessions and not by calls: of sessions that take turns call by call none is done until nearly all are; those
    that go on before others begin are done sooner, and the last no later (program-level first come, first served:
    Continuum, arXiv 2511.02230). Least attained service in levels: Autellix, arXiv 2502.13965. Regimes: sessions of
    up to `TURN_TOKENS` in all go in the order in which they began; longer ones take turns of so much, so that a
    session waits at most one turn of each that began before it. All age alike: the order of two that wait never
    changes, and no heap has to be sorted anew.
    """
    level = min(MOST_LEVELS, (1 + int(attained_tokens) // QUANTUM_TOKENS).bit_length() - 1)
    return claim_s + STEP_S * level


class SessionOrder:
    """Between the tickets of one tenant: which session is next, and when sessions are at all.

    Tickets that stand alone and sessions' calls take slots in the order in which they came, so that neither gains at
    the other's cost; but a slot that falls to a session's call falls to the session that is next, by `due_s`, and
    `saved_s` later on upstreams that lack its prefix. So a slot goes to a session whose prefix is warm there, unless
    one of another home is due earlier by more than its prefix saves.
    """

    __slots__ = ("_alone", "_anywhere", "_at_home", "_count", "_turns")

    def __init__(self) -> None:
        self._alone = WaitingHeap()
        self._anywhere = WaitingHeap()
        self._at_home: dict[UpstreamId, WaitingHeap] = {}
        self._turns: list[tuple[float, int]] = []  # arrivals of sessions' calls, as many as wait
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, waiting: Waiting) -> None:
        """Take in a ticket."""
        self._count += 1
        session = waiting.session
        if session is None:
            self._alone.push(waiting.since_s, waiting)
            return
        heappush(self._turns, (waiting.since_s, waiting.number))
        due = due_s(session.claim_s, session.attained_tokens(waiting.since_s))
        self._anywhere.push(due + waiting.saved_s, waiting)
        if waiting.home is not None:
            self._at_home.setdefault(waiting.home, WaitingHeap()).push(due, waiting)

    def first(self, seat: Seat, now_s: float) -> Waiting | None:  # noqa: ARG002  the protocol's
        """The ticket that is next on this upstream."""
        alone = self._alone.first()
        if alone is not None and (not self._turns or alone[:2] < self._turns[0]):
            return alone[2]
        return self._first_session(seat)

    def left(self, waiting: Waiting) -> None:
        """Hear that a ticket no longer waits: with a session's call goes the earliest of the sessions' turns."""
        self._count -= 1
        if waiting.session is not None:
            heappop(self._turns)

    def _first_session(self, seat: Seat) -> Waiting | None:
        anywhere = self._anywhere.first()
        if anywhere is None:
            return None
        heap = self._at_home.get(seat.id)
        at_home = None if heap is None else heap.first()
        if at_home is None or anywhere[:2] < at_home[:2]:
            return anywhere[2]
        return at_home[2]


@dataclass(slots=True, eq=False)
class _Backlog:
    """A tenant with tickets waiting, and its one valid entry in the heap."""

    order: SessionOrder = field(default_factory=SessionOrder)
    entry: int = 0


class TenantOrder:
    """Between tenants of one class: the one with the least virtual tokens (`TenantAccounts`) first.

    Counters only grow, so an entry of the heap is never too high: one that is too low is put right when it
    comes to the top.

    Args:
        accounts: The tenants' counters, shared with the pools that compete for the same engines.
    """

    __slots__ = ("_backlogs", "_below", "_count", "_entries", "_numbers", "accounts")

    def __init__(self, accounts: TenantAccounts) -> None:
        self.accounts = accounts
        self._backlogs: dict[TenantId, _Backlog] = {}
        self._entries: list[tuple[float, int, TenantId]] = []
        self._below: OrderedDict[TenantId, None] = OrderedDict()  # tenants that came while below their share
        self._numbers = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, waiting: Waiting) -> None:
        """Take in a ticket; a tenant that comes back is lifted to the others."""
        self._count += 1
        tenant = waiting.ticket.tenant
        backlog = self._backlogs.get(tenant)
        if backlog is None:
            backlog = self._backlogs[tenant] = _Backlog()
            counter = self.accounts.lift(tenant)
            self._numbers += 1
            backlog.entry = self._numbers
            self._sweep()
            heappush(self._entries, (counter, self._numbers, tenant))
            self.accounts.begin_backlog(tenant)
        backlog.order.add(waiting)
        if not self.accounts.is_over_share(tenant, waiting.since_s):
            self._below[tenant] = None

    def first(self, seat: Seat, now_s: float) -> Waiting | None:
        """The ticket that is next on this upstream: the first of the tenant that is next."""
        tenant = self._first_tenant()
        return None if tenant is None else self._backlogs[tenant].order.first(seat, now_s)

    def left(self, waiting: Waiting) -> None:
        """Hear that a ticket no longer waits."""
        self._count -= 1
        tenant = waiting.ticket.tenant
        backlog = self._backlogs[tenant]
        backlog.order.left(waiting)
        if not len(backlog.order):
            del self._backlogs[tenant]
            self._below.pop(tenant, None)
            self.accounts.end_backlog(tenant)

    def first_below_share(self, seat: Seat, now_s: float) -> Waiting | None:
        """The first ticket of a tenant that is below its share, where such a one came and found no slot.

        Of those the one that came first. For slots that the tenant who is next may not have.
        """
        while self._below:
            tenant = next(iter(self._below))
            if not self.accounts.is_over_share(tenant, now_s):
                return self._backlogs[tenant].order.first(seat, now_s)
            del self._below[tenant]
        return None

    def waiting_of(self, tenant: TenantId) -> int:
        """How many tickets of a tenant wait."""
        backlog = self._backlogs.get(tenant)
        return 0 if backlog is None else len(backlog.order)

    def _sweep(self) -> None:
        """Forget the entries of backlogs that have ended, once they are more than half."""
        if len(self._entries) > _SWEEP_FROM + 2 * len(self._backlogs):
            valid = {backlog.entry for backlog in self._backlogs.values()}
            self._entries[:] = [entry for entry in self._entries if entry[1] in valid]
            heapify(self._entries)

    def _first_tenant(self) -> TenantId | None:
        entries = self._entries
        while entries:
            counter, number, tenant = entries[0]
            backlog = self._backlogs.get(tenant)
            if backlog is None or backlog.entry != number:
                heappop(entries)  # of a backlog that has ended
                continue
            now = self.accounts.counter(tenant)
            if now == counter:
                return tenant
            self._numbers += 1
            backlog.entry = self._numbers
            heapreplace(entries, (now, self._numbers, tenant))
        return None


@dataclass(frozen=True, slots=True)
class ClassRule:
    """How a class stands beside the more urgent ones.

    Attributes:
        ageing_s: Once its first ticket has waited so long, the class may go ahead of more urgent ones.
        share: It then takes at most this share of an upstream's slots, at least one, while they wait.
    """

    ageing_s: float
    share: float


class ClassOrder:
    """Between classes: the most urgent that waits; less urgent ones come first when they have aged.

    An aged class goes ahead while it holds less than its share of the upstream's slots: the same number is
    what it is sure to get (so it never starves) and the most that it takes from those more urgent.

    Args:
        make: Makes the order inside of a class.
        rules: Of every class but the most urgent.
    """

    def __init__(
        self, make: Callable[[RequestClass], "TenantOrder"], rules: dict[RequestClass, ClassRule]
    ) -> None:
        self._orders = {each: make(each) for each in CLASSES}
        self._arrivals = {each: WaitingHeap() for each in CLASSES}
        self._rules = rules
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, request_class: RequestClass) -> "TenantOrder":
        """The order inside of a class."""
        return self._orders[request_class]

    def add(self, waiting: Waiting) -> None:
        """Take in a ticket."""
        self._count += 1
        request_class = waiting.ticket.request_class
        self._orders[request_class].add(waiting)
        self._arrivals[request_class].push(waiting.since_s, waiting)

    def first(self, seat: Seat, now_s: float) -> Waiting | None:
        """The ticket that is next on this upstream."""
        chosen = self.choose(seat, now_s)
        return None if chosen is None else self._orders[chosen[1]].first(seat, now_s)

    def choose(self, seat: Seat, now_s: float) -> tuple[int, RequestClass] | None:
        """The class that is next on this upstream, and its rank: -1 where it goes ahead, else its place."""
        waiting = [each for each in CLASSES if len(self._orders[each])]
        if not waiting:
            return None
        for each in waiting[1:]:
            if self._is_aged(each, now_s) and seat.has_share_left(each, self._rules[each].share):
                return -1, each
        return _RANKS[waiting[0]], waiting[0]

    def left(self, waiting: Waiting) -> None:
        """Hear that a ticket no longer waits."""
        self._count -= 1
        request_class = waiting.ticket.request_class
        self._orders[request_class].left(waiting)
        if not len(self._orders[request_class]):
            self._arrivals[request_class].clear()

    def _is_aged(self, request_class: RequestClass, now_s: float) -> bool:
        oldest = self._arrivals[request_class].first()
        return oldest is not None and now_s - oldest[0] >= self._rules[request_class].ageing_s
