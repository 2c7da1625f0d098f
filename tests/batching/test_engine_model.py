"""The model of an engine batches as vLLM does, and a step-by-step play of the same rules agrees with it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_batching import ClockWentBackError
from muster_batching.samples import EngineSample
from muster_batching.testing import (
    CPU_135M,
    H200_8B,
    EngineModel,
    EngineProfile,
    EngineRequest,
    Finished,
    FirstToken,
)
from muster_batching.testing.stretch import Stretch

# Powers of two, so that sums of times are exact.
SMALL = EngineProfile(
    max_num_seqs=3,
    max_num_batched_tokens=16,
    kv_blocks=8,
    block_size=4,
    step_s=1.0,
    decode_s=0.25,
    context_s=1 / 64,
    prefill_s=0.125,
    attention_s=1 / 256,
    request_s=0.5,
)
STEADY = replace(
    SMALL,
    max_num_batched_tokens=32,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
    attention_s=0.0,
    request_s=0.0,
)
"""A step takes a second, whatever is in it."""

CHUNKED = replace(STEADY, max_num_batched_tokens=16)

Event = FirstToken | Finished


def ask(name: str, prompt: int, output: int, blocks: Iterable[int] = (), priority: int = 0) -> EngineRequest:
    """A request."""
    return EngineRequest(name, prompt, output, tuple(blocks), priority)


def engine_with(profile: EngineProfile, *requests: EngineRequest) -> EngineModel:
    """An engine that got these requests at 0, in order."""
    engine = EngineModel(profile)
    for request in requests:
        engine.add(request, now_s=0.0)
    return engine


def drain(engine: EngineModel) -> list[Event]:
    """All that happens until the engine is idle."""
    events: list[Event] = []
    while (due_s := engine.next_event_s()) is not None:
        events += engine.advance(now_s=due_s)
    return events


def times(events: Iterable[Event]) -> list[tuple[str, str, float]]:
    """The events in short: what, whose and when."""
    return [("first" if isinstance(event, FirstToken) else "end", event.id, event.at_s) for event in events]


def test_a_step_takes_what_the_formula_says() -> None:
    """A prompt of 8 tokens is one step; the two steps after it read 9 and 10 tokens of context."""
    engine = engine_with(SMALL, ask("a", 8, 3))
    first_s = 1.0 + 0.5 + 8 * 0.125 + sum(range(1, 9)) / 256

    assert times(drain(engine)) == [("first", "a", first_s), ("end", "a", first_s + 2 * 1.25 + (9 + 10) / 64)]


def test_an_answer_of_one_token_ends_as_it_begins() -> None:
    """The first token is the last."""
    assert times(drain(engine_with(STEADY, ask("a", 8, 1)))) == [("first", "a", 1.0), ("end", "a", 1.0)]


def test_a_request_joins_at_the_next_border_of_two_steps() -> None:
    """One that comes at 1.5 is taken up at 2, though the engine had planned to decode on."""
    engine = engine_with(STEADY, ask("a", 4, 9))
    events = engine.advance(now_s=1.5)
    engine.add(ask("b", 4, 2), now_s=1.5)

    assert times(events + drain(engine)) == [
        ("first", "a", 1.0),
        ("first", "b", 3.0),
        ("end", "b", 4.0),
        ("end", "a", 9.0),
    ]


def test_what_happened_before_a_call_is_told_by_the_next_advance() -> None:
    """An arrival ends the steps that are due, and their events are kept, with their times."""
    engine = engine_with(STEADY, ask("a", 4, 1))
    engine.add(ask("b", 4, 1), now_s=5.0)

    assert (engine.next_step_s(), engine.next_event_s()) == (5.0, 5.0)
    assert times(engine.advance(now_s=5.0)) == [("first", "a", 1.0), ("end", "a", 1.0)]
    assert engine.next_step_s() == 6.0


def test_a_long_prompt_is_computed_in_chunks_beside_those_who_decode() -> None:
    """Of 16 tokens a step, decoding takes its one first: a prompt of 24 takes two steps, and decoding goes on."""
    engine = engine_with(SMALL, ask("a", 4, 4), ask("b", 24, 1))
    begins_s = 1.0 + 0.5 + 4 * 0.125 + sum(range(1, 5)) / 256
    first_chunk_s = 1.25 + 0.5 + 15 * 0.125 + 5 / 64 + sum(range(1, 16)) / 256
    second_chunk_s = 1.25 + 9 * 0.125 + 6 / 64 + sum(range(16, 25)) / 256

    assert times(drain(engine))[:2] == [
        ("first", "a", begins_s),
        ("first", "b", begins_s + first_chunk_s + second_chunk_s),
    ]


def test_no_more_than_max_num_seqs_run() -> None:
    """The fourth of four takes the place of the first that ends."""
    engine = engine_with(STEADY, *(ask(name, 2, 3) for name in "abcd"))

    assert engine.advance(now_s=3.5)[-1] == Finished("a", 3.0, 0)
    assert (engine.sample().running, engine.sample().waiting) == (
        2,
        1,
    )  # as the step ended that made a's last token
    assert ("first", "d", 4.0) in times(drain(engine))


def test_nobody_passes_a_head_that_finds_no_room() -> None:
    """A small request behind one that lacks blocks waits with it."""
    engine = engine_with(STEADY, ask("a", 16, 3), ask("big", 20, 1), ask("small", 1, 1))

    assert times(drain(engine)) == [
        ("first", "a", 1.0),
        ("end", "a", 3.0),
        ("first", "big", 4.0),
        ("end", "big", 4.0),
        ("first", "small", 4.0),
        ("end", "small", 4.0),
    ]


def test_the_last_that_came_in_is_preempted_when_blocks_run_out() -> None:
    """It goes back to the head of the queue, and computes its prompt and its answer so far again."""
    engine = engine_with(STEADY, ask("a", 12, 9), ask("b", 16, 3), ask("c", 1, 1))
    before = engine.advance(now_s=2.5)
    assert (engine.tokens_of("a"), engine.tokens_of("b")) == (2, 1)
    before += engine.advance(now_s=3.5)
    assert engine.sample() == EngineSample(1, 2, 0.5, 32, 1, 28, 0)

    assert times(before + drain(engine)) == [
        ("first", "a", 1.0),
        ("first", "b", 2.0),
        ("end", "a", 9.0),
        ("first", "c", 10.0),
        ("end", "c", 10.0),
        ("end", "b", 11.0),
    ]


def test_a_prompt_under_way_is_preempted_too() -> None:
    """It is last to come in, so it goes before those who decode; its prompt begins anew."""
    engine = engine_with(CHUNKED, ask("a", 3, 9), ask("b", 25, 1))
    engine.advance(now_s=3.5)

    assert engine.sample() == EngineSample(1, 1, 0.25, 32, 1, 28, 0)
    assert ("first", "b", 11.0) in times(drain(engine))


@pytest.mark.parametrize(("policy", "order"), [("fcfs", "abcd"), ("priority", "adbc")])
def test_priority_orders_the_queue_where_the_policy_says_so(policy: Any, order: str) -> None:
    """Lower comes first, then who came first; without the policy it is who came first."""
    profile = replace(STEADY, max_num_seqs=1, policy=policy)
    requests = [ask("a", 4, 2, priority=5), ask("b", 4, 1, priority=1), ask("c", 4, 1, priority=1)]
    engine = engine_with(profile, *requests, ask("d", 4, 1, priority=0))

    assert "".join(name for what, name, _ in times(drain(engine)) if what == "end") == order


def test_priority_preempts_who_matters_least() -> None:
    """The first to come in goes, for its priority is the higher number."""
    profile = replace(STEADY, policy="priority")
    engine = engine_with(profile, ask("a", 12, 9, priority=3), ask("b", 16, 9, priority=2))
    engine.advance(now_s=2.5)
    assert (engine.tokens_of("a"), engine.tokens_of("b")) == (2, 1)

    engine.advance(now_s=3.5)
    assert engine.sample() == EngineSample(1, 1, 0.625, 32, 1, 28, 0)


def test_the_next_turn_of_a_conversation_is_found_in_the_cache() -> None:
    """Full blocks of prompt and answer are found, all but the block of the prompt's last token."""
    engine = engine_with(STEADY, ask("a", 10, 7, [1, 2, 3, 4]))
    drain(engine)
    assert (engine.blocks.active, engine.blocks.cached) == (0, 4)

    engine.add(ask("b", 18, 1, [1, 2, 3, 4]), now_s=10.0)
    engine.add(ask("same", 16, 1, [1, 2, 3, 4]), now_s=10.0)
    ends = [event for event in drain(engine) if isinstance(event, Finished)]

    assert ends == [Finished("b", 11.0, 16), Finished("same", 12.0, 12)]
    assert (engine.sample().prefix_queries, engine.sample().prefix_hits) == (10 + 18 + 16, 28)


