"""How fast a pool's backlog drains, and so when a ticket turned away may come again.

While tickets of a pool wait, every slot given back lets one of them go; the gaps between these departures
are the measure. With `left` departures over `backlogged_s` seconds in which somebody waited,

    retry_after_s = round(clamp(place * backlogged_s / left, 1, 60))

where `place` is the place at the tail of the queue that a newcomer would get: the tickets of the pool that
wait now, and one. Both sums fade by exp(-gap / WINDOW_S) at each departure. A weighted mean of gaps bears
engines whose answers end in bursts, which an average per event does not: 63 gaps of nothing would have it
forget the one gap that took the time. Seconds in which nobody waits are left out, since they measure the
demand and not the engine.
"""

import math

WINDOW_S = 30.0
"""Long enough to span several answers, short enough to follow a changed limit within a minute."""

LEAST_RETRY_S = 1
"""`retry-after` is written in whole seconds, and 0 would invite a busy loop."""

MOST_RETRY_S = 60
"""Clients cap what they obey (the OpenAI SDKs at 120 s), and an estimate further ahead is worth little."""

UNMEASURED_RETRY_S = 5
"""Before the first departure nothing is known, and an answer of a language model takes seconds."""


class DrainRate:
    """Measures the departures from one pool's queue. Every method takes constant time."""

    def __init__(self) -> None:
        self._left = 0.0
        self._backlogged_s = 0.0
        self._since_s: float | None = None

    def begin(self, now_s: float) -> None:
        """Note that a first ticket waits."""
        self._since_s = now_s

    def count(self, now_s: float) -> None:
        """Note that a waiting ticket went to an upstream."""
        left, self._backlogged_s = self._faded(now_s)
        self._left = left + 1
        self._since_s = now_s

    def end(self, now_s: float) -> None:
        """Note that nobody waits any more."""
        self._left, self._backlogged_s = self._faded(now_s)
        self._since_s = None

    def wait_s(self, place: int, now_s: float) -> float | None:
        """Estimate how long the ticket at `place` (1 is the next) waits; None before the first departure."""
        left, backlogged_s = self._faded(now_s)
        return None if left == 0 else place * backlogged_s / left

    def retry_after_s(self, place: int, now_s: float) -> int:
        """Estimate when the ticket at `place` (1 is the next) would leave, by the module's formula."""
        wait_s = self.wait_s(place, now_s)
        if wait_s is None:
            return UNMEASURED_RETRY_S
        return round(min(max(wait_s, LEAST_RETRY_S), MOST_RETRY_S))

    def _faded(self, now_s: float) -> tuple[float, float]:
        # The gap that is still open counts too: a queue that has stalled must not promise its old pace.
        if self._since_s is None:
            return self._left, self._backlogged_s
        gap_s = now_s - self._since_s
        kept = math.exp(-gap_s / WINDOW_S)
        return self._left * kept, self._backlogged_s * kept + gap_s
