"""The health of upstreams: timelines of what happens to them, and invariants that hold for any history."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_batching import PoolId, UpstreamId
from muster_proxy.health import (
    BASE_EJECTION_S,
    MOST_EJECTION_S,
    STALL_S,
    Cause,
    Change,
    Fleet,
    Progress,
    RetryBudget,
    Sign,
    State,
)

EAST, WEST, NORTH, SOUTH = (UpstreamId(name) for name in ("east", "west", "north", "south"))
CHAT, CODE, EMBED = (PoolId(name) for name in ("chat", "code", "embed"))

SUCCESS, FAILURE, SILENCE = Sign.SUCCESS, Sign.FAILURE, Sign.SILENCE
IGNORED = [Sign.PUSH_BACK, Sign.REFUSED, Sign.NEUTRAL]


@dataclass
class History:
    """A fleet whose upstreams serve one pool, and all that has changed in it, with the times."""

    fleet: Fleet = field(default_factory=Fleet)
    log: list[tuple[float, Change]] = field(default_factory=list[tuple[float, Change]])

    def told(self, now_s: float, changes: Sequence[Change]) -> None:
        """Write down what has changed."""
        self.log += [(now_s, change) for change in changes]

    def serving(self, *upstreams: UpstreamId, available: bool = True, now_s: float = 0.0) -> None:
        """Report upstreams."""
        for upstream in upstreams:
            self.told(now_s, self.fleet.report(upstream, {CHAT}, available=available, now_s=now_s))

    def note(
        self, upstream: UpstreamId, now_s: float, *signs: Sign, dispatched_s: float | None = None
    ) -> None:
        """Tell of requests that were sent now, unless said otherwise."""
        sent_s = now_s if dispatched_s is None else dispatched_s
        for sign in signs:
            self.told(now_s, self.fleet.note(upstream, sign, now_s, dispatched_s=sent_s))

    def wake(self, now_s: float) -> None:
        """Let the time come."""
        self.told(now_s, self.fleet.wake(now_s))

    def stalled(self, upstream: UpstreamId, now_s: float) -> None:
        """Tell of a stall."""
        self.told(now_s, self.fleet.stalled(upstream, now_s))


def start(*upstreams: UpstreamId) -> History:
    """Begin a history in which these upstreams are available from 0 s on."""
    history = History()
    history.serving(*upstreams)
    return history


def ejected(upstream: UpstreamId, cause: Cause, for_s: float) -> Change:
    """Make the change that ejects an upstream."""
    return Change(upstream, State.EJECTED, cause, for_s)


def tried(upstream: UpstreamId, cause: Cause | None = None) -> Change:
    """Make the change that puts an upstream on trial."""
    return Change(upstream, State.TRIAL, cause)


def healed(upstream: UpstreamId) -> Change:
    """Make the change that puts an upstream back into service."""
    return Change(upstream, State.HEALTHY)


def test_the_fifth_failure_in_a_row_ejects_and_a_success_in_its_trial_brings_back() -> None:
    """Four failures and a success are borne; five failures cost 5 s; then one success is enough."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 4, SUCCESS, *[FAILURE] * 4)
    assert history.log == []

    history.note(EAST, 2.0, FAILURE)
    assert history.fleet.next_wakeup_s() == 7.0
    history.wake(6.9)
    history.wake(7.0)
    history.note(EAST, 8.0, SUCCESS)

    assert history.log == [
        (2.0, ejected(EAST, Cause.FAILING, 5.0)),
        (7.0, tried(EAST)),
        (8.0, healed(EAST)),
    ]
    assert history.fleet.next_wakeup_s() is None


def test_an_engine_that_fails_half_of_its_requests_is_ejected() -> None:
    """It never fails twice in a row, and is ejected once ten have been seen and half of them were bad."""
    history = start(EAST, WEST)
    for second in range(1, 11):
        history.note(EAST, float(second), FAILURE if second % 2 == 0 else SUCCESS)

    assert history.log == [(10.0, ejected(EAST, Cause.FAILING_OFTEN, 5.0))]


