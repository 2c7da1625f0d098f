"""The KV cache of a simulated engine: who holds its blocks, and which old ones can be found again.

A block is *active* while a running request holds it, *cached* when none does but its content can still be
found, and *unused* otherwise. A full block has a name, the hash of the text up to its end, and running requests
with the same beginning hold the same block. vLLM's rules: what a request gives back stays cached until its room
is needed; then the block that was given back longest ago goes first, and of one request the last block first.

Blocks without a name are only counted. They cost nothing to hold however many they are; given back full, they
take room in the cache as any others do, though nobody can find them.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile


@dataclass(slots=True)
class Holding:
    """The blocks of one running request.

    Attributes:
        blocks: How many they are, with a name or without.
        names: Names of those that others may share with it.
    """

    blocks: int = 0
    names: set[int] = field(default_factory=set[int])


class KvBlocks:
    """A pool of blocks.

    Args:
        total: How many it has.

    Attributes:
        total: How many it has.
        active: Of these, held by running requests; one that several share counts once.
        cached: Of these, held by none and still to be found.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.active = 0
        self.cached = 0
        self._holders: dict[object, int] = {}  # by name, of active and cached blocks
        self._oldest_first: OrderedDict[object, int] = (
            OrderedDict()
        )  # cached blocks, or runs of nameless ones

    @property
    def available(self) -> int:
        """Blocks that can be had: the unused and, by eviction, the cached."""
        return self.total - self.active

    def find(self, names: Sequence[int]) -> int:
        """How many of these blocks, from the first on without a gap, are there."""
        return sum(1 for _ in takewhile(self._holders.__contains__, names))

    def admit(self, names: Sequence[int], blocks: int, found: int) -> Holding | None:
        """Give a request its blocks: those found, and new ones for the rest; None when there is no room.

        Args:
            names: Of its full blocks in order, no name twice; any more blocks are its own.
            blocks: How many it needs, at least `len(names)`.
            found: How many of the names `find` found, or fewer.
        """
        idle = sum(1 for name in islice(names, found) if not self._holders[name])
        if blocks - found + idle > self.available:
            return None
        for name in islice(names, found):
            self._share(name)
        self.take(blocks - found)
        fresh = [name for name in islice(names, found, None) if name not in self._holders]
        self._holders.update(dict.fromkeys(fresh, 1))
        return Holding(blocks, {*islice(names, found), *fresh})

    def take(self, count: int) -> None:
        """Give out nameless blocks, `available` or fewer; the oldest cached ones go where no unused ones are left.

        The caller adds them to the holdings that they are for.
        """
        self._evict(count - (self.available - self.cached))
        self.active += count

    def release(self, holding: Holding, names: Sequence[int], full: int) -> None:
        """Take back what a request held.

        Args:
            holding: What it held.
            names: Of its blocks in order, as far as they have one.
            full: How many of its blocks, from the first on, have been computed to their end: they stay cached.
        """
        self.active -= holding.blocks - len(holding.names)
        self._keep(object(), max(0, full - len(names)))
        for name in islice(names, full, None):
            if name in holding.names:
                self._drop(name)
        for name in reversed(names[:full]):
            if name in holding.names:
                self._let_go(name)
            elif name not in self._holders:
                self._holders[name] = 0
                self._keep(name, 1)

    def _share(self, name: int) -> None:
        if not self._holders[name]:
            del self._oldest_first[name]
            self.cached -= 1
            self.active += 1
        self._holders[name] += 1

    def _let_go(self, name: int) -> None:
        self._holders[name] -= 1
        if not self._holders[name]:
            self.active -= 1
            self._keep(name, 1)

    def _drop(self, name: int) -> None:
        """As `_let_go`, of a block that was never computed: nobody may find it."""
        self._holders[name] -= 1
        if not self._holders[name]:
            self.active -= 1
            del self._holders[name]

    def _keep(self, key: object, count: int) -> None:
        if count:
            self._oldest_first[key] = count
            self.cached += count

    def _evict(self, count: int) -> None:
        while count > 0:
            key, run = next(iter(self._oldest_first.items()))
            gone = min(run, count)
            if gone == run:
                del self._oldest_first[key]
                self._holders.pop(key, None)
            else:
                self._oldest_first[key] = run - gone
            self.cached -= gone
            count -= gone
