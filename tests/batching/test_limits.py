"""Limits: one suite that all of them pass, then each one's formula on sequences computed by hand."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_batching.errors import LimitError
from muster_batching.limits import (
    BACK_OFF,
    DISBELIEF_S,
    FOREIGN_S,
    HOLD_S,
    LEAST_PROBE_S,
    LOWERED_S,
    MOST_PROBE_S,
    STALE_S,
    STEP_PROMPT_TOKENS,
    AimdLimit,
    EngineQueueLimit,
    FixedLimit,
    Limit,
    LimitPolicy,
    Load,
)
from muster_batching.samples import EngineSample

SAMPLE_S = 0.25
"""Seconds between two samples, as the proxy takes them."""


@dataclass(frozen=True)
class Case:
    """A policy, made anew each time, and the bounds that its slots keep."""

    policy: Callable[[], LimitPolicy]
    least: int
    most: int


CASES = {
    "fixed": Case(lambda: FixedLimit(8), 8, 8),
    "aimd": Case(AimdLimit, 4, 2048),
    "narrow aimd": Case(lambda: AimdLimit(initial=2, least=1, most=3), 1, 3),
    "engine queue": Case(EngineQueueLimit, 4, 2048),
    "narrow engine queue": Case(lambda: EngineQueueLimit(initial=2, least=1, most=3), 1, 3),
    "engine queue with peers": Case(lambda: EngineQueueLimit(peers=4), 4, 2048),
    "engine queue without a choice": Case(lambda: EngineQueueLimit(initial=5, least=5, most=5), 5, 5),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@dataclass(frozen=True)
class Event:
    """Something that a limit is told, some time after the event before."""

    gap_s: float
    load: Load
    sample: EngineSample | None
    is_push_back: bool

    def happen(self, limit: Limit, now_s: float) -> None:
        """Tell the limit."""
        if self.sample is None:
            limit.ended(self.load, now_s, is_push_back=self.is_push_back)
        else:
            limit.sampled(self.sample, self.load, now_s)


def plausible(draw: st.DrawFn) -> tuple[EngineSample, Load]:
    """Draw what an engine would tell that has these requests, and none but ours."""
    running, waiting, unseen = (draw(st.integers(0, most)) for most in (300, 100, 20))
    in_flight = running + waiting + unseen
    begun = draw(st.integers(0, running))
    load = Load(in_flight, begun, unseen, draw(st.integers(0, 5)), is_limiting=draw(st.booleans()))
    return EngineSample(running, waiting, preemptions=draw(st.none() | st.integers(0, 3))), load


anything = st.integers(-10, 10) | st.integers(0, 10**9)
counts = st.integers(0, 10) | st.integers(0, 5000)
wild_samples = st.builds(EngineSample, anything, anything, preemptions=st.none() | anything)
wild_loads = st.builds(Load, counts, counts, counts, counts, counts, counts, is_limiting=st.booleans())


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Draw a sample, an end or a push-back, as an engine would tell them or as none would."""
    sample, load = plausible(draw)
    if draw(st.integers(0, 3)) == 0:
        sample, load = draw(wild_samples), draw(wild_loads)
    is_sample, is_push_back = draw(st.booleans()), draw(st.integers(0, 7)) == 0
    gap_s = draw(st.sampled_from([0.0, SAMPLE_S, SAMPLE_S, HOLD_S, 2 * STALE_S, 2 * DISBELIEF_S]))
    return Event(gap_s, load, sample if is_sample else None, is_push_back)


histories = st.lists(events(), max_size=25)
briefly = settings(max_examples=40)


def shown(limit: Limit) -> tuple[int, int | None, int]:
    """Read all that a limit says."""
    return limit.slots(), limit.capacity(), limit.probe()


@every_case
@briefly
@given(history=histories)
def test_slots_stay_within_their_bounds(case: Case, history: list[Event]) -> None:
    """Whatever a limit is told, its slots stay in bounds and 1 to all of them are the capacity, once it is known."""
    limit, now_s = case.policy().start(), 0.0
    for event in history:
        now_s += event.gap_s
        event.happen(limit, now_s)

        assert isinstance(limit.slots(), int)
        assert case.least <= limit.slots() <= case.most
        capacity = limit.capacity()
        assert capacity is None or (isinstance(capacity, int) and 1 <= capacity <= limit.slots())
        assert limit.probe() >= 0


@every_case
@briefly
@given(history=histories)
def test_a_limit_shrinks_only_for_a_cause(case: Case, history: list[Event]) -> None:
    """A request that ends without a push-back takes no slot away, however old the metrics are."""
    limit, now_s = case.policy().start(), 0.0
    for event in history:
        now_s += event.gap_s
        before = limit.slots()
        event.happen(limit, now_s)

        if event.sample is None and not event.is_push_back:
            assert limit.slots() >= before