def test_an_engine_that_fails_less_than_half_of_its_last_twenty_is_kept() -> None:
    """Two failures in each five requests are borne for ever."""
    history = start(EAST, WEST)
    for second in range(200):
        history.note(EAST, float(second), FAILURE if second % 5 in (1, 3) else SUCCESS)

    assert history.log == []


def test_only_the_last_twenty_count() -> None:
    """A thousand successes do not make up for ten failures among the twenty requests since."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[SUCCESS] * 1000)
    history.note(EAST, 2.0, *[FAILURE, SUCCESS] * 9)
    assert history.log == []

    history.note(EAST, 3.0, FAILURE)

    assert history.log == [(3.0, ejected(EAST, Cause.FAILING_OFTEN, 5.0))]


def test_two_silences_in_a_row_eject() -> None:
    """One is borne, and a success ends the row."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, SILENCE, SUCCESS, SILENCE)
    assert history.log == []

    history.note(EAST, 2.0, SILENCE)

    assert history.log == [(2.0, ejected(EAST, Cause.SILENT, 5.0))]


def test_a_silence_is_one_more_failure_in_a_row() -> None:
    """Failures and a silence add up to the five that eject."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, FAILURE, FAILURE, SILENCE, FAILURE)
    assert history.log == []

    history.note(EAST, 2.0, FAILURE)

    assert history.log == [(2.0, ejected(EAST, Cause.FAILING, 5.0))]


@pytest.mark.parametrize("sign", IGNORED)
def test_signs_that_say_nothing_of_the_engine_change_nothing(sign: Sign) -> None:
    """They neither eject, nor end a row of failures, nor pass a trial, nor fail one."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[sign] * 100)
    history.note(EAST, 2.0, *[FAILURE, sign] * 4)
    assert history.log == []

    history.note(EAST, 3.0, FAILURE)
    history.wake(8.0)
    history.note(EAST, 9.0, sign)

    assert history.log == [(3.0, ejected(EAST, Cause.FAILING, 5.0)), (8.0, tried(EAST))]


@pytest.mark.parametrize("bad", [FAILURE, SILENCE])
def test_each_ejection_in_a_row_lasts_longer_up_to_five_minutes(bad: Sign) -> None:
    """Trials that fail make it 5, 10, 15 s and so on, and 300 s is the most."""
    history = start(EAST, WEST)
    history.note(EAST, 0.0, *[FAILURE] * 5)
    for _ in range(61):
        wakeup_s = history.fleet.next_wakeup_s()
        assert wakeup_s is not None
        history.wake(wakeup_s)
        history.note(EAST, wakeup_s, bad)

    lengths = [change.for_s for _, change in history.log if change.state is State.EJECTED]
    assert lengths == [5.0 * number for number in range(1, 61)] + [300.0, 300.0]


@pytest.mark.parametrize(
    ("healthy_s", "length_s"), [(19.9, 15.0), (20.0, 5.0)], ids=["too-short", "long-enough"]
)
def test_ejections_are_forgotten_after_twice_the_last_ones_length(healthy_s: float, length_s: float) -> None:
    """After an ejection of 10 s, 20 s in health end the row."""
    history = start(EAST, WEST)
    history.note(EAST, 0.0, *[FAILURE] * 5)
    history.wake(5.0)
    history.note(EAST, 5.0, FAILURE)
    history.wake(15.0)
    history.note(EAST, 16.0, SUCCESS)
    history.note(EAST, 16.0 + healthy_s, *[FAILURE] * 5)

    assert history.log == [
        (0.0, ejected(EAST, Cause.FAILING, 5.0)),
        (5.0, tried(EAST)),
        (5.0, ejected(EAST, Cause.TRIAL_FAILED, 10.0)),
        (15.0, tried(EAST)),
        (16.0, healed(EAST)),
        (16.0 + healthy_s, ejected(EAST, Cause.FAILING, length_s)),
    ]


