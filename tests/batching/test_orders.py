"""Orders: one suite that all of them pass, against a plain sort; then what is each one's own."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakSet

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_batching.accounts import PRESENCE_S, TenantAccounts
from muster_batching.limits import FixedLimit
from muster_batching.orders import (
    MOST_LEVELS,
    QUANTUM_TOKENS,
    STEP_S,
    ClassOrder,
    ClassRule,
    Order,
    SessionOrder,
    TenantOrder,
    Waiting,
    WaitingHeap,
    due_s,
)
from muster_batching.sessions import Session
from muster_batching.tickets import (
    CLASSES,
    PoolId,
    RequestClass,
    SessionId,
    TenantId,
    Ticket,
    TicketId,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import Upstream, UpstreamReport

CHAT = PoolId("chat")
EAST, WEST = UpstreamId("east"), UpstreamId("west")
ANN, BOB, CEM = (TenantId(name) for name in ("ann", "bob", "cem"))
INTERACTIVE, STANDARD, BATCH = CLASSES
RULES = {STANDARD: ClassRule(ageing_s=10.0, share=0.25), BATCH: ClassRule(ageing_s=30.0, share=0.1)}


@dataclass(frozen=True)
class Seat:
    """An upstream with a slot to give, of which some classes hold their share."""

    id: UpstreamId = EAST
    full: frozenset[RequestClass] = frozenset()

    def has_share_left(self, request_class: RequestClass, share: float) -> bool:
        """Tell whether a class is not one of those that hold theirs; the rules alone say how much it is."""
        assert share == RULES[request_class].share
        return request_class not in self.full


AT_EAST, AT_WEST = Seat(EAST), Seat(WEST)


@dataclass
class Arrivals:
    """Makes tickets that wait, in order of arrival."""

    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def ticket(
        self,
        since_s: float = 0.0,
        *,
        tenant: TenantId = ANN,
        request_class: RequestClass = STANDARD,
        input_tokens: int = 0,
    ) -> Waiting:
        """Make one that stands alone."""
        number = next(self.numbers)
        name = TicketId(str(number))
        ticket = Ticket(name, CHAT, 1, request_class, tenant, input_tokens=input_tokens, max_output_tokens=0)
        return Waiting(ticket, number, since_s, since_s + 1000.0)

    def call(
        self,
        since_s: float = 0.0,
        *,
        attained: int = 0,
        claim_s: float | None = None,
        home: UpstreamId | None = None,
        saved_s: float = 0.0,
        **fields: Any,
    ) -> Waiting:
        """Make one of a session, which has had so many tokens and is a new one if its claim is not older."""
        waiting = self.ticket(since_s, **fields)
        key = (CHAT, waiting.ticket.tenant, SessionId(waiting.ticket.id))
        session = Session(key, home=home, claim_s=since_s if claim_s is None else claim_s)
        session.serve(Usage(attained, 0), since_s)
        waiting.session, waiting.home, waiting.saved_s = session, home, saved_s
        return waiting


def leave(order: Order, waiting: Waiting) -> None:
    """Take a ticket out, as one does whose client leaves."""
    waiting.is_waiting = False
    order.left(waiting)


def serve(order: TenantOrder, waiting: Waiting) -> None:
    """Dispatch a ticket: its tenant is charged for it."""
    leave(order, waiting)
    order.accounts.charge(waiting.ticket)


def names(order: Order, seat: Seat = AT_EAST, now_s: float = 0.0) -> list[int]:
    """Empty an order; return the numbers of the tickets in the order in which they were first."""
    numbers: list[int] = []
    while (waiting := order.first(seat, now_s)) is not None:
        numbers.append(waiting.number)
        leave(order, waiting)
    return numbers


def tenant_order() -> TenantOrder:
    """Make an order of tenants of which nothing is known."""
    return TenantOrder(TenantAccounts())


def class_order() -> ClassOrder:
    """Make an order of classes."""
    return ClassOrder(lambda _: tenant_order(), RULES)


ORDERS: dict[str, Callable[[], Order]] = {
    "sessions": SessionOrder,
    "tenants": tenant_order,
    "classes": class_order,
}
every_order = pytest.mark.parametrize("make", ORDERS.values(), ids=ORDERS)


@every_order
def test_an_empty_order_has_no_first(make: Callable[[], Order]) -> None:
    """Nobody is next where nobody waits, before the first ticket and after the last."""
    order = make()
    assert order.first(AT_EAST, 0.0) is None
    waiting = Arrivals().call(home=EAST)
    order.add(waiting)
    assert (len(order), order.first(AT_EAST, 0.0)) == (1, waiting)
    leave(order, waiting)

    assert (len(order), order.first(AT_EAST, 0.0)) == (0, None)


@every_order
def test_equals_come_out_as_they_came(make: Callable[[], Order]) -> None:
    """Tickets between which nothing decides are served in order of arrival."""
    order, arrivals = make(), Arrivals()
    for _ in range(50):
        order.add(arrivals.ticket(5.0))

    assert names(order) == list(range(1, 51))


@dataclass(frozen=True)
class Step:
    """Something that happens to an order: a ticket comes, one of those waiting leaves, or the first goes."""

    kind: str
    which: int
    gap_s: float
    seat: Seat
    call: tuple[TenantId, RequestClass, int | None, float, UpstreamId | None, float]


calls = st.tuples(
    st.sampled_from([ANN, ANN, BOB, CEM]),
    st.sampled_from(CLASSES),
    st.sampled_from([None, None, 0, 100, 4096, 5000, 20_000, 3_000_000]),
    st.sampled_from([0.0, 0.0, 0.5, 3.0, 60.0]),
    st.sampled_from([None, EAST, WEST]),
    st.sampled_from([0.0, 0.4, 2.0]),
)
steps = st.builds(
    Step,
    st.sampled_from(["come", "come", "come", "leave", "go", "go"]),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.0, 0.3, 1.0, 7.0]),
    st.builds(Seat, st.sampled_from([EAST, WEST]), st.frozensets(st.sampled_from([STANDARD, BATCH]))),
    calls,
)


@dataclass
class Play:
    """An order that things happen to, beside a plain list of those that wait."""

    order: Order
    arrivals: Arrivals = field(default_factory=Arrivals)
    waiting: list[Waiting] = field(default_factory=list[Waiting])
    gone: list[Waiting] = field(default_factory=list[Waiting])
    log: list[tuple[str, Waiting]] = field(default_factory=list[tuple[str, Waiting]])
    now_s: float = 0.0

    def happen(self, step: Step) -> None:
        """Let a step happen."""
        self.now_s += step.gap_s
        first = self.order.first(step.seat, self.now_s)
        if step.kind == "come":
            self.come(*step.call)
        elif step.kind == "leave" and self.waiting:
            self.take(self.waiting[step.which % len(self.waiting)])
        elif step.kind == "go" and first is not None:
            self.take(first)
            tenants = self.order
            if isinstance(tenants, ClassOrder):
                tenants = tenants.of(first.ticket.request_class)
            if isinstance(tenants, TenantOrder):
                tenants.accounts.charge(first.ticket)

    def come(
        self,
        tenant: TenantId,
        request_class: RequestClass,
        attained: int | None,
        age_s: float,
        home: UpstreamId | None,
        saved_s: float,
    ) -> None:
        """Let a ticket come; attained None is for one that stands alone."""
        if attained is None:
            waiting = self.arrivals.ticket(
                self.now_s, tenant=tenant, request_class=request_class, input_tokens=100
            )
        else:
            waiting = self.arrivals.call(
                self.now_s,
                attained=attained,
                claim_s=self.now_s - age_s,
                home=home,
                saved_s=saved_s if home else 0.0,
                tenant=tenant,
                request_class=request_class,
            )
        self.order.add(waiting)
        self.waiting.append(waiting)
        self.log.append(("came", waiting))

    def take(self, waiting: Waiting) -> None:
        """Take a ticket out."""
        leave(self.order, waiting)
        self.waiting.remove(waiting)
        self.gone.append(waiting)
        self.log.append(("left", waiting))

    def turn(self, among: Callable[[Waiting], bool] = lambda _: True) -> tuple[float, int] | None:
        """When it is a session's turn: each call brings one, and each that leaves takes the first with it."""
        turns: list[tuple[float, int]] = []
        for what, waiting in self.log:
            if waiting.session is None or not among(waiting):
                continue
            if what == "came":
                turns.append(arrival(waiting))
            else:
                turns.remove(min(turns))
        return min(turns, default=None)