@every_case
@briefly
@given(history=histories)
def test_equal_policies_start_equal_limits(case: Case, history: list[Event]) -> None:
    """Policies with equal settings are equal, and their limits say the same when they are told the same."""
    assert case.policy() == case.policy()
    one, other, now_s = case.policy().start(), case.policy().start(), 0.0
    for event in history:
        now_s += event.gap_s
        event.happen(one, now_s)
        event.happen(other, now_s)

        assert shown(one) == shown(other)


@pytest.mark.parametrize(
    ("policy", "bounds", "name", "least"),
    [
        (FixedLimit, {"slots": 0}, "slots", 1),
        (FixedLimit, {"slots": -3}, "slots", 1),
        (FixedLimit, {"slots": math.inf}, "slots", 1),
        (AimdLimit, {"least": 0}, "least", 1),
        (AimdLimit, {"initial": 3}, "initial", 4),
        (AimdLimit, {"most": 63}, "most", 64),
        (AimdLimit, {"most": math.inf}, "most", 64),
        (EngineQueueLimit, {"least": 0}, "least", 1),
        (EngineQueueLimit, {"initial": 3}, "initial", 4),
        (EngineQueueLimit, {"most": 255}, "most", 256),
        (EngineQueueLimit, {"peers": 0}, "peers", 1),
    ],
)
def test_bounds_are_checked(policy: Callable[..., object], bounds: Any, name: str, least: int) -> None:
    """Bounds below 1, out of order or without end are refused by name."""
    with pytest.raises(LimitError) as caught:
        policy(**bounds)

    assert (caught.value.name, caught.value.value, caught.value.least) == (name, bounds[name], least)


@pytest.mark.parametrize("policy", [FixedLimit, AimdLimit, EngineQueueLimit])
def test_no_number_is_no_bound(policy: Any) -> None:
    """A bound that is not a number is refused, although it compares with nothing."""
    with pytest.raises(LimitError, match="to be finite and at least 1, got nan"):
        policy(**{"slots" if policy is FixedLimit else "least": math.nan})


def load(
    in_flight: int,
    *,
    begun: int = 0,
    unseen: int = 0,
    moved: int = 1,
    prompt_tokens: int = 0,
    is_limiting: bool = False,
) -> Load:
    """Make a load in which something has moved."""
    return Load(in_flight, begun, unseen, moved, prompt_tokens=prompt_tokens, is_limiting=is_limiting)


def engine(running: int, waiting: int = 0, preemptions: int | None = None) -> EngineSample:
    """Make a sample."""
    return EngineSample(running, waiting, preemptions=preemptions)


def answer(limit: Limit, in_flight: int, now_s: float = 0.0, *, times: int = 1) -> None:
    """Let requests end well while tickets wait."""
    for _ in range(times):
        limit.ended(load(in_flight, is_limiting=True), now_s, is_push_back=False)


def push_back(limit: Limit, in_flight: int, now_s: float = 0.0) -> None:
    """Let the engine push back."""
    limit.ended(load(in_flight), now_s, is_push_back=True)


# FixedLimit


def test_a_fixed_limit_knows_better() -> None:
    """Neither samples nor answers nor push-backs move it."""
    limit = FixedLimit(8).start()
    limit.sampled(engine(2, 6), load(8, is_limiting=True), 0.0)
    answer(limit, 8, times=100)
    push_back(limit, 8)

    assert shown(limit) == (8, 8, 0)


# AimdLimit


def test_aimd_grows_by_one_for_each_turnover() -> None:
    """From 10 slots to 20 takes about 10 + 11 + ... + 19 = 145 answers."""
    limit, answers = AimdLimit(initial=10).start(), 0
    while limit.slots() < 20:
        answer(limit, 10)
        answers += 1

    assert 145 <= answers <= 155


def test_aimd_grows_only_while_tickets_wait() -> None:
    """Answers that nobody waited behind tell nothing of what the engine could do."""
    limit = AimdLimit(initial=10).start()
    for _ in range(1000):
        limit.ended(load(10), 0.0, is_push_back=False)

    assert limit.slots() == 10


def test_aimd_stops_at_most() -> None:
    """Growth ends at the bound."""
    limit = AimdLimit(initial=10, most=12).start()
    answer(limit, 12, times=100)

    assert shown(limit) == (12, None, 0)