def test_an_engine_up_and_down_every_two_seconds_is_ejected_for_longer_and_longer() -> None:
    """It answers ten requests a second, two seconds well and two badly, and is soon hardly used."""
    history = start(EAST, WEST)
    bad = 0
    for tick in range(6000):
        now_s = tick / 10
        history.wake(now_s)
        if history.fleet.state(EAST) is not State.EJECTED:
            sign = FAILURE if now_s % 4 >= 2 else SUCCESS
            bad += sign is FAILURE
            history.note(EAST, now_s, sign)

    ejections = [(now_s, change.for_s) for now_s, change in history.log if change.state is State.EJECTED]
    assert [for_s for _, for_s in ejections] == [5.0 * number for number in range(1, 16)]
    ends = [now_s + (for_s or 0.0) for now_s, for_s in ejections]
    assert all(end_s <= next_s for end_s, (next_s, _) in zip(ends, ejections[1:], strict=False))
    assert bad <= 5 * len(ejections)


def test_a_trial_counts_only_what_was_sent_after_it_began() -> None:
    """Late results of requests from before pass no trial, fail none, and count for nothing afterwards."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.note(EAST, 2.0, SUCCESS, *[FAILURE] * 5, dispatched_s=0.5)
    history.wake(6.0)
    history.note(EAST, 6.5, SUCCESS, FAILURE, SILENCE, dispatched_s=5.9)
    assert history.log == [(1.0, ejected(EAST, Cause.FAILING, 5.0)), (6.0, tried(EAST))]

    history.note(EAST, 7.0, SUCCESS, dispatched_s=6.0)
    history.note(EAST, 8.0, *[FAILURE] * 100, dispatched_s=5.9)

    assert history.log[2:] == [(7.0, healed(EAST))]


def test_a_trial_that_is_passed_clears_what_was_seen_before() -> None:
    """The next four failures are borne again."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.wake(6.0)
    history.note(EAST, 7.0, SUCCESS, *[FAILURE] * 4)

    assert history.fleet.state(EAST) is State.HEALTHY


