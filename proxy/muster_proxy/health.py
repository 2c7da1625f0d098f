"""Which engines are fit for work, judged by what becomes of their requests; and how many retries there may be.

    Fleet        of all upstreams: healthy, ejected (takes nothing for a time), or on trial (one request at a time)
    Progress     of one upstream: whether it hangs
    RetryBudget  of the proxy: retries in flight at once

All of it is arithmetic: no IO, no clock, nothing random. Times are seconds of one monotonic clock.

    healthy --bad--> ejected --its time is over--> trial --a success--> healthy
       |                ^                            |
       |                +--------------bad-----------+
       +--bad, and its pools cannot spare it--> trial

What a driver of `Fleet` does:

1. It gives `report` what its probes learn. A probe that succeeds ends no ejection: vLLM's `/health` has said 200 for
   an hour while its engine hung. An upstream that was unavailable and no longer is has been restarted: it starts
   afresh.
2. It tells `note` one `Sign` for each request, at its end: two would halve the share of failures. Only while its
   upstream is on trial is a stream's first token told as well, as a trial need not last as long as an answer.
3. It calls `wake` at `next_wakeup_s`.
4. It acts on each `Change` that any of these return: there are no others.

Passive ejection with times that grow, and a part of each pool that stays in service, is what Envoy calls outlier
detection; the budget is that of its circuit breakers.
"""

import contextlib
import math
from collections.abc import Collection, Generator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from muster_batching import PoolId, UpstreamId

FAILURES_IN_A_ROW = 5
SILENCES_IN_A_ROW = 2
"""Silences cost those who wait much time, so fewer are borne."""

WINDOW = 20
LEAST_SEEN = 10
"""An engine that fails at least half of its last `WINDOW` requests is bad even if it never fails five in a row;
nothing is made of a share of fewer than `LEAST_SEEN`."""

BASE_EJECTION_S = 5.0
MOST_EJECTION_S = 300.0
"""The n-th ejection in a row lasts n times the base: 5 s, 10 s, 15 s, up to five minutes."""

FORGIVEN_AFTER = 2.0
"""The row ends when an upstream has been healthy for so many times the length of its last ejection. An engine that
is up and down by turns is then ejected for longer each time, until the ejection covers its bad times; one that is
mended begins anew after minutes at most."""

STALL_S = 60.0
"""An engine with work that has computed nothing for so long hangs. It is longer than a prompt takes: where only that
is computed, no byte comes, and vLLM counts a prompt's tokens when all of them are done."""

RETRIES_AT_LEAST = 3
ACTIVE_PER_RETRY = 5
"""One retry for five requests: an engine that fails all it is given sees 1.2 times the load, not a multiple."""

_WINDOW_MASK = (1 << WINDOW) - 1


class State(StrEnum):
    """What an upstream may be given."""

    HEALTHY = "healthy"
    EJECTED = "ejected"  # nothing, until its time is over
    TRIAL = "trial"  # one request at a time


class Sign(Enum):
    """What became of a request, as far as it tells of the engine.

    Attributes:
        SUCCESS: The engine has answered: any status below 500 but for 429, as an engine that rejects a request is
            alive. Of a stream it is the first token or the end, not the head: engines send that before they compute.
        FAILURE: The answer was lost, before or after its head; is a 5xx other than 503; or is not understood.
        SILENCE: No first byte came in time.
        PUSH_BACK: 429 or 503: the engine lives and is full. It changes nothing.
        REFUSED: No connection. It changes nothing here: the driver reports the upstream as unavailable.
        NEUTRAL: Nothing is known, as the client left. It changes nothing.
    """

    SUCCESS = auto()
    FAILURE = auto()
    SILENCE = auto()
    PUSH_BACK = auto()
    REFUSED = auto()
    NEUTRAL = auto()


class Cause(StrEnum):
    """Why an upstream is ejected, or on trial at once."""

    FAILING = "failing"  # so many in a row
    FAILING_OFTEN = "failing_often"  # half of the last
    SILENT = "silent"
    STALLED = "stalled"
    TRIAL_FAILED = "trial_failed"


@dataclass(frozen=True, slots=True)
class Change:
    """An upstream's state is another now, or it has been ejected again.

    Attributes:
        upstream: Which.
        state: Its state from now on.
        cause: What was held against it, if that is why.
        for_s: Seconds that an ejection lasts.
    """

    upstream: UpstreamId
    state: State
    cause: Cause | None = None
    for_s: float | None = None