def test_aimd_backs_off_from_what_is_in_flight() -> None:
    """A push-back at 50 in flight tells that 50 are too many, however many slots there are."""
    limit = AimdLimit(initial=100).start()
    push_back(limit, 50)

    assert limit.slots() == BACK_OFF * 50 == 35


def test_aimd_backs_off_from_its_slots_when_more_are_in_flight() -> None:
    """Requests sent under a higher limit do not soften the next back-off."""
    limit = AimdLimit(initial=10).start()
    push_back(limit, 50)

    assert limit.slots() == 7


def test_aimd_takes_a_burst_of_push_backs_for_one() -> None:
    """Push-backs of one second count once; the first after it counts again."""
    limit = AimdLimit(initial=100).start()
    slots: list[int] = []
    for now_s in (5.0, 5.0, 5.999, 6.0, 6.5):
        push_back(limit, 100, now_s)
        slots.append(limit.slots())

    assert slots == [70, 70, 70, 49, 49]


def test_aimd_keeps_the_least() -> None:
    """An engine that refuses everything is still asked now and then."""
    limit = AimdLimit(initial=100).start()
    push_back(limit, 1)

    assert limit.slots() == 4


def test_aimd_does_not_listen_to_metrics() -> None:
    """What the engine says of itself changes nothing."""
    limit = AimdLimit(initial=10).start()
    for number in range(20):
        limit.sampled(engine(1, 9), load(10, is_limiting=True), number * SAMPLE_S)

    assert shown(limit) == (10, None, 0)


# EngineQueueLimit


def learned() -> Limit:
    """Make a limit that has learned at 0.5 s, at 150 in flight, that its engine runs 100."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(100), load(100), 0.0)
    for now_s in (SAMPLE_S, 2 * SAMPLE_S):
        limit.sampled(engine(100, 50), load(150), now_s)
    assert shown(limit) == (113, 100, 0)
    return limit


@briefly
@given(histories)
def test_an_engine_that_never_queues_is_never_throttled(history: list[Event]) -> None:
    """Without a queue and without a push-back there are never fewer slots than the initial ones."""
    limit, now_s = EngineQueueLimit().start(), 0.0
    for event in history:
        now_s += event.gap_s
        if event.sample is None:
            limit.ended(event.load, now_s, is_push_back=False)
        else:
            limit.sampled(replace(event.sample, waiting=0), event.load, now_s)

        assert limit.slots() >= 256


def test_an_engine_that_never_queues_gets_more() -> None:
    """While tickets wait and no capacity is known, every sample without a queue adds a twentieth and one."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(256), load(256, is_limiting=True), 0.0)

    assert shown(limit) == (269, None, 0)  # 256 * 1.05 + 1 = 269.8


def test_slots_are_left_alone_while_nobody_waits() -> None:
    """An engine that queues nothing and behind which nobody waits keeps what it has."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(20), load(20), 0.0)

    assert shown(limit) == (256, None, 0)


def test_a_queue_seen_twice_tells_the_capacity() -> None:
    """The first sample with a queue may show requests that wait for a step; the second tells what runs."""
    limit = EngineQueueLimit().start()
    seen: list[tuple[int, int | None, int]] = []
    for number, waiting in enumerate([0, 50, 50]):
        limit.sampled(engine(100, waiting), load(100 + waiting), number * SAMPLE_S)
        seen.append(shown(limit))

    assert seen == [(256, None, 0), (256, None, 0), (113, 100, 0)]


@pytest.mark.parametrize(
    ("sample", "its_load"),
    [
        pytest.param(
            engine(100, 50), load(150, unseen=50, prompt_tokens=STEP_PROMPT_TOKENS), id="all of it came since"
        ),
        pytest.param(engine(101, 49), load(150, prompt_tokens=STEP_PROMPT_TOKENS), id="more run than before"),
        pytest.param(engine(100), load(100), id="the queue is gone"),
    ],
)
def test_a_queue_must_be_seen_twice_in_a_row(sample: EngineSample, its_load: Load) -> None:
    """A sample that does not show a lasting queue begins the count anew."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(102), load(102), 0.0)
    limit.sampled(engine(100, 50), load(150), SAMPLE_S)
    limit.sampled(sample, its_load, 2 * SAMPLE_S)
    limit.sampled(engine(100, 50), load(150), 3 * SAMPLE_S)

    assert limit.slots() == 256


def test_a_queue_lasts_while_fewer_run() -> None:
    """Behind long prompts too: the engine has a queue, and runs no more than it did."""
    limit = EngineQueueLimit().start()
    for number, running in enumerate([100, 100, 95]):
        waiting = 50 if number else 0
        its_load = load(running + waiting, prompt_tokens=STEP_PROMPT_TOKENS)
        limit.sampled(engine(running, waiting), its_load, number * SAMPLE_S)

    assert shown(limit) == (113, 100, 0)