def arrival(waiting: Waiting) -> tuple[float, int]:
    """When a ticket came."""
    return waiting.since_s, waiting.number


histories = st.lists(steps, max_size=40)
briefly = settings(max_examples=60)


@every_order
@briefly
@given(history=histories)
def test_everyone_comes_out_once(make: Callable[[], Order], history: list[Step]) -> None:
    """Whatever comes and leaves, the first waits, none is lost, and the length is how many wait."""
    play = Play(make())
    for step in history:
        play.happen(step)
        first = play.order.first(step.seat, play.now_s)
        assert (first in play.waiting) if play.waiting else (first is None)
        assert len(play.order) == len(play.waiting)
    left = {waiting.number for waiting in play.waiting}

    assert sorted(names(play.order, AT_WEST, play.now_s)) == sorted(left)
    assert len(play.order) == 0


@every_order
@briefly
@given(history=histories)
def test_asking_changes_nothing(make: Callable[[], Order], history: list[Step]) -> None:
    """Between two changes the first on an upstream stays the first, whatever is asked in between."""
    play = Play(make())
    for step in history:
        play.happen(step)
        firsts = [play.order.first(seat, play.now_s) for seat in (AT_EAST, AT_WEST, AT_EAST, AT_WEST)]

        assert firsts[:2] == firsts[2:]