class _Record:
    """What is held against one upstream.

    Attributes:
        is_available: Whether its probes reach it; all that follows is of one that they do.
        since_s: Only what was dispatched from here on counts: since its restart or since its last trial began.
            Infinite where nothing counts, as it is ejected or not available.
        until_s: When its ejection ends.
        bad_in_a_row: Failures and silences since the last success.
        silences_in_a_row: Of these.
        window: The last `WINDOW` requests as bits, 1 for a bad one.
        seen: Requests in the window, or more.
        ejections: In a row.
        lasted_s: The last ejection's length.
        healthy_since_s: When its last trial was passed.
    """

    __slots__ = (
        "bad_in_a_row",
        "ejections",
        "healthy_since_s",
        "id",
        "is_available",
        "lasted_s",
        "pools",
        "seen",
        "silences_in_a_row",
        "since_s",
        "state",
        "until_s",
        "window",
    )

    def __init__(self, upstream: UpstreamId) -> None:
        self.id = upstream
        self.is_available = False
        self.pools: AbstractSet[PoolId] = frozenset()
        self.clear()

    def clear(self) -> None:
        """Forget all, as of an engine that has gone."""
        self.state = State.HEALTHY
        self.since_s, self.until_s = math.inf, -math.inf
        self.ejections = 0
        self.lasted_s, self.healthy_since_s = 0.0, -math.inf
        self.clear_counts()

    def clear_counts(self) -> None:
        """Judge by nothing that has been seen so far."""
        self.bad_in_a_row = self.silences_in_a_row = self.window = self.seen = 0

    def succeed(self) -> None:
        """Count a success. Only this ends a row, of silences too: one that now fails and now is silent is no better."""
        self.bad_in_a_row = self.silences_in_a_row = 0
        self.window = self.window << 1 & _WINDOW_MASK
        self.seen += 1

    def fail(self, *, is_silence: bool) -> Cause | None:
        """Count a failure or silence; the cause for ejecting it, if that is one too many."""
        self.bad_in_a_row += 1
        self.silences_in_a_row += is_silence
        self.window = (self.window << 1 | 1) & _WINDOW_MASK
        self.seen += 1
        if self.state is State.TRIAL:
            return Cause.TRIAL_FAILED
        if self.silences_in_a_row >= SILENCES_IN_A_ROW:
            return Cause.SILENT
        if self.bad_in_a_row >= FAILURES_IN_A_ROW:
            return Cause.FAILING
        is_often = self.seen >= LEAST_SEEN and 2 * self.window.bit_count() >= min(self.seen, WINDOW)
        return Cause.FAILING_OFTEN if is_often else None

    def forgive(self, now_s: float) -> None:
        """End its row of ejections if it has been healthy for long enough."""
        is_healthy = self.state is State.HEALTHY
        if is_healthy and now_s - self.healthy_since_s >= FORGIVEN_AFTER * self.lasted_s:
            self.ejections = 0

    def eject(self, now_s: float) -> None:
        """Take it out of service, for longer than the last time in its row."""
        self.state = State.EJECTED
        self.ejections += 1
        self.lasted_s = min(MOST_EJECTION_S, BASE_EJECTION_S * self.ejections)
        self.since_s, self.until_s = math.inf, now_s + self.lasted_s

    def begin_trial(self, now_s: float) -> None:
        """Give it one request at a time from now on."""
        self.state = State.TRIAL
        self.since_s = now_s

    def pass_trial(self, now_s: float) -> None:
        """Put it back into service. What was sent before the trial still does not count."""
        self.clear_counts()
        self.state = State.HEALTHY
        self.healthy_since_s = now_s


