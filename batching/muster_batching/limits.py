"""How many requests an engine is given at once: three limits.

    FixedLimit        as configured
    AimdLimit         probed: grows while answers come, shrinks when the engine pushes back
    EngineQueueLimit  learned from the engine's own queue; without fresh metrics it is an `AimdLimit`

A limit is arithmetic: it is told what happened and when, and says how many `slots` there are. It never says 0,
never more than its bounds, and cuts nothing that is in flight. Every method takes constant time.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from muster_batching.errors import LimitError
from muster_batching.samples import EngineSample


@dataclass(slots=True, eq=False)
class Load:
    """What an upstream's limit is told of its use.

    Attributes:
        in_flight: Slots taken now.
        begun: Of these, requests whose first token has come: they run, whatever the engine's metrics say.
        unseen: Dispatches since the last sample was taken: the engine may not have counted them yet.
        moved: First tokens and ends since the last sample: the engine has ended steps.
        prompts: Of those in flight, requests that will tell of their first token and have not yet.
        prompt_tokens: Of these.
        is_limiting: Whether tickets wait for its slots.
    """

    in_flight: int = 0
    begun: int = 0
    unseen: int = 0
    moved: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    is_limiting: bool = False


class Limit(Protocol):
    """How many slots an upstream has now."""

    def slots(self) -> int:
        """The most requests in flight, 1 or more."""
        ...

    def capacity(self) -> int | None:
        """How many of them the engine runs at once, 1 or more; the rest queue in it. None while that is not known."""
        ...

    def probe(self) -> int:
        """Slots above the capacity to try now, 0 mostly."""
        ...

    def sampled(self, sample: EngineSample, load: Load, now_s: float) -> None:
        """Hear what the engine says of itself."""
        ...

    def ended(self, load: Load, now_s: float, *, is_push_back: bool) -> None:
        """Hear that a request has ended; the load is the one before."""
        ...


class LimitPolicy(Protocol):
    """A limit's settings: equal ones need no new limit."""

    def start(self) -> Limit:
        """Make the limit."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLimit:
    """As many slots as configured.

    Attributes:
        slots: 1 or more.

    Raises:
        LimitError: It is below 1.
    """

    slots: int

    def __post_init__(self) -> None:
        _check("slots", self.slots, 1)

    def start(self) -> Limit:
        """Make the limit."""
        return _Fixed(self.slots)


class _Fixed:
    def __init__(self, slots: int) -> None:
        self._slots = slots

    def slots(self) -> int:
        return self._slots

    def capacity(self) -> int:
        return self._slots

    def probe(self) -> int:
        return 0

    def sampled(self, sample: EngineSample, load: Load, now_s: float) -> None:
        pass  # it knows better

    def ended(self, load: Load, now_s: float, *, is_push_back: bool) -> None:
        pass  # likewise


@dataclass(frozen=True, slots=True)
class AimdLimit:
    """Additive increase, multiplicative decrease: for an engine that tells nothing.

        an answer while a ticket waits:  slots += 1 / slots        (about one more for each full turnover)
        a push-back (429, 503, timeout): slots  = max(least, BACK_OFF * min(slots, in flight)), once in HOLD_S

    As TCP does since RFC 5681 (its congestion avoidance); the factor is that of CUBIC (RFC 9438). Regimes: an
    engine that never pushes back is given more and more, up to `most`, and queues in itself what it cannot run;
    one that does is kept near the edge. Round-trip times are no signal: an answer's time depends on its
    length and grows smoothly with the batch while throughput still rises.

    Attributes:
        initial: Slots at first. High, so that an engine with room is never throttled.
        least: The fewest.
        most: The most.

    Raises:
        LimitError: They are not in order, or below 1.
    """

    initial: int = 64
    least: int = 4
    most: int = 2048

    def __post_init__(self) -> None:
        _check_bounds(self)

    def start(self) -> Limit:
        """Make the limit."""
        return _Aimd(self)


BACK_OFF = 0.7
HOLD_S = 1.0
"""A burst of push-backs is one event: the requests were sent before the first of them was heard."""


class _Aimd:
    def __init__(self, policy: AimdLimit) -> None:
        self._policy = policy
        self.exact = float(policy.initial)
        self._held_until_s = -math.inf

    def slots(self) -> int:
        return int(self.exact)

    def capacity(self) -> int | None:
        return None

    def probe(self) -> int:
        return 0

    def sampled(self, sample: EngineSample, load: Load, now_s: float) -> None:
        pass

    def ended(self, load: Load, now_s: float, *, is_push_back: bool) -> None:
        if is_push_back:
            self.push_back(load, now_s)
        elif load.is_limiting:
            self.exact = min(self._policy.most, self.exact + 1 / self.exact)

    def push_back(self, load: Load, now_s: float) -> None:
        """Shrink, unless it has just been done."""
        if now_s >= self._held_until_s:
            self.exact = max(self._policy.least, BACK_OFF * min(self.exact, load.in_flight))
            self._held_until_s = now_s + HOLD_S


@dataclass(frozen=True, slots=True)
class EngineQueueLimit:
    """Keeps a short queue in the engine and the rest here, where it can be ordered, cancelled and moved.

        slots = capacity + margin,  margin = clamp(ceil(capacity / 8), 2, 32);  `initial` until a capacity is known

    *Capacity* is how many requests the engine runs at once. On a sample (`r` running, `w` waiting, `f` of ours in
    flight, `b` of ours begun, `u` of ours dispatched since the sample before):

        running = max(b, min(r, f - w * f / (r + w))): ours that run, the engine's queue shared out in proportion
        queued  = w - u > 0 while r does not rise, twice in a row: requests wait there that were sent more than a
                  sample ago, and not for prompts to be computed
        short   = w > 0 in this and two more of the last 8 samples, with so few prompts to compute (fewer tokens than
                  `STEP_PROMPT_TOKENS`) that these wait for a place
        if running > capacity:          capacity = running
        else, if queued or short:       capacity += FOLLOW * (the most running in the last 8 samples - capacity)

    Engines make their metrics when a step ends (vLLM 0.32 does): of what came since they tell nothing, and an answer
    that has ended is out of the batch while nobody has its place. A sample before which none of ours began or ended
    is therefore passed over: the engine may still be in the same step, which may take seconds.

    The margin keeps the engine from idling between a completion and our next dispatch. Where tickets wait because
    room is kept for others (`Upstream.takes`), capacity is probed: until the engine runs more or queues they may use
    one slot more than it, twice as much after each probe that finds room, up to the margin; after one that finds none
    the next is put off, twice as long each time.

    *Belief*: metrics may be old, untrue, or about a queue that is not ours. A queue of more requests than are in
    flight here is not ours: giving the engine less would not shorten it. An engine that several times tells of
    fewer than half of the requests that are in flight on it is not believed. Nor is one whose queue does not
    shrink when we give it less: once `f` has fallen to `HEED` of what it was, `w` must have fallen by a quarter of
    that. The limit then returns to what it was, and is an `AimdLimit` for `DISBELIEF_S`. So it is from the start
    without any sample, and when the last one is older than `STALE_S`; until then a limit stays as it was.

    Preemptions shrink capacity by `PREEMPTED`; push-back as in `AimdLimit`. For `LOWERED_S` after either, samples do
    not raise it: what runs then was sent before. Regimes: an engine that never
    queues keeps its `initial` slots and is never throttled; one that computes prompts more slowly than they come
    has a queue although it could run more, and is kept at what it does run.

    *Peers*: other schedulers may give the same engine requests, as many as this one. Then `initial` is shared with
    them, and of a queue in the engine their part is not foreign. Without that, two workers that send endlessly took
    each other's requests for a queue that was not theirs, and kept some 450 waiting in an engine that runs 64; now 14.

    Attributes:
        initial: Slots of all peers until a capacity is known: what vLLM runs at once on most devices.
        least: The fewest.
        most: The most.
        peers: Schedulers that give the engine requests, this one too.

    Raises:
        LimitError: They are not in order, or below 1.
    """

    initial: int = 256
    least: int = 4
    most: int = 2048
    peers: int = 1

    def __post_init__(self) -> None:
        _check_bounds(self)
        _check("peers", self.peers, 1)

    def start(self) -> Limit:
        """Make the limit."""
        return _EngineQueue(self)


STEP_PROMPT_TOKENS = 2_048
"""Every engine computes so many tokens of prompts in a step: it is vLLM's least `max_num_batched_tokens` by default."""

