"""The session gate: who is admitted, who is given up, and what it learns from the engine's cache."""

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_batching.gate import (
    BACK_OFF,
    BACK_OFF_EVERY_S,
    BUSY_WINDOW_S,
    CALM_S,
    FILLS,
    FIRST_SHARE,
    GONE_PAUSES,
    GROWTH_PER_S,
    HITS_WINDOW_S,
    IDLE_HALF_LIFE_S,
    LEAST_FILL_S,
    LEAST_GONE_AFTER_S,
    LEAST_SHARE,
    MOST_FILL_S,
    MOST_GONE_AFTER_S,
    MOST_SHARE,
    OPEN_S,
    PAUSE_LEARNING_RATE,
    Holds,
    SessionGate,
)
from muster_batching.orders import Waiting
from muster_batching.samples import EngineSample
from muster_batching.sessions import Session
from muster_batching.tickets import PoolId, SessionId, TenantId, Ticket, TicketId

KV_TOKENS = 1000
BUDGET = 900.0
"""What resident sessions may fill at first: `FIRST_SHARE` of the KV tokens."""
SAMPLE_S = 0.25
"""Seconds between two samples, as the proxy takes them."""


def session(name: str, context_tokens: int = 0) -> Session:
    """Make a session."""
    return Session((PoolId("chat"), TenantId("ann"), SessionId(name)), context_tokens=context_tokens)


A, B, C, D, E = (session(name) for name in "abcde")


def engine(
    kv_tokens: int | None = KV_TOKENS,
    *,
    prefix_hits: int | None = None,
    computed: int = 0,
    preemptions: int | None = None,
) -> EngineSample:
    """Make a sample of an engine that has hit and computed so many prompt tokens since its start."""
    queries = None if prefix_hits is None else prefix_hits + computed
    return EngineSample(
        0, 0, kv_tokens=kv_tokens, prefix_queries=queries, prefix_hits=prefix_hits, preemptions=preemptions
    )


def gate(kv_tokens: int | None = KV_TOKENS) -> SessionGate:
    """Make a gate to an engine of this size."""
    new = SessionGate()
    new.learn(engine(kv_tokens), 0.0, is_busy=True)
    return new


# Admission


def test_sessions_are_admitted_while_they_fit() -> None:
    """The one with which the budget is full is admitted, the one with a token more is not."""
    one = gate()

    assert [one.admit(each, 300, 0.0) for each in (A, B)] == [True, True]
    assert not one.admit(C, 301, 0.0)
    assert one.admit(C, 300, 0.0)
    assert (len(one), one.resident_tokens(0.0)) == (3, BUDGET)
    assert [one.is_resident(each) for each in (A, B, C, D)] == [True, True, True, False]


@pytest.mark.parametrize(("resident", "fits"), [(500, True), (501, False)])
def test_a_new_session_is_taken_for_an_average_one(resident: int, fits: bool) -> None:
    """Sessions grow, so a small new one needs as much room as the mean of those resident."""
    one = gate()
    one.admit(A, resident, 0.0)
    assert not one.admit(B, 100, 0.0)
    one.admit(B, 100, 0.0, is_forced=True)

    assert one.admit(C, 10, 0.0) is fits  # beside 500 and 100 it needs 300


def test_an_engine_without_a_busy_session_takes_any() -> None:
    """However large a session and whoever is idle, it is admitted where nobody is busy."""
    one = gate()
    assert one.admit(A, 5000, 0.0)
    assert not one.admit(B, 10, 0.0)
    one.rest(A, 5000, 0.0)

    assert one.admit(B, 3000, 0.0)


def test_a_resident_session_is_always_admitted() -> None:
    """A call of one that has its place needs no room, even where the context has grown."""
    one = gate()
    for each in (A, B):
        one.admit(each, 450, 0.0)
    assert one.admit(A, 2000, 0.0)

    assert one.resident_tokens(0.0) == 2450


def test_an_engine_of_unknown_size_holds_nothing() -> None:
    """Without the KV size every session is admitted, none is given up, and none may displace."""
    one = gate(None)
    assert all(one.admit(each, 10**9, 0.0) for each in (A, B, C))
    one.rest(A, 10**9, 0.0)
    assert one.admit(D, 10**9, 0.0)

    assert len(one) == 4
    assert not one.may_displace(10, -math.inf, 1e6)
    assert one.room_at_s(10**9, 5.0) == pytest.approx(5.0, abs=0.01)


