"""Timelines of the scheduler: what happens, and the whole history of what it decides."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from muster_batching import (
    Action,
    AimdLimit,
    ClockWentBackError,
    Dispatch,
    DuplicateTicketError,
    End,
    EngineSample,
    FixedLimit,
    LimitError,
    Outcome,
    Policy,
    PoolId,
    Scheduler,
    Stats,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UnknownTicketError,
    UpstreamId,
    UpstreamReport,
    WaitingLimits,
    WeightError,
)
from muster_batching.testing import Timeline


def start(**limits: Any) -> Timeline:
    """Begin a timeline with these waiting limits."""
    return Timeline(Scheduler(Policy.of(WaitingLimits(**limits))))


def ticket(name: str, pool: str = "chat", size_bytes: int = 1) -> Ticket:
    """Make a ticket."""
    return Ticket(TicketId(name), PoolId(pool), size_bytes)


def serving(*pools: str, limit: int = 1, available: bool = True) -> UpstreamReport:
    """Make a report of an upstream that serves these pools."""
    return UpstreamReport(FixedLimit(limit), frozenset(map(PoolId, pools)), available)


def sent(name: str, upstream: str) -> Dispatch:
    """Make the action that sends a ticket to an upstream."""
    return Dispatch(TicketId(name), UpstreamId(upstream))


def refused(name: str, reason: TurnAwayReason, retry_after_s: int | None) -> TurnAway:
    """Make the action that turns a ticket away."""
    return TurnAway(TicketId(name), reason, retry_after_s)


A, B, C, D = (TicketId(name) for name in "abcd")
EAST, WEST = UpstreamId("east"), UpstreamId("west")


def test_a_free_slot_is_taken_at_once() -> None:
    """A ticket that finds a free slot is dispatched as it comes, and no wake-up is asked for."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a"))

    assert timeline.log == [(0.0, sent("a", "east"))]
    assert timeline.scheduler.next_wakeup_s() is None


def test_slots_are_refilled_in_order_of_arrival() -> None:
    """Every completion lets the ticket go that came first, without waiting for the rest of its batch."""
    timeline = start()
    timeline.report(EAST, serving("chat", limit=2))
    for name in "abcd":
        timeline.submit(ticket(name))
    timeline.advance(3.0)
    timeline.finish(B, Outcome.COMPLETED)
    timeline.advance(4.0)
    timeline.finish(A, Outcome.FAILED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, sent("b", "east")),
        (3.0, sent("c", "east")),
        (7.0, sent("d", "east")),
    ]


