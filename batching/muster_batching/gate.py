"""The session gate: new sessions are admitted while those that are resident fit the engine's KV cache.

An engine keeps the prefixes of recent requests in what its KV cache has free and evicts the least recently
used. When more sessions take turns than fit, each finds its prefix evicted by the others, and the engine
computes whole conversations again for every turn; no order among the waiting mends that. So the gate lets in
as many sessions as fit and holds the rest for a bounded time (ThunderAgent, arXiv 2602.13692; CONCUR, arXiv
2601.22705; both found that ordering alone gains little).

A session is *resident* from its admission until it is given up. It counts with the tokens of its context:

    resident tokens = sum over busy sessions of context
                    + sum over idle sessions of context * 2 ** (-idle seconds / IDLE_HALF_LIFE_S)
    a new session is admitted while resident tokens + its need <= share * KV tokens

- *Need* is the estimate of its context, or the mean of those resident if that is more: sessions grow.
- *Decay*: clients do not say that they are done. Without it, sessions that never return hold their place
  until the others time out (measured by others as eight times slower than no gate).
- *Gone*: a session that has been idle for `GONE_PAUSES` times as long as sessions are on average before they go on.
- *Given up*: when a resident session has grown so that they no longer fit, the longest idle are given up, which
  are those that the engine evicts. When such a one returns, it is admitted before new ones.
- *Displaced*: a session that has been held for as long as the engine takes to compute what fills its cache is admitted
  although it does not fit, but so that all of them together turn the cache over no faster than in `FILLS` times as
  long; and after `Policy.max_hold_s` in any case.
- *Share*: learned, while sessions are held. Holding them spares the engine what it computes again, and costs it the
  time in which it has no prompt to compute. So the one is weighed against the other:

      lost = busy * (tokens that should have been hit - tokens hit) / prompt tokens computed
      idle = 1 - busy,  where busy is the part of the time in which a prompt is computed or waits for it

  Lost more than idle, and more than `LEAST_LOST` (or an engine that preempts): the share shrinks by `BACK_OFF`. Lost
  less: it grows by `GROWTH_PER_S * idle ** 4`, over 1 too. When much is lost even at `LEAST_SHARE`, something else
  evicts the prefixes and holding sessions does not help: the gate opens for `OPEN_S`.

Regimes: while the contexts fit, nothing is held and the gate only counts. Where prompts are cheap beside the time that
tools take, the share soon is so large that nothing is held. An engine whose KV size is not known holds nothing. An
engine without a busy session takes the next one in any case.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from muster_batching.orders import Waiting
from muster_batching.samples import EngineSample
from muster_batching.sessions import Session, SessionKey

if TYPE_CHECKING:
    from muster_batching.tickets import TicketId

IDLE_HALF_LIFE_S = 10.0
"""Of an idle session's weight: tools answer within seconds, and a session that has been silent for a minute
is as good as gone."""

FIRST_SHARE = 0.9
LEAST_SHARE, MOST_SHARE = 0.2, 100.0
GROWTH_PER_S = 1.5
"""Relative to the share, on an engine without a prompt to compute: it doubles in half a second, before sessions of a
few short calls are over. By the fourth power of idleness, so that it is a sixteenth of that on an engine that is idle
half of the time: such a one is near its best, and what more sessions would lose shows only later."""
BACK_OFF = 0.85
BACK_OFF_EVERY_S = 5.0
"""A smaller share shows in the hits only after turns that were dispatched before have ended."""

LEAST_LOST = 0.3
"""Up to 0.2 is lost where all fits: an engine finds whole blocks alone, and clients may change an answer's text."""

HITS_WINDOW_S = 10.0
BUSY_WINDOW_S = 3.0
"""What was before counts less by a factor of e for each of them. The second is short: it has to see that an engine
has nothing to do before sessions of a few short calls are over."""

LEAST_BUSY = 0.2
"""Of an engine that is busy for less of its time, nothing is learned of how fast it computes."""

CALM_S = 30.0
"""When nothing has been held for so long, the share begins again: what was learned was of other sessions."""

OPEN_S = 60.0

LEAST_FILL_S, MOST_FILL_S = 1.0, 30.0
"""Bounds of the time in which an engine computes the contexts that fill its cache; the most until that is known."""

