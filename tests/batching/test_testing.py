"""The virtual clock and the timeline do what the tests that use them rely on."""

import pytest

from muster_batching import (
    ClockWentBackError,
    Dispatch,
    FixedLimit,
    Outcome,
    Policy,
    PoolId,
    Scheduler,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    UpstreamReport,
    WaitingLimits,
)
from muster_batching.testing import Timeline, VirtualClock

CHAT = PoolId("chat")
ENGINE = UpstreamId("engine")
FIRST, SECOND = TicketId("first"), TicketId("second")
ONE_SLOT = UpstreamReport(FixedLimit(1), pools=frozenset({CHAT}), available=True)


def test_a_virtual_clock_moves_only_when_told() -> None:
    """Reading the clock does not move it; advancing does, by seconds or to a time."""
    clock = VirtualClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)

    clock.advance(2.5)
    assert clock() == 7.5

    clock.advance_to(9.0)
    assert clock() == 9.0


def test_a_virtual_clock_never_goes_back() -> None:
    """Moving it back is refused either way, and it stays where it was."""
    clock = VirtualClock(5.0)

    with pytest.raises(ClockWentBackError):
        clock.advance(-1.0)
    with pytest.raises(ClockWentBackError):
        clock.advance_to(4.0)

    assert clock() == 5.0


def test_a_timeline_logs_every_input() -> None:
    """What each kind of event brings about is in the log, with its time."""
    timeline = Timeline(Scheduler(Policy.of(WaitingLimits(max_wait_s=10.0))))
    timeline.report(ENGINE, ONE_SLOT)
    for name in "abcde":
        timeline.submit(Ticket(TicketId(name), CHAT, size_bytes=1))
    timeline.advance(3.0)
    timeline.finish(TicketId("a"), Outcome.COMPLETED)
    timeline.advance(1.0)
    timeline.cancel(TicketId("b"))
    timeline.advance(6.0)
    timeline.submit(Ticket(TicketId("f"), CHAT, size_bytes=1))
    timeline.advance(1.0)
    timeline.remove(ENGINE)

    assert timeline.log == [
        (0.0, Dispatch(TicketId("a"), ENGINE)),
        (3.0, Dispatch(TicketId("b"), ENGINE)),
        (4.0, Dispatch(TicketId("c"), ENGINE)),
        (10.0, TurnAway(TicketId("d"), TurnAwayReason.WAITED_TOO_LONG, 11)),
        (10.0, TurnAway(TicketId("e"), TurnAwayReason.WAITED_TOO_LONG, 6)),
        (11.0, TurnAway(TicketId("f"), TurnAwayReason.NO_UPSTREAM, 2)),
    ]


def test_a_timeline_wakes_the_scheduler_at_each_due_moment() -> None:
    """One long step turns tickets away at their own times, and the clock ends where it was sent."""
    timeline = Timeline(Scheduler(Policy.of(WaitingLimits(max_wait_s=10.0))))
    timeline.report(ENGINE, ONE_SLOT)
    timeline.submit(Ticket(TicketId("held"), CHAT, size_bytes=1))
    timeline.submit(Ticket(FIRST, CHAT, size_bytes=1))
    timeline.advance(0.1)
    timeline.submit(Ticket(SECOND, CHAT, size_bytes=1))
    timeline.advance(60.0)

    assert timeline.log[1:] == [
        (10.0, TurnAway(FIRST, TurnAwayReason.WAITED_TOO_LONG, 5)),
        (0.1 + 10.0, TurnAway(SECOND, TurnAwayReason.WAITED_TOO_LONG, 5)),
    ]
    assert timeline.clock() == 60.1