def test_an_engine_that_tells_its_size_no_longer_holds_nothing() -> None:
    """The size is that of the last sample."""
    one = gate()
    one.admit(A, 900, 0.0)
    assert not one.admit(B, 900, 0.0)
    one.learn(engine(None), 1.0, is_busy=True)

    assert one.kv_tokens is None
    assert one.admit(B, 900, 1.0)


# Idle sessions


def test_idle_sessions_weigh_less_and_less() -> None:
    """An idle session's weight halves with every half-life; a busy one's stays."""
    one = gate()
    one.admit(A, 100, 0.0)
    one.admit(B, 400, 0.0)
    one.rest(B, 480, 0.0)

    weights = [one.resident_tokens(half_lives * IDLE_HALF_LIFE_S) for half_lives in (0, 1, 2, 4)]
    assert weights == [580.0, 340.0, 220.0, 130.0]


def test_decay_lets_the_next_in_when_it_was_foretold() -> None:
    """The gate opens at the time that `room_at_s` tells, and not before."""
    one = gate()
    for each in (A, B):
        one.admit(each, 400, 0.0)
    one.rest(B, 400, 0.0)
    room_s = one.room_at_s(300, 2.0)

    assert room_s == pytest.approx(2 * IDLE_HALF_LIFE_S, abs=0.01)  # 400 + 400 and a quarter of 400
    assert not one.admit(C, 300, room_s - 0.01)
    assert one.admit(C, 300, room_s)


@pytest.mark.parametrize("busy", [500, 600])
def test_decay_alone_may_not_be_enough(busy: int) -> None:
    """Where the busy sessions and what is needed fill the budget, no time is foretold."""
    one = gate()
    one.admit(A, busy, 0.0)
    one.admit(B, 300, 0.0, is_forced=True)
    one.rest(B, 300, 0.0)

    assert one.room_at_s(400, 0.0) == math.inf


def test_room_that_is_there_is_foretold_for_now() -> None:
    """Where a session fits already, the time is no more than a moment away."""
    one = gate()
    one.admit(A, 400, 0.0)

    assert one.room_at_s(400, 7.0) == pytest.approx(7.0, abs=0.01)


def test_a_resting_session_that_keeps_nothing_leaves() -> None:
    """A session of which no further call is expected gives its place up at once."""
    one = gate()
    one.admit(A, 900, 0.0)
    one.admit(B, 10, 0.0, is_forced=True)
    one.rest(A, 0, 1.0)

    assert (len(one), one.resident_tokens(1.0)) == (1, 10.0)
    assert not one.is_resident(A)


def test_one_that_has_no_place_cannot_rest() -> None:
    """The end of a call of a session that is not resident changes nothing."""
    one = gate()
    one.rest(A, 500, 0.0)

    assert (len(one), one.resident_tokens(0.0)) == (0, 0.0)


def test_sessions_that_are_gone_are_forgotten() -> None:
    """An idle session that weighs a 64th is given up when the next comes; those idle for less are not."""
    one = gate()
    for number, each in enumerate((A, B)):
        one.admit(each, 200, number)
        one.rest(each, 200, number)
    one.admit(C, 10, 6 * IDLE_HALF_LIFE_S)

    assert [one.is_resident(each) for each in (A, B, C)] == [False, True, True]


def test_forgetting_all_leaves_nothing() -> None:
    """A gate whose sessions are all gone is as a new one for the next."""
    one = gate()
    for each in (A, B):
        one.admit(each, 123.4, 0.0)
        one.rest(each, 123.4, 0.1)
    one.admit(C, 7, 1000.0)

    assert (len(one), one.resident_tokens(1000.0)) == (1, 7.0)


def paused(one: SessionGate, pause_s: float, times: int) -> float:
    """Let a session go on so many times after such a pause; return the time."""
    now_s = 0.0
    for _ in range(times):
        one.admit(A, 10, now_s, is_forced=True)
        one.rest(A, 10, now_s)
        now_s += pause_s
    one.admit(A, 10, now_s)
    one.rest(A, 0, now_s)
    return now_s