def test_requests_that_run_together_share_the_blocks_of_their_prefix() -> None:
    """The second of one step holds the first's blocks, which count once, and computes its own rest alone."""
    engine = engine_with(STEADY, ask("a", 4, 1), ask("b", 8, 3, [1, 2]), ask("c", 10, 3, [1, 2]))
    engine.advance(now_s=1.5)
    assert engine.blocks.active == 3

    events = engine.advance(now_s=2.0)
    assert engine.sample().running == 2
    assert [event.cached_tokens for event in events + drain(engine) if event.id == "c"] == [8, 8]


def test_a_prefix_that_a_request_computes_again_is_kept_once() -> None:
    """A prompt's last block is computed though it is cached; its copy is given up at the end."""
    engine = engine_with(STEADY, ask("a", 8, 4, [1, 2]), ask("b", 8, 2, [1, 2]))
    drain(engine)

    assert (engine.blocks.active, engine.blocks.cached) == (0, 2)


def test_what_was_given_back_longest_ago_is_evicted_first_and_last_blocks_before_first() -> None:
    """Of 8 cached blocks a request of 5 evicts all of the oldest and the latter of the next."""
    engine = EngineModel(replace(STEADY, max_num_seqs=1))
    for number, name in enumerate("abc"):
        blocks = [10 * number + 1, 10 * number + 2]
        engine.add(ask(name, 9, 1, blocks), now_s=10.0 * number)
    engine.add(ask("nameless", 17, 1), now_s=30.0)
    engine.advance(now_s=39.0)

    assert [engine.blocks.find([first, first + 1]) for first in (1, 11, 21)] == [0, 1, 2]
    assert engine.blocks.cached == 3 + 4