class Fleet:
    """The health of all upstreams.

    The floor: of the available upstreams of a pool at most half are ejected at once, so one of two or three, and
    never the only one: if most engines of a pool fail, it may be the requests. An upstream is one engine, so it is
    ejected from all its pools or from none: one that any pool cannot spare goes on trial at once instead, and stays
    there until a success, or until a failure finds that it can be spared. A pool whose engines are all bad so
    gets a trickle, and is back with the first success of each. Ejections that the pool can no longer bear, as another
    upstream has gone, end early, those that would end first before others.

    An upstream that is not reported as available counts for no floor, and nothing is held against it.

    Args:
        stall_s: As the `Progress` of the upstreams has it.
    """

    def __init__(self, *, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._records: dict[UpstreamId, _Record] = {}

    def state(self, upstream: UpstreamId) -> State:
        """Its state; an upstream that is unknown or not available is healthy, as nothing is held against it."""
        record = self._records.get(upstream)
        return State.HEALTHY if record is None else record.state

    def report(
        self, upstream: UpstreamId, pools: AbstractSet[PoolId], *, available: bool, now_s: float
    ) -> Sequence[Change]:
        """Hear what is known of an upstream now; O(upstreams x pools).

        Args:
            upstream: A new one joins.
            pools: Those that it serves.
            available: Whether its probes reach it. One that comes back starts afresh.
            now_s: The time.
        """
        record = self._records.setdefault(upstream, _Record(upstream))
        record.pools = pools
        changes: Sequence[Change] = ()
        if available != record.is_available:
            record.is_available = available
            changes = self.restarted(upstream, now_s)
        return [*changes, *self._keep_floor(now_s)]

    def restarted(self, upstream: UpstreamId, now_s: float) -> Sequence[Change]:
        """Hear that an upstream is another process now: nothing that was or will be told of the old one counts.

        `report` sees to those that were unavailable in between; this is for one that shows it otherwise.
        """
        record = self._records[upstream]
        was_healthy = record.state is State.HEALTHY
        record.clear()
        if record.is_available:
            record.since_s = now_s
        return () if was_healthy else (Change(upstream, State.HEALTHY),)

    def note(
        self, upstream: UpstreamId, sign: Sign, now_s: float, *, dispatched_s: float
    ) -> Sequence[Change]:
        """Hear what became of a request; O(1) unless the upstream is ejected for it.

        Args:
            upstream: One that has been reported.
            sign: What became of it.
            now_s: The time.
            dispatched_s: When it was sent. It counts if that was in the upstream's present life: a late result of a
                request from before its trial proves nothing.
        """
        record = self._records[upstream]
        if dispatched_s < record.since_s:
            return ()
        if sign is Sign.SUCCESS:
            if record.state is State.TRIAL:
                record.pass_trial(now_s)
                return (Change(upstream, State.HEALTHY),)
            record.succeed()
            return ()
        if sign is not Sign.FAILURE and sign is not Sign.SILENCE:
            return ()
        cause = record.fail(is_silence=sign is Sign.SILENCE)
        return () if cause is None else self._condemn(record, cause, now_s)

    def stalled(self, upstream: UpstreamId, now_s: float) -> Sequence[Change]:
        """Hear that an upstream hangs (`Progress.is_stalled`), as often as one likes.

        It counts if the stall has lasted in the upstream's present life, as requests that hung before its trial may
        hang still.
        """
        record = self._records[upstream]
        if now_s - record.since_s < self._stall_s:
            return ()
        return self._condemn(record, Cause.STALLED, now_s)

    def next_wakeup_s(self) -> float | None:
        """When the first ejection ends; None while there is none."""
        return min((record.until_s for record in self._ejected()), default=None)

    def wake(self, now_s: float) -> Sequence[Change]:
        """Begin the trials of those whose ejections are over."""
        due = [record for record in self._ejected() if record.until_s <= now_s]
        return [self._begin_trial(record, now_s) for record in due]

    def _condemn(self, record: _Record, cause: Cause, now_s: float) -> Sequence[Change]:
        record.forgive(now_s)
        if all(self._can_spare(pool, 1) for pool in record.pools):
            record.eject(now_s)
            return (Change(record.id, State.EJECTED, cause, record.lasted_s),)
        if record.state is State.TRIAL:
            return ()
        return (self._begin_trial(record, now_s, cause),)

    def _begin_trial(self, record: _Record, now_s: float, cause: Cause | None = None) -> Change:
        record.begin_trial(now_s)
        return Change(record.id, State.TRIAL, cause)

    def _can_spare(self, pool: PoolId, more: int) -> bool:
        """Whether the floor of a pool holds with so many more ejected."""
        serving = [
            record for record in self._records.values() if record.is_available and pool in record.pools
        ]
        ejected = sum(record.state is State.EJECTED for record in serving)
        return ejected + more <= len(serving) // 2

    def _keep_floor(self, now_s: float) -> list[Change]:
        """End ejections until every pool's floor holds."""
        return [
            self._begin_trial(record, now_s)
            for record in self._ejected()
            if not all(self._can_spare(pool, 0) for pool in record.pools)
        ]

    def _ejected(self) -> Collection[_Record]:
        """The ejected, the first to end first."""
        ejected = (record for record in self._records.values() if record.state is State.EJECTED)
        return sorted(ejected, key=lambda record: record.until_s)


class Progress:
    """Whether one engine hangs: it has had work all the time, and for `stall_s` nothing shows that it computes.

    What shows it: a byte from any of its connections, or the total of tokens computed that its metrics count. Where
    the total is watched, that it stands still is proof enough, with any request in flight. Where it is not (or no
    longer: a reading is good for `stall_s`), silence proves nothing while only whole answers are awaited or prompts
    computed, as those give no byte before they are done; so a stream must have begun and be silent.

    Args:
        stall_s: Seconds without progress.
    """

    __slots__ = ("_answered_s", "_begun", "_in_flight", "_moved_s", "_read_s", "_stall_s", "_tokens")

    def __init__(self, *, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._in_flight = self._begun = 0
        self._moved_s = self._answered_s = -math.inf
        self._tokens: float | None = None
        self._read_s = -math.inf

    def sent(self, now_s: float) -> None:
        """Hear that a request has been sent."""
        if not self._in_flight:
            self._moved_s = now_s  # it had no work before, and so cannot have hung
        self._in_flight += 1

    def heard(self, now_s: float) -> None:
        """Hear that bytes have come, on any connection."""
        self._moved_s = now_s

    def began(self, now_s: float) -> None:
        """Hear that a stream's first token has come. Earlier bytes do not begin it: some engines send a role first."""
        self._begun += 1
        self._moved_s = now_s

    def answered(self, sent_s: float) -> None:
        """Hear that a request which was sent then has an answer, or the first token of one."""
        self._answered_s = max(self._answered_s, sent_s)

    def has_passed_by(self, sent_s: float) -> bool:
        """Whether one that was sent later has been answered: what is silent still is in trouble by itself.

        An engine that hangs, or that has too much, keeps all waiting that were sent after the last it answered.
        """
        return sent_s < self._answered_s

    def ended(self, *, has_begun: bool) -> None:
        """Hear that a request is over, in whatever way; no sign of progress, as its client may have left.

        Args:
            has_begun: Whether it was a stream of which `began` was told.
        """
        self._in_flight -= 1
        self._begun -= has_begun

    def counted(self, tokens: float, now_s: float) -> None:
        """Hear a reading of the total of tokens; one that fell is that of a new process, and progress."""
        if tokens != self._tokens:
            self._tokens, self._moved_s = tokens, now_s
        self._read_s = now_s

    def is_stalled(self, now_s: float) -> bool:
        """Whether the engine hangs."""
        if now_s - self._read_s < self._stall_s:
            # Up to the last reading alone: what the engine has computed since then is not known.
            return self._in_flight > 0 and self._read_s - self._moved_s >= self._stall_s
        return self._begun > 0 and now_s - self._moved_s >= self._stall_s


class RetryBudget:
    """How many retries may be in flight at once: a fifth of what is active, and always three."""

    def __init__(self) -> None:
        self._taken = 0

    @property
    def taken(self) -> int:
        """Retries in flight."""
        return self._taken

    def take(self, active: int) -> bool:
        """Take a place for a retry, if there is one; then it must be given back.

        Args:
            active: Requests that wait or are in flight in the proxy.
        """
        if self._taken >= max(RETRIES_AT_LEAST, active // ACTIVE_PER_RETRY):
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """Give back a place that was taken.

        Raises:
            ValueError: None was.
        """
        if not self._taken:
            raise ValueError("expected a retry in flight, got none")
        self._taken -= 1

    @contextlib.contextmanager
    def retry(self, active: int) -> Generator[bool]:
        """Hold a place for as long as the block runs; the block is told whether it has one."""
        is_granted = self.take(active)
        try:
            yield is_granted
        finally:
            if is_granted:
                self.give_back()