FILLS = 10.0
"""So the engine spends a tenth of its time on what it computes again for sessions that were displaced."""

FILL_LEARNING_RATE = 0.2
"""Of a sample; there are one to four in a second."""

GONE_PAUSES = 3.0
LEAST_GONE_AFTER_S, MOST_GONE_AFTER_S = 2.0, 6 * IDLE_HALF_LIFE_S
"""The most counts until pauses are known: an idle session then counts with a 64th."""

PAUSE_LEARNING_RATE = 0.1
"""Of the mean pause: about the last ten count."""


@dataclass(slots=True, eq=False)
class _Resident:
    tokens: float
    since_s: float  # of being busy or idle
    is_warm: bool  # whether a call of it has ended since it came


class SessionGate:
    """The resident sessions of one upstream. Every method takes constant time, amortised.

    Attributes:
        kv_tokens: Tokens that the engine's KV cache holds; None while that is not known.
        share: The part of them that resident sessions may fill.
    """

    def __init__(self) -> None:
        self.kv_tokens: int | None = None
        self.share = FIRST_SHARE
        self._busy: dict[SessionKey, _Resident] = {}
        self._idle: OrderedDict[SessionKey, _Resident] = OrderedDict()  # the longest idle first
        self._busy_tokens = 0.0
        self._idle_tokens = 0.0  # whole
        self._idle_weight = 0.0  # decayed, as of _weighed_s
        self._weighed_s = 0.0
        self._hits = _Hits()
        self._open_until_s = -math.inf
        self._displaces_at_s = -math.inf
        self._held_s = -math.inf  # when a session was last refused
        self._gone_after_s = MOST_GONE_AFTER_S
        self._fill_s = MOST_FILL_S

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    def resident_tokens(self, now_s: float) -> float:
        """The weight of all resident sessions."""
        return self._busy_tokens + self._idle_now(now_s)

    def is_resident(self, session: Session) -> bool:
        """Whether a session has its place here."""
        return session.key in self._busy or session.key in self._idle

    def warm_tokens(self, session: Session) -> int:
        """The tokens of a session's prefix that this engine is taken to hold."""
        resident = self._busy.get(session.key) or self._idle.get(session.key)
        return session.context_tokens if resident is not None and resident.is_warm else 0

    def admit(self, session: Session, tokens: float, now_s: float, *, is_forced: bool = False) -> bool:
        """Make a session busy here, if it is resident or fits; tell whether it now has its place.

        Args:
            session: The session, one of whose calls is about to wait for a slot or to be dispatched.
            tokens: Estimate of its context.
            now_s: The time.
            is_forced: Admit it also where it does not fit.
        """
        self._forget_gone(now_s)
        if (idle := self._idle.get(session.key)) is not None:
            self._learn_pause(now_s - idle.since_s)
        resident = self._take_out(session.key, now_s)
        if resident is None and not (is_forced or self._has_room(tokens, now_s)):
            self._held_s = now_s
            return False
        is_warm = resident is not None and resident.is_warm
        self._busy[session.key] = _Resident(tokens, now_s, is_warm)
        self._busy_tokens += tokens
        while self._idle and self.resident_tokens(now_s) > self._budget():
            self._take_out(next(iter(self._idle)), now_s)
        return True

    def may_displace(self, tokens: float, held_since_s: float, now_s: float) -> bool:
        """Whether a session that has been held since then may be admitted where it does not fit; counts it if so."""
        if self.kv_tokens is None or now_s < self.displaces_at_s(held_since_s):
            return False
        self._displaces_at_s = now_s + FILLS * self._fill_s * tokens / self.kv_tokens
        return True

    def displaces_at_s(self, held_since_s: float) -> float:
        """When a session that has been held since then may be admitted where it does not fit."""
        return max(held_since_s + self._fill_s, self._displaces_at_s)

    def rest(self, session: Session, tokens: float, now_s: float) -> None:
        """Let a resident session be idle, with a context of so many tokens; with none it leaves."""
        if self._take_out(session.key, now_s) is not None and tokens > 0:
            self._idle[session.key] = _Resident(tokens, now_s, is_warm=True)
            self._idle_tokens += tokens
            self._weigh(tokens, now_s)

    def expect_hits(self, tokens: int) -> None:
        """Note that a call goes to the engine whose prefix of so many tokens should be cached there."""
        self._hits.coming += tokens

    def learn(self, sample: EngineSample, now_s: float, *, is_busy: bool) -> None:
        """Learn the KV size and the share from what the engine says.

        Args:
            sample: What it says.
            now_s: The time.
            is_busy: Whether it has a prompt to compute.
        """
        self.kv_tokens = sample.kv_tokens or None
        elapsed_s = self._hits.take(sample, now_s, is_busy=is_busy)
        self._learn_fill()
        if now_s < self._open_until_s:
            self._hits.begin_anew(now_s)
            return
        if now_s - self._held_s >= CALM_S:
            self.share = FIRST_SHARE
            return
        lost, idle = self._hits.lost, 1.0 - self._hits.busy
        if self._hits.is_preempting or lost > max(LEAST_LOST, idle):
            self._back_off(now_s)
        elif lost < idle:
            seconds = min(elapsed_s, BUSY_WINDOW_S)  # of what was before, little is known
            self.share = min(MOST_SHARE, self.share * math.exp(GROWTH_PER_S * idle**4 * seconds))

    def room_at_s(self, tokens: float, now_s: float) -> float:
        """When idle sessions have decayed so far that a new one fits, or one is gone; infinity if that does not do."""
        left = self._budget() - self._busy_tokens - self._need(tokens)
        if left <= 0:
            return math.inf
        idle = self._idle_now(now_s)
        # A little more than the formula, so that rounding does not find it still full at that very moment.
        if idle <= left:
            return now_s + 1e-3
        decayed_s = now_s + IDLE_HALF_LIFE_S * math.log2(idle / left)
        gone_s = next(iter(self._idle.values())).since_s + self._gone_after_s
        return max(now_s, min(decayed_s, gone_s)) + 1e-3

    def _budget(self) -> float:
        return math.inf if self.kv_tokens is None else self.share * self.kv_tokens

    def _need(self, tokens: float) -> float:
        return max(tokens, (self._busy_tokens + self._idle_tokens) / len(self) if len(self) else 0.0)

    def _has_room(self, tokens: float, now_s: float) -> bool:
        if not self._busy or now_s < self._open_until_s:
            return True
        return self.resident_tokens(now_s) + self._need(tokens) <= self._budget()

    def _idle_now(self, now_s: float) -> float:
        return self._idle_weight * 2.0 ** ((self._weighed_s - now_s) / IDLE_HALF_LIFE_S)

    def _weigh(self, weight: float, now_s: float) -> None:
        self._idle_weight = self._idle_now(now_s) + weight
        self._weighed_s = now_s

    def _take_out(self, key: SessionKey, now_s: float) -> _Resident | None:
        resident = self._busy.pop(key, None)
        if resident is not None:
            self._busy_tokens -= resident.tokens
        else:
            resident = self._idle.pop(key, None)
            if resident is not None:
                self._idle_tokens -= resident.tokens
                self._weigh(-resident.tokens * 2.0 ** ((resident.since_s - now_s) / IDLE_HALF_LIFE_S), now_s)
        # No rounding error outlives the sessions that it came with.
        if not self._busy:
            self._busy_tokens = 0.0
        if not self._idle:
            self._idle_tokens = self._idle_weight = 0.0
        return resident

    def _forget_gone(self, now_s: float) -> None:
        while self._idle:
            key, resident = next(iter(self._idle.items()))
            if now_s - resident.since_s < self._gone_after_s:
                return
            self._take_out(key, now_s)

    def _learn_pause(self, pause_s: float) -> None:
        after_s = self._gone_after_s + PAUSE_LEARNING_RATE * (GONE_PAUSES * pause_s - self._gone_after_s)
        self._gone_after_s = min(MOST_GONE_AFTER_S, max(LEAST_GONE_AFTER_S, after_s))

    def _learn_fill(self) -> None:
        if self.kv_tokens is None or not self._hits.speed:
            return
        fill_s = min(MOST_FILL_S, max(LEAST_FILL_S, self.kv_tokens / self._hits.speed))
        self._fill_s += FILL_LEARNING_RATE * (fill_s - self._fill_s)

    def _back_off(self, now_s: float) -> None:
        if now_s - self._hits.began_s < BACK_OFF_EVERY_S:
            return
        if self.share <= LEAST_SHARE:
            self._open_until_s = now_s + OPEN_S
            self.share = FIRST_SHARE
        else:
            self.share = max(LEAST_SHARE, BACK_OFF * self.share)
        self._hits.begin_anew(now_s)