def test_blocks_that_nobody_can_find_take_room_in_the_cache_too() -> None:
    """A nameless request's blocks are evicted in their turn, one by one, before younger ones."""
    engine = engine_with(replace(STEADY, max_num_seqs=1), ask("old", 20, 1), ask("young", 8, 1, [1, 2]))
    engine.add(ask("next", 12, 1), now_s=20.0)
    engine.advance(now_s=29.0)
    assert (engine.blocks.cached, engine.blocks.find([1, 2])) == (8, 2)

    engine.add(ask("last", 28, 1), now_s=30.0)
    assert (engine.blocks.active, engine.blocks.cached, engine.blocks.find([1, 2])) == (7, 1, 0)


def test_usage_counts_active_blocks_alone() -> None:
    """What is only cached reads as free."""
    engine = engine_with(STEADY, ask("a", 16, 2, [1, 2, 3, 4]))
    engine.advance(now_s=1.0)
    assert engine.sample().kv_usage == 0.5

    drain(engine)
    assert (engine.sample().kv_usage, engine.blocks.cached) == (0.0, 4)


def test_an_abort_frees_blocks_at_once_and_lets_the_queue_in_at_the_border() -> None:
    """The step under way still takes its time."""
    engine = engine_with(STEADY, ask("a", 30, 3), ask("b", 8, 1))
    engine.advance(now_s=2.5)

    assert engine.abort("a", now_s=2.5)
    assert engine.blocks.active == 0
    assert times(drain(engine)) == [("first", "b", 4.0), ("end", "b", 4.0)]