def test_a_sample_before_which_nothing_moved_is_passed_over() -> None:
    """The engine may still be in the step before it: it neither counts nor begins the count anew."""
    limit = EngineQueueLimit().start()
    seen: list[int] = []
    for number, moved in enumerate([1, 0, 1, 0, 0, 1]):
        limit.sampled(engine(100, 50), load(150, moved=moved), number * SAMPLE_S)
        seen.append(limit.slots())

    assert seen == [256, 256, 256, 256, 256, 113]


def test_requests_that_have_begun_run() -> None:
    """Where the engine shares itself with others, what has begun of ours counts before its proportions."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(50, 50), load(100, begun=80), 0.0)
    limit.sampled(engine(50, 50), load(100, begun=80), SAMPLE_S)
    limit.sampled(engine(50, 50), load(100, begun=80), 2 * SAMPLE_S)

    assert shown(limit) == (90, 80, 0)


def test_the_queue_is_shared_out_in_proportion() -> None:
    """Of an engine with 100 requests of which 40 are ours, 40 % of the queue counts as ours."""
    limit = EngineQueueLimit().start()
    for number in range(3):
        limit.sampled(engine(70, 30), load(40), number * SAMPLE_S)

    assert shown(limit) == (28 + 4, 28, 0)  # 40 - 30 * 40 / 100


def test_capacity_keeps_the_bounds() -> None:
    """An engine that runs one request at a time is given the least slots and their margin."""
    limit = EngineQueueLimit().start()
    for number in range(3):
        limit.sampled(engine(1, 9), load(10), number * SAMPLE_S)

    assert shown(limit) == (6, 4, 0)


def test_a_short_queue_at_the_same_maximum_is_a_ceiling() -> None:
    """Three samples at the highest number of running requests, each with a queue, tell the capacity."""
    limit = EngineQueueLimit().start()
    slots: list[int] = []
    for number in range(3):
        limit.sampled(engine(100, 3), load(103, unseen=5), number * SAMPLE_S)
        slots.append(limit.slots())

    assert slots == [256, 256, 113]


def test_a_maximum_without_a_queue_is_no_ceiling() -> None:
    """An engine that runs all that it has would run more."""
    limit = EngineQueueLimit().start()
    for number in range(20):
        limit.sampled(engine(100), load(105, unseen=5), number * SAMPLE_S)

    assert limit.slots() == 256


def test_now_and_then_a_queue_is_no_ceiling() -> None:
    """Two samples with a queue among eight may be chance."""
    limit = EngineQueueLimit().start()
    for number in range(20):
        waiting = 3 if number % 4 == 0 else 0
        limit.sampled(engine(100, waiting), load(100 + waiting, unseen=5), number * SAMPLE_S)

    assert limit.slots() == 256


@pytest.mark.parametrize(
    ("prompt_tokens", "slots"), [(STEP_PROMPT_TOKENS - 1, 113), (STEP_PROMPT_TOKENS, 256), (9_000, 256)]
)
def test_a_queue_behind_prompts_is_no_ceiling(prompt_tokens: int, slots: int) -> None:
    """Where more prompts are to be computed than a step may take, requests wait for that and not for a place."""
    limit = EngineQueueLimit().start()
    for number in range(20):
        its_load = load(103, unseen=5, prompt_tokens=prompt_tokens)
        limit.sampled(engine(100, 3), its_load, number * SAMPLE_S)

    assert limit.slots() == slots


def test_a_ceiling_is_the_most_of_eight_samples() -> None:
    """Samples that are taken when an answer has just ended show fewer than the engine runs."""
    limit = EngineQueueLimit().start()
    for number, running in enumerate([100, 97, 98, 97]):
        limit.sampled(engine(running, 3), load(running + 3, unseen=5), number * SAMPLE_S)

    assert shown(limit) == (113, 100, 0)


def test_what_has_not_been_seen_in_the_engine_does_not_run() -> None:
    """No more of ours run than the engine runs in all, even without a queue: it may not have seen the others yet."""
    limit = learned()
    limit.sampled(engine(100), load(110, begun=98), 1.0)

    assert shown(limit) == (113, 100, 0)


def test_capacity_is_followed_down_by_a_fifth() -> None:
    """A lasting queue behind fewer running requests, in all of eight samples, takes away a fifth of the difference."""
    limit = learned()
    seen: list[tuple[int, int | None, int]] = []
    for number in range(8):
        limit.sampled(engine(50, 63), load(113), 1.0 + number * SAMPLE_S)
        seen.append(shown(limit))

    assert seen == [(113, 100, 0)] * 7 + [(90 + 12, 90, 0)]


def test_a_ceiling_that_falls_is_followed_down() -> None:
    """A short queue in sample after sample tells that the engine runs fewer than it did."""
    limit = learned()
    for number in range(40):
        limit.sampled(engine(60, 3), load(68, begun=60, unseen=5), 1.0 + number * SAMPLE_S)

    assert shown(limit) == (68, 60, 0)


def test_capacity_is_followed_up_at_once() -> None:
    """What runs can run, even with a queue behind it."""
    limit = learned()
    limit.sampled(engine(110, 3), load(113), 3 * SAMPLE_S)

    assert shown(limit) == (110 + 14, 110, 0)


def begin_probe(limit: Limit, in_flight: int, now_s: float) -> int:
    """Let tickets wait below the slots at a sample without a queue; return the probe that begins."""
    limit.sampled(engine(in_flight), load(in_flight, is_limiting=True), now_s)
    return limit.probe()


def test_room_is_probed_where_tickets_wait_below_the_slots() -> None:
    """A probe that finds room raises the capacity, and the next tries twice as much, up to the margin."""
    limit, now_s = learned(), 1.0
    probes: list[int] = []
    for _ in range(6):
        capacity = limit.capacity()
        assert capacity is not None
        extra = begin_probe(limit, capacity - 4, now_s)
        probes.append(extra)
        limit.sampled(engine(capacity + extra), load(capacity + extra), now_s + SAMPLE_S)
        assert shown(limit)[1:] == (capacity + extra, 0)
        now_s += 2 * SAMPLE_S

    assert probes == [1, 2, 4, 8, 15, 17]  # the last two are the margins of 115 and of 130


def test_no_room_is_probed_while_nobody_waits() -> None:
    """A probe is for those who wait, so there is none without them."""
    limit = learned()
    limit.sampled(engine(96), load(96), 1.0)

    assert limit.probe() == 0


def test_a_probe_that_finds_no_room_is_put_off() -> None:
    """Each vain probe doubles the time to the next, from a second to 64."""
    limit = learned()
    begun_s: list[float] = []
    for number in range(900):
        now_s = 1.0 + number * SAMPLE_S
        if limit.probe():
            limit.sampled(engine(100, 1), load(101, is_limiting=True), now_s)
        elif begin_probe(limit, 96, now_s):
            begun_s.append(now_s)
        assert shown(limit)[:2] == (113, 100)
    gaps_s = [later - earlier for earlier, later in pairwise(begun_s)]

    assert gaps_s == [LEAST_PROBE_S, 2.0, 4.0, 8.0, 16.0, 32.0, MOST_PROBE_S, MOST_PROBE_S]


def test_a_vain_probe_makes_the_next_one_small_again() -> None:
    """After a probe that found no room, the next tries one slot."""
    limit = learned()
    assert begin_probe(limit, 96, 1.0) == 1
    limit.sampled(engine(101), load(101), 1.25)
    assert begin_probe(limit, 96, 1.5) == 2
    limit.sampled(engine(101, 2), load(103), 1.75)

    assert begin_probe(limit, 96, 3.0) == 1


def test_a_probe_that_meets_a_queue_is_vain_though_fewer_run() -> None:
    """The engine queues just after an answer has ended, so it had no room while that was there."""
    limit = learned()
    assert begin_probe(limit, 96, 1.0) == 1
    limit.sampled(engine(98, 2), load(101), 1.25)
    assert limit.probe() == 0

    assert [begin_probe(limit, 96, now_s) for now_s in (1.5, 2.0)] == [0, 1]


def test_a_probe_goes_on_until_the_engine_shows_what_became_of_it() -> None:
    """While the request is in neither its batch nor its queue, the engine has not yet come to it."""
    limit = learned()
    probes = [begin_probe(limit, 96, 1.0)]
    for number, waiting in enumerate([0, 0, 1]):
        limit.sampled(engine(100, waiting), load(101), 1.25 + number * SAMPLE_S)
        probes.append(limit.probe())

    assert probes == [1, 1, 1, 0]


def test_a_probe_that_nobody_took_tells_nothing() -> None:
    """A probe whose slots were not used is neither found nor vain: the next is due a second after it."""
    limit = learned()
    assert [begin_probe(limit, 96, now_s) for now_s in (1.0, 1.25, 1.75, 2.0)] == [1, 0, 0, 1]
    assert [begin_probe(limit, 100, now_s) for now_s in (2.25, 2.75, 3.0)] == [0, 0, 1]


def test_preemptions_shrink_the_capacity() -> None:
    """A request put back for want of memory tells that a tenth fewer would fit."""
    limit = learned()
    seen: list[tuple[int, int | None, int]] = []
    for number, preemptions in enumerate([7, 8, 8, None, 9, 2, 2]):
        limit.sampled(engine(80, preemptions=preemptions), load(80), 1.0 + number * SAMPLE_S)
        seen.append(shown(limit))

    # The first count is no rise, nor is the one after none was told, nor that of an engine begun anew.
    assert seen == [(113, 100, 0)] + [(102, 90, 0)] * 6


def test_an_engine_begun_anew_has_not_preempted() -> None:
    """Its count is lower than the last one's."""
    limit = learned()
    for number, preemptions in enumerate([9, 2]):
        limit.sampled(engine(80, preemptions=preemptions), load(80), 1.0 + number * 2 * LOWERED_S)

    assert shown(limit) == (113, 100, 0)