def test_a_full_pool_does_not_hold_up_another() -> None:
    """A ticket of a pool with room passes the earlier ones whose pool is full."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.report(WEST, serving("code"))
    for name, pool in [("a", "chat"), ("b", "chat"), ("c", "code"), ("d", "code")]:
        timeline.submit(ticket(name, pool))
    timeline.advance(1.0)
    timeline.finish(C, Outcome.COMPLETED)

    assert timeline.log == [(0.0, sent("a", "east")), (0.0, sent("c", "west")), (1.0, sent("d", "west"))]


def test_pools_that_share_an_upstream_share_one_order() -> None:
    """A slot that serves two pools goes to whichever ticket came first."""
    timeline = start()
    timeline.report(EAST, serving("chat", "code"))
    for name, pool in [("a", "chat"), ("b", "code"), ("c", "chat"), ("d", "code")]:
        timeline.submit(ticket(name, pool))
    for name in (A, B, C):
        timeline.advance(1.0)
        timeline.finish(name, Outcome.COMPLETED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (1.0, sent("b", "east")),
        (2.0, sent("c", "east")),
        (3.0, sent("d", "east")),
    ]


def test_the_least_loaded_upstream_gets_the_ticket() -> None:
    """Load is the share of the slots taken; among equals the upstream that serves longest is chosen."""
    timeline = start()
    timeline.report(WEST, serving("chat", limit=1))
    timeline.report(EAST, serving("chat", limit=4))
    for name in "abcde":
        timeline.submit(ticket(name))

    assert timeline.log == [
        (0.0, sent("a", "west")),
        (0.0, sent("b", "east")),
        (0.0, sent("c", "east")),
        (0.0, sent("d", "east")),
        (0.0, sent("e", "east")),
    ]


def test_a_ticket_goes_elsewhere_than_where_it_failed_if_it_can() -> None:
    """However much fuller the other upstream is; where that has no room, to the one to avoid all the same."""
    timeline = start()
    timeline.report(WEST, serving("chat", limit=2))
    timeline.report(EAST, serving("chat", limit=8))
    timeline.submit(ticket("a"))
    for name in "bc":
        timeline.submit(replace(ticket(name), avoid=EAST))

    assert timeline.log == [
        (0.0, sent("a", "west")),
        (0.0, sent("b", "west")),
        (0.0, sent("c", "east")),
    ]


def test_a_lowered_limit_cuts_nothing() -> None:
    """What is in flight above a lowered limit goes on, and nothing is dispatched until it fits again."""
    timeline = start()
    timeline.report(EAST, serving("chat", limit=3))
    for name in "abcd":
        timeline.submit(ticket(name))
    timeline.report(EAST, serving("chat", limit=1))
    timeline.finish(A, Outcome.COMPLETED)
    timeline.finish(B, Outcome.COMPLETED)
    timeline.advance(1.0)
    timeline.finish(C, Outcome.COMPLETED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, sent("b", "east")),
        (0.0, sent("c", "east")),
        (1.0, sent("d", "east")),
    ]


def test_a_raised_limit_is_filled_at_once() -> None:
    """New slots are given out by the report that brings them."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    for name in "abcd":
        timeline.submit(ticket(name))
    timeline.advance(1.0)
    timeline.report(EAST, serving("chat", limit=3))

    assert timeline.log == [(0.0, sent("a", "east")), (1.0, sent("b", "east")), (1.0, sent("c", "east"))]


def test_only_answers_that_someone_waits_for_raise_a_limit() -> None:
    """A slot that goes to the last who waits is the end of that: what is answered then shows no need of more."""
    timeline = start()
    timeline.report(EAST, UpstreamReport(AimdLimit(initial=4), frozenset({PoolId("chat")}), available=True))
    names = [str(number) for number in range(40)]
    for name in names:
        timeline.submit(ticket(name))
    slots: list[int] = []
    for name in names:
        timeline.finish(TicketId(name), Outcome.COMPLETED)
        slots.append(timeline.scheduler.slots_on(EAST))

    assert slots == sorted(slots)
    assert slots[-1] == 8  # the square root of 4 * 4 + 2 * 32, which are answered while others wait


def test_an_answer_that_one_ticket_waits_for_raises_a_limit() -> None:
    """A ticket that has to wait is enough, from the moment at which it comes."""
    timeline = start()
    policy = AimdLimit(initial=1, least=1)
    timeline.report(EAST, UpstreamReport(policy, frozenset({PoolId("chat")}), available=True))
    timeline.submit(ticket("a"))
    timeline.submit(ticket("b"))
    timeline.finish(A, Outcome.COMPLETED)

    assert timeline.scheduler.slots_on(EAST) == 2


def test_a_new_upstream_takes_from_the_queue() -> None:
    """An upstream that joins a pool starts with the tickets that wait."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a"))
    timeline.submit(ticket("b"))
    timeline.report(WEST, serving("chat", limit=2))

    assert timeline.log == [(0.0, sent("a", "east")), (0.0, sent("b", "west"))]


def test_the_last_upstream_becomes_unavailable() -> None:
    """Tickets that would wait for nothing are turned away at once, new ones too, until one is back."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    for name in "abc":
        timeline.submit(ticket(name))
    timeline.advance(1.0)
    timeline.report(EAST, serving("chat", available=False))
    timeline.submit(ticket("d"))
    timeline.finish(A, Outcome.FAILED)
    timeline.advance(1.0)
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("e"))

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (1.0, refused("b", TurnAwayReason.NO_UPSTREAM, 2)),
        (1.0, refused("c", TurnAwayReason.NO_UPSTREAM, 2)),
        (1.0, refused("d", TurnAwayReason.NO_UPSTREAM, 2)),
        (2.0, sent("e", "east")),
    ]