def session_key(waiting: Waiting, session: Session, seat: Seat) -> tuple[float, int]:
    """When a session's call is due on an upstream, by the documented formula."""
    attained = session.attained_tokens(waiting.since_s)
    level = min(MOST_LEVELS, math.floor(math.log2(1 + attained / QUANTUM_TOKENS)))
    due = session.claim_s + STEP_S * level
    return due + (0.0 if waiting.home == seat.id else waiting.saved_s), waiting.number


def naive_sessions(waiting: Sequence[Waiting], seat: Seat, turn: tuple[float, int] | None) -> Waiting | None:
    """Find the first by sorting: of those that stand alone by arrival, of the sessions' when it is their turn."""
    alone = min((each for each in waiting if each.session is None), key=arrival, default=None)
    if alone is not None and (turn is None or arrival(alone) < turn):
        return alone
    calls = [(session_key(each, each.session, seat), each) for each in waiting if each.session is not None]
    return min(calls)[1] if calls else None


@briefly
@given(history=histories)
def test_the_order_of_sessions_is_a_sort(history: list[Step]) -> None:
    """The first is always the one that a sort finds."""
    play = Play(SessionOrder())
    for step in history:
        play.happen(step)

        assert play.order.first(step.seat, play.now_s) is naive_sessions(play.waiting, step.seat, play.turn())


def is_of_least_tenant(
    first: Waiting, play: Play, seat: Seat, order: TenantOrder, request_class: RequestClass | None = None
) -> bool:
    """Tell whether nobody's tenant has had less than this one's, of whose tickets it is the first."""

    def is_of_class(waiting: Waiting) -> bool:
        return request_class in (None, waiting.ticket.request_class)

    def is_theirs(waiting: Waiting) -> bool:
        return is_of_class(waiting) and waiting.ticket.tenant == first.ticket.tenant

    counters = {
        each.ticket.tenant: order.accounts.counter(each.ticket.tenant)
        for each in filter(is_of_class, play.waiting)
    }
    theirs = list(filter(is_theirs, play.waiting))
    is_least = counters[first.ticket.tenant] == min(counters.values())
    return is_least and first is naive_sessions(theirs, seat, play.turn(is_theirs))


@briefly
@given(history=histories)
def test_the_order_of_tenants_is_a_sort(history: list[Step]) -> None:
    """The first is of a tenant with the least counter, and the first of that tenant's by a sort."""
    order = tenant_order()
    play = Play(order)
    for step in history:
        play.happen(step)
        first = order.first(step.seat, play.now_s)

        assert first is None or is_of_least_tenant(first, play, step.seat, order)


def naive_class(waiting: Sequence[Waiting], seat: Seat, now_s: float) -> tuple[int, RequestClass] | None:
    """Find the class that is next by the documented rules."""
    since = {each: [one.since_s for one in waiting if one.ticket.request_class is each] for each in CLASSES}
    present = [each for each in CLASSES if since[each]]
    for each in present[1:]:
        if now_s - min(since[each]) >= RULES[each].ageing_s and each not in seat.full:
            return -1, each
    return (CLASSES.index(present[0]), present[0]) if present else None