def test_an_aborted_prompt_leaves_what_was_computed_in_the_cache() -> None:
    """Its first chunk's blocks can be found, the others not."""
    engine = engine_with(CHUNKED, ask("a", 30, 2, range(1, 8)))
    engine.advance(now_s=1.5)

    assert engine.abort("a", now_s=1.5)
    assert (engine.blocks.active, engine.blocks.cached, engine.blocks.find(range(1, 8))) == (0, 4, 4)
    assert drain(engine) == []


def test_a_shared_block_outlives_the_abort_of_who_was_to_compute_it() -> None:
    """The other request still holds it."""
    engine = engine_with(STEADY, ask("a", 1, 9), ask("b", 8, 9, [1, 2]), ask("c", 12, 9, [1, 2, 3]))
    engine.advance(now_s=1.5)

    assert engine.abort("b", now_s=1.5)
    assert (engine.blocks.find([1, 2, 3]), engine.blocks.active) == (3, 4)


def test_an_abort_in_the_queue() -> None:
    """The request never runs, and who stood behind it moves up."""
    engine = engine_with(replace(STEADY, max_num_seqs=1), *(ask(name, 4, 2) for name in "abc"))

    assert engine.abort("b", now_s=0.5)
    ends = engine.advance(now_s=1.0)
    assert (engine.sample().running, engine.sample().waiting) == (1, 0)  # c came during the step that ended
    assert times(ends + drain(engine))[2:] == [("first", "c", 3.0), ("end", "c", 4.0)]


def test_an_abort_of_one_that_has_ended_or_never_was() -> None:
    """It is told so, and the end stays what it was."""
    engine = engine_with(STEADY, ask("a", 4, 1))

    assert not engine.abort("a", now_s=3.0)
    assert not engine.abort("nobody", now_s=3.0)
    with pytest.raises(KeyError):
        engine.tokens_of("a")
    assert times(engine.advance(now_s=3.0)) == [("first", "a", 1.0), ("end", "a", 1.0)]


def test_steps_and_events_are_announced() -> None:
    """The end of the step under way, and the first time at which there may be something to tell."""
    engine = EngineModel(STEADY)
    assert (engine.next_step_s(), engine.next_event_s()) == (None, None)

    engine.add(ask("a", 4, 10), now_s=0.0)
    engine.advance(now_s=3.5)
    assert (engine.next_step_s(), engine.next_event_s(), engine.tokens_of("a")) == (4.0, 10.0, 3)


def test_an_hour_of_one_answer_is_one_event_away() -> None:
    """A million steps that only decode end in one go, at the time that their sum has."""
    profile = replace(SMALL, kv_blocks=1_000_000)
    engine = engine_with(profile, ask("a", 8, 1_000_001))
    engine.advance(now_s=3.0)

    assert engine.next_event_s() == 2.5 + 36 / 256 + 1_000_000 * 1.25 + sum(range(9, 1_000_009)) / 64
    assert times(engine.advance(now_s=1e12))[0][:2] == ("end", "a")


@pytest.mark.parametrize("growth_s", [0.0, 1e-5])
def test_a_steps_end_is_known_to_the_last_bit(growth_s: float) -> None:
    """At the time that is said to be its end a step has ended, and an instant before it has not."""
    stretch = Stretch(
        start_s=10.6, extra_s=0.0, step_s=0.029, context_s=0.009, growth_s=growth_s, limit=5_000
    )
    ends_s = [stretch.end_s(step) for step in range(1, 5_000)]

    assert [stretch.steps_by(end_s) for end_s in ends_s] == [*range(1, 5_000)]
    assert [stretch.steps_by(math.nextafter(end_s, 0.0)) for end_s in ends_s] == [*range(4_999)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_num_seqs": 0},
        {"kv_blocks": 0},
        {"max_num_batched_tokens": 2},
        {"step_s": 0.0},
        {"context_s": -1.0},
    ],
)
def test_a_profile_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    """No engine could be so."""
    with pytest.raises(ValueError, match="expected"):
        replace(SMALL, **wrong)