def test_preemptions_of_an_unknown_capacity_shrink_nothing() -> None:
    """Where no capacity is known there is none to shrink."""
    limit = EngineQueueLimit().start()
    for number, preemptions in enumerate([0, 5, 50]):
        limit.sampled(engine(80, preemptions=preemptions), load(80), number * SAMPLE_S)

    assert limit.slots() == 256


def test_a_queue_larger_than_what_is_in_flight_is_not_ours() -> None:
    """Others' queue changes nothing, and for a second after it answers alone move the limit."""
    limit = learned()
    for number in range(10):
        limit.sampled(engine(10, 200), load(113), 1.0 + number * SAMPLE_S)
    told_s = 1.0 + 9 * SAMPLE_S
    assert shown(limit) == (113, 100, 0)

    answer(limit, 113, told_s + FOREIGN_S - 0.01, times=120)
    assert limit.slots() == 114
    answer(limit, 114, told_s + FOREIGN_S, times=500)
    assert limit.slots() == 114


def test_a_foreign_queue_is_not_learned_from_for_a_second() -> None:
    """Samples right after a foreign queue are not heard; those a second later are."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(100, 200), load(150), 0.0)
    for now_s in (0.25, 0.5, 0.75):
        limit.sampled(engine(100, 50), load(150), now_s)
    assert limit.slots() == 256

    for now_s in (1.0, 1.25, 1.5):
        limit.sampled(engine(100, 50), load(150), now_s)
    assert limit.slots() == 113


def test_the_first_slots_are_shared_with_peers() -> None:
    """All together have the initial ones, and none fewer than the least."""
    slots = [EngineQueueLimit(peers=peers).start().slots() for peers in (1, 2, 4, 100)]

    assert slots == [256, 128, 64, 4]


def test_peers_requests_are_no_foreign_queue() -> None:
    """Of 192 that wait beside 150 of ours half may be a peer's: what runs is learned as if all were ours."""
    alone, shared = EngineQueueLimit().start(), EngineQueueLimit(peers=2).start()
    for limit in (alone, shared):
        for number in range(3):
            limit.sampled(engine(100, 192), load(150), number * SAMPLE_S)

    assert (alone.capacity(), shared.capacity()) == (None, 51)


