"""Sharing one generation between identical requests that are in flight together.

    flights: SingleFlight[FlightKey, bytes] = SingleFlight(max_buffered=1 << 20, size_of=len)
    async with aclosing(flights.join(key, start)) as pieces:
        async for piece in pieces:
            ...

The first to join a key is its *leader*: its `start()` runs, and makes the *flight*. Those who join the key
while the flight lasts are *followers*: they are given the same pieces, from the first one, each at its own
pace. The rules:

1. The generation runs in a task that the flight owns, not in the leader's. So it outlives a leader that
   leaves, and what its iterator opens, it also closes in one and the same task.
2. Whoever leaves, the leader too, hurts nobody: the generation goes on for the others. When the last one
   leaves, it is cancelled and its iterator closed before that one's leaving ends.
3. A generation that fails tells its leader, and each follower that was given a piece, after the pieces that
   came before the failure. A follower that was given none has lost nothing: the eldest such becomes the
   leader of a new flight, by its own `start()`, and the others follow it. No `start()` is called twice.
4. A flight that has ended is forgotten: this is no cache.
5. A flight keeps its answer for newcomers up to `max_buffered`. From then on newcomers make a flight of
   their own, and only what someone has yet to be given is kept. The generation pauses while someone has
   `max_buffered` or more yet to be given, unless another waits for the next piece: then it goes on, and
   whoever lags so far is cut off (`FellBehindError`). So a slow participant that is alone slows the
   generation down, one in company does not, and no flight ever keeps more than `max_buffered` and the last
   piece.

A participant waits for the leader's turn in a queue, and fares as the leader does. Put into the key what
must not be mixed: the class of the request, lest an urgent one wait behind an idle one.
"""

import asyncio
import json
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Generic, NewType, Protocol, TypeVar, runtime_checkable

from muster_batching.errors import BatchingError, LimitError
from muster_batching.tickets import TenantId

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

FlightKey = NewType("FlightKey", bytes)
"""What identical requests of one tenant have in common, as 32 bytes."""

SHAREABLE_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages"})
"""Calls that generate and do nothing else. A response of `/v1/responses` is stored, and repeats the fields of
its request that name the client."""

CLIENT_FIELDS = frozenset({"metadata", "prompt_cache_key", "safety_identifier", "session_id", "user"})
"""Fields that say whose request it is. They change neither the answer nor what is written in it."""


class FellBehindError(BatchingError):
    """A participant lagged by `max_buffered` or more while another waited for the next piece."""

    def __init__(self, max_buffered: int) -> None:
        super().__init__(f"expected a reader at most {max_buffered} behind, got a slower one")
        self.max_buffered = max_buffered


def flight_key(body: Mapping[str, object], *, tenant: TenantId, path: str) -> FlightKey | None:
    """Make the key under which a request may share a generation; None where it must stay alone.

    Shared is what has one right answer and no effect but that: temperature 0, said and not left to a
    default; one choice (`n` and `best_of` absent or 1); not to be stored. Two bodies have one key if they
    differ in nothing but the order of their top-level fields and in `CLIENT_FIELDS`. `stream` and
    `stream_options` stay in, as they change the answer's bytes; so does an id that the client asks for.

    An engine may still answer two equal requests differently, as its sums depend on the batch: what is
    shared is one of the right answers. All who share it see the same ids in it.

    Args:
        body: The request's body as parsed from JSON.
        tenant: Who pays. Nothing is shared between tenants: one could time what another asks.
        path: Of the call, `/v1/chat/completions` for one.

    Cost: writing the body as JSON and hashing it, O(its bytes).
    """
    if path not in SHAREABLE_PATHS or not _is_deterministic(body) or body.get("store"):
        return None
    # Only the top level is sorted. Below it order can matter: an engine writes an object's fields in the
    # order of its schema, and a chat template prints a tool's parameters as they stand.
    kept = sorted((name, value) for name, value in body.items() if name not in CLIENT_FIELDS)
    text = json.dumps([tenant, path, kept], separators=(",", ":"))
    return FlightKey(blake2b(text.encode(), digest_size=32).digest())


