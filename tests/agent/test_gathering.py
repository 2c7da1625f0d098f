"""A generator heard in handfuls."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from muster_agent.gathering import gathered

pytestmark = pytest.mark.anyio

_LONG_S = 60.0


class _Source:
    """Yields what it is given, and tells when it has been closed."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.taken = 0
        self.is_closed = False

    def give(self, *items: int | Exception | None) -> None:
        for item in items:
            self.given.put_nowait(item)

    async def items(self) -> AsyncGenerator[int]:
        try:
            while (item := await self.given.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self.taken += 1
                yield item
        finally:
            self.is_closed = True


async def test_what_is_there_comes_at_once() -> None:
    """All that has come since the last time is one handful, in order; then the end."""
    source = _Source()
    source.give(1, 2, 3)
    async with gathered(source.items(), _LONG_S) as handfuls, aclosing(handfuls):
        assert await anext(handfuls) == [1, 2, 3]
        source.give(4, None)
        assert [handful async for handful in handfuls] == [[4]]
    assert source.is_closed


async def test_silence_is_noticed() -> None:
    """A handful of nothing comes when nothing has come for so long, and what comes later is not lost."""
    source = _Source()
    async with gathered(source.items(), 0.001) as handfuls, aclosing(handfuls):
        assert await anext(handfuls) == []
        source.give(1)
        found: list[int] = []
        while not found:
            found += await anext(handfuls)
        assert found == [1]


async def test_a_failure_comes_behind_what_came_before_it() -> None:
    """What was yielded is heard, and then the failure is raised."""
    source = _Source()
    source.give(1, ValueError("broken"))
    async with gathered(source.items(), _LONG_S) as handfuls, aclosing(handfuls):
        assert await anext(handfuls) == [1]
        with pytest.raises(ValueError, match="broken"):
            await anext(handfuls)


async def test_whoever_leaves_closes_it() -> None:
    """A generator that has more to say is closed when its listener leaves."""
    source = _Source()
    source.give(1)
    async with gathered(source.items(), _LONG_S) as handfuls, aclosing(handfuls):
        assert await anext(handfuls) == [1]
    assert source.is_closed


async def test_a_slow_listener_holds_it_back() -> None:
    """What is kept for a listener who does not listen is bounded, and all of it comes."""
    source = _Source()
    source.give(*range(1000), None)
    async with gathered(source.items(), _LONG_S) as handfuls, aclosing(handfuls):
        first = await anext(handfuls)
        assert len(first) < 1000
        assert source.taken == len(first)
        rest = [item async for handful in handfuls for item in handful]
        assert [*first, *rest] == list(range(1000))
