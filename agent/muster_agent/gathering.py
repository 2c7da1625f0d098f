"""A generator heard in handfuls: what it has yielded in the meantime is taken at once, and its silence is noticed."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

_Item = TypeVar("_Item")

# A run writes a few tokens at a time. Whoever reads more slowly is the event log's to serve, which is bounded too.
_MOST_WAITING = 100


@asynccontextmanager
async def gathered(
    source: AsyncGenerator[_Item], silence_s: float
) -> AsyncGenerator[AsyncGenerator[Sequence[_Item]]]:
    """Hear a generator, and close it at the end.

    What is yielded has everything that has come since the last time, in order; it is empty after `silence_s` seconds
    without anything. What the generator raises is raised behind its last item.
    """
    pile = _Pile[_Item]()
    filling = asyncio.ensure_future(pile.fill(source))
    try:
        yield pile.handfuls(silence_s)
    finally:
        filling.cancel()
        await asyncio.wait([filling])


class _Pile(Generic[_Item]):
    """What has been yielded and not taken."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_over = False
        self._error: Exception | None = None

    async def fill(self, source: AsyncGenerator[_Item]) -> None:
        """Take everything from a generator, to its end."""
        try:
            async with aclosing(source):
                async for item in source:
                    self._items.append(item)
                    self._changed.set()
                    if len(self._items) >= _MOST_WAITING:
                        self._has_room.clear()
                        await self._has_room.wait()
        except Exception as error:  # noqa: BLE001 - raised again where the items are taken
            self._error = error
        finally:
            self._is_over = True
            self._changed.set()

    async def handfuls(self, silence_s: float) -> AsyncGenerator[Sequence[_Item]]:
        """What is there, as soon as there is something."""
        while True:
            if not self._changed.is_set() and not await self._change(silence_s):
                yield []
                continue
            self._changed.clear()
            items, self._items = self._items, []
            self._has_room.set()
            if items:
                yield items
            if self._is_over and not self._items:
                break
        if self._error is not None:
            raise self._error

    async def _change(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self._changed.wait()
        except TimeoutError:
            return False