def _is_deterministic(body: Mapping[str, object]) -> bool:
    return _is_number(body.get("temperature"), 0) and all(
        body.get(name) is None or _is_number(body[name], 1) for name in ("n", "best_of")
    )


def _is_number(value: object, number: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number


class SingleFlight(Generic[K, T]):
    """The flights under way; the module's docstring is their contract.

    All calls come from one event loop.

    Args:
        max_buffered: How much of an answer is kept for others, in the unit of `size_of`; 1 or more.
        size_of: Measures a piece, 0 or more: `len`, or 1 for each.

    Raises:
        LimitError: `max_buffered` is below 1.
    """

    def __init__(self, *, max_buffered: int, size_of: Callable[[T], int]) -> None:
        if not 1 <= max_buffered < math.inf:
            raise LimitError("max_buffered", max_buffered, 1)
        self._max_buffered = max_buffered
        self._size_of = size_of
        self._open: dict[K, _Flight[T]] = {}
        self._generations: set[asyncio.Task[None]] = (
            set()
        )  # asyncio itself holds its tasks by weak references

    @property
    def open(self) -> int:
        """Flights that newcomers may join."""
        return len(self._open)

    @property
    def generations(self) -> int:
        """Generations that run, or are being closed."""
        return len(self._generations)

    async def join(self, key: K, start: Callable[[], AsyncIterator[T]]) -> AsyncGenerator[T, None]:
        """Take part in the key's flight, from the first step to the end or to the closing of this generator.

        Close it (`contextlib.aclosing`) unless it is read to its end: an open one keeps its generation alive.
        A failure of the iterator is raised here as it is, by rule 3.

        Args:
            key: What is shared. All who join under it have equal requests.
            start: Makes the pieces. It is called if this participant leads, in a task with a copy of its
                context; the iterator is closed by its `aclose` if it has one.

        Raises:
            FellBehindError: By rule 5.
        """
        while True:
            flight, reader = self._board(key, start)
            try:
                while await flight.has_piece_for(reader):
                    yield flight.give(reader)
            finally:
                await flight.leave(reader)
            if not flight.is_lost_on(reader):
                return

    def __repr__(self) -> str:
        return f"<SingleFlight open={self.open} generations={self.generations}>"

    def _board(self, key: K, start: Callable[[], AsyncIterator[T]]) -> "tuple[_Flight[T], _Reader[T]]":
        flight = self._open.get(key)
        if flight is not None:
            return flight, flight.board(is_leader=False)
        flight = self._open[key] = _Flight(self._max_buffered, self._size_of, partial(self._shut, key))
        reader = flight.board(is_leader=True)
        generation = flight.take_off(start)
        self._generations.add(generation)
        generation.add_done_callback(self._generations.discard)
        return flight, reader

    def _shut(self, key: K, flight: "_Flight[T]") -> None:
        # Another flight of the key may have begun since this one was full.
        if self._open.get(key) is flight:
            del self._open[key]


@dataclass(slots=True, eq=False)
class _Reader(Generic[T]):
    """A participant.

    Attributes:
        is_leader: Whether the generation is by its `start()`.
        unread: The pieces that it has yet to be given.
        unread_size: Their size.
        is_served: Whether it was given a piece.
        is_waiting: Whether it has asked for a piece that has not been made.
        is_cut_off: Whether it fell too far behind.
        news: Set when a wait for a piece is to be looked at again.
    """

    is_leader: bool
    unread: deque[T]
    unread_size: int
    is_served: bool = False
    is_waiting: bool = False
    is_cut_off: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)