@briefly
@given(history=histories)
def test_the_order_of_classes_is_a_sort(history: list[Step]) -> None:
    """The class is the one that the rules name, and within it the order of tenants decides."""
    order = class_order()
    play = Play(order)
    for step in history:
        play.happen(step)
        chosen = order.choose(step.seat, play.now_s)
        assert chosen == naive_class(play.waiting, step.seat, play.now_s)
        first = order.first(step.seat, play.now_s)
        if first is None or chosen is None:
            continue

        assert first.ticket.request_class is chosen[1]
        assert is_of_least_tenant(first, play, step.seat, order.of(chosen[1]), chosen[1])


# WaitingHeap


class Traced(Waiting):
    """A ticket of which can be told whether anything still keeps it."""


def test_a_heap_forgets_those_that_left() -> None:
    """Behind one that stays first, a heap keeps at most twice those that wait of 100,000 that came."""
    heap, kept = WaitingHeap(), WeakSet[Traced]()
    ticket = Arrivals().ticket().ticket
    heap.push(0.0, Traced(ticket, 0, 0.0, 1.0))
    waiting: list[Traced] = []
    for number in range(1, 100_001):
        waiting.append(Traced(ticket, number, 0.0, 1.0))
        kept.add(waiting[-1])
        heap.push(1.0, waiting[-1])
        if len(waiting) > 50:
            waiting.pop(0).is_waiting = False
        assert len(kept) <= 2 * 51
    first = heap.first()

    assert first is not None
    assert first[2].number == 0


def test_a_heap_keeps_all_that_wait() -> None:
    """Sweeping loses nobody: those that stay come out by key, the earliest among equals."""
    heap, arrivals = WaitingHeap(), Arrivals()
    tickets = [arrivals.ticket() for _ in range(1000)]
    for each in tickets:
        heap.push(-(each.number % 7), each)
        if each.number % 3:
            each.is_waiting = False
    numbers: list[int] = []
    while (entry := heap.first()) is not None:
        numbers.append(entry[2].number)
        entry[2].is_waiting = False

    assert numbers == sorted(range(3, 1001, 3), key=lambda number: (-(number % 7), number))


def test_tenants_that_come_and_leave_leave_nothing() -> None:
    """Of 10,000 tenants that waited behind another and left, the order keeps some dozens of entries at most."""
    order, arrivals = tenant_order(), Arrivals()
    first = arrivals.ticket()
    order.add(first)
    entries: list[int] = []
    for number in range(10_000):
        waiting = arrivals.ticket(tenant=TenantId(str(number)))
        order.add(waiting)
        leave(order, waiting)
        entries.append(len(order._entries))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  not to be seen else

    assert max(entries) <= 70
    assert order.first(AT_EAST, 0.0) is first


def test_a_cleared_heap_is_empty() -> None:
    """A heap that is told to forget all has no first, even if they wait."""
    heap = WaitingHeap()
    heap.push(0.0, Arrivals().ticket())
    heap.clear()

    assert heap.first() is None


# SessionOrder


@pytest.mark.parametrize(
    ("attained", "level"),
    [
        (0, 0),
        (4095, 0),
        (4096, 1),
        (12_287, 1),
        (12_288, 2),
        (28_672, 3),
        (520_192, 7),
        (1_044_480, 8),
        (10**9, 8),
    ],
)
def test_a_level_is_a_doubling_of_service(attained: int, level: int) -> None:
    """Level n begins at 2**n - 1 quanta, and none is above the eighth."""
    assert due_s(100.0, attained) == 100.0 + level * STEP_S


def test_the_session_that_has_had_least_is_first() -> None:
    """Of calls that come at once, those of sessions with less service go first."""
    order, arrivals = SessionOrder(), Arrivals()
    for attained in (30_000, 0, 5000, 13_000, 100):
        order.add(arrivals.call(attained=attained))

    assert names(order) == [2, 5, 3, 4, 1]


def test_service_gives_way_to_waiting() -> None:
    """A session that has had much waits behind others only as long as its level."""
    order, arrivals = SessionOrder(), Arrivals()
    order.add(arrivals.call(0.0, attained=30_000))  # level 3
    for since_s in (1.0, 2.0, 2.9, 3.1, 4.0):
        order.add(arrivals.call(since_s))

    assert names(order) == [2, 3, 4, 1, 5, 6]


def test_sessions_go_in_the_order_in_which_they_began() -> None:
    """A call of an older session goes before calls that came earlier, of sessions that began later."""
    order, arrivals = SessionOrder(), Arrivals()
    for since_s, claim_s in ((10.0, 9.0), (11.0, 2.0), (12.0, 12.0), (13.0, 0.0)):
        order.add(arrivals.call(since_s, claim_s=claim_s))

    assert names(order) == [4, 2, 1, 3]