def test_a_probe_that_succeeds_ends_no_ejection() -> None:
    """An engine that hangs says 200 to every probe, and stays ejected or on trial."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.serving(EAST, WEST, now_s=2.0)
    assert history.fleet.state(EAST) is State.EJECTED
    history.wake(6.0)
    history.serving(EAST, WEST, now_s=7.0)

    assert history.log == [(1.0, ejected(EAST, Cause.FAILING, 5.0)), (6.0, tried(EAST))]


def test_an_upstream_that_was_gone_starts_afresh() -> None:
    """Its ejection and its row are forgotten, and what the old process was asked does not count."""
    history = start(EAST, WEST)
    history.note(EAST, 0.0, *[FAILURE] * 5)
    history.serving(EAST, available=False, now_s=1.0)
    history.note(EAST, 2.0, *[FAILURE] * 5)
    history.serving(EAST, now_s=3.0)
    history.note(EAST, 4.0, *[FAILURE] * 5, dispatched_s=2.5)
    history.note(EAST, 5.0, *[FAILURE] * 5, dispatched_s=3.0)

    assert history.log == [
        (0.0, ejected(EAST, Cause.FAILING, 5.0)),
        (1.0, healed(EAST)),
        (5.0, ejected(EAST, Cause.FAILING, 5.0)),
    ]


def test_an_upstream_restarted_between_two_probes_starts_afresh() -> None:
    """Who knows of the restart otherwise says so; told of an upstream in health, it changes no state."""
    history = start(EAST, WEST)
    history.note(EAST, 0.0, *[FAILURE] * 5)
    history.told(1.0, history.fleet.restarted(EAST, 1.0))
    history.told(2.0, history.fleet.restarted(EAST, 2.0))
    history.note(EAST, 3.0, *[FAILURE] * 5, dispatched_s=1.5)
    history.note(EAST, 4.0, *[FAILURE] * 5, dispatched_s=2.0)

    assert history.log == [
        (0.0, ejected(EAST, Cause.FAILING, 5.0)),
        (1.0, healed(EAST)),
        (4.0, ejected(EAST, Cause.FAILING, 5.0)),
    ]


def test_the_only_upstream_goes_on_trial_at_once() -> None:
    """It is never ejected, takes one request at a time however often it fails, and is back with one success."""
    history = start(EAST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.note(EAST, 2.0, *[FAILURE] * 50)
    history.note(EAST, 3.0, SUCCESS, dispatched_s=0.9)
    history.note(EAST, 4.0, SUCCESS)

    assert history.log == [(1.0, tried(EAST, Cause.FAILING)), (4.0, healed(EAST))]


@pytest.mark.parametrize(("size", "most"), [(2, 1), (3, 1), (4, 2)])
def test_at_most_half_of_a_pool_is_ejected(size: int, most: int) -> None:
    """Of all that fail the first are ejected, as many as half, and the others go on trial."""
    upstreams = [EAST, WEST, NORTH, SOUTH][:size]
    history = start(*upstreams)
    for upstream in upstreams:
        history.note(upstream, 1.0, *[FAILURE] * 5)

    assert history.log == [
        *((1.0, ejected(upstream, Cause.FAILING, 5.0)) for upstream in upstreams[:most]),
        *((1.0, tried(upstream, Cause.FAILING)) for upstream in upstreams[most:]),
    ]


def test_an_upstream_on_trial_is_ejected_once_its_pool_can_spare_it() -> None:
    """West fails while east is ejected, and fails again when east is not."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.note(WEST, 2.0, *[FAILURE] * 6)
    history.wake(6.0)
    history.note(EAST, 7.0, SUCCESS)
    history.note(WEST, 8.0, FAILURE)

    assert history.log == [
        (1.0, ejected(EAST, Cause.FAILING, 5.0)),
        (2.0, tried(WEST, Cause.FAILING)),
        (6.0, tried(EAST)),
        (7.0, healed(EAST)),
        (8.0, ejected(WEST, Cause.TRIAL_FAILED, 5.0)),
    ]