FOLLOW = 0.2
HEED = 0.75
STALE_S = 10.0
DISBELIEF_S = 60.0
FOREIGN_S = 1.0
LOWERED_S = 5.0
PREEMPTED = 0.9
LEAST_PROBE_S, MOST_PROBE_S = 1.0, 64.0
_GROWTH = 20
_MOST_MARGIN = 32
_WINDOW, _TIMES_SHORT = 8, 3
_SILENT_SAMPLES = 4
_FEW = 4


@dataclass(frozen=True, slots=True)
class _Test:
    """How things were when we began to give the engine less."""

    in_flight: int
    waiting: int
    slots: float


class _Recent:
    """The last samples that told something new."""

    def __init__(self) -> None:
        self._running: deque[float] = deque(maxlen=_WINDOW)
        self._is_short: deque[bool] = deque(maxlen=_WINDOW)

    def take(self, sample: EngineSample, load: Load) -> None:
        """Take in one."""
        self._running.append(_running(sample, load))
        self._is_short.append(sample.waiting > 0 and load.prompt_tokens < STEP_PROMPT_TOKENS)

    @property
    def running(self) -> float:
        """How many of ours the engine ran in the latest."""
        return self._running[-1]

    @property
    def most_running(self) -> float:
        """The most that it ran in one: the others were taken just after an answer had ended."""
        return max(self._running)

    @property
    def is_short(self) -> bool:
        """Whether requests wait for a place again and again, and now."""
        return self._is_short[-1] and sum(self._is_short) >= _TIMES_SHORT