class _Hits:
    """What was hit of the prefix cache lately, beside what should have been and what had to be computed.

    The engine's counters hold the hits of all requests, those of strangers too; they can hide that sessions
    lose theirs, never the contrary.
    """

    def __init__(self) -> None:
        self.coming = 0.0
        self.began_s = -math.inf
        self.is_preempting = False
        self.busy = 0.0
        self._computed_per_s = 0.0
        self._expected = 0.0
        self._hit = 0.0
        self._computed = 0.0
        self._last: EngineSample | None = None
        self._last_s = 0.0

    @property
    def lost(self) -> float:
        """The part of the engine's time that goes to prompts that it had; 0 where too little is known."""
        kv_tokens = self._last.kv_tokens if self._last is not None else None
        if not kv_tokens or self._expected <= kv_tokens / 50 or self._computed <= 0:
            return 0.0
        return self.busy * min(1.0, max(0.0, self._expected - self._hit) / self._computed)

    @property
    def speed(self) -> float:
        """Prompt tokens computed in a second of having some; 0 where too little is known."""
        return self._computed_per_s / self.busy if self.busy > LEAST_BUSY else 0.0

    def take(self, sample: EngineSample, now_s: float, *, is_busy: bool) -> float:
        """Take in a sample; return the seconds since the last one."""
        last, elapsed_s = self._last, now_s - self._last_s
        self._last, self._last_s = sample, now_s
        coming, self.coming = self.coming, 0.0
        if last is None:
            self.busy = float(is_busy)
            return 0.0
        self.is_preempting = _rise(last.preemptions, sample.preemptions) > 0
        remembered = math.exp(-elapsed_s / BUSY_WINDOW_S)
        self.busy = is_busy + remembered * (self.busy - is_busy)
        if last.prefix_hits is None or sample.prefix_hits is None:
            # Nothing is told of hits, so none can be missed.
            self._expected = self._hit = self._computed = self._computed_per_s = 0.0
            return elapsed_s
        hit = _rise(last.prefix_hits, sample.prefix_hits)
        computed = max(0, _rise(last.prefix_queries, sample.prefix_queries) - hit)
        if elapsed_s > 0:
            per_s = computed / elapsed_s
            self._computed_per_s = per_s + remembered * (self._computed_per_s - per_s)
        kept = math.exp(-elapsed_s / HITS_WINDOW_S)
        self._hit = self._hit * kept + hit
        self._expected = self._expected * kept + coming
        self._computed = self._computed * kept + computed
        return elapsed_s

    def begin_anew(self, now_s: float) -> None:
        """Forget what was before the share was changed."""
        self._expected = self._hit = self._computed = 0.0
        self.began_s = now_s