def test_an_ejection_ends_early_when_the_pools_last_other_upstream_goes() -> None:
    """One that is gone serves nobody, so the ejected one is needed: it goes on trial."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.serving(WEST, available=False, now_s=2.0)

    assert history.log == [(1.0, ejected(EAST, Cause.FAILING, 5.0)), (2.0, tried(EAST))]


def test_the_ejection_that_would_end_first_is_ended_first() -> None:
    """Of two ejected in a pool of four, one must come back when a third upstream goes."""
    history = start(EAST, WEST, NORTH, SOUTH)
    history.note(WEST, 1.0, *[FAILURE] * 5)
    history.note(EAST, 2.0, *[FAILURE] * 5)
    history.serving(NORTH, available=False, now_s=3.0)

    assert history.log == [
        (1.0, ejected(WEST, Cause.FAILING, 5.0)),
        (2.0, ejected(EAST, Cause.FAILING, 5.0)),
        (3.0, tried(WEST)),
    ]


def test_an_upstream_that_is_gone_cannot_be_counted_on() -> None:
    """Of two upstreams one is gone, so the other is not ejected."""
    history = start(EAST, WEST)
    history.serving(WEST, available=False, now_s=1.0)
    history.note(EAST, 2.0, *[FAILURE] * 5)

    assert history.log == [(2.0, tried(EAST, Cause.FAILING))]


def test_an_upstream_that_one_of_its_pools_cannot_spare_is_not_ejected() -> None:
    """East alone serves code; chat could spare it."""
    history = start(WEST, NORTH)
    history.told(0.0, history.fleet.report(EAST, {CHAT, CODE}, available=True, now_s=0.0))
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.note(WEST, 2.0, *[FAILURE] * 5)

    assert history.log == [(1.0, tried(EAST, Cause.FAILING)), (2.0, ejected(WEST, Cause.FAILING, 5.0))]


def test_a_pool_that_comes_to_need_an_ejected_upstream_gets_it() -> None:
    """East is reported to serve code too, which nobody else does."""
    history = start(EAST, WEST)
    history.note(EAST, 1.0, *[FAILURE] * 5)
    history.told(2.0, history.fleet.report(EAST, {CHAT, CODE}, available=True, now_s=2.0))

    assert history.log == [(1.0, ejected(EAST, Cause.FAILING, 5.0)), (2.0, tried(EAST))]


def test_a_stall_ejects() -> None:
    """A stall is cause enough, and telling it again changes nothing."""
    history = start(EAST, WEST)
    history.stalled(EAST, 100.0)
    history.stalled(EAST, 101.0)

    assert history.log == [(100.0, ejected(EAST, Cause.STALLED, 5.0))]


def test_a_stall_of_old_requests_fails_no_trial() -> None:
    """Requests that hung before a trial hang on; it fails only when the trial has lasted as long as a stall."""
    history = start(EAST, WEST)
    history.stalled(EAST, 100.0)
    history.wake(105.0)
    history.stalled(EAST, 105.0 + STALL_S - 0.1)
    assert history.fleet.state(EAST) is State.TRIAL

    history.stalled(EAST, 105.0 + STALL_S)

    assert history.log == [
        (100.0, ejected(EAST, Cause.STALLED, 5.0)),
        (105.0, tried(EAST)),
        (105.0 + STALL_S, ejected(EAST, Cause.STALLED, 10.0)),
    ]


def test_the_only_upstream_that_stalls_is_on_trial_until_it_answers() -> None:
    """Being told of the stall every second moves nothing: the trial's request counts when it is answered."""
    history = start(EAST)
    for second in range(100, 300):
        history.stalled(EAST, float(second))
    history.note(EAST, 300.0, SUCCESS, dispatched_s=110.0)

    assert history.log == [(100.0, tried(EAST, Cause.STALLED)), (300.0, healed(EAST))]


def test_nothing_is_held_against_an_upstream_that_is_unknown_or_gone() -> None:
    """It is healthy, whatever its last requests came to."""
    history = start(EAST, WEST)
    history.serving(EAST, available=False, now_s=1.0)
    history.note(EAST, 2.0, *[FAILURE] * 5)
    history.stalled(EAST, 200.0)

    assert history.log == []
    assert history.fleet.state(NORTH) is State.HEALTHY


def watch(progress: Progress, tokens: float, *, from_s: int, to_s: int) -> None:
    """Read an unmoved total every second."""
    for second in range(from_s, to_s + 1):
        progress.counted(tokens, float(second))


def test_one_that_others_pass_by_is_in_trouble_by_itself() -> None:
    """Of what is silent only what was sent after the last that was answered tells of the engine."""
    progress = Progress()
    assert not progress.has_passed_by(1.0)

    progress.answered(2.0)
    progress.answered(1.0)

    assert progress.has_passed_by(1.0)
    assert not progress.has_passed_by(2.0)
    assert not progress.has_passed_by(3.0)


def test_an_engine_whose_total_stands_still_while_it_has_work_stalls() -> None:
    """A minute after the last thing that moved, any request in flight shows it."""
    progress = Progress()
    watch(progress, 500.0, from_s=0, to_s=1000)
    assert not progress.is_stalled(1000.0)

    progress.sent(1000.0)
    watch(progress, 500.0, from_s=1001, to_s=1059)
    assert not progress.is_stalled(1059.5)
    progress.counted(500.0, 1060.0)

    assert progress.is_stalled(1060.0)
    progress.ended(has_begun=False)
    assert not progress.is_stalled(1060.0)