def test_sessions_gain_nothing_from_tickets_that_stand_alone() -> None:
    """Each slot falls to what came first, a ticket alone or a call; but a call's to the session that is next."""
    order, arrivals = SessionOrder(), Arrivals()
    order.add(arrivals.call(1.0))
    order.add(arrivals.ticket(2.0))
    order.add(arrivals.call(3.0, claim_s=0.0))
    order.add(arrivals.ticket(4.0))
    order.add(arrivals.call(5.0, claim_s=0.5))

    assert names(order) == [3, 2, 5, 4, 1]


def test_a_call_that_leaves_takes_a_turn_with_it() -> None:
    """When a session's call is cancelled, those that stand alone do not wait for it."""
    order, arrivals = SessionOrder(), Arrivals()
    order.add(gone := arrivals.call(1.0))
    order.add(arrivals.ticket(2.0))
    order.add(arrivals.call(3.0))
    leave(order, gone)

    assert names(order) == [2, 3]


@pytest.mark.parametrize(("earlier_s", "stays_warm"), [(0.9, True), (1.1, False)])
def test_a_warm_prefix_is_worth_what_it_saves(earlier_s: float, stays_warm: bool) -> None:
    """At its home a session goes first, unless another is due earlier by more than leaving its home costs."""
    order, arrivals = SessionOrder(), Arrivals()
    order.add(at_home := arrivals.call(10.0, home=EAST, saved_s=5.0))
    order.add(away := arrivals.call(10.0 - earlier_s, home=WEST, saved_s=1.0))

    assert order.first(AT_EAST, 10.0) is (at_home if stays_warm else away)
    assert order.first(AT_WEST, 10.0) is away


def test_a_home_without_tickets_changes_nothing() -> None:
    """When all calls of a home have left, those of other homes are next on it."""
    order, arrivals = SessionOrder(), Arrivals()
    order.add(home := arrivals.call(home=EAST, saved_s=1.0))
    order.add(away := arrivals.call(home=WEST, saved_s=1.0))
    leave(order, home)

    assert order.first(AT_EAST, 0.0) is away


# TenantOrder


def fill(order: TenantOrder, tenant: TenantId, *, tickets: int, input_tokens: int = 100) -> None:
    """Let a tenant's tickets come."""
    arrivals = Arrivals()
    for _ in range(tickets):
        order.add(arrivals.ticket(tenant=tenant, input_tokens=input_tokens))


def served(order: TenantOrder, times: int) -> list[TenantId]:
    """Dispatch the first so many times; return the tenants."""
    tenants: list[TenantId] = []
    for _ in range(times):
        waiting = order.first(AT_EAST, 0.0)
        assert waiting is not None
        serve(order, waiting)
        tenants.append(waiting.ticket.tenant)
    return tenants


def test_equal_tenants_take_turns() -> None:
    """Tenants whose tickets cost the same are served one after another, whoever has more waiting."""
    order = tenant_order()
    fill(order, ANN, tickets=50)
    fill(order, BOB, tickets=3)
    fill(order, CEM, tickets=3)

    assert served(order, 10) == [ANN, BOB, CEM, ANN, BOB, CEM, ANN, BOB, CEM, ANN]


def test_the_tenant_that_has_had_least_is_first() -> None:
    """Three tickets of 100 tokens weigh as much as one of 300."""
    order = tenant_order()
    fill(order, ANN, tickets=4, input_tokens=300)
    fill(order, BOB, tickets=9)

    assert served(order, 8) == [ANN, BOB, BOB, BOB, ANN, BOB, BOB, BOB]


def test_a_counter_that_grows_while_its_tenant_waits_is_heard() -> None:
    """A tenant whose answers cost more than was expected falls behind at once."""
    order = tenant_order()
    fill(order, ANN, tickets=2)
    fill(order, BOB, tickets=2)
    charge = order.accounts.charge(Arrivals().ticket(tenant=ANN).ticket)
    order.accounts.progress(charge, 1000)

    assert served(order, 4) == [BOB, BOB, ANN, ANN]


