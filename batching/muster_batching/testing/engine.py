"""A model of an inference engine that batches as vLLM does, in virtual time.

What it models is vLLM's scheduler (version 1's, as in release 0.32) and the time of a forward step:

* One step after another while there is work. A step gives one token to every sequence that decodes, and computes
  prompts with what is left of `max_num_batched_tokens`; a prompt that does not fit goes on in the next step.
* A request that comes waits for the border of two steps, at least. The queue is strict: when its head finds no
  room, nobody behind it is tried. Room is a place among `max_num_seqs`, and KV blocks for its whole prompt.
* A decoding sequence takes a block where its text needs one. When none is left, the last that came in (with
  the policy `priority`: the one that matters least) goes back to the head of the queue, loses its blocks,
  and computes prompt and answer again when its turn comes; in such a step nobody is admitted.
* Metrics are made when a step ends, of those that were in it or in the queue then: who came during it is told of
  after the next, and a long step tells nothing.
* Blocks are found again by their names (`EngineRequest.blocks`), but a prompt's last token is always computed.

A step with n decoding sequences that together have c tokens of context, k new requests, and p prompt tokens that
attend to a tokens in all (each to those before it and to itself) takes

    step_s + n * decode_s + c * context_s + k * request_s + p * prefill_s + a * attention_s

What it leaves out: speculative decoding, what the API server does beside the engine, and what differs from token
to token. It takes the blocks of a whole prompt when it admits it, where
vLLM takes them chunk by chunk, and an answer's blocks can be found once the request has left the batch, not before.

Steps that only decode are not played one by one, so an hour of traffic costs what its requests cost, whatever
the number of their tokens.

    engine = EngineModel(H200_8B)
    engine.add(EngineRequest("a", prompt_tokens=700, output_tokens=200), now_s=0.0)
    while (due_s := engine.next_event_s()) is not None:
        print(engine.advance(now_s=due_s))
"""

import heapq
import math
from dataclasses import dataclass

from muster_batching.errors import ClockWentBackError
from muster_batching.samples import EngineSample
from muster_batching.testing.kv_blocks import Holding, KvBlocks
from muster_batching.testing.profiles import EngineProfile
from muster_batching.testing.sequences import Decoding, EngineRequest, Rank, Sequence
from muster_batching.testing.stretch import Stretch

__all__ = ["EngineModel", "EngineRequest", "Finished", "FirstToken"]


@dataclass(frozen=True, slots=True)
class FirstToken:
    """A request's answer has begun.

    Attributes:
        id: The request.
        at_s: When the step that made the token ended.
        cached_tokens: Prompt tokens that were found in the prefix cache when it was first taken up.
    """

    id: str
    at_s: float
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A request's answer is complete; the attributes are those of `FirstToken`."""

    id: str
    at_s: float
    cached_tokens: int