@pytest.mark.parametrize(("prompt", "output"), [(0, 1), (1, 0)])
def test_a_request_without_tokens_is_refused(prompt: int, output: int) -> None:
    """A prompt and an answer have a token or more."""
    with pytest.raises(ValueError, match="token or more"):
        ask("a", prompt, output)


def test_a_request_that_can_never_fit_is_refused() -> None:
    """The whole cache holds 32 tokens; the answer's last token is never in it."""
    with pytest.raises(ValueError, match="32 tokens or less, got 33"):
        engine_with(STEADY, ask("a", 30, 4))

    assert len(drain(engine_with(STEADY, ask("a", 30, 3)))) == 2


def test_an_id_is_unique_among_those_that_have_not_ended() -> None:
    """It is free again after the end."""
    engine = engine_with(STEADY, ask("a", 1, 1))
    with pytest.raises(ValueError, match="has not ended"):
        engine.add(ask("a", 1, 1), now_s=0.5)

    engine.add(ask("a", 1, 1), now_s=1.0)
    assert len(drain(engine)) == 4


def test_time_never_goes_back() -> None:
    """Each call is refused whose time has passed."""
    engine = EngineModel(STEADY)
    engine.advance(now_s=2.0)

    with pytest.raises(ClockWentBackError):
        engine.advance(now_s=1.0)
    with pytest.raises(ClockWentBackError):
        engine.add(ask("a", 1, 1), now_s=1.0)
    with pytest.raises(ClockWentBackError):
        engine.abort("a", now_s=1.0)


@pytest.mark.parametrize(
    ("profile", "tokens_per_s"), [(H200_8B, (10_000, 20_000)), (CPU_135M, (50, 500))], ids=["h200", "cpu"]
)
def test_the_profiles_are_of_the_size_that_they_claim(
    profile: EngineProfile, tokens_per_s: tuple[int, int]
) -> None:
    """A full batch of short answers decodes at a speed that such hardware has."""
    requests = (ask(str(number), 64, 256) for number in range(profile.max_num_seqs))
    done_s = drain(engine_with(profile, *requests))[-1].at_s

    assert tokens_per_s[0] < profile.max_num_seqs * 256 / done_s < tokens_per_s[1]


@dataclass(frozen=True)
class Arrive:
    """A request comes."""

    at_s: float
    request: EngineRequest


@dataclass(frozen=True)
class Hang:
    """A client hangs up."""

    at_s: float
    id: str


Call = Arrive | Hang


@dataclass(eq=False)
class Plain:
    """A request in the step-by-step play."""

    request: EngineRequest
    rank: tuple[int, int]
    tokens: int = 0
    computed: int = 0
    blocks: int = 0
    is_decoding: bool = False

    @property
    def left(self) -> int:
        """Tokens of it that are not in the KV cache."""
        return self.request.prompt_tokens + self.tokens - self.computed