class _EngineQueue:
    """`EngineQueueLimit` at work."""

    def __init__(self, policy: EngineQueueLimit) -> None:
        self._policy = policy
        initial = max(policy.least, policy.initial // policy.peers)
        self._aimd = _Aimd(AimdLimit(initial, policy.least, policy.most))
        self._capacity: float | None = None
        self._was_queued = False
        self._last_running = 0
        self._recent = _Recent()
        self._silent_samples = 0
        self._sampled_s = -math.inf
        self._believed_from_s = -math.inf
        self._lowered_until_s = -math.inf
        self._preemptions: int | None = None
        self._test: _Test | None = None
        self._probe = _Probe()

    def slots(self) -> int:
        return int(self._aimd.exact)

    def capacity(self) -> int | None:
        return None if self._capacity is None else max(1, int(min(self._capacity, self._aimd.exact)))

    def probe(self) -> int:
        return self._probe.extra

    def sampled(self, sample: EngineSample, load: Load, now_s: float) -> None:
        self._sampled_s = now_s
        if sample.waiting > self._policy.peers * load.in_flight:
            self._believed_from_s = max(self._believed_from_s, now_s + FOREIGN_S)
        # Engines make their metrics when a step ends: where nothing has moved, the sample tells nothing new.
        if load.moved == 0 or now_s < self._believed_from_s or self._is_silent(sample, load, now_s):
            return
        self._recent.take(sample, load)
        running = self._recent.running
        is_queued = sample.waiting > self._policy.peers * load.unseen and sample.running <= self._last_running
        self._last_running = sample.running
        self._probe.judge(sample, load, running, self._capacity)
        if now_s < self._lowered_until_s:
            pass  # what runs now was sent before the capacity was lowered
        elif self._capacity is not None and running > self._capacity:
            self._capacity = running
            self._test = None
        elif self._recent.is_short or (is_queued and self._was_queued):
            self._engine_queues(sample, load, now_s)
        elif sample.waiting == 0:
            self._engine_runs_all(load, now_s)
        self._was_queued = is_queued
        self._heed_preemptions(sample, now_s)
        self._set_slots()

    def ended(self, load: Load, now_s: float, *, is_push_back: bool) -> None:
        if is_push_back:
            self._aimd.push_back(load, now_s)
            if self._capacity is not None:
                self._capacity = min(self._capacity, self._aimd.exact - _margin(self._aimd.exact))
            self._lowered_until_s = now_s + LOWERED_S
        elif now_s - self._sampled_s > STALE_S or now_s < self._believed_from_s:
            self._aimd.ended(load, now_s, is_push_back=False)

    def _is_silent(self, sample: EngineSample, load: Load, now_s: float) -> bool:
        """Whether the engine has told several times of far fewer requests than are in flight on it."""
        seen = load.in_flight - load.unseen
        if seen < _FEW or sample.running + sample.waiting >= seen / 2:
            self._silent_samples = 0
            return False
        self._silent_samples += 1
        if self._silent_samples < _SILENT_SAMPLES:
            return False
        self._disbelieve(now_s)
        return True

    def _disbelieve(self, now_s: float) -> None:
        self._believed_from_s = now_s + DISBELIEF_S
        self._was_queued = False
        self._recent = _Recent()
        if self._test is not None:
            self._aimd.exact = self._test.slots
            self._capacity = None
            self._test = None

    def _engine_queues(self, sample: EngineSample, load: Load, now_s: float) -> None:
        running = self._recent.most_running
        if not self._is_heeded(sample, load):
            self._disbelieve(now_s)
        elif self._capacity is None:
            self._capacity = running
        else:
            self._capacity += FOLLOW * (running - self._capacity)

    def _is_heeded(self, sample: EngineSample, load: Load) -> bool:
        """Whether the engine's queue shrinks with what we give it, as far as can be told yet."""
        test = self._test
        if test is None:
            self._test = _Test(load.in_flight, sample.waiting, self._aimd.exact)
            return True
        less = test.in_flight - load.in_flight
        if load.in_flight > HEED * test.in_flight:
            return True
        self._test = _Test(load.in_flight, sample.waiting, test.slots)
        return test.waiting - sample.waiting >= less / 4

    def _engine_runs_all(self, load: Load, now_s: float) -> None:
        self._test = None
        if self._capacity is None:
            if load.is_limiting:
                self._aimd.exact = min(self._policy.most, self._aimd.exact * (1 + 1 / _GROWTH) + 1)
            return
        if load.is_limiting:
            self._probe.begin(self._capacity, now_s)

    def _heed_preemptions(self, sample: EngineSample, now_s: float) -> None:
        before, self._preemptions = self._preemptions, sample.preemptions
        if before is None or sample.preemptions is None or sample.preemptions <= before:
            return
        if self._capacity is not None and now_s >= self._lowered_until_s:
            self._capacity *= PREEMPTED
            self._lowered_until_s = now_s + LOWERED_S

    def _set_slots(self) -> None:
        if self._capacity is None:
            return
        self._capacity = min(float(self._policy.most), max(float(self._policy.least), self._capacity))
        self._aimd.exact = min(float(self._policy.most), self._capacity + _margin(self._capacity))


class _Probe:
    """When to try for more, and how far."""

    def __init__(self) -> None:
        self.extra = 0
        self._step = 1
        self._every_s = LEAST_PROBE_S
        self._next_s = -math.inf

    def begin(self, capacity: float, now_s: float) -> None:
        """Try for more, if it is time."""
        if now_s >= self._next_s:
            self._next_s = now_s + self._every_s
            self.extra = min(self._step, _margin(capacity))

    def judge(self, sample: EngineSample, load: Load, running: float, capacity: float | None) -> None:
        """Judge the probe under way: it found room if more run now, and none if the engine queues."""
        if not self.extra or capacity is None:
            return
        if running > capacity or sample.waiting > 0:
            self._judge(found_room=running > capacity)
            self.extra = 0
        elif load.in_flight <= capacity:
            self.extra = 0

    def _judge(self, *, found_room: bool) -> None:
        if found_room:
            self._step = min(_MOST_MARGIN, 2 * self._step)
            self._every_s, self._next_s = LEAST_PROBE_S, -math.inf
        else:
            self._step, self._every_s = 1, min(MOST_PROBE_S, 2 * self._every_s)


def _running(sample: EngineSample, load: Load) -> float:
    """How many of ours the engine runs."""
    queue = sample.waiting * load.in_flight / max(1, sample.running + sample.waiting)
    return max(1.0, float(load.begun), min(sample.running, load.in_flight - queue))


def _margin(capacity: float) -> int:
    return min(_MOST_MARGIN, max(2, math.ceil(capacity / 8)))


def _check_bounds(policy: AimdLimit | EngineQueueLimit) -> None:
    _check("least", policy.least, 1)
    _check("initial", policy.initial, policy.least)
    _check("most", policy.most, policy.initial)


def _check(name: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise LimitError(name, value, least)