def test_pauses_tell_who_is_gone() -> None:
    """Where sessions go on after two seconds, one that has not after `GONE_PAUSES` times as long is gone."""
    one = gate()
    now_s = paused(one, 2.0, 200)
    one.admit(B, 100, now_s)
    one.rest(B, 100, now_s)
    one.admit(C, 100, now_s + 2.0 * GONE_PAUSES - 0.1)
    assert one.is_resident(B)

    one.admit(C, 100, now_s + 2.0 * GONE_PAUSES + 0.1)
    assert not one.is_resident(B)


@pytest.mark.parametrize(("pause_s", "after_s"), [(0.01, LEAST_GONE_AFTER_S), (50.0, MOST_GONE_AFTER_S)])
def test_nobody_is_gone_too_soon_or_stays_too_long(pause_s: float, after_s: float) -> None:
    """However short or long pauses are."""
    one = gate()
    now_s = paused(one, pause_s, 200)
    one.admit(B, 100, now_s)
    one.rest(B, 100, now_s)
    one.admit(C, 100, now_s + after_s - 0.1)
    assert one.is_resident(B)

    one.admit(C, 100, now_s + after_s + 0.1)
    assert not one.is_resident(B)


def test_room_is_foretold_for_when_a_session_is_gone() -> None:
    """That may be sooner than it has decayed; and it is now where nobody has looked since."""
    one = gate()
    now_s = paused(one, 1.0, 200)
    one.admit(B, 440, now_s)
    one.admit(C, 300, now_s)
    one.rest(B, 440, now_s)

    assert one.room_at_s(440, now_s) == pytest.approx(now_s + GONE_PAUSES, abs=0.01)
    assert one.room_at_s(440, now_s + 5.0) == pytest.approx(now_s + 5.0, abs=0.01)


def test_a_busy_session_is_not_forgotten() -> None:
    """A call may last as long as it likes."""
    one = gate()
    one.admit(A, 100, 0.0)
    one.admit(B, 100, 1000.0)

    assert one.is_resident(A)


def test_the_longest_idle_are_given_up_for_one_that_has_grown() -> None:
    """When a resident session comes back larger, those that the engine evicts first lose their places."""
    one = gate()
    for each in (A, B, C, D):
        one.admit(each, 200, 0.0)
        one.rest(each, 200, 0.0)
    one.admit(A, 300, 0.0)
    assert len(one) == 4
    one.admit(A, 500, 0.0)  # with B gone it is 900, which fits

    assert [one.is_resident(each) for each in (A, B, C, D)] == [True, False, True, True]


def test_busy_sessions_are_not_given_up() -> None:
    """Where only busy sessions are left, they stay, however far they are over."""
    one = gate()
    for each in (A, B, C):
        one.admit(each, 300, 0.0)
    one.rest(B, 300, 0.0)
    one.admit(D, 2000, 0.0, is_forced=True)

    assert [one.is_resident(each) for each in (A, B, C, D)] == [True, False, True, True]
    assert one.resident_tokens(0.0) == 2600


@dataclass
class Record:
    """What is known of a session that has been admitted."""

    session: Session
    tokens: float
    is_busy: bool
    since_s: float

    def weight(self, now_s: float) -> float:
        """Its weight by the documented formula."""
        return self.tokens if self.is_busy else self.tokens * 2 ** ((self.since_s - now_s) / IDLE_HALF_LIFE_S)