class StepByStep:
    """The same rules without a short cut: every step looks at every sequence. Blocks have no names."""

    def __init__(self, profile: EngineProfile, calls: Iterable[Call]) -> None:
        self.profile = profile
        self.calls = list(calls)
        self.waiting: list[Plain] = []
        self.running: list[Plain] = []
        self.events: list[Event] = []
        self.preemptions = 0
        self.told = [(0.0, 0, 0)]
        """When a step ended, and how many of those whom its scheduler knew then ran and waited."""

    def play(self) -> list[Event]:
        """Play to the end."""
        now_s = 0.0
        while self.calls or self.waiting or self.running:
            if not self.waiting and not self.running:
                now_s = self.calls[0].at_s
                self._hear(self.calls.pop(0))
            else:
                now_s = self._step(now_s)
        return self.events

    def _hear(self, call: Call) -> None:
        if isinstance(call, Arrive):
            priority = call.request.priority if self.profile.policy == "priority" else 0
            self.waiting.append(Plain(call.request, (priority, int(call.request.id))))
        else:
            self.waiting = [each for each in self.waiting if each.request.id != call.id]
            self.running = [each for each in self.running if each.request.id != call.id]

    def _step(self, now_s: float) -> float:
        profile = self.profile
        decoding, is_short = self._decode()
        budget = profile.max_num_batched_tokens - len(decoding)
        chunks = [(each, min(each.left, budget)) for each in self.running if each not in decoding]
        budget -= sum(tokens for _, tokens in chunks)
        admitted = 0
        self.waiting.sort(key=lambda each: each.rank)
        while not is_short and self.waiting and budget and len(self.running) < profile.max_num_seqs:
            head = self.waiting[0]
            if not self._takes(head, profile.blocks_for(head.left)):
                break
            self.running.append(self.waiting.pop(0))
            chunks.append((head, min(head.left, budget)))
            budget -= chunks[-1][1]
            admitted += 1
        context = sum(each.request.prompt_tokens + each.tokens for each in decoding)
        end_s = now_s + profile.step_s + admitted * profile.request_s
        end_s += len(decoding) * profile.decode_s + context * profile.context_s
        end_s += sum(tokens for _, tokens in chunks) * profile.prefill_s
        attended = (sum(range(each.computed + 1, each.computed + tokens + 1)) for each, tokens in chunks)
        end_s += sum(attended) * profile.attention_s
        known = list(self.waiting)
        while self.calls and self.calls[0].at_s < end_s:
            self._hear(self.calls.pop(0))
        self._end([*((each, 1) for each in decoding), *chunks], end_s)
        self.told.append((end_s, len(self.running), sum(each in self.waiting for each in known)))
        return end_s

    def _decode(self) -> tuple[list[Plain], bool]:
        decoding: list[Plain] = []
        is_short = False
        for each in list(self.running):
            if not each.is_decoding:
                continue
            needed = self.profile.blocks_for(each.computed + 1) - each.blocks
            while each in self.running and not self._takes(each, needed):
                is_short = True
                self._preempt(decoding)
            if each in self.running:
                decoding.append(each)
        return decoding, is_short

    def _preempt(self, decoding: list[Plain]) -> None:
        by_rank = self.profile.policy == "priority"
        victim = max(self.running, key=lambda each: each.rank) if by_rank else self.running[-1]
        self.running.remove(victim)
        if victim in decoding:
            decoding.remove(victim)
        victim.computed = victim.blocks = 0
        victim.is_decoding = False
        self.waiting.append(victim)
        self.preemptions += 1

    def _takes(self, each: Plain, blocks: int) -> bool:
        if sum(other.blocks for other in self.running) + blocks > self.profile.kv_blocks:
            return False
        each.blocks += blocks
        return True

    def _end(self, computed: list[tuple[Plain, int]], end_s: float) -> None:
        firsts: list[Event] = []
        ends: list[Event] = []
        for each, tokens in computed:
            each.computed += tokens
            if each not in self.running or each.left:
                continue
            each.tokens += 1
            each.is_decoding = True
            if each.tokens == 1:
                firsts.append(FirstToken(each.request.id, end_s, 0))
            if each.tokens == each.request.output_tokens:
                self.running.remove(each)
                ends.append(Finished(each.request.id, end_s, 0))
        self.events += [*firsts, *ends]


def in_order(events: Iterable[Event]) -> list[tuple[float, str, bool]]:
    """Events in an order that does not depend on how ties were broken."""
    return sorted((event.at_s, event.id, isinstance(event, Finished)) for event in events)