def test_one_of_two_upstreams_becomes_unavailable() -> None:
    """Tickets wait on while another upstream of their pool is available."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.report(WEST, serving("chat"))
    for name in "abc":
        timeline.submit(ticket(name))
    timeline.report(EAST, serving("chat", available=False))
    timeline.finish(A, Outcome.FAILED)
    timeline.advance(1.0)
    timeline.finish(B, Outcome.COMPLETED)

    assert timeline.log == [(0.0, sent("a", "east")), (0.0, sent("b", "west")), (1.0, sent("c", "west"))]


def test_an_upstream_stops_serving_some_of_its_pools() -> None:
    """Only the pools that lost their last upstream lose their waiting tickets, in order of name."""
    timeline = start()
    timeline.report(EAST, serving("chat", "code", "embed"))
    for name, pool in [("a", "chat"), ("b", "embed"), ("c", "code"), ("d", "chat"), ("e", "code")]:
        timeline.submit(ticket(name, pool))
    timeline.report(EAST, serving("chat"))
    timeline.finish(A, Outcome.COMPLETED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, refused("c", TurnAwayReason.NO_UPSTREAM, 2)),
        (0.0, refused("e", TurnAwayReason.NO_UPSTREAM, 2)),
        (0.0, refused("b", TurnAwayReason.NO_UPSTREAM, 2)),
        (0.0, sent("d", "east")),
    ]


def test_a_removed_upstream_keeps_its_slots_until_they_end() -> None:
    """Removal ends nothing in flight; when the id is back, those still count against its limit."""
    timeline = start()
    timeline.report(EAST, serving("chat", limit=2))
    for name in "abc":
        timeline.submit(ticket(name))
    timeline.remove(EAST)
    timeline.finish(A, Outcome.COMPLETED)
    assert timeline.scheduler.in_flight_on(EAST) == 1
    timeline.report(EAST, serving("chat", limit=1))
    timeline.submit(ticket("d"))
    timeline.advance(1.0)
    timeline.finish(B, Outcome.COMPLETED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, sent("b", "east")),
        (0.0, refused("c", TurnAwayReason.NO_UPSTREAM, 2)),
        (1.0, sent("d", "east")),
    ]


def test_a_removed_upstream_is_forgotten_with_its_last_slot() -> None:
    """Nothing is kept of an upstream that is gone and has nothing in flight; a second removal is idle."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.report(WEST, serving("chat"))
    timeline.submit(ticket("a"))
    timeline.remove(WEST)
    timeline.remove(EAST)
    timeline.finish(A, Outcome.COMPLETED)
    timeline.remove(EAST)

    assert repr(timeline.scheduler) == "<Scheduler waiting=0 waiting_bytes=0 in_flight=0 upstreams={}>"
    assert timeline.scheduler.in_flight_on(EAST) == 0


def test_a_pool_that_nobody_ever_served_is_unknown() -> None:
    """A pool without upstream is told from one whose upstreams are gone, where a new try may help."""
    timeline = start()
    timeline.submit(ticket("a"))
    timeline.report(EAST, serving("chat", available=False))
    timeline.submit(ticket("b"))
    timeline.remove(EAST)
    timeline.submit(ticket("c"))

    assert timeline.log == [
        (0.0, refused("a", TurnAwayReason.UNKNOWN_POOL, None)),
        (0.0, refused("b", TurnAwayReason.NO_UPSTREAM, 2)),
        (0.0, refused("c", TurnAwayReason.NO_UPSTREAM, 2)),
    ]


def test_waiting_is_bounded_by_count() -> None:
    """One ticket more than may wait is turned away; what leaves the queue makes room again."""
    timeline = start(max_waiting=1)
    timeline.report(EAST, serving("chat"))
    for name in "abc":
        timeline.submit(ticket(name))
    timeline.cancel(B)
    timeline.submit(ticket("d"))
    timeline.finish(A, Outcome.COMPLETED)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, refused("c", TurnAwayReason.WAITING_FULL, 5)),
        (0.0, sent("d", "east")),
    ]


def test_waiting_is_bounded_by_bytes() -> None:
    """The bytes that wait stay within their limit, which a ticket that need not wait is not held to."""
    timeline = start(max_waiting_bytes=10)
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a", size_bytes=1000))
    timeline.submit(ticket("b", size_bytes=6))
    timeline.submit(ticket("c", size_bytes=5))
    timeline.submit(ticket("d", size_bytes=4))

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.0, refused("c", TurnAwayReason.WAITING_BYTES_FULL, 5)),
    ]
    assert timeline.scheduler.waiting_bytes == 10