@dataclass
class NaiveGate:
    """The gate's rules, played on a list in which the longest untouched comes first."""

    records: list[Record] = field(default_factory=list[Record])
    gone_after_s: float = MOST_GONE_AFTER_S

    def come(self, session: Session, now_s: float) -> None:
        """Forget those that are gone, and learn how long this one was idle, if it is not one of them."""
        idle = [each for each in self.records if not each.is_busy]
        gone = [each for each in idle if now_s - each.since_s >= self.gone_after_s]
        self.records = [each for each in self.records if each not in gone]
        for record in idle:
            if record.session is session and record not in gone:
                pauses_s = GONE_PAUSES * (now_s - record.since_s)
                learned_s = self.gone_after_s + PAUSE_LEARNING_RATE * (pauses_s - self.gone_after_s)
                self.gone_after_s = min(MOST_GONE_AFTER_S, max(LEAST_GONE_AFTER_S, learned_s))

    def resident_tokens(self, now_s: float) -> float:
        """Add up all weights anew."""
        return sum(record.weight(now_s) for record in self.records)

    def room(self, tokens: float, now_s: float) -> float:
        """Find how much more a session of this size could need, not counting what is always allowed."""
        sizes = [record.tokens for record in self.records]
        need = max(tokens, sum(sizes) / len(sizes)) if sizes else tokens
        return BUDGET - self.resident_tokens(now_s) - need

    def has(self, session: Session) -> bool:
        """Tell whether a session is resident."""
        return any(record.session is session for record in self.records)

    def is_idle(self) -> bool:
        """Tell whether nobody is busy."""
        return not any(record.is_busy for record in self.records)

    def put(self, record: Record) -> None:
        """Replace what is known of a session."""
        self.leave(record.session)
        self.records.append(record)

    def leave(self, session: Session) -> None:
        """Forget a session."""
        self.records = [each for each in self.records if each.session is not session]

    def give_up_idle(self, now_s: float) -> None:
        """Give up the longest idle until the rest fit."""
        for record in list(self.records):
            if self.resident_tokens(now_s) > BUDGET and not record.is_busy:
                self.leave(record.session)


@dataclass(frozen=True)
class Step:
    """A session wants in, is let in anyway, rests or leaves."""

    kind: str
    session: Session
    tokens: float
    gap_s: float


steps = st.builds(
    Step,
    st.sampled_from(["admit", "admit", "force", "rest", "rest", "leave"]),
    st.sampled_from([A, B, C, D, E]),
    st.sampled_from([1, 7, 50, 180, 300, 450, 1000]),
    st.sampled_from([0.0, 0.7, 1.3, 9.0]),
)


def stop(one: SessionGate, naive: NaiveGate, step: Step, now_s: float) -> None:
    """Let a session rest or leave."""
    was_resident = one.is_resident(step.session)
    tokens = step.tokens if step.kind == "rest" else 0
    one.rest(step.session, tokens, now_s)
    naive.leave(step.session)
    if was_resident and tokens:
        naive.put(Record(step.session, tokens, is_busy=False, since_s=now_s))


@settings(max_examples=100)
@given(st.lists(steps, max_size=40))
def test_the_gate_does_as_its_rules_say(history: list[Step]) -> None:
    """Whoever comes and rests, admissions, those given up and the sum are those of a plain list."""
    one, naive, now_s = gate(), NaiveGate(), 0.0
    for step in history:
        now_s += step.gap_s
        if step.kind in ("rest", "leave"):
            stop(one, naive, step, now_s)
        else:
            is_forced = step.kind == "force"
            naive.come(step.session, now_s)
            may_enter = is_forced or naive.has(step.session) or naive.is_idle()
            fits = naive.room(step.tokens, now_s) >= -1e-9
            assert one.admit(step.session, step.tokens, now_s, is_forced=is_forced) is (may_enter or fits)
            if may_enter or fits:
                naive.put(Record(step.session, step.tokens, is_busy=True, since_s=now_s))
                naive.give_up_idle(now_s)

        resident = [each for each in (A, B, C, D, E) if one.is_resident(each)]
        assert {each.key for each in resident} == {record.session.key for record in naive.records}
        assert one.resident_tokens(now_s) == pytest.approx(naive.resident_tokens(now_s), abs=1e-6)


@given(st.lists(st.tuples(steps, st.floats(0.0, 100.0)), max_size=60))
def test_sums_never_drift(history: list[tuple[Step, float]]) -> None:
    """Over any times, with sessions forgotten in between, the weight is what those resident add up to."""
    one, naive, now_s = gate(), NaiveGate(), 0.0
    for drawn, gap_s in history:
        now_s += gap_s
        step = replace(drawn, tokens=drawn.tokens / 7)
        if step.kind in ("rest", "leave"):
            stop(one, naive, step, now_s)
        elif one.admit(step.session, step.tokens, now_s, is_forced=step.kind == "force"):
            naive.put(Record(step.session, step.tokens, is_busy=True, since_s=now_s))
        naive.records = [record for record in naive.records if one.is_resident(record.session)]

        assert one.resident_tokens(now_s) == pytest.approx(naive.resident_tokens(now_s), abs=1e-6)
        assert len(one) == len(naive.records)


# Displacement


