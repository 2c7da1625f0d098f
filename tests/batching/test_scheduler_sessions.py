"""Timelines of sessions: where they stay, who is held, and how every hold ends."""

import math
from typing import Any

import pytest

from muster_batching import (
    Dispatch,
    End,
    EngineSample,
    FixedLimit,
    Outcome,
    Policy,
    PoolId,
    Scheduler,
    SessionId,
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
from muster_batching.testing import Timeline

CHAT = PoolId("chat")
EAST, WEST = UpstreamId("east"), UpstreamId("west")


def serving(limit: int = 8, *, available: bool = True) -> UpstreamReport:
    """Make a report of an upstream that serves the pool that all share."""
    return UpstreamReport(FixedLimit(limit), frozenset({CHAT}), available)


def start(kv_tokens: int | None = 1000, limit: int = 8, **policy: Any) -> Timeline:
    """Begin a timeline with one upstream whose engine tells the size of its KV cache."""
    timeline = Timeline(Scheduler(Policy(**policy)))
    timeline.report(EAST, serving(limit))
    timeline.sample(EAST, EngineSample(0, 0, kv_tokens=kv_tokens))
    return timeline


def call(session: str, number: int = 0, tokens: int = 300, **fields: Any) -> Ticket:
    """Make the ticket of a session's call."""
    name = TicketId(f"{session}-{number}")
    return Ticket(name, CHAT, 1, session=SessionId(session), input_tokens=tokens, **fields)


def end(timeline: Timeline, name: str, tokens: int = 300, *, is_over: bool = False) -> None:
    """Complete a call whose session's context then has so many tokens."""
    usage = Usage(tokens - 10, 10)
    timeline.end(TicketId(name), End(Outcome.COMPLETED, usage, is_session_over=is_over))


def sent(timeline: Timeline) -> list[tuple[float, str]]:
    """Read when each call was sent."""
    return [
        (round(now_s, 2), str(each.ticket_id)) for now_s, each in timeline.log if isinstance(each, Dispatch)
    ]


def test_sessions_that_fit_are_never_held() -> None:
    """The gate is inert while the contexts of all sessions fit the KV cache."""
    timeline = start()
    for turn in range(5):
        for session in ("a", "b", "c"):
            timeline.submit(call(session, turn, 280))
        for session in ("a", "b", "c"):
            end(timeline, f"{session}-{turn}", 290)
        timeline.advance(0.1)

    assert len(sent(timeline)) == 15
    assert timeline.scheduler.waiting == 0


def test_a_session_that_does_not_fit_is_held_while_slots_are_free() -> None:
    """With three sessions busy that fill the cache the fourth waits, for that reason; one without goes."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.submit(Ticket(TicketId("alone"), CHAT, 1, input_tokens=300))

    assert sent(timeline) == [(0.0, "a-0"), (0.0, "b-0"), (0.0, "c-0"), (0.0, "alone")]
    assert timeline.scheduler.waits_for(TicketId("d-0")) is WaitReason.SESSION_GATE
    assert timeline.scheduler.held == 1


def test_a_held_session_is_admitted_when_another_is_over() -> None:
    """A session whose final answer has come gives its place up at once."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.advance(2.0)
    end(timeline, "a-0", is_over=True)

    assert sent(timeline)[3:] == [(2.0, "d-0")]


def test_a_held_session_is_admitted_when_idle_ones_have_decayed() -> None:
    """An idle session's place shrinks by half in ten seconds: with 100 of 300 left, another of 500 fits."""
    timeline = start()
    timeline.submit(call("busy"))
    timeline.submit(call("idle"))
    end(timeline, "idle-0")
    timeline.submit(call("large", tokens=500))
    timeline.advance(29.0)

    assert sent(timeline)[2:] == [(round(10 * math.log2(3), 2), "large-0")]


def test_a_session_that_was_given_up_goes_before_new_ones() -> None:
    """The longest idle is given up when another has grown, and is the first to be admitted again."""
    timeline = start()
    for session in ("a", "b", "c"):
        timeline.submit(call(session))
    end(timeline, "a-0")
    timeline.advance(0.1)
    end(timeline, "b-0")
    timeline.submit(call("b", 1, 600))
    timeline.submit(call("new"))
    timeline.submit(call("a", 1))
    assert timeline.scheduler.held == 2
    timeline.advance(1.0)
    end(timeline, "b-1", 600, is_over=True)

    assert [name for _, name in sent(timeline)[4:]] == ["a-1", "new-0"]


def test_an_engine_without_a_busy_session_takes_the_next() -> None:
    """Nobody is held for the sake of sessions that all are idle."""
    timeline = start()
    timeline.submit(call("a", tokens=800))
    timeline.submit(call("b", tokens=800))
    timeline.advance(1.0)
    end(timeline, "a-0", 800)

    assert sent(timeline)[1:] == [(1.0, "b-0")]


def test_a_hold_may_displace_after_its_patience() -> None:
    """After 30 s a held session goes although it does not fit; the next one only when a turnover allows it."""
    timeline = start()
    for session in ("a", "b", "c", "d", "e"):
        timeline.submit(call(session))
    timeline.advance(149.0)

    assert sent(timeline)[3:] == [(30.0, "d-0"), (120.0, "e-0")]


def test_every_hold_ends_at_its_bound() -> None:
    """However many are held, each is sent when it has been held for `max_hold_s`."""
    timeline = start(max_hold_s=40.0)
    for number in range(9):
        timeline.submit(call(f"s{number}"))
    timeline.advance(41.0)

    assert sent(timeline)[3:] == [(30.0, "s3-0")] + [(40.0, f"s{number}-0") for number in range(4, 8)]
    assert timeline.scheduler.waits_for(TicketId("s8-0")) is WaitReason.AT_LIMIT


def test_a_held_call_is_turned_away_like_any_that_waits() -> None:
    """A hold is part of the wait, and within its limits."""
    timeline = start(waiting=dict.fromkeys(Policy().waiting, WaitingLimits(max_waiting=1, max_wait_s=5.0)))
    for session in ("a", "b", "c", "d", "e"):
        timeline.submit(call(session))
    timeline.advance(6.0)

    assert timeline.log[3:] == [
        (0.0, TurnAway(TicketId("e-0"), TurnAwayReason.WAITING_FULL, 5)),
        (5.0, TurnAway(TicketId("d-0"), TurnAwayReason.WAITED_TOO_LONG, 5)),
    ]
    assert timeline.scheduler.next_wakeup_s() is None


def test_a_held_call_that_is_cancelled_is_gone() -> None:
    """A client that leaves while its session is held leaves nothing behind."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.cancel(TicketId("d-0"))
    end(timeline, "a-0", is_over=True)

    assert len(sent(timeline)) == 3
    assert (timeline.scheduler.waiting, timeline.scheduler.held) == (0, 0)
    assert timeline.scheduler.next_wakeup_s() is None


def test_a_call_that_leaves_the_queue_gives_its_place_to_a_held_one() -> None:
    """A session admitted by the gate whose client leaves before its slot frees its place."""
    timeline = start(limit=2)
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    assert timeline.scheduler.waits_for(TicketId("c-0")) is WaitReason.AT_LIMIT
    assert timeline.scheduler.waits_for(TicketId("d-0")) is WaitReason.SESSION_GATE
    timeline.cancel(TicketId("c-0"))

    assert timeline.scheduler.waits_for(TicketId("d-0")) is WaitReason.AT_LIMIT


def test_the_next_turn_of_a_session_in_the_queue_keeps_its_warm_place() -> None:
    """A resident session whose client leaves while it waits for a slot rests as it was before."""
    timeline = start(limit=1)
    timeline.submit(call("a"))
    end(timeline, "a-0")
    timeline.submit(call("b"))
    timeline.submit(call("a", 1))
    timeline.cancel(TicketId("a-1"))
    end(timeline, "b-0")
    timeline.submit(call("c"))
    timeline.submit(call("d"))

    assert timeline.scheduler.waits_for(TicketId("d-0")) is not None


def test_a_session_stays_where_its_prefix_is() -> None:
    """Of two upstreams with room the one that served the session before gets it, if it is not much fuller."""
    timeline = start()
    timeline.report(WEST, serving())
    timeline.submit(call("a"))
    end(timeline, "a-0")
    timeline.submit(Ticket(TicketId("other"), CHAT, 1))
    timeline.submit(Ticket(TicketId("another"), CHAT, 1))
    timeline.submit(Ticket(TicketId("third"), CHAT, 1))
    timeline.submit(call("a", 1))

    homes = {str(each.ticket_id): each.upstream_id for _, each in timeline.log if isinstance(each, Dispatch)}
    assert homes["a-0"] == homes["a-1"] == EAST


def test_a_session_leaves_a_home_that_is_much_fuller() -> None:
    """When its home is loaded by more than a quarter above the other, a session moves, and is at home there."""
    timeline = start(kv_tokens=None)
    timeline.report(WEST, serving(available=False))
    for number in range(3):
        timeline.submit(Ticket(TicketId(str(number)), CHAT, 1))
    timeline.submit(call("a"))
    end(timeline, "a-0")
    timeline.report(WEST, serving())
    timeline.submit(call("a", 1))
    end(timeline, "a-1")
    timeline.submit(call("a", 2))

    assert [each.upstream_id for _, each in timeline.log if isinstance(each, Dispatch)][3:] == [
        EAST,
        WEST,
        WEST,
    ]


def test_a_slot_goes_to_a_session_at_home_there() -> None:
    """Among those that wait a warm prefix comes first, unless another is due earlier by more than it saves."""
    timeline = start(kv_tokens=100_000, limit=1)
    timeline.report(WEST, serving(1))
    timeline.sample(WEST, EngineSample(0, 0, kv_tokens=100_000))
    timeline.submit(call("a", tokens=5000))
    timeline.submit(call("b", tokens=5000))
    end(timeline, "a-0", 5000)
    end(timeline, "b-0", 5000)
    timeline.submit(Ticket(TicketId("x"), CHAT, 1))
    timeline.submit(Ticket(TicketId("y"), CHAT, 1))
    timeline.submit(call("b", 1, 5010))
    timeline.submit(call("a", 1, 5010))
    timeline.finish(TicketId("x"), Outcome.COMPLETED)
    timeline.finish(TicketId("y"), Outcome.COMPLETED)

    assert timeline.log[-2:] == [
        (0.0, Dispatch(TicketId("a-1"), EAST)),
        (0.0, Dispatch(TicketId("b-1"), WEST)),
    ]


@pytest.mark.parametrize(("later_s", "first"), [(0.4, "b-1"), (0.6, "a-1")])
def test_a_warm_prefix_is_worth_the_time_that_it_saves(later_s: float, first: str) -> None:
    """With 5,000 tokens warm elsewhere a session passes one at home here that began over half a second later."""
    timeline = start(kv_tokens=100_000, limit=1)
    timeline.report(WEST, serving(1))
    timeline.sample(WEST, EngineSample(0, 0, kv_tokens=100_000))
    timeline.submit(Ticket(TicketId("w"), CHAT, 1))
    timeline.submit(call("a", tokens=4990))
    timeline.finish(TicketId("w"), Outcome.COMPLETED)
    timeline.advance(later_s)
    timeline.submit(call("b", tokens=4990))
    end(timeline, "b-0", 5000)
    timeline.submit(Ticket(TicketId("x"), CHAT, 1))
    end(timeline, "a-0", 5000)
    timeline.submit(Ticket(TicketId("y"), CHAT, 1))
    timeline.submit(call("a", 1, 5000))
    timeline.submit(call("b", 1, 5000))
    timeline.finish(TicketId("x"), Outcome.COMPLETED)

    assert timeline.log[-1] == (later_s, Dispatch(TicketId(first), EAST))


def test_a_session_whose_upstream_goes_finds_another_place() -> None:
    """A removed or unavailable upstream holds no session back."""
    timeline = start()
    timeline.submit(call("a"))
    timeline.report(WEST, serving())
    timeline.report(EAST, serving(available=False))
    timeline.submit(call("a", 1))
    timeline.remove(EAST)
    end(timeline, "a-0")
    timeline.submit(call("a", 2))

    assert [each.upstream_id for _, each in timeline.log if isinstance(each, Dispatch)] == [EAST, WEST, WEST]


def test_held_calls_of_a_pool_that_is_lost_are_turned_away() -> None:
    """When the last upstream goes, those that the gate holds are told at once."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.remove(EAST)

    assert timeline.log[-1] == (0.0, TurnAway(TicketId("d-0"), TurnAwayReason.NO_UPSTREAM, 2))
    assert timeline.scheduler.next_wakeup_s() is None


def test_a_new_upstream_takes_held_sessions() -> None:
    """Sessions that one engine's cache has no room for go to another when it comes."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.advance(1.0)
    timeline.report(WEST, serving())

    assert timeline.log[-1] == (1.0, Dispatch(TicketId("d-0"), WEST))


def test_a_cache_that_has_grown_takes_held_sessions() -> None:
    """A sample that tells of a larger cache ends holds at once."""
    timeline = start()
    for session in ("a", "b", "c", "d"):
        timeline.submit(call(session))
    timeline.advance(1.0)
    timeline.sample(EAST, EngineSample(3, 0, kv_tokens=2000))

    assert timeline.log[-1] == (1.0, Dispatch(TicketId("d-0"), EAST))


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED, Outcome.COMPLETED])
def test_a_call_whose_use_is_not_known_ends_all_the_same(outcome: Any) -> None:
    """Without usage the session rests with what was known of it, and its next call goes."""
    timeline = start()
    timeline.submit(call("a"))
    timeline.finish(TicketId("a-0"), outcome)
    timeline.submit(call("a", 1))

    assert len(sent(timeline)) == 2


@pytest.mark.parametrize(
    ("outcome", "held"), [(Outcome.COMPLETED, 1), (Outcome.FAILED, 0), (Outcome.CANCELLED, 0)]
)
def test_an_answer_whose_use_is_not_known_counts_as_expected(outcome: Any, held: int) -> None:
    """A complete one has left its context in the cache, which others have less room beside; no other has."""
    timeline = start()
    timeline.submit(call("a"))
    timeline.finish(TicketId("a-0"), outcome)
    for session in ("b", "c"):
        timeline.submit(call(session))

    assert timeline.scheduler.held == held


def test_a_session_has_one_place() -> None:
    """One that goes on elsewhere gives up what it held in the engine that it left."""
    timeline = start()
    timeline.submit(call("a"))
    end(timeline, "a-0")
    timeline.report(WEST, serving())
    timeline.report(EAST, serving(available=False))
    timeline.submit(call("a", 1))
    timeline.report(EAST, serving())
    timeline.remove(WEST)
    for session in ("b", "c", "d"):
        timeline.submit(call(session))

    assert timeline.scheduler.held == 0


def moved_west(kv_tokens: int | None = None) -> Timeline:
    """Begin a timeline in which session a's second call went to an upstream that is new, for its own was full."""
    timeline = start(limit=1)
    timeline.submit(call("a"))
    end(timeline, "a-0")
    timeline.report(WEST, serving())
    timeline.sample(WEST, EngineSample(0, 0, kv_tokens=kv_tokens))
    timeline.submit(Ticket(TicketId("plain"), CHAT, 1))
    if kv_tokens is not None:
        timeline.submit(call("big", tokens=850))
    timeline.submit(call("a", 1))
    assert [each.upstream_id for _, each in timeline.log if isinstance(each, Dispatch)][1:3] == [EAST, WEST]
    return timeline


def test_a_session_that_moves_leaves_its_place() -> None:
    """Its context counts where its call is, and no more where it was."""
    timeline = moved_west()
    timeline.report(EAST, serving())
    timeline.remove(WEST)
    for session in ("b", "c", "d"):
        timeline.submit(call(session))

    assert timeline.scheduler.held == 0


def test_a_session_that_moves_counts_where_it_does_not_fit() -> None:
    """Its call is in that engine, whether or not there was room: others find so much less."""
    timeline = moved_west(kv_tokens=1000)
    timeline.remove(EAST)
    end(timeline, "big-0", is_over=True)
    timeline.submit(call("new", tokens=700))

    assert timeline.scheduler.held == 1


def test_news_of_one_upstream_does_not_hide_what_is_due_on_another() -> None:
    """The room that idle sessions make on one is given when it comes, whatever is heard of the other since."""
    timeline = start()
    timeline.submit(call("busy"))
    timeline.submit(call("idle"))
    end(timeline, "idle-0")
    timeline.report(WEST, serving())
    timeline.sample(WEST, EngineSample(0, 1, kv_tokens=1000))
    timeline.submit(call("big", tokens=850))
    timeline.submit(call("large", tokens=500))
    assert timeline.scheduler.held == 1
    timeline.advance(1.0)
    timeline.sample(WEST, EngineSample(1, 1, kv_tokens=1000))
    timeline.advance(28.0)

    assert sent(timeline)[3:] == [(round(10 * math.log2(3), 2), "large-0")]


def test_a_hold_that_is_overdue_ends() -> None:
    """A wake that comes late ends every hold that is past its bound."""
    timeline = start(max_hold_s=40.0)
    for number in range(8):
        timeline.submit(call(f"s{number}"))
    assert timeline.scheduler.held == 5
    timeline.scheduler.wake(now_s=41.0)

    assert timeline.scheduler.held == 0


def test_calls_of_one_session_may_overlap() -> None:
    """A session is busy until the last of its calls has ended."""
    timeline = start()
    timeline.submit(call("a", 0, 500))
    timeline.submit(call("a", 1, 500))
    timeline.submit(call("b", 0, 500))
    end(timeline, "a-0", 500, is_over=True)
    assert timeline.scheduler.held == 1
    end(timeline, "a-1", 500, is_over=True)

    assert [name for _, name in sent(timeline)] == ["a-0", "a-1", "b-0"]


def test_sessions_of_different_tenants_are_different() -> None:
    """A session's name is its tenant's alone."""
    timeline = start()
    for tenant in ("ann", "bob", "cat", "dan"):
        ticket = call("same", tokens=300, tenant=TenantId(tenant))
        timeline.submit(
            Ticket(TicketId(tenant), CHAT, 1, tenant=ticket.tenant, session=ticket.session, input_tokens=300)
        )

    assert timeline.scheduler.held == 1