def test_waiting_is_bounded_by_time() -> None:
    """A ticket is turned away at the moment that `next_wakeup_s` told, and a later one at its own."""
    timeline = start(max_wait_s=30.0)
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a"))
    timeline.advance(0.1)
    timeline.submit(ticket("b"))
    timeline.advance(5.0)
    timeline.submit(ticket("c"))
    assert timeline.scheduler.next_wakeup_s() == 0.1 + 30.0
    timeline.advance(100.0)

    assert timeline.log == [
        (0.0, sent("a", "east")),
        (0.1 + 30.0, refused("b", TurnAwayReason.WAITED_TOO_LONG, 5)),
        (5.1 + 30.0, refused("c", TurnAwayReason.WAITED_TOO_LONG, 5)),
    ]


def test_a_slot_that_comes_before_a_late_wake_is_given() -> None:
    """Only `wake` turns a ticket away for its wait, so a late one does not cost it a slot that is there."""
    scheduler = Scheduler(Policy.of(WaitingLimits(max_wait_s=30.0)))
    scheduler.report(EAST, serving("chat"), now_s=0.0)
    scheduler.submit(ticket("a"), now_s=0.0)
    scheduler.submit(ticket("b"), now_s=0.0)

    assert scheduler.finish(A, End(Outcome.COMPLETED), now_s=30.5) == [sent("b", "east")]
    assert scheduler.wake(now_s=30.5) == []


def test_a_wake_that_comes_too_early_does_nothing() -> None:
    """A timer may fire a moment early; nobody is turned away before the time."""
    scheduler = Scheduler(Policy.of(WaitingLimits(max_wait_s=30.0)))
    scheduler.report(EAST, serving("chat"), now_s=0.0)
    scheduler.submit(ticket("a"), now_s=0.0)
    scheduler.submit(ticket("b"), now_s=0.0)

    assert scheduler.wake(now_s=math.nextafter(30.0, 0.0)) == []
    assert scheduler.wake(now_s=30.0) == [refused("b", TurnAwayReason.WAITED_TOO_LONG, 5)]


def test_a_client_leaves_while_it_waits() -> None:
    """A cancelled ticket is out of the queue, and the next in line gets the slot."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    for name in "abc":
        timeline.submit(ticket(name))
    timeline.cancel(B)
    timeline.finish(A, Outcome.COMPLETED)

    assert timeline.log == [(0.0, sent("a", "east")), (0.0, sent("c", "east"))]


def test_a_client_leaves_during_its_answer() -> None:
    """Cancelling a ticket in flight gives its slot to the next."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a"))
    timeline.submit(ticket("b"))
    timeline.advance(1.0)
    timeline.cancel(A)

    assert timeline.log == [(0.0, sent("a", "east")), (1.0, sent("b", "east"))]


def test_a_client_leaves_after_the_end() -> None:
    """Cancelling an ended or unknown ticket changes nothing: leaving may cross the end."""
    timeline = start()
    timeline.report(EAST, serving("chat"))
    timeline.submit(ticket("a"))
    timeline.finish(A, Outcome.COMPLETED)
    timeline.cancel(A)
    timeline.cancel(B)

    assert timeline.log == [(0.0, sent("a", "east"))]
    assert timeline.scheduler.ends[Outcome.CANCELLED] == 0


def test_every_end_is_counted() -> None:
    """The ends tell how many tickets came to each, and changing the answer does not change the scheduler."""
    timeline = start(max_waiting=1)
    timeline.report(EAST, serving("chat", limit=3))
    for name in "abcde":
        timeline.submit(ticket(name))
    timeline.cancel(D)
    timeline.finish(A, Outcome.COMPLETED)
    timeline.finish(B, Outcome.FAILED)
    timeline.finish(C, Outcome.CANCELLED)
    timeline.scheduler.ends.clear()

    assert timeline.scheduler.ends == {
        Outcome.COMPLETED: 1,
        Outcome.FAILED: 1,
        Outcome.CANCELLED: 2,
        Outcome.TURNED_AWAY: 1,
    }