class EngineModel:
    """An engine; see the module. It is told what comes and when, and says what has happened.

    Times are seconds on one clock of the caller's that never goes back. What happens depends on the calls that
    change something (`add`, `abort`) and their times, not on how often `advance` is called.

    Args:
        profile: The engine to simulate.

    Attributes:
        profile: The engine to simulate.
        blocks: Its KV cache, to look at.
    """

    def __init__(self, profile: EngineProfile) -> None:
        self.profile = profile
        self.blocks = KvBlocks(profile.kv_blocks)
        self._now_s = -math.inf
        self._arrivals = 0
        self._sequences: dict[str, Sequence] = {}
        self._waiting: list[tuple[Rank, Sequence]] = []  # a heap; who was aborted stays until it leads
        self._running: dict[str, Sequence] = {}  # in the order of admission
        self._decoding = Decoding(profile.block_size)
        self._prefilling: list[
            tuple[Sequence, int]
        ] = []  # in the step under way, with the tokens it computes
        self._unfinished: Sequence | None = None  # the one prompt that goes on in the next step
        self._stretch: Stretch | None = None
        self._steps = 0  # that have ended
        self._begun = 0  # likewise, and the one under way
        self._events: list[FirstToken | Finished] = []
        self._unseen: set[str] = set()  # who came after the step under way was put together
        self._preemptions = self._prefix_queries = self._prefix_hits = 0
        self._told = self._reading()

    def add(self, request: EngineRequest, *, now_s: float) -> None:
        """A request comes: it joins the queue, and an idle engine takes it up at once.

        Raises:
            ValueError: Its id belongs to one that has not ended, or the whole KV cache is too small for it.
            ClockWentBackError: The time has passed.
        """
        self._run_until(now_s)
        if request.id in self._sequences:
            raise ValueError(f"expected a new request, got {request.id!r}, which has not ended")
        if request.most_kv_tokens > self.profile.kv_tokens:
            raise ValueError(
                f"expected {self.profile.kv_tokens} tokens or less, got {request.most_kv_tokens}"
            )
        self._arrivals += 1
        priority = request.priority if self.profile.policy == "priority" else 0
        sequence = Sequence(request, (priority, self._arrivals))
        self._sequences[request.id] = sequence
        self._queue(sequence)
        self._unseen.add(request.id)
        if self._stretch is None:
            self._begin(now_s)
        elif self._head() is sequence:
            self._stretch.cut_short()

    def abort(self, request_id: str, *, now_s: float) -> bool:
        """A client goes: its request leaves the queue or the batch, and its blocks are free at once.

        The step under way takes as long as it would have taken.

        Returns:
            Whether there was such a request that had not ended.

        Raises:
            ClockWentBackError: The time has passed.
        """
        self._run_until(now_s)
        sequence = self._sequences.pop(request_id, None)
        self._unseen.discard(request_id)
        if sequence is None or self._stretch is None:  # an idle engine has no requests
            return False
        if sequence.is_running:
            self._leave(sequence)
        self._stretch.cut_short()
        return True

    def next_step_s(self) -> float | None:
        """When the step under way ends; None when the engine is idle and has nothing to tell.

        What an `add` or `abort` has found out may be told now: the answer then is the last time that was told.
        """
        if self._events or self._stretch is None:
            return self._untold_s()
        return self._stretch.end_s(self._stretch.done + 1)

    def next_event_s(self) -> float | None:
        """A time before which `advance` has nothing to tell, however many steps end; None as `next_step_s`.

        At that time it may still have nothing to tell.
        """
        if self._events or self._stretch is None:
            return self._untold_s()
        return self._stretch.end_s(self._stretch.limit)

    def advance(self, *, now_s: float) -> list[FirstToken | Finished]:
        """Time passes: every step that is due by then ends.

        Returns:
            What happened since the last call, in order.

        Raises:
            ClockWentBackError: The time has passed.
        """
        self._run_until(now_s)
        events, self._events = self._events, []
        return events

    def tokens_of(self, request_id: str) -> int:
        """Output tokens of a request that has not ended, as of the last time that was told.

        Raises:
            KeyError: There is none of that id.
        """
        return self._sequences[request_id].tokens_after(self._steps)

    def sample(self) -> EngineSample:
        """What its metrics say, as of the last time that was told: how things were when its last step ended."""
        return self._told

    def _tell(self) -> None:
        """A step has ended."""
        self._told = self._reading()
        self._unseen.clear()

    def _reading(self) -> EngineSample:
        return EngineSample(
            running=len(self._running),
            waiting=len(self._sequences) - len(self._running) - len(self._unseen),
            kv_usage=self.blocks.active / self.blocks.total,
            kv_tokens=self.profile.kv_tokens,
            preemptions=self._preemptions,
            prefix_queries=self._prefix_queries,
            prefix_hits=self._prefix_hits,
        )

    def _untold_s(self) -> float | None:
        return self._now_s if self._events else None

    def _run_until(self, now_s: float) -> None:
        if now_s < self._now_s:
            raise ClockWentBackError(now_s, self._now_s)
        self._now_s = now_s
        while (stretch := self._stretch) is not None:
            self._end_steps(stretch, stretch.steps_by(now_s))
            if stretch.done < stretch.limit:
                return
            self._settle(stretch.end_s(stretch.limit))

    def _end_steps(self, stretch: Stretch, done: int) -> None:
        """End steps of a stretch until so many are done; the next of them begins and takes its blocks."""
        ended = done - stretch.done
        self._steps += ended
        stretch.done = done
        begun = self._steps + (done < stretch.limit)
        self.blocks.take(self._decoding.blocks_taken(self._begun, begun - self._begun))
        self._begun = begun
        if ended > 1:  # who came during the first was in the queue in the others
            self._unseen.clear()
        if ended and done < stretch.limit:
            self._tell()

    def _settle(self, at_s: float) -> None:
        """A stretch of steps has ended: answers and prompts are complete, and others may come in."""
        for sequence in self._decoding.finished(self._steps):
            self._finish(sequence, at_s)
        for sequence, tokens in self._prefilling:
            sequence.computed_tokens += tokens
            if sequence.is_running and not sequence.left_tokens:
                self._answer(sequence, at_s)
        self._tell()
        self._begin(at_s)

    def _answer(self, sequence: Sequence, at_s: float) -> None:
        """The last of a prompt has been computed, which gives a token."""
        sequence.tokens += 1
        if sequence.tokens == 1:
            self._events.append(FirstToken(sequence.request.id, at_s, sequence.cached_tokens or 0))
        if sequence.tokens == sequence.request.output_tokens:
            self._finish(sequence, at_s)
        else:
            self._decoding.join(sequence, self._steps)

    def _finish(self, sequence: Sequence, at_s: float) -> None:
        self._leave(sequence)
        del self._sequences[sequence.request.id]
        self._events.append(Finished(sequence.request.id, at_s, sequence.cached_tokens or 0))

    def _begin(self, now_s: float) -> None:
        """Put together the next step, and all after it that are like it; or become idle."""
        self._unseen.clear()
        is_short = self._make_room()
        self.blocks.take(self._decoding.blocks_taken(self._steps, 1))
        self._prefilling = []
        budget = self._go_on(self.profile.max_num_batched_tokens - self._decoding.count)
        admitted = 0 if is_short else self._admit(budget)
        self._begun = self._steps + bool(self._running)
        self._stretch = self._plan(now_s, admitted, is_short=is_short) if self._running else None

    def _make_room(self) -> bool:
        """See to it that every decoding sequence gets the block it needs; whether that took a preemption."""
        is_short = False
        while self._decoding.blocks_taken(self._steps, 1) > self.blocks.available:
            self._preempt(self._victim())
            is_short = True
        return is_short

    def _victim(self) -> Sequence:
        if self.profile.policy == "priority":
            return max(self._running.values(), key=lambda sequence: sequence.rank)
        return next(reversed(self._running.values()))

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        self._queue(sequence)
        self._preemptions += 1

    def _go_on(self, budget: int) -> int:
        """Go on with the prompt that the last step had no room for; returns what is left of the budget."""
        sequence, self._unfinished = self._unfinished, None
        return budget if sequence is None else budget - self._compute(sequence, budget)

    def _admit(self, budget: int) -> int:
        """Take up requests from the head of the queue while they find room; how many they were."""
        admitted = 0
        while budget > 0 and len(self._running) < self.profile.max_num_seqs:
            sequence = self._head()
            if sequence is None or not self._take_up(sequence):
                break
            heapq.heappop(self._waiting)
            self._running[sequence.request.id] = sequence
            budget -= self._compute(sequence, budget)
            admitted += 1
        return admitted

    def _take_up(self, sequence: Sequence) -> bool:
        """Give a request its blocks, if they are to be had."""
        size, tokens = self.profile.block_size, sequence.text_tokens
        names = sequence.request.blocks[: tokens // size]
        found = self.blocks.find(names[: (tokens - 1) // size])
        holding = self.blocks.admit(names, self.profile.blocks_for(tokens), found)
        if holding is None:
            return False
        sequence.holding = holding
        sequence.computed_tokens = found * size
        if sequence.cached_tokens is None:  # vLLM counts the look-ups of preempted requests apart
            sequence.cached_tokens = found * size
            self._prefix_queries += tokens
            self._prefix_hits += found * size
        return True

    def _compute(self, sequence: Sequence, budget: int) -> int:
        """Compute in this step what the budget allows of a prompt; returns the tokens."""
        tokens = min(sequence.left_tokens, budget)
        self._prefilling.append((sequence, tokens))
        if tokens < sequence.left_tokens:
            self._unfinished = sequence
        return tokens

    def _plan(self, now_s: float, admitted: int, *, is_short: bool) -> Stretch:
        """How long the step takes that has been put together, and how many like it follow."""
        profile, count = self.profile, self._decoding.count
        return Stretch(
            start_s=now_s,
            extra_s=admitted * profile.request_s + self._prefill_s(),
            step_s=profile.step_s + count * profile.decode_s,
            context_s=self._decoding.context_tokens(self._steps) * profile.context_s,
            growth_s=count * profile.context_s,
            limit=1 if is_short or self._prefilling else self._like_steps(),
        )

    def _prefill_s(self) -> float:
        """How long the step's prompt tokens take."""
        profile = self.profile
        tokens = sum(chunk for _, chunk in self._prefilling)
        attended = sum(
            chunk * sequence.computed_tokens + chunk * (chunk + 1) // 2
            for sequence, chunk in self._prefilling
        )
        return tokens * profile.prefill_s + attended * profile.attention_s

    def _like_steps(self) -> int:
        """Steps until an answer is complete or the blocks run out; the first has its blocks."""
        room = self._decoding.steps_within(self.blocks.available, self._steps + 1)
        return min(self._decoding.next_finish() - self._steps, 1 + room)

    def _queue(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (sequence.rank, sequence))

    def _head(self) -> Sequence | None:
        """Who leads the queue."""
        while self._waiting:
            sequence = self._waiting[0][1]
            if self._sequences.get(sequence.request.id) is sequence:
                return sequence
            heapq.heappop(self._waiting)
        return None

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence out of the batch; it gives its blocks back, and keeps the count of its tokens."""
        del self._running[sequence.request.id]
        if self._unfinished is sequence:
            self._unfinished = None
        if sequence.last_step is not None:
            self._decoding.leave(sequence, self._steps)
            sequence.computed_tokens = sequence.text_tokens - 1
            under_way = self._begun - self._steps
            sequence.holding.blocks = self.profile.blocks_for(sequence.computed_tokens + under_way)
        full = sequence.computed_tokens // self.profile.block_size
        self.blocks.release(sequence.holding, sequence.request.blocks, full)
        sequence.holding = Holding()
        sequence.computed_tokens = 0