def test_of_an_engines_queue_peers_have_sent_the_newest_too() -> None:
    """What waits counts as a queue only above what all have sent since the last sample, as far as can be told."""
    alone, shared = EngineQueueLimit().start(), EngineQueueLimit(peers=2).start()
    for limit in (alone, shared):
        for number in range(3):
            told = load(100, unseen=10, prompt_tokens=2 * STEP_PROMPT_TOKENS)
            limit.sampled(engine(60, 15), told, number * SAMPLE_S)

    assert (alone.capacity() is None, shared.capacity() is None) == (False, True)


def tell_of_few(limit: Limit, times: int, now_s: float = 1.0) -> None:
    """Let an engine with 60 requests of ours in flight tell of six."""
    for number in range(times):
        limit.sampled(engine(1, 5), load(60), now_s + number * SAMPLE_S)


def test_an_engine_that_tells_of_too_few_is_disbelieved() -> None:
    """The fourth time, the limit returns to where it was before the cut, and follows answers alone."""
    limit = learned()
    tell_of_few(limit, 3)
    assert shown(limit) == (113, 100, 0)

    tell_of_few(limit, 1, 2.0)
    assert shown(limit) == (256, None, 0)
    answer(limit, 256, 2.0, times=257)
    assert shown(limit) == (257, None, 0)