def test_retry_after_follows_the_drain() -> None:
    """A ticket turned away is told its place times the seconds that the queue takes for each ticket."""
    timeline = start(max_waiting=4)
    timeline.report(EAST, serving("chat"))
    for name in "abcde":
        timeline.submit(ticket(name))
    for name in (A, B):
        timeline.advance(3.0)
        timeline.finish(name, Outcome.COMPLETED)
    for name in "fgh":
        timeline.submit(ticket(name))

    assert timeline.log[-1] == (6.0, refused("h", TurnAwayReason.WAITING_FULL, 15))


def test_retry_after_is_that_of_the_pool() -> None:
    """A slow pool's backlog does not lengthen what another pool's clients are told."""
    timeline = start(max_waiting=2)
    timeline.report(EAST, serving("chat"))
    timeline.report(WEST, serving("code"))
    for name, pool in [("a", "chat"), ("b", "chat"), ("c", "code"), ("d", "code")]:
        timeline.submit(ticket(name, pool))
    timeline.advance(2.0)
    timeline.finish(C, Outcome.COMPLETED)
    timeline.advance(18.0)
    timeline.finish(A, Outcome.COMPLETED)
    for name, pool in [("e", "chat"), ("f", "chat"), ("g", "chat"), ("h", "code")]:
        timeline.submit(ticket(name, pool))

    assert timeline.log[-2:] == [
        (20.0, refused("g", TurnAwayReason.WAITING_FULL, 60)),
        (20.0, refused("h", TurnAwayReason.WAITING_FULL, 2)),
    ]


def test_stats_count_a_batch_for_each_refill() -> None:
    """A batch is what is in flight on an upstream after a decision that dispatched to it."""
    timeline = start()
    assert timeline.scheduler.stats == Stats(total_requests=0, total_batches=0, avg_batch_size=0.0)
    timeline.report(EAST, serving("chat"))
    for name in "abcd":
        timeline.submit(ticket(name))
    timeline.report(EAST, serving("chat", limit=3))
    timeline.finish(A, Outcome.COMPLETED)
    timeline.finish(B, Outcome.COMPLETED)

    # Sizes: 1 when a came, 3 when the limit rose, 3 when d took a's slot; b's end dispatched nothing.
    assert timeline.scheduler.stats == Stats(total_requests=4, total_batches=3, avg_batch_size=7 / 3)


def test_the_repr_tells_what_an_operator_asks() -> None:
    """The repr has what waits and, of each upstream, what is in flight, its limit and if it is out."""
    timeline = start()
    timeline.report(EAST, serving("chat", limit=1))
    timeline.report(WEST, serving("code", limit=8, available=False))
    timeline.submit(ticket("a"))
    timeline.submit(ticket("b", size_bytes=512))

    assert repr(timeline.scheduler) == (
        "<Scheduler waiting=1 waiting_bytes=512 in_flight=1 upstreams={'east': 1/1, 'west': 0/8 unavailable}>"
    )


@pytest.fixture
def busy() -> Scheduler:
    """A scheduler at 10 s with `a` in flight on east and `b` waiting."""
    scheduler = Scheduler()
    scheduler.report(EAST, serving("chat"), now_s=10.0)
    scheduler.submit(ticket("a"), now_s=10.0)
    scheduler.submit(ticket("b"), now_s=10.0)
    return scheduler


def state(scheduler: Scheduler) -> object:
    """Read all that a scheduler shows."""
    return repr(scheduler), scheduler.ends, scheduler.stats, scheduler.next_wakeup_s()


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_ticket_id_in_use_is_refused(busy: Scheduler, name: str) -> None:
    """The id of a ticket in flight or waiting cannot be submitted again, and nothing changes."""
    before = state(busy)

    with pytest.raises(DuplicateTicketError) as caught:
        busy.submit(ticket(name), now_s=11.0)

    assert caught.value.ticket_id == name
    assert state(busy) == before


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_is_a_share(busy: Scheduler, weight: float) -> None:
    """A ticket whose weight is no share is refused, and nothing changes."""
    before = state(busy)

    with pytest.raises(WeightError) as caught:
        busy.submit(Ticket(C, PoolId("chat"), 1, weight=weight), now_s=11.0)

    assert caught.value.ticket_id == "c"
    assert state(busy) == before


