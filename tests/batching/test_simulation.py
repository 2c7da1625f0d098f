"""Clients against models of engines: what happens when, past the scheduler and through it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_batching.limits import FixedLimit, Limit, LimitPolicy, Load
from muster_batching.policy import Policy, WaitingLimits
from muster_batching.samples import EngineSample
from muster_batching.scheduler import Scheduler
from muster_batching.testing import EngineModel, EngineProfile
from muster_batching.testing.simulation import (
    Call,
    Conditions,
    Metrics,
    Record,
    Script,
    Simulated,
    Start,
    Think,
    simulate,
)
from muster_batching.tickets import Outcome, RequestClass, SessionId, TenantId, UpstreamId

A, B = UpstreamId("a"), UpstreamId("b")

# A step takes a second, whatever is in it: a prompt and n tokens take n seconds.
SLOW = EngineProfile(
    max_num_seqs=2,
    max_num_batched_tokens=64,
    kv_blocks=1_000,
    step_s=1.0,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
)
SINGLE = EngineProfile(
    max_num_seqs=1,
    max_num_batched_tokens=64,
    kv_blocks=1_000,
    step_s=1.0,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
)
SHORT, LONG = Call(input_tokens=10, output_tokens=1), Call(input_tokens=10, output_tokens=3)


def client(*wishes: Call | Think | Start, heard: list[Record | None] | None = None) -> Script:
    """A client that does one thing after another, and keeps what it is sent."""
    for wish in wishes:
        record = yield wish
        if heard is not None:
            heard.append(record)


def fixed(slots: int) -> Conditions:
    """An engine with so many slots."""
    return Conditions(limit=FixedLimit(slots))


def test_a_call_goes_straight_to_the_engine() -> None:
    """Without a scheduler its record is the engine's doing alone."""
    done = simulate([(2.0, client(LONG))], {A: EngineModel(SLOW)}, None)

    record = Record(LONG, 2.0, 2.0, 3.0, 5.0, "completed", upstream=A, output_tokens=3)
    assert done == Simulated([record], ended_s=5.0)
    assert record.ttft_s == 1.0


def test_a_client_goes_on_with_what_it_heard() -> None:
    """A call's record is sent back when it has ended, thinking takes its time, and nothing else is sent."""
    heard: list[Record | None] = []
    done = simulate([(0.0, client(SHORT, Think(5.0), LONG, heard=heard))], {A: EngineModel(SLOW)}, None)

    assert heard == [done.records[0], None, done.records[1]]
    assert [record.sent_s for record in done.records] == [0.0, 6.0]
    assert done.ended_s == 9.0


def test_a_client_starts_others_beside_itself() -> None:
    """They run at the same time, and the run lasts until the last of them has ended."""
    done = simulate([(0.0, client(Think(1.0), Start(client(LONG)), SHORT))], {A: EngineModel(SLOW)}, None)

    assert [(record.call, record.sent_s, record.ended_s) for record in done.records] == [
        (SHORT, 1.0, 2.0),
        (LONG, 1.0, 5.0),
    ]


def test_going_direct_takes_the_engine_with_the_fewest_in_flight() -> None:
    """One after another, until they are even."""
    engines = {A: EngineModel(SLOW), B: EngineModel(SLOW)}
    done = simulate([(0.1 * n, client(LONG)) for n in range(3)], engines, None)

    assert [record.upstream for record in done.records] == [A, B, A]


def test_a_prefix_that_is_cached_is_told() -> None:
    """The second call of a session finds the blocks of the first."""
    first = Call(input_tokens=32, output_tokens=1, blocks=(1, 2))
    second = Call(input_tokens=48, output_tokens=1, blocks=(1, 2, 3))
    done = simulate([(0.0, client(first, second))], {A: EngineModel(SLOW)}, None)

    assert [record.cached_tokens for record in done.records] == [0, 32]


@pytest.mark.parametrize("scheduler", [None, Scheduler()])
def test_a_client_hangs_up_at_its_deadline(scheduler: Scheduler | None) -> None:
    """The engine is rid of its request at once, and the next in its queue moves up."""
    hasty = Call(input_tokens=10, output_tokens=3, ttft_deadline_s=1.5)
    engine = EngineModel(SINGLE)
    scripts = [(0.0, client(LONG)), (0.1, client(hasty)), (0.2, client(SHORT))]
    done = simulate(scripts, {A: engine}, scheduler, fixed(3))

    assert done.records[1] == Record(hasty, 0.1, 0.1, None, 1.6, "gave_up", upstream=A)
    assert done.records[2].first_token_s == 4.0
    assert scheduler is None or scheduler.ends[Outcome.CANCELLED] == 1


def test_a_client_may_leave_before_its_turn() -> None:
    """One that did not tell its deadline waits with the others until it hangs up, and never reaches the engine."""
    scheduler = Scheduler()
    silent = Call(input_tokens=10, output_tokens=1, ttft_deadline_s=1.5, tells_deadline=False)
    scripts = [(0.0, client(LONG)), (0.25, client(silent))]
    done = simulate(scripts, {A: EngineModel(SLOW)}, scheduler, fixed(1))

    assert done.records[1] == Record(silent, 0.25, ended_s=1.75, outcome="gave_up")
    assert scheduler.ends[Outcome.CANCELLED] == 1