def test_an_uncut_limit_stays_where_it_is_in_disbelief() -> None:
    """An engine that never seemed to queue is given as much as before when it tells of too few."""
    limit = EngineQueueLimit().start()
    for number in range(4):
        limit.sampled(engine(0), load(100), number * SAMPLE_S)
    assert limit.slots() == 256

    answer(limit, 256, 1.0, times=257)
    assert limit.slots() == 257


def test_too_few_must_be_told_four_times_in_a_row() -> None:
    """One sample that tells of half of what is in flight begins the count anew."""
    limit = EngineQueueLimit().start()
    for number in range(20):
        limit.sampled(engine(50 if number % 4 == 3 else 49), load(100), number * SAMPLE_S)
    answer(limit, 100, 5.0, times=300)

    assert limit.slots() == 256


@pytest.mark.parametrize(
    ("running", "its_load"), [(10, load(100, unseen=80)), (0, load(3))], ids=["unseen", "a handful"]
)
def test_few_may_be_told_of_few(running: int, its_load: Load) -> None:
    """An engine need not tell of what was sent since its last sample, nor of a handful."""
    limit = EngineQueueLimit().start()
    for number in range(20):
        limit.sampled(engine(running), its_load, number * SAMPLE_S)
    answer(limit, 100, 5.0, times=300)

    assert limit.slots() == 256


def test_belief_returns_after_its_time() -> None:
    """For `DISBELIEF_S` no sample is heard; then a queue seen twice tells the capacity again."""
    limit = learned()
    tell_of_few(limit, 4)
    told_s = 1.0 + 3 * SAMPLE_S
    for now_s in (told_s + 10.0, told_s + DISBELIEF_S - 2 * SAMPLE_S, told_s + DISBELIEF_S - SAMPLE_S):
        limit.sampled(engine(100, 50), load(150), now_s)
    assert limit.slots() == 256

    for number in range(3):
        limit.sampled(engine(100, 50), load(150), told_s + DISBELIEF_S + number * SAMPLE_S)
    assert shown(limit) == (113, 100, 0)


def test_an_engine_that_goes_on_telling_of_too_few_is_disbelieved_again() -> None:
    """When belief returns, one more sample of that kind ends it."""
    limit = EngineQueueLimit().start()
    for now_s in (0.0, 0.25, 0.5, 0.75, 0.75 + DISBELIEF_S):
        limit.sampled(engine(0), load(100), now_s)
    for number in range(5):
        limit.sampled(engine(100, 50), load(150), 1.0 + DISBELIEF_S + number * SAMPLE_S)

    assert limit.slots() == 256


def test_four_requests_are_enough_to_be_missed() -> None:
    """An engine that tells of none while four are in flight there for long is not believed."""
    limit = EngineQueueLimit().start()
    for number in range(4):
        limit.sampled(engine(0), load(4), number * SAMPLE_S)
    for number in range(4, 9):
        limit.sampled(engine(100, 50), load(150), number * SAMPLE_S)

    assert limit.slots() == 256


def test_a_queue_that_is_not_yet_lasting_grows_nothing() -> None:
    """An engine with a queue is not one that runs all that it has, even if tickets wait here."""
    limit = EngineQueueLimit().start()
    limit.sampled(engine(100, 50), load(150, is_limiting=True), 0.0)

    assert limit.slots() == 256


def test_a_queue_seen_before_disbelief_does_not_count() -> None:
    """When belief returns, a queue must be seen twice as at first."""
    limit = learned()
    tell_of_few(limit, 4)
    slots: list[int] = []
    for now_s in (100.0, 100.25):
        limit.sampled(engine(1, 59), load(60), now_s)
        slots.append(limit.slots())

    assert slots == [256, 6]


@pytest.mark.parametrize(("waiting", "slots"), [(12, 113), (40, 113), (41, 256), (50, 256), (112, 256)])
def test_a_queue_must_shrink_when_the_engine_gets_less(waiting: int, slots: int) -> None:
    """When 38 fewer are in flight, a queue of 50 must be a quarter of that shorter, or the cut is undone."""
    limit = learned()
    limit.sampled(engine(100, waiting), load(112), 1.0)

    assert limit.slots() == slots


def test_an_engine_that_runs_its_capacity_is_judged_by_its_queue_too() -> None:
    """A queue that stays when 38 fewer are in flight is not ours, however many of ours have begun."""
    limit = learned()
    limit.sampled(engine(100, 50), load(112, begun=100), 1.0)

    assert shown(limit) == (256, None, 0)


def test_a_queue_is_not_judged_before_enough_is_held_back() -> None:
    """While more than `HEED` of what was in flight still is, a queue that stays tells nothing yet."""
    limit = learned()
    for number in range(10):
        limit.sampled(engine(100, 13), load(113), 1.0 + number * SAMPLE_S)

    assert shown(limit) == (113, 100, 0)