@pytest.mark.parametrize("name", ["b", "nobody"])
def test_only_a_ticket_in_flight_can_be_finished(busy: Scheduler, name: str) -> None:
    """A ticket that waits or is not known has no slot to give back, and nothing changes."""
    before = state(busy)

    with pytest.raises(UnknownTicketError) as caught:
        busy.finish(TicketId(name), End(Outcome.COMPLETED), now_s=11.0)

    assert caught.value.ticket_id == name
    assert state(busy) == before


INPUTS: dict[str, Callable[[Scheduler, float], list[Action]]] = {
    "submit": lambda scheduler, now_s: scheduler.submit(ticket("c"), now_s=now_s),
    "finish": lambda scheduler, now_s: scheduler.finish(A, End(Outcome.COMPLETED), now_s=now_s),
    "cancel in flight": lambda scheduler, now_s: scheduler.cancel(A, now_s=now_s),
    "cancel waiting": lambda scheduler, now_s: scheduler.cancel(B, now_s=now_s),
    "report": lambda scheduler, now_s: scheduler.report(WEST, serving("chat"), now_s=now_s),
    "remove": lambda scheduler, now_s: scheduler.remove(EAST, now_s=now_s),
    "sample": lambda scheduler, now_s: scheduler.sample(EAST, EngineSample(1, 0), now_s=now_s),
    "progress": lambda scheduler, now_s: scheduler.progress(A, 1, now_s=now_s),
    "wake": lambda scheduler, now_s: scheduler.wake(now_s=now_s),
}


@pytest.mark.parametrize("name", INPUTS)
def test_time_does_not_go_back(busy: Scheduler, name: str) -> None:
    """An input with a time before the last one's is refused, and nothing changes."""
    before = state(busy)

    with pytest.raises(ClockWentBackError) as caught:
        INPUTS[name](busy, 9.5)

    assert (caught.value.now_s, caught.value.last_s) == (9.5, 10.0)
    assert state(busy) == before


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan])
def test_an_upstream_has_a_slot_at_least(value: Any) -> None:
    """A limit below 1 would let tickets wait for ever, and one without end would not be a limit."""
    with pytest.raises(LimitError, match="expected slots to be finite and at least 1"):
        serving("chat", limit=value)


@pytest.mark.parametrize("name", ["max_waiting", "max_waiting_bytes", "max_wait_s"])
@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_waiting_limits_are_finite(name: str, value: float) -> None:
    """Waiting is always bounded, so none of its limits may be infinite or negative."""
    with pytest.raises(LimitError, match=f"expected {name} to be finite and at least 0") as caught:
        start(**{name: value})

    assert (caught.value.name, caught.value.least) == (name, 0)


def lines_run(action: Callable[[], object]) -> int:
    """Count the lines of Python that an action runs through."""
    lines = 0

    def trace(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(previous)
    return lines


def cost_of_each_input(waiting: int) -> list[int]:
    """Count the lines that each input runs through while so many tickets wait in each of two pools."""
    scheduler = Scheduler(Policy.of(WaitingLimits(max_waiting=100_000, max_wait_s=1.0)))
    scheduler.report(EAST, serving("chat", "code", limit=1), now_s=0.0)
    scheduler.submit(ticket("first"), now_s=0.0)
    for number in range(waiting):
        for pool in ("chat", "code"):
            scheduler.submit(ticket(f"{pool}-{number}", pool), now_s=float(number > 0))
    middle = TicketId(f"chat-{waiting // 2}")
    return [
        lines_run(lambda: scheduler.submit(ticket("last"), now_s=1.0)),
        lines_run(lambda: scheduler.cancel(middle, now_s=1.0)),
        lines_run(lambda: scheduler.finish(TicketId("first"), End(Outcome.COMPLETED), now_s=1.0)),
        lines_run(scheduler.next_wakeup_s),
        lines_run(lambda: scheduler.wake(now_s=1.0)),
    ]


def test_a_decision_costs_the_same_however_many_wait() -> None:
    """Each input runs through as many lines with 10 tickets waiting in each pool as with 2000."""
    assert cost_of_each_input(2000) == cost_of_each_input(10)
