"""Window mode's decisions: when a batch is full or has waited long enough, and who is in it.

The prototype's way: requests gather until there are `max_batch_size`, or until `timeout_s` after the first;
they go to the engine as one call, and the next batch forms meanwhile but does not go before that call has
ended. It does no IO and reads no clock; times are in seconds of one monotonic clock.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from muster_batching.drain import DrainRate
from muster_batching.errors import LimitError
from muster_batching.scheduler import Stats

Item = TypeVar("Item", bound=Hashable)


class Window(Generic[Item]):
    """Gathers items into batches, first come, first served.

    Every method takes time that does not depend on how many wait, apart from the items that it returns.

    Args:
        max_batch_size: Items that one batch holds at most, 1 or more.
        timeout_s: Seconds after which a batch goes though it is not full, counted from the coming of its
            first item.
        max_waiting: Items that may wait, 1 or more.
        max_wait_s: Seconds that an item waits beyond its window, for earlier batches to end.

    Raises:
        LimitError: An argument is outside its range, or not finite.
    """

    def __init__(self, max_batch_size: int, timeout_s: float, max_waiting: int, max_wait_s: float) -> None:
        _check("max_batch_size", max_batch_size, 1)
        _check("timeout_s", timeout_s, 0)
        _check("max_waiting", max_waiting, 1)
        _check("max_wait_s", max_wait_s, 0)
        self._max_batch_size = max_batch_size
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        # Not a dict: its first key is found by walking over the ones deleted before it.
        self._arrivals: OrderedDict[Item, float] = OrderedDict()
        self._is_running = False
        self._drain = DrainRate()
        self._total_requests = 0
        self._total_batches = 0

    def __len__(self) -> int:
        return len(self._arrivals)

    @property
    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._arrivals) >= self._max_waiting

    @property
    def next_wakeup_s(self) -> float | None:
        """When `take_batch`, or while a batch runs `take_expired`, has something to give; None while none waits.

        A batch that is full has been due since ever: minus infinity.
        """
        if not self._arrivals:
            return None
        if self._is_running:
            return self._first_s + self._timeout_s + self._max_wait_s
        if len(self._arrivals) >= self._max_batch_size:
            return -math.inf
        return self._first_s + self._timeout_s

    @property
    def stats(self) -> Stats:
        """The batches that were taken so far; a batch's size is the number of its items."""
        mean = self._total_requests / self._total_batches if self._total_batches else 0.0
        return Stats(self._total_requests, self._total_batches, mean)

    def add(self, item: Item, now_s: float) -> None:
        """Put an item last; it does not wait yet, and the window is not full."""
        if not self._arrivals:
            self._drain.begin(now_s)
        self._arrivals[item] = now_s

    def discard(self, item: Item, now_s: float) -> bool:
        """Take out an item that is not to go; tell whether it was waiting."""
        if item not in self._arrivals:
            return False
        del self._arrivals[item]
        self._note_if_empty(now_s)
        return True

    def take_batch(self, now_s: float) -> list[Item]:
        """Take out the next batch, in the order of coming, if it is due and none runs; else nothing.

        The batch runs from here to the call of `end_batch`.
        """
        due_s = self.next_wakeup_s
        if self._is_running or due_s is None or due_s > now_s:
            return []
        self._is_running = True
        batch = [self._take_first() for _ in range(min(len(self._arrivals), self._max_batch_size))]
        for _ in batch:
            self._drain.count(now_s)
        self._note_if_empty(now_s)
        self._total_requests += len(batch)
        self._total_batches += 1
        return batch

    def end_batch(self) -> None:
        """Note that the running batch has ended: the next may go."""
        self._is_running = False

    def take_expired(self, now_s: float) -> list[Item]:
        """Take out the items that have waited too long for earlier batches to end."""
        longest_s = self._timeout_s + self._max_wait_s
        expired: list[Item] = []
        while self._arrivals and self._first_s + longest_s <= now_s:
            expired.append(self._take_first())
        if expired:
            self._note_if_empty(now_s)
        return expired

    def take_all(self, now_s: float) -> list[Item]:
        """Take out every item that waits."""
        items = list(self._arrivals)
        if items:
            self._arrivals.clear()
            self._note_if_empty(now_s)
        return items

    def retry_after_s(self, now_s: float) -> int:
        """Estimate after how many seconds a newcomer would get its turn."""
        return self._drain.retry_after_s(len(self._arrivals) + 1, now_s)

    def __repr__(self) -> str:
        return f"<Window waiting={len(self)} running={self._is_running}>"

    @property
    def _first_s(self) -> float:
        return next(iter(self._arrivals.values()))

    def _take_first(self) -> Item:
        return self._arrivals.popitem(last=False)[0]

    def _note_if_empty(self, now_s: float) -> None:
        if not self._arrivals:
            self._drain.end(now_s)


def _check(name: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise LimitError(name, value, least)