def _rise(before: int | None, after: int | None) -> int:
    """How far a counter rose; 0 where it is not told, or began anew with its engine."""
    return 0 if before is None or after is None else max(0, after - before)


class Holds:
    """The held calls of one pool: sessions that were given up before new ones, each in order of arrival."""

    def __init__(self) -> None:
        self._resumed: OrderedDict[TicketId, Waiting] = OrderedDict()
        self._new: OrderedDict[TicketId, Waiting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._resumed) + len(self._new)

    def add(self, waiting: Waiting, *, is_resumed: bool) -> None:
        """Hold a call."""
        waiting.is_held = True
        (self._resumed if is_resumed else self._new)[waiting.ticket.id] = waiting

    def remove(self, waiting: Waiting) -> None:
        """Hold a call no longer."""
        waiting.is_held = False
        if self._resumed.pop(waiting.ticket.id, None) is None:
            del self._new[waiting.ticket.id]

    def first(self) -> Waiting | None:
        """The call that is admitted next."""
        return next(iter((self._resumed or self._new).values()), None)

    def longest(self) -> Waiting | None:
        """The call that has been held longest."""
        heads = [next(iter(each.values())) for each in (self._resumed, self._new) if each]
        return min(heads, key=_number, default=None)


def _number(waiting: Waiting) -> int:
    return waiting.number