def test_a_session_displaces_others_after_its_patience() -> None:
    """Held for as long as a cache takes to fill, a session may be admitted where it does not fit."""
    one = gate()
    assert one.displaces_at_s(5.0) == 5.0 + MOST_FILL_S

    assert not one.may_displace(100, 5.0, 5.0 + MOST_FILL_S - 0.01)
    assert one.may_displace(100, 5.0, 5.0 + MOST_FILL_S)


def test_displacement_turns_the_cache_over_slowly() -> None:
    """After one of a tenth of the cache the next waits a tenth of what a turnover takes, by the first one's size."""
    one = gate()
    assert one.may_displace(100, 0.0, 50.0)
    next_s = 50.0 + (FILLS * MOST_FILL_S) / 10
    assert one.displaces_at_s(0.0) == next_s
    assert one.displaces_at_s(100.0) == 100.0 + MOST_FILL_S

    assert not one.may_displace(10, 0.0, next_s - 0.01)
    assert one.may_displace(10, 0.0, next_s)
    assert one.displaces_at_s(0.0) == next_s + (FILLS * MOST_FILL_S) / 100


def test_a_refused_displacement_counts_nothing() -> None:
    """Asking too early does not put the next off."""
    one = gate()
    one.may_displace(1000, 0.0, 10.0)

    assert one.displaces_at_s(0.0) == MOST_FILL_S


# Warmth


def test_a_prefix_is_warm_after_a_call_has_ended() -> None:
    """Until the first call's end the engine holds nothing of a session that its next call could find."""
    one, session_a = gate(), session("a", context_tokens=120)
    warm = [one.warm_tokens(session_a)]
    one.admit(session_a, 100, 0.0)
    warm.append(one.warm_tokens(session_a))
    one.rest(session_a, 120, 1.0)
    warm.append(one.warm_tokens(session_a))
    one.admit(session_a, 130, 2.0)
    warm.append(one.warm_tokens(session_a))
    one.rest(session_a, 0, 3.0)
    warm.append(one.warm_tokens(session_a))

    assert warm == [0, 0, 120, 120, 0]


def test_a_prefix_that_was_given_up_is_cold() -> None:
    """A session that lost its place is not warm when it is admitted again, until a call of it ends."""
    one, session_a = gate(), session("a", context_tokens=120)
    one.admit(session_a, 120, 0.0)
    one.rest(session_a, 120, 0.0)
    one.admit(B, 900, 0.0)
    assert not one.is_resident(session_a)

    one.admit(session_a, 120, 1.0, is_forced=True)
    assert one.warm_tokens(session_a) == 0
    one.rest(session_a, 120, 1.0)
    assert one.warm_tokens(session_a) == 120


def filling(one: SessionGate, per_s: int, *, is_busy: bool = True, tells: bool = True) -> float:
    """Let an engine compute so many prompt tokens in a second for a minute; return the patience of a session then."""
    for second in range(61):
        one.learn(
            engine(prefix_hits=0 if tells else None, computed=second * per_s), float(second), is_busy=is_busy
        )
    return one.displaces_at_s(0.0)


@pytest.mark.parametrize(
    ("per_s", "fill_s"), [(100, KV_TOKENS / 100), (10_000, LEAST_FILL_S), (10, MOST_FILL_S), (0, MOST_FILL_S)]
)
def test_patience_is_what_a_cache_takes_to_fill(per_s: int, fill_s: float) -> None:
    """An engine that computes fast for its cache's size is spared less, within bounds."""
    assert filling(gate(), per_s) == pytest.approx(fill_s, rel=0.01)