def test_a_deadline_that_was_met_cuts_nothing() -> None:
    """The first token came in time: the answer may take as long as it takes, or be over already."""
    patient = Call(input_tokens=10, output_tokens=3, ttft_deadline_s=1.5)
    brief = Call(input_tokens=10, output_tokens=1, ttft_deadline_s=4.0)
    done = simulate([(0.0, client(patient)), (0.0, client(brief))], {A: EngineModel(SLOW)}, None)

    assert [record.outcome for record in done.records] == ["completed", "completed"]


def test_the_scheduler_says_when_a_call_goes() -> None:
    """With one slot the second goes as the first ends, and each end is told with what was used."""
    scheduler = Scheduler()
    scripts = [(0.0, client(LONG)), (1.0, client(SHORT))]
    done = simulate(scripts, {A: EngineModel(SLOW)}, scheduler, fixed(1))

    assert [record.dispatched_s for record in done.records] == [0.0, 3.0]
    assert scheduler.ends[Outcome.COMPLETED] == 2
    assert scheduler.in_flight == scheduler.waiting == 0


def test_a_client_that_is_turned_away_hears_so_at_once() -> None:
    """It is told when to come again, and goes on with its script."""
    scheduler = Scheduler(Policy.of(WaitingLimits(max_waiting=0)))
    heard: list[Record | None] = []
    scripts = [(0.0, client(LONG)), (1.0, client(SHORT, Think(4.0), SHORT, heard=heard))]
    done = simulate(scripts, {A: EngineModel(SLOW)}, scheduler, fixed(1))

    refused, answered = heard[0], heard[2]
    assert refused is not None
    assert answered is not None
    assert (refused.outcome, refused.sent_s, refused.ended_s) == ("turned_away", 1.0, 1.0)
    assert refused.retry_after_s is not None
    assert (answered.outcome, answered.sent_s) == ("completed", 5.0)
    assert len(done.records) == 3


def test_the_scheduler_is_woken_when_it_asks_to_be() -> None:
    """A call that has waited as long as it may is turned away at that very time."""
    scheduler = Scheduler(Policy.of(WaitingLimits(max_wait_s=1.25)))
    scripts = [(0.0, client(LONG)), (0.5, client(SHORT))]
    done = simulate(scripts, {A: EngineModel(SLOW)}, scheduler, fixed(1))

    assert (done.records[1].outcome, done.records[1].ended_s) == ("turned_away", 1.75)


def test_a_ticket_says_what_the_call_does() -> None:
    """A call of class batch waits for a later one of class interactive."""
    calls = [
        Call(10, 2, tenant=TenantId("t"), session=SessionId("s"), ends_session=True),
        Call(10, 1, RequestClass.BATCH),
        Call(10, 1, RequestClass.INTERACTIVE),
    ]
    scripts = [(0.1 * n, client(call)) for n, call in enumerate(calls)]
    done = simulate(scripts, {A: EngineModel(SINGLE)}, Scheduler(), fixed(1))

    first, batch, interactive = done.records
    assert (first.ended_s, interactive.dispatched_s) == (2.0, 2.0)
    assert batch.dispatched_s == 3.0


def test_time_can_be_up() -> None:
    """What is under way then has no end."""
    done = simulate([(0.0, client(LONG))], {A: EngineModel(SLOW)}, None, Conditions(until_s=2.5))

    assert done.ended_s == 2.5
    assert done.records == [Record(LONG, 0.0, 0.0, 1.0, upstream=A)]
    assert (done.records[0].outcome, done.records[0].ended_s) == ("unfinished", None)


def test_an_end_without_a_first_token_is_no_time_to_it() -> None:
    """A call that got nothing has none."""
    assert Record(SHORT, 1.0).ttft_s is None


def test_nothing_to_do_takes_no_time() -> None:
    """Without clients a run is over as it begins."""
    assert simulate([], {A: EngineModel(SLOW)}, Scheduler()) == Simulated()


def test_clients_that_never_act_again_end_the_run() -> None:
    """Nothing is due, so nothing is waited for."""
    done = simulate([(float("inf"), client(SHORT))], {A: EngineModel(SLOW)}, None)

    assert done.records == []


def test_each_end_is_told() -> None:
    """Once for each call, in the order of their ends."""
    ended: list[Record] = []
    conditions = Conditions(on_end=ended.append)
    done = simulate([(0.0, client(LONG)), (0.0, client(SHORT))], {A: EngineModel(SLOW)}, None, conditions)

    assert ended == [done.records[1], done.records[0]]