def test_a_tenant_that_returns_is_lifted() -> None:
    """One that was idle does not make up for it: from its return on it takes turns."""
    order = tenant_order()
    fill(order, ANN, tickets=20)
    served(order, 10)
    fill(order, BOB, tickets=10)

    assert served(order, 5) == [BOB, ANN, BOB, ANN, BOB]


def test_a_debt_outlasts_an_absence() -> None:
    """Leaving the queue and coming back does not make a tenant first again."""
    order, arrivals = tenant_order(), Arrivals()
    fill(order, ANN, tickets=4)
    order.add(big := arrivals.ticket(tenant=BOB, input_tokens=250))
    serve(order, big)
    fill(order, BOB, tickets=4)

    assert served(order, 4) == [ANN, ANN, ANN, BOB]


def test_a_backlog_that_ended_leaves_no_claim() -> None:
    """A tenant whose only ticket left and that came back is behind one that has come in between."""
    order, arrivals = tenant_order(), Arrivals()
    order.add(first := arrivals.ticket(tenant=ANN))
    leave(order, first)
    order.add(arrivals.ticket(tenant=BOB))
    order.add(arrivals.ticket(tenant=ANN))

    assert served(order, 2) == [BOB, ANN]


def test_waiting_of_counts_a_tenants_tickets() -> None:
    """It counts what waits of each, 0 for one that is not known."""
    order = tenant_order()
    fill(order, ANN, tickets=3)
    fill(order, BOB, tickets=1)
    served(order, 2)

    assert [order.waiting_of(tenant) for tenant in (ANN, BOB, CEM)] == [2, 0, 0]
    assert order.accounts.backlogged == 1


def crowded() -> tuple[TenantOrder, Arrivals]:
    """Make an order at 0 s: Ann and Bob are present, and Ann has all that is in flight."""
    order, arrivals = tenant_order(), Arrivals()
    for tenant in (ANN, BOB):
        order.accounts.see(arrivals.ticket(tenant=tenant).ticket, 0.0)
    order.accounts.charge(arrivals.ticket(tenant=ANN).ticket)
    return order, arrivals


def test_who_is_below_its_share_is_found_behind_one_that_is_not() -> None:
    """Slots that are kept from a tenant above its share go to the first that came below its own."""
    order, arrivals = crowded()
    order.accounts.see(arrivals.ticket(tenant=CEM).ticket, 0.0)
    order.add(arrivals.ticket(tenant=ANN))
    assert order.first_below_share(AT_EAST, 0.0) is None

    order.add(second := arrivals.ticket(tenant=BOB))
    assert order.first_below_share(AT_EAST, 0.0) is second
    leave(order, second)
    assert order.first_below_share(AT_EAST, 0.0) is None


def test_those_below_their_share_are_first_come_first_served() -> None:
    """Of several tenants below their share the one that came first is next, not the one that has had least."""
    order, arrivals = crowded()
    for tenant in (CEM, TenantId("dee")):
        order.accounts.see(arrivals.ticket(tenant=tenant).ticket, 0.0)
    order.add(first := arrivals.ticket(tenant=CEM))
    order.accounts.settle(order.accounts.charge(arrivals.ticket(tenant=CEM, input_tokens=500).ticket), None)
    order.add(arrivals.ticket(tenant=BOB))

    assert order.first_below_share(AT_EAST, 0.0) is first


def test_who_has_come_above_its_share_is_passed_over() -> None:
    """A tenant that was below its share when it came, and has filled it since, is no longer found."""
    order, arrivals = crowded()
    for tenant in (CEM, TenantId("dee")):
        order.accounts.see(arrivals.ticket(tenant=tenant).ticket, 0.0)
    order.add(arrivals.ticket(tenant=BOB))
    order.add(other := arrivals.ticket(tenant=CEM))
    order.accounts.charge(arrivals.ticket(tenant=BOB).ticket)

    assert order.first_below_share(AT_EAST, 0.0) is other


def test_who_came_above_its_share_is_found_when_it_comes_again() -> None:
    """A tenant that came above its share is not looked for until it comes again, even if it is alone by then."""
    order, arrivals = crowded()
    order.add(first := arrivals.ticket(tenant=ANN))
    alone_s = PRESENCE_S + 1.0
    assert order.first_below_share(AT_EAST, alone_s) is None

    order.add(arrivals.ticket(alone_s, tenant=ANN))
    assert order.first_below_share(AT_EAST, alone_s) is first


# ClassOrder