class _Flight(Generic[T]):
    """One generation and those who share it.

    Args:
        max_buffered: As for `SingleFlight`.
        size_of: As for `SingleFlight`.
        on_shut: Told when newcomers can no longer join; maybe more than once.
    """

    _generation: asyncio.Task[None]

    def __init__(
        self, max_buffered: int, size_of: Callable[[T], int], on_shut: Callable[["_Flight[T]"], None]
    ) -> None:
        self._max_buffered = max_buffered
        self._size_of = size_of
        self._on_shut = on_shut
        self._readers: dict[_Reader[T], None] = {}  # the eldest first
        self._answer: list[T] = []  # from the beginning, while newcomers may join
        self._answer_size = 0
        self._is_shut = False
        self._is_over = False
        self._error: BaseException | None = None
        self._moved = asyncio.Event()  # set when a reader takes a piece or waits for one

    def board(self, *, is_leader: bool) -> _Reader[T]:
        """Take in a participant; the flight is not shut."""
        reader = _Reader(is_leader, deque(self._answer), self._answer_size)
        self._readers[reader] = None
        return reader

    def take_off(self, start: Callable[[], AsyncIterator[T]]) -> asyncio.Task[None]:
        """Begin the generation; the leader is aboard."""
        self._generation = asyncio.get_running_loop().create_task(self._generate(start))
        self._generation.add_done_callback(self._end)
        return self._generation

    async def has_piece_for(self, reader: _Reader[T]) -> bool:
        """Wait for the reader's next piece; False at the end, or when the flight is lost on it."""
        while not (reader.unread or reader.is_cut_off or self._is_over):
            await self._wait(reader)
        if reader.is_cut_off:
            raise FellBehindError(self._max_buffered)
        if self.is_lost_on(reader):
            return False
        if self._error is not None and not reader.unread:
            raise self._error
        return bool(reader.unread)

    def give(self, reader: _Reader[T]) -> T:
        """Take out the reader's next piece."""
        piece = reader.unread.popleft()
        reader.unread_size -= self._size_of(piece)
        reader.is_served = True
        self._moved.set()
        return piece

    async def leave(self, reader: _Reader[T]) -> None:
        """Let a participant go; behind the last one the generation is cancelled, and its end awaited."""
        self._readers.pop(reader, None)
        if not self._readers and not self._generation.done():
            self._shut()
            self._generation.cancel()
            await asyncio.wait([self._generation])

    def is_lost_on(self, reader: _Reader[T]) -> bool:
        """Tell whether the generation failed before this follower was given anything."""
        return self._error is not None and not reader.is_leader and not reader.is_served

    async def _wait(self, reader: _Reader[T]) -> None:
        reader.news.clear()
        reader.is_waiting = True
        self._moved.set()
        await reader.news.wait()

    async def _generate(self, start: Callable[[], AsyncIterator[T]]) -> None:
        pieces = start()
        try:
            async for piece in pieces:
                self._add(piece)
                await self._make_room()
        finally:
            if isinstance(pieces, _Closable):
                await pieces.aclose()

    def _add(self, piece: T) -> None:
        size = self._size_of(piece)
        for reader in self._readers:
            reader.unread.append(piece)
            reader.unread_size += size
            reader.is_waiting = False  # here and not where it wakes: it may run later than what reads this
            reader.news.set()
        if not self._is_shut:
            self._answer.append(piece)
            self._answer_size += size
            if self._answer_size >= self._max_buffered:
                self._shut()

    async def _make_room(self) -> None:
        while lagging := [r for r in self._readers if r.unread_size >= self._max_buffered]:
            if any(reader.is_waiting for reader in self._readers):
                self._cut_off(lagging)
            else:
                self._moved.clear()
                await self._moved.wait()

    def _cut_off(self, lagging: list[_Reader[T]]) -> None:
        for reader in lagging:
            del self._readers[reader]
            reader.is_cut_off = True
            reader.unread.clear()
            reader.news.set()

    def _shut(self) -> None:
        self._is_shut = True
        self._answer.clear()
        self._on_shut(self)

    def _end(self, generation: asyncio.Task[None]) -> None:
        # In a callback and not in the task: one that is cancelled before its first step never runs.
        self._is_over = True
        self._shut()
        if generation.cancelled():
            self._error = asyncio.CancelledError()
        elif self._readers:
            # With nobody left to be told, the failure is left to asyncio, which reports what none retrieved.
            self._error = generation.exception()
        for reader in self._readers:
            reader.news.set()


@runtime_checkable
class _Closable(Protocol):
    async def aclose(self) -> None: ...