def test_the_schedulers_time_is_measured() -> None:
    """Between two looks at a stopwatch that moves on by one, each decision takes one."""
    ticks = itertools.count()
    conditions = Conditions(limit=FixedLimit(1), metrics="missing", stopwatch=lambda: float(next(ticks)))
    scripts = [(0.0, client(SHORT)), (0.0, client(SHORT))]
    done = simulate(scripts, {A: EngineModel(SLOW)}, Scheduler(), conditions)

    assert [record.submit_s for record in done.records] == [1.0, 1.0]
    assert done.decisions >= 4  # two submitted, two finished, and how often it was woken is its own business
    assert done.scheduler_s == done.decisions


@dataclass(frozen=True)
class Watching:
    """A fixed limit that keeps what it is told."""

    most: int
    seen: list[tuple[float, EngineSample]] = field(default_factory=list[tuple[float, EngineSample]])
    begun: list[int] = field(default_factory=list[int])

    def start(self) -> Limit:
        """Watch."""
        return _Watch(self)


class _Watch:
    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    def slots(self) -> int:
        return self._watching.most

    def capacity(self) -> int:
        return self._watching.most

    def probe(self) -> int:
        return 0

    def sampled(self, sample: EngineSample, load: Load, now_s: float) -> None:
        self._watching.seen.append((now_s, sample))
        self._watching.begun.append(load.begun)

    def ended(self, load: Load, now_s: float, *, is_push_back: bool) -> None:
        pass


def watched(metrics: Metrics, most: int = 8) -> Watching:
    """What a scheduler gets to see while two answers of 8 s are under way and one waits, for a slot if `most` is 2."""
    policy: LimitPolicy
    policy = watching = Watching(most)
    eight = Call(input_tokens=10, output_tokens=8)
    conditions = Conditions(metrics=metrics, sample_every_s=0.5, limit=policy)
    simulate([(0.0, client(eight)) for _ in range(3)], {A: EngineModel(SLOW)}, Scheduler(), conditions)
    return watching


def queues(watching: Watching) -> Sequence[tuple[float, int]]:
    """The engine's queue, as seen."""
    return [(now_s, sample.waiting) for now_s, sample in watching.seen]


HONEST = [(0.0, 0), (2.0, 1), (4.0, 1), (6.0, 1), (8.0, 1), (10.0, 0), (12.0, 0), (14.0, 0), (16.0, 0)]


def test_honest_metrics_are_the_engines() -> None:
    """Read at the start and every 2 s, with what has begun by then."""
    watching = watched("honest")

    assert queues(watching) == HONEST
    assert watching.begun == [0, 2, 2, 2, 1, 1, 1, 1, 0]


def test_metrics_are_read_more_often_while_something_waits() -> None:
    """Every 0.5 s until the third has its slot, just before 8 s; then every 2 s."""
    times_s = [now_s for now_s, _ in watched("honest", most=2).seen]

    assert times_s[:18] == [*(number / 2 for number in range(16)), 9.5, 11.5]


@pytest.mark.parametrize(
    ("metrics", "seen"),
    [
        ("missing", []),
        ("lost", HONEST[:3]),
        ("stale", [*HONEST[:3], *((now_s, 1) for now_s, _ in HONEST[3:])]),
        ("zero", [(now_s, 0) for now_s, _ in HONEST]),
        ("full", [(now_s, 1_000) for now_s, _ in HONEST]),
    ],
)
def test_metrics_fail_as_they_are_told_to(metrics: Metrics, seen: list[tuple[float, int]]) -> None:
    """Never there, gone after 5 s, the same from then on, always idle, always full."""
    assert queues(watched(metrics)) == seen


@given(
    calls=st.lists(
        st.tuples(
            st.floats(0.0, 20.0),
            st.integers(1, 60),
            st.integers(1, 8),
            st.none() | st.floats(0.5, 10.0),
            st.sampled_from(RequestClass),
        ),
        max_size=30,
    ),
    is_direct=st.booleans(),
)
def test_every_call_comes_to_one_end(
    calls: list[tuple[float, int, int, float | None, RequestClass]], *, is_direct: bool
) -> None:
    """Nothing is left in the engine or the scheduler, nothing is unfinished, and a second run is the same."""

    def run() -> tuple[Simulated, EngineModel, Scheduler]:
        engine, scheduler = EngineModel(SLOW), Scheduler()
        scripts = [
            (start_s, client(Call(tokens, answer, request_class, ttft_deadline_s=deadline_s)))
            for start_s, tokens, answer, deadline_s, request_class in calls
        ]
        return simulate(scripts, {A: engine}, None if is_direct else scheduler, fixed(3)), engine, scheduler

    done, engine, scheduler = run()

    assert len(done.records) == len(calls)
    assert all(
        record.outcome != "unfinished" and (record.ended_s or 0.0) >= record.sent_s for record in done.records
    )
    assert all((record.outcome == "completed") == bool(record.output_tokens) for record in done.records)
    engine.advance(now_s=done.ended_s + 1e6)  # the step in which the last client left has ended too
    assert (engine.sample().running, engine.sample().waiting) == (0, 0)
    assert scheduler.in_flight == scheduler.waiting == 0
    assert run()[0] == done