def test_a_cut_is_undone_to_before_the_first() -> None:
    """A queue that shrank at first and then no more belongs to somebody else: all slots come back."""
    limit = learned()
    for now_s in (1.0, 1.25):
        limit.sampled(engine(80, 10), load(90), now_s)
    limit.sampled(engine(50, 10), load(60), 1.5)

    assert shown(limit) == (256, None, 0)


def test_a_time_without_a_queue_ends_the_test_of_a_cut() -> None:
    """Where the engine had no queue in between, disbelief goes back to the slots of that time only."""
    limit = learned()
    limit.sampled(engine(100), load(100), 1.0)
    for number in range(1, 10):
        limit.sampled(engine(60, 53), load(113), 1.0 + number * SAMPLE_S)
    assert limit.slots() < 113
    limit.sampled(engine(30, 53), load(83), 4.0)

    assert limit.slots() == 113


def test_a_rise_ends_the_test_of_a_cut() -> None:
    """Where the engine has run more in between, disbelief goes back to the slots of that time only."""
    limit = learned()
    limit.sampled(engine(110, 3), load(113), 1.0)
    assert limit.slots() == 124
    for number in range(1, 10):
        limit.sampled(engine(60, 53), load(113), 1.0 + number * SAMPLE_S)
    assert limit.slots() < 124
    limit.sampled(engine(30, 53), load(83), 4.0)

    assert limit.slots() == 124


def test_a_push_back_cuts_what_was_learned() -> None:
    """An engine that pushes back is given less at once, once in a second."""
    limit = learned()
    push_back(limit, 100, 1.0)
    push_back(limit, 100, 1.5)

    assert shown(limit) == (70, 61, 0)


def test_a_push_back_cuts_what_is_not_yet_learned() -> None:
    """So it is where no capacity is known."""
    limit = EngineQueueLimit().start()
    push_back(limit, 100)

    assert shown(limit) == (70, None, 0)


def test_without_any_sample_answers_move_the_limit() -> None:
    """An engine without metrics is given more and more, as by an `AimdLimit`."""
    limit = EngineQueueLimit().start()
    answer(limit, 256, times=257)

    assert shown(limit) == (257, None, 0)


@pytest.mark.parametrize(("age_s", "slots"), [(5.0, 113), (STALE_S, 113), (STALE_S + 0.1, 114)])
def test_stale_metrics_leave_the_limit_to_answers(age_s: float, slots: int) -> None:
    """A limit stays as it was until the last sample is too old; from then on answers move it."""
    limit = learned()
    answer(limit, 113, 2 * SAMPLE_S + age_s, times=150)

    assert shown(limit) == (slots, 100, 0)


@pytest.mark.parametrize("most_running", [4, 8, 64, 100, 256, 300, 1000])
def test_a_loaded_engine_is_kept_full_with_a_short_queue(most_running: int) -> None:
    """Whatever an engine runs at once, it soon has all of that and a margin, and never less than all."""
    limit = EngineQueueLimit().start()
    for number in range(200):
        in_flight = limit.slots()
        running = min(most_running, in_flight)
        its_load = load(in_flight, is_limiting=True)
        limit.sampled(engine(running, in_flight - running), its_load, number * SAMPLE_S)
        assert limit.slots() >= min(most_running, 256)

    assert most_running < limit.slots() <= max(6, 1.3 * most_running)


def test_what_was_lowered_is_not_raised_at_once() -> None:
    """After a push-back or a preemption, samples of what was sent before do not undo it for `LOWERED_S`."""
    limit = EngineQueueLimit().start()
    load = Load(in_flight=120, begun=100, moved=5)
    for step in range(4):
        limit.sampled(EngineSample(100, 20, preemptions=0), load, step / 4)
    learned = limit.slots()
    limit.ended(load, 1.0, is_push_back=True)
    pushed_back = limit.slots()
    limit.sampled(EngineSample(100, 20, preemptions=0), load, 1.25)
    assert learned > pushed_back >= limit.slots()
    limit.sampled(EngineSample(100, 20, preemptions=0), load, 6.25)
    raised = limit.slots()
    assert raised > pushed_back
    limit.sampled(EngineSample(100, 20, preemptions=3), load, 6.5)
    preempted = limit.slots()
    assert preempted < raised
    limit.sampled(EngineSample(100, 20, preemptions=3), load, 6.75)
    assert limit.slots() <= preempted
    limit.sampled(EngineSample(100, 20, preemptions=5), load, 7.0)

    assert limit.slots() <= preempted