def queue_classes(order: ClassOrder, *came: tuple[float, RequestClass]) -> None:
    """Let tickets of these classes come at these times."""
    arrivals = Arrivals()
    for since_s, request_class in came:
        order.add(arrivals.ticket(since_s, request_class=request_class))


def test_the_most_urgent_class_is_first() -> None:
    """While nobody has aged, classes go strictly one after another."""
    order = class_order()
    queue_classes(
        order, (0.0, BATCH), (1.0, STANDARD), (2.0, INTERACTIVE), (3.0, STANDARD), (4.0, INTERACTIVE)
    )
    assert order.choose(AT_EAST, 5.0) == (0, INTERACTIVE)

    assert names(order, now_s=5.0) == [3, 5, 2, 4, 1]


@pytest.mark.parametrize(
    ("now_s", "full", "chosen"),
    [
        (9.9, (), (0, INTERACTIVE)),
        (10.0, (), (-1, STANDARD)),
        (10.0, (STANDARD,), (0, INTERACTIVE)),
        (30.0, (), (-1, STANDARD)),
        (29.9, (STANDARD,), (0, INTERACTIVE)),
        (30.0, (STANDARD,), (-1, BATCH)),
        (30.0, (STANDARD, BATCH), (0, INTERACTIVE)),
    ],
    ids=str,
)
def test_an_aged_class_goes_ahead_within_its_share(
    now_s: float, full: tuple[RequestClass, ...], chosen: tuple[int, RequestClass]
) -> None:
    """Once its first has waited long enough, and while it holds less than its share, the more urgent first."""
    order = class_order()
    queue_classes(order, (0.0, INTERACTIVE), (0.0, STANDARD), (0.0, BATCH))
    seat = Seat(EAST, frozenset(full))

    assert order.choose(seat, now_s) == chosen
    first = order.first(seat, now_s)
    assert first is not None
    assert first.ticket.request_class is chosen[1]


def test_the_most_urgent_that_waits_needs_no_share() -> None:
    """With nobody more urgent waiting, a class takes what there is, aged or not, in its own rank."""
    order = class_order()
    queue_classes(order, (0.0, STANDARD), (0.0, BATCH))
    full = Seat(EAST, frozenset([STANDARD, BATCH]))

    assert order.choose(full, 100.0) == (1, STANDARD)
    leave(order, order.of(STANDARD).first(full, 100.0) or pytest.fail("nobody waits"))
    assert order.choose(full, 100.0) == (2, BATCH)


def test_a_class_ages_by_its_oldest_that_waits() -> None:
    """When the aged ticket has gone, the class goes ahead only when the next has aged."""
    order, arrivals = class_order(), Arrivals()
    queue_classes(order, (0.0, INTERACTIVE))
    order.add(old := arrivals.ticket(0.0))
    order.add(arrivals.ticket(8.0))
    assert order.choose(AT_EAST, 12.0) == (-1, STANDARD)
    leave(order, old)

    assert order.choose(AT_EAST, 12.0) == (0, INTERACTIVE)
    assert order.choose(AT_EAST, 18.0) == (-1, STANDARD)


def test_a_class_that_was_empty_begins_to_age_anew() -> None:
    """Those that left do not make those that come later old."""
    order, arrivals = class_order(), Arrivals()
    queue_classes(order, (0.0, INTERACTIVE))
    order.add(old := arrivals.ticket(0.0))
    leave(order, old)
    order.add(arrivals.ticket(50.0))

    assert order.choose(AT_EAST, 59.9) == (0, INTERACTIVE)
    assert order.choose(AT_EAST, 60.0) == (-1, STANDARD)


@pytest.mark.parametrize(("slots", "aged"), [(1, 1), (4, 1), (8, 2), (40, 10)])
def test_an_aged_class_takes_its_share_of_an_upstream(slots: int, aged: int) -> None:
    """While interactive tickets wait, standard ones go ahead until they hold a quarter, one at least."""
    order = class_order()
    queue_classes(order, *[(0.0, each) for each in (INTERACTIVE, STANDARD) for _ in range(slots)])
    upstream = Upstream(
        EAST, UpstreamReport(FixedLimit(slots), frozenset([CHAT]), True), FixedLimit(slots).start()
    )
    for _ in range(slots):
        waiting = order.first(upstream, 10.0)
        assert waiting is not None
        leave(order, waiting)
        upstream.take(waiting.ticket)

    assert upstream.by_class == {INTERACTIVE: slots - aged, STANDARD: aged, BATCH: 0}