@pytest.mark.parametrize("moves", ["bytes", "tokens", "restart"])
def test_an_engine_that_moves_has_not_stalled(moves: str) -> None:
    """A byte on any connection, a higher total, or the lower one of a new process starts the minute again."""
    progress = Progress()
    progress.counted(500.0, 0.0)
    progress.sent(0.0)
    watch(progress, 500.0, from_s=1, to_s=59)
    tokens = {"bytes": 500.0, "tokens": 501.0, "restart": 3.0}[moves]
    if moves == "bytes":
        progress.heard(59.5)
    progress.counted(tokens, 60.0)
    watch(progress, tokens, from_s=61, to_s=119)
    assert not progress.is_stalled(119.0)

    progress.counted(tokens, 120.0)

    assert progress.is_stalled(120.0)


def test_work_that_changes_hands_is_work_all_the_time() -> None:
    """Clients that leave and others that come do not hide that the engine computes nothing."""
    progress = Progress()
    progress.counted(500.0, 0.0)
    for second in range(60):
        progress.sent(float(second))
        if second:
            progress.ended(has_begun=False)
        progress.counted(500.0, float(second))
    progress.counted(500.0, 60.0)

    assert progress.is_stalled(60.0)


def test_a_total_that_is_no_longer_read_proves_nothing() -> None:
    """Metrics were lost when the total had stood still for 59 s: nobody knows what came after."""
    progress = Progress()
    progress.sent(0.0)
    watch(progress, 500.0, from_s=0, to_s=59)

    assert not progress.is_stalled(100.0)
    assert not progress.is_stalled(1000.0)


def test_without_a_total_whole_answers_may_take_as_long_as_they_like() -> None:
    """Nothing tells a long answer from a hang while no stream has begun."""
    progress = Progress()
    progress.sent(0.0)
    progress.heard(1.0)

    assert not progress.is_stalled(10_000.0)


def test_without_a_total_a_stream_that_has_begun_and_is_silent_shows_a_stall() -> None:
    """A minute after the last byte of any connection, and no longer when the stream is over."""
    progress = Progress()
    progress.sent(0.0)
    progress.sent(0.0)
    progress.began(10.0)
    progress.heard(30.0)
    assert not progress.is_stalled(89.9)

    assert progress.is_stalled(90.0)
    progress.ended(has_begun=True)
    assert not progress.is_stalled(90.0)


def test_a_first_token_is_a_byte_that_has_come() -> None:
    """A stream that begins late has been silent only since then."""
    progress = Progress()
    progress.sent(0.0)
    progress.began(50.0)

    assert not progress.is_stalled(109.9)
    assert progress.is_stalled(110.0)


def test_a_silent_stream_shows_a_stall_when_the_total_is_no_longer_read() -> None:
    """For as long as the last reading is good it says nothing, and then the stream does."""
    progress = Progress()
    progress.sent(0.0)
    progress.began(1.0)
    progress.counted(500.0, 10.0)
    progress.counted(500.0, 30.0)

    assert not progress.is_stalled(89.9)
    assert progress.is_stalled(90.0)


def test_a_stream_may_be_silent_while_the_total_moves() -> None:
    """An engine that puts a stream back for want of memory computes others meanwhile."""
    progress = Progress()
    progress.sent(0.0)
    progress.began(1.0)
    for second in range(200):
        progress.counted(float(second), float(second))

    assert not progress.is_stalled(200.0)


@pytest.mark.parametrize(("active", "most"), [(0, 3), (19, 3), (20, 4), (1000, 200)])
def test_retries_are_a_fifth_of_what_is_active_and_at_least_three(active: int, most: int) -> None:
    """One more is refused, until one is given back."""
    budget = RetryBudget()
    assert [budget.take(active) for _ in range(most + 2)] == [True] * most + [False] * 2

    budget.give_back()

    assert budget.take(active)
    assert budget.taken == most


def test_a_retry_that_ends_in_an_error_gives_its_place_back() -> None:
    """The block's place is free again however it is left; a block that was refused gives nothing back."""
    budget = RetryBudget()
    held: list[tuple[bool, int]] = []

    def nest(depth: int) -> None:
        with budget.retry(0) as is_granted:
            held.append((is_granted, budget.taken))
            if depth == 4:
                raise KeyError
            nest(depth + 1)

    with pytest.raises(KeyError):
        nest(1)

    assert held == [(True, 1), (True, 2), (True, 3), (False, 3)]
    assert budget.taken == 0