def test_a_turnover_is_ten_fills() -> None:
    """A quick engine lets a cache be displaced sooner."""
    one = gate()
    fill_s = filling(one, 100)
    assert one.may_displace(KV_TOKENS // 10, 0.0, 60.0)

    assert one.displaces_at_s(0.0) == pytest.approx(60.0 + FILLS * fill_s / 10)


def test_where_little_is_computed_nothing_is_known_of_the_speed() -> None:
    """Neither by an engine that is mostly idle, nor by one that tells nothing, nor by one of unknown size."""
    assert filling(SessionGate(), 100, is_busy=False) == MOST_FILL_S
    assert filling(gate(), 100, tells=False) == MOST_FILL_S
    one = SessionGate()
    for second in range(61):
        one.learn(engine(None, prefix_hits=0, computed=100 * second), float(second), is_busy=True)
    assert one.displaces_at_s(0.0) == MOST_FILL_S


def test_samples_of_one_moment_tell_no_speed() -> None:
    """Two workers' samples may come at once."""
    one = gate()
    for computed in (0, 500):
        one.learn(engine(prefix_hits=0, computed=computed), 1.0, is_busy=True)

    assert one.displaces_at_s(0.0) == MOST_FILL_S


# Learning


def refuse(one: SessionGate, now_s: float) -> None:
    """Let a session come that cannot fit, beside a busy one; it is held, and goes away."""
    one.admit(A, 1, now_s, is_forced=True)
    one.admit(B, 10**9, now_s)
    for each in (A, B):
        one.rest(each, 0, now_s)


@dataclass
class Played:
    """A gate to an engine whose counters the test plays, sampled as the proxy does, while sessions are held."""

    gate: SessionGate = field(default_factory=gate)
    now_s: float = 0.0
    hits: int = 0
    computed: int = 0

    def __post_init__(self) -> None:
        self.sample(0, 0, preemptions=0)

    def sample(
        self,
        expected: int,
        hit: int,
        *,
        is_busy: bool = True,
        preemptions: int | None = None,
        holds: bool = True,
    ) -> float:
        """Let calls expect and hit so many tokens, and 100 be computed, until the next sample; return the share."""
        self.now_s += SAMPLE_S
        self.hits += hit
        self.computed += 100
        self.gate.expect_hits(expected)
        if holds:
            refuse(self.gate, self.now_s)
        sample = engine(prefix_hits=self.hits, computed=self.computed, preemptions=preemptions)
        self.gate.learn(sample, self.now_s, is_busy=is_busy)
        return self.gate.share

    def samples(self, times: int, expected: int, hit: int, **conditions: bool) -> list[float]:
        """Do so many times; return the shares."""
        return [self.sample(expected, hit, **conditions) for _ in range(times)]

    def is_open(self) -> bool:
        """Tell whether a session is admitted that cannot fit, beside a busy one."""
        self.gate.admit(A, 10 * KV_TOKENS, self.now_s, is_forced=True)
        is_admitted = self.gate.admit(B, 10 * KV_TOKENS, self.now_s)
        for each in (A, B):
            self.gate.rest(each, 0, self.now_s)
        return is_admitted


def test_an_engine_with_nothing_to_compute_lets_the_share_grow() -> None:
    """It grows by `GROWTH_PER_S` times the fourth power of idleness, of which the last seconds count most."""
    times = range(1, 25)
    idle = [1.0 - math.exp(-SAMPLE_S * samples / BUSY_WINDOW_S) for samples in times]
    grown = [
        FIRST_SHARE * math.exp(GROWTH_PER_S * SAMPLE_S * sum(each**4 for each in idle[:count]))
        for count in times
    ]

    assert Played().samples(24, 100, 100, is_busy=False) == pytest.approx(grown)
    assert grown[-1] > 5.0


def test_an_engine_that_was_never_busy_is_idle() -> None:
    """Its first sample says how busy it is, until there are more."""
    one = SessionGate()
    one.learn(engine(), 0.0, is_busy=False)
    refuse(one, 1.0)
    one.learn(engine(), 1.0, is_busy=False)

    assert one.share == pytest.approx(FIRST_SHARE * math.exp(GROWTH_PER_S))


def test_a_share_has_bounds() -> None:
    """Neither a long time of idleness nor a long time without samples lets it grow beyond all."""
    played = Played()
    assert played.samples(400, 100, 100, is_busy=False)[-1] == MOST_SHARE

    one = gate()
    refuse(one, 1e6)
    one.learn(engine(), 1e6, is_busy=False)
    assert one.share == pytest.approx(FIRST_SHARE * math.exp(GROWTH_PER_S * BUSY_WINDOW_S))


def test_a_busy_engine_leaves_the_share() -> None:
    """Where prompts are computed all the time, and none again, more sessions would gain nothing."""
    assert Played().samples(100, 100, 100) == [FIRST_SHARE] * 100


def test_the_share_decides_what_fits() -> None:
    """A larger share admits more, more than the whole KV cache too."""
    played = Played()
    played.samples(20, 100, 100, is_busy=False)
    played.gate.admit(A, 500, played.now_s)

    assert played.gate.admit(B, 600, played.now_s)


def test_prompts_computed_again_shrink_the_share() -> None:
    """When more than `LEAST_LOST` goes to them, the share shrinks, at most once in `BACK_OFF_EVERY_S`."""
    shares = Played().samples(41, 100, 65)

    samples = int(BACK_OFF_EVERY_S / SAMPLE_S)
    smaller = [FIRST_SHARE * BACK_OFF**times for times in (1, 2, 3)]
    assert shares == pytest.approx([smaller[number // samples] for number in range(41)])


def test_a_little_that_is_lost_leaves_the_share() -> None:
    """Up to `LEAST_LOST` the share stays."""
    assert Played().samples(100, 100, 75) == [FIRST_SHARE] * 100


def test_what_is_lost_is_weighed_against_idleness() -> None:
    """While an engine that computes everything again is idle for longer than that takes, the share grows."""
    played = Played()
    played.samples(12, 0, 0, is_busy=False)
    before = played.gate.share
    busy = math.exp(-12 * SAMPLE_S / BUSY_WINDOW_S)
    assert busy < 0.5

    assert played.sample(100, 0, is_busy=False) > before
    shares = played.samples(12, 100, 0)
    assert shares[0] > before
    assert shares[-1] < shares[0]


def test_little_is_not_judged() -> None:
    """Up to a fiftieth of the cache expected lately tells nothing, hit or not."""
    played = Played()
    assert [played.sample(expected, 0) for expected in (20, 0, 0, 0)] == [FIRST_SHARE] * 4

    assert played.sample(1000, 0) == pytest.approx(FIRST_SHARE * BACK_OFF)


def test_an_engine_that_computes_no_prompt_is_not_judged() -> None:
    """What is on its way to an engine is not lost before it has come to it."""
    one = gate()
    one.learn(engine(prefix_hits=0), 1.0, is_busy=True)
    refuse(one, 2.0)
    one.expect_hits(1000)
    one.learn(engine(prefix_hits=0), 2.0, is_busy=True)

    assert one.share == FIRST_SHARE


def test_an_engine_of_unknown_size_is_not_judged() -> None:
    """Where nothing is held there is nothing to learn from hits."""
    one = SessionGate()
    for number in range(10):
        one.expect_hits(1000)
        refuse(one, number * SAMPLE_S)
        one.learn(engine(None, prefix_hits=0, computed=1000 * number), number * SAMPLE_S, is_busy=True)

    assert one.share == FIRST_SHARE


def test_an_engine_whose_size_is_no_longer_told_is_not_judged() -> None:
    """Nothing is known of what it should hit."""
    played = Played()
    played.gate.expect_hits(1000)
    refuse(played.gate, 1.0)
    played.gate.learn(engine(None, prefix_hits=0, computed=5000), 1.0, is_busy=True)

    assert played.gate.share == FIRST_SHARE


def test_old_hits_fade() -> None:
    """What was hit counts less by a factor of e for each window, so a change shows within one."""
    played = Played()
    played.samples(160, 100, 100)
    vain = 0
    while played.sample(100, 0) == FIRST_SHARE:
        vain += 1

    # As much is computed as should be hit; 0.3 of it is lost when 0.7 is exp(-time / window).
    assert vain * SAMPLE_S == pytest.approx(-HITS_WINDOW_S * math.log(0.7), abs=2 * SAMPLE_S)


def test_a_change_of_the_share_is_judged_anew() -> None:
    """After a back-off what was missed before does not count against the smaller share."""
    played = Played()
    played.sample(1000, 0)

    assert played.samples(40, 30, 30) == pytest.approx([FIRST_SHARE * BACK_OFF] * 40)


def test_hits_before_the_first_count_are_not_known() -> None:
    """A counter's first value, and one after a time when none was told, are not hits of just now."""
    one = SessionGate()
    for number, hits in enumerate([None, 10**6, None, 10**6]):
        one.learn(engine(prefix_hits=hits), number * SAMPLE_S, is_busy=True)
    one.expect_hits(100)
    refuse(one, 1.0)
    one.learn(engine(prefix_hits=10**6, computed=100), 1.0, is_busy=True)

    assert one.share == pytest.approx(FIRST_SHARE * BACK_OFF)


def test_an_engine_that_began_anew_has_hit_nothing_yet() -> None:
    """Counters that fall take nothing back of what was hit before."""
    played = Played()
    played.samples(160, 100, 100)
    played.hits = played.computed = 0

    assert played.samples(20, 100, 100) == [FIRST_SHARE] * 20


def test_preemptions_shrink_the_share() -> None:
    """An engine that puts requests back has too much to do; that counts once in the time of a back-off."""
    played = Played()
    shares = [played.sample(0, 0, preemptions=preemptions) for preemptions in range(1, 22)]

    smaller = [FIRST_SHARE * BACK_OFF**times for times in (1, 2)]
    assert shares == pytest.approx([smaller[0]] * 20 + [smaller[1]])


def test_only_a_rise_of_preemptions_counts() -> None:
    """A first count, the same again, and that of an engine begun anew are no preemptions."""
    one = SessionGate()
    for number, preemptions in enumerate([None, 7, 7, None, 9, 2, 2]):
        refuse(one, number * SAMPLE_S)
        one.learn(engine(preemptions=preemptions), number * SAMPLE_S, is_busy=True)
    assert one.share == FIRST_SHARE

    refuse(one, 10.0)
    one.learn(engine(preemptions=3), 10.0, is_busy=True)
    assert one.share == pytest.approx(FIRST_SHARE * BACK_OFF)


def test_the_share_begins_again_when_nothing_is_held() -> None:
    """What was learned of other sessions holds none of those that come `CALM_S` after the last that was held."""
    played = Played()
    assert played.samples(4, 100, 0)[-1] < FIRST_SHARE
    calm = int(CALM_S / SAMPLE_S)
    shares = played.samples(calm, 0, 0, holds=False)

    assert shares[:-1] == [pytest.approx(FIRST_SHARE * BACK_OFF)] * (calm - 1)
    assert shares[-1] == FIRST_SHARE


def test_the_gate_opens_where_holding_does_not_help() -> None:
    """When much is lost even at the least share, all are admitted for `OPEN_S`, and the share begins again."""
    played = Played()
    while played.gate.share > LEAST_SHARE:
        assert not played.is_open()
        played.sample(100, 0)
    at_least_s = played.now_s
    while not played.is_open():
        assert played.gate.share == LEAST_SHARE
        played.sample(100, 0)
    opened_s = played.now_s
    assert opened_s == at_least_s + BACK_OFF_EVERY_S
    assert played.gate.share == FIRST_SHARE
    while played.is_open():
        played.sample(100, 0)

    assert played.now_s == opened_s + OPEN_S
    assert played.gate.share == FIRST_SHARE


# Holds


def held(number: int) -> Waiting:
    """Make a call that is held; numbers count arrivals."""
    return Waiting(Ticket(TicketId(str(number)), PoolId("chat"), 1), number, 0.0, 100.0)


def test_sessions_that_were_given_up_are_admitted_before_new_ones() -> None:
    """Resumed calls go first, each kind as they came; the longest held is told apart from the first."""
    holds, calls = Holds(), [held(number) for number in range(6)]
    for each in calls:
        holds.add(each, is_resumed=each.number in (2, 4))
    order: list[tuple[int, int, int]] = []
    while (first := holds.first()) is not None:
        longest = holds.longest()
        assert longest is not None
        order.append((first.number, longest.number, len(holds)))
        holds.remove(first)

    assert order == [(2, 0, 6), (4, 0, 5), (0, 0, 4), (1, 1, 3), (3, 3, 2), (5, 5, 1)]
    assert (len(holds), holds.longest()) == (0, None)


def test_the_longest_held_may_be_a_resumed_one() -> None:
    """Whoever came first of both kinds has been held longest."""
    holds = Holds()
    for number, is_resumed in ((1, True), (2, False), (3, True)):
        holds.add(held(number), is_resumed=is_resumed)
    longest = holds.longest()
    assert longest is not None
    assert longest.number == 1
    holds.remove(longest)
    longest = holds.longest()

    assert longest is not None
    assert longest.number == 2


def test_a_call_knows_whether_it_is_held() -> None:
    """It is held from `add` to `remove`, whichever of those held it is."""
    holds, calls = Holds(), [held(number) for number in range(3)]
    for each in calls:
        holds.add(each, is_resumed=False)
    holds.remove(calls[1])

    assert [each.is_held for each in calls] == [True, False, True]
    assert len(holds) == 2