@st.composite
def traffic(draw: st.DrawFn) -> list[Call]:
    """Requests that fit the small engine, and clients that hang up, in the order of time."""
    calls: list[Call] = []
    now_s = 0.0
    for number in range(draw(st.integers(1, 12))):
        now_s += draw(st.integers(0, 640)) / 64
        if calls and draw(st.integers(0, 3)) == 0:
            calls.append(Hang(now_s, str(draw(st.integers(0, number)))))
        prompt = draw(st.integers(1, 25))
        output = draw(st.integers(1, 33 - prompt))
        now_s += draw(st.integers(0, 64)) / 64
        calls.append(Arrive(now_s, ask(str(number), prompt, output, priority=draw(st.integers(0, 2)))))
    return calls


def tell(engine: EngineModel, call: Call) -> None:
    """Tell the engine of a call."""
    if isinstance(call, Arrive):
        engine.add(call.request, now_s=call.at_s)
    else:
        engine.abort(call.id, now_s=call.at_s)


PROFILES = st.sampled_from(
    [
        SMALL,
        STEADY,
        replace(SMALL, policy="priority"),
        replace(SMALL, max_num_seqs=12, kv_blocks=9),
        replace(SMALL, block_size=1, kv_blocks=40),
        replace(SMALL, max_num_batched_tokens=3),
    ]
)


@given(PROFILES, traffic(), st.lists(st.integers(0, 64 * 60), max_size=40))
def test_the_model_agrees_with_a_play_of_every_step(
    profile: EngineProfile, calls: list[Call], looks: list[int]
) -> None:
    """The same events at the same times, to the last bit, however often it is asked between them."""
    engine, plain = EngineModel(profile), StepByStep(profile, calls)
    events: list[Event] = []
    seen: list[tuple[float, int, int]] = []
    moments: list[tuple[float, Call | None]] = [(call.at_s, call) for call in calls]
    moments += [(look / 64, None) for look in looks]
    for now_s, call in sorted(moments, key=lambda moment: moment[0]):
        if call is None:
            events += engine.advance(now_s=now_s)
            seen.append((now_s, engine.sample().running, engine.sample().waiting))
        else:
            tell(engine, call)
    events += drain(engine)

    assert in_order(events) == in_order(plain.play())
    assert engine.sample().preemptions == plain.preemptions
    assert [told[1:] for told in seen] == [
        max(filter(lambda one: one[0] <= now_s, plain.told))[1:] for now_s, *_ in seen
    ]


FAMILIES = 3


@given(PROFILES, traffic(), st.data())
def test_blocks_are_conserved(profile: EngineProfile, calls: list[Call], data: st.DataObject) -> None:
    """Active and cached blocks never pass the total, nothing is held at the end, and everything ends once."""
    engine = EngineModel(profile)
    events: list[Event] = []
    hung_up: list[str] = []
    for call in calls:
        if isinstance(call, Arrive):
            first = 100 * data.draw(st.integers(1, FAMILIES))
            named = data.draw(st.integers(0, 40))
            engine.add(replace(call.request, blocks=range(first, first + named)), now_s=call.at_s)
        elif engine.abort(call.id, now_s=call.at_s):
            hung_up.append(call.id)
        check_blocks(engine)
    while (due_s := engine.next_step_s()) is not None:
        events += engine.advance(now_s=due_s)
        check_blocks(engine)
    asked = {call.request.id: call.request for call in calls if isinstance(call, Arrive)}

    assert sorted([*(event.id for event in events if isinstance(event, Finished)), *hung_up]) == sorted(asked)
    assert (engine.blocks.active, engine.sample().running, engine.sample().waiting) == (0, 0, 0)
    assert all(event.cached_tokens < asked[event.id].prompt_tokens for event in events)
    assert all(event.cached_tokens % profile.block_size == 0 for event in events)


def check_blocks(engine: EngineModel) -> None:
    """What can be asked of the blocks at any time."""
    blocks = engine.blocks
    sample = engine.sample()
    assert min(blocks.active, blocks.cached, blocks.available - blocks.cached) >= 0
    assert blocks.active + blocks.available == blocks.total
    assert blocks.active == 0 or engine.next_step_s() is not None
    assert 0 <= sample.running <= engine.profile.max_num_seqs
    assert sample.waiting >= 0