def test_a_place_that_was_not_taken_cannot_be_given_back() -> None:
    """It would let one retry too many go."""
    budget = RetryBudget()

    with pytest.raises(ValueError, match="expected a retry in flight, got none"):
        budget.give_back()
    assert budget.taken == 0


UPSTREAMS = [EAST, WEST, NORTH, SOUTH]
upstreams = st.sampled_from(UPSTREAMS)
pools = st.frozensets(st.sampled_from([CHAT, CODE, EMBED]))
ages_s = st.one_of(st.just(0.0), st.floats(0.0, 400.0))


class FleetMachine(RuleBasedStateMachine):
    """Plays reports, signs, stalls, restarts and time, and keeps its own account of what the changes say."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet()
        self.now_s = 0.0
        self.states = dict.fromkeys(UPSTREAMS, State.HEALTHY)
        self.serves: dict[UpstreamId, frozenset[PoolId]] = {}
        self.since_s = dict.fromkeys(UPSTREAMS, math.inf)
        self.ends_s: dict[UpstreamId, float] = {}
        for upstream in UPSTREAMS:
            self.report(upstream, frozenset({CHAT}), available=True)

    def hear(self, changes: Sequence[Change]) -> list[Change]:
        """Follow the changes, each of which must be one that can follow."""
        for change in changes:
            assert change.state is not self.states[change.upstream]
            self.states[change.upstream] = change.state
            self.ends_s.pop(change.upstream, None)
            if change.state is State.TRIAL:
                self.since_s[change.upstream] = self.now_s
            if change.state is State.EJECTED:
                assert change.cause is not None
                assert change.for_s is not None
                assert BASE_EJECTION_S <= change.for_s <= MOST_EJECTION_S
                self.ends_s[change.upstream] = self.now_s + change.for_s
                self.since_s[change.upstream] = math.inf
        return list(changes)

    @rule(
        upstream=upstreams,
        served=st.one_of(st.just(frozenset({CHAT})), pools),
        available=st.sampled_from([True, True, False]),
    )
    def report(self, upstream: UpstreamId, served: frozenset[PoolId], *, available: bool) -> None:
        """A probe tells: no one is ejected for it, and none gets well by it but one that was gone."""
        was_available = upstream in self.serves
        if available:
            self.serves[upstream] = served
        else:
            self.serves.pop(upstream, None)
        changes = self.hear(self.fleet.report(upstream, served, available=available, now_s=self.now_s))
        if available != was_available:
            self.since_s[upstream] = self.now_s if available else math.inf
        for change in changes:
            assert change.state is not State.EJECTED
            assert change.state is State.TRIAL or (change.upstream == upstream and was_available != available)

    @rule(upstream=upstreams)
    def restart(self, upstream: UpstreamId) -> None:
        """An engine is a new process: nothing is held against it."""
        self.hear(self.fleet.restarted(upstream, self.now_s))
        if upstream in self.serves:
            self.since_s[upstream] = self.now_s
        assert self.fleet.state(upstream) is State.HEALTHY

    @rule(upstream=upstreams, sign=st.sampled_from(IGNORED), age_s=ages_s)
    def say_nothing(self, upstream: UpstreamId, sign: Sign, age_s: float) -> None:
        """A push-back, a refused connection or a client that left changes nothing."""
        assert not self.fleet.note(upstream, sign, self.now_s, dispatched_s=self.now_s - age_s)

    @rule(upstream=upstreams, age_s=ages_s)
    def succeed(self, upstream: UpstreamId, age_s: float) -> None:
        """A success passes the trial that its request was sent in, and does nothing else."""
        dispatched_s = self.now_s - age_s
        passes = self.states[upstream] is State.TRIAL and dispatched_s >= self.since_s[upstream]

        changes = self.hear(self.fleet.note(upstream, SUCCESS, self.now_s, dispatched_s=dispatched_s))

        assert changes == ([healed(upstream)] if passes else [])

    @rule(upstream=upstreams, signs=st.lists(st.sampled_from([FAILURE, SILENCE]), max_size=6), age_s=ages_s)
    def fail(self, upstream: UpstreamId, signs: list[Sign], age_s: float) -> None:
        """Failures make nobody well, and those from before the upstream's present life do nothing."""
        dispatched_s = self.now_s - age_s
        counts = dispatched_s >= self.since_s[upstream]
        for sign in signs:
            changes = self.hear(self.fleet.note(upstream, sign, self.now_s, dispatched_s=dispatched_s))
            assert counts or not changes
            assert all(change.upstream == upstream for change in changes)
            assert all(change.state is not State.HEALTHY for change in changes)
            counts = dispatched_s >= self.since_s[upstream]

    @rule(upstream=upstreams)
    def stall(self, upstream: UpstreamId) -> None:
        """A stall counts if the upstream's present life is as long."""
        counts = self.now_s - self.since_s[upstream] >= STALL_S

        changes = self.hear(self.fleet.stalled(upstream, self.now_s))

        assert counts or not changes
        assert not counts or self.states[upstream] is not State.HEALTHY

    @rule(passed_s=st.floats(0.01, 100.0))
    def wait(self, passed_s: float) -> None:
        """Time passes, with every wake-up in it: each begins a trial at the time that was named."""
        until_s = self.now_s + passed_s
        while (wakeup_s := self.fleet.next_wakeup_s()) is not None and wakeup_s <= until_s:
            assert wakeup_s >= self.now_s
            self.now_s = wakeup_s
            due = {upstream for upstream, end_s in self.ends_s.items() if end_s <= wakeup_s}
            changes = self.hear(self.fleet.wake(wakeup_s))
            assert due
            assert {change.upstream for change in changes} == due
            assert all(change.state is State.TRIAL for change in changes)
        self.now_s = until_s
        assert not self.fleet.wake(until_s)

    @invariant()
    def changes_tell_all(self) -> None:
        """Nobody needs to ask for states: the changes have told them."""
        assert {upstream: self.fleet.state(upstream) for upstream in UPSTREAMS} == self.states

    @invariant()
    def the_floor_holds(self) -> None:
        """Of those that serve a pool at least half, rounded up, are not ejected."""
        for pool in (CHAT, CODE, EMBED):
            serving = [upstream for upstream, served in self.serves.items() if pool in served]
            in_service = [upstream for upstream in serving if self.states[upstream] is not State.EJECTED]
            assert len(in_service) >= math.ceil(len(serving) / 2)

    @invariant()
    def only_the_available_are_judged(self) -> None:
        """One that is gone is neither ejected nor on trial."""
        assert all(state is State.HEALTHY or name in self.serves for name, state in self.states.items())

    @invariant()
    def the_next_wakeup_is_the_first_end(self) -> None:
        """No ejection is overslept."""
        assert self.fleet.next_wakeup_s() == min(self.ends_s.values(), default=None)


class BudgetMachine(RuleBasedStateMachine):
    """Takes and gives back, with any number of requests active."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = RetryBudget()
        self.held = 0

    @rule(active=st.integers(0, 50))
    def take(self, active: int) -> None:
        """A place is granted exactly while there is one."""
        is_granted = self.budget.take(active)
        self.held += is_granted

        assert not is_granted or self.held <= max(3.0, 0.2 * active)
        assert is_granted or self.held + 1 > max(3.0, 0.2 * active)

    @precondition(lambda self: self.held)
    @rule()
    def give_back(self) -> None:
        """A retry ends."""
        self.budget.give_back()
        self.held -= 1

    @invariant()
    def what_is_taken_is_held(self) -> None:
        """None is lost and none is made up."""
        assert self.budget.taken == self.held


FleetTest = FleetMachine.TestCase
FleetTest.settings = settings(max_examples=100, stateful_step_count=40)
BudgetTest = BudgetMachine.TestCase
