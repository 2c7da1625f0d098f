"""Who gets which pieces of a shared generation, and that nothing is left behind when all have gone."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakSet

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from muster_batching import LimitError
from muster_batching.single_flight import FellBehindError, SingleFlight, flight_key
from muster_batching.tickets import TenantId

KEY = "key"
TENANT = TenantId("team-a")
CHAT = "/v1/chat/completions"

Flights: TypeAlias = SingleFlight[str, str]


class EngineError(Exception):
    """What a failing generation raises."""


class Generation:
    """A generation that a test plays: each piece, the failure or the end comes when the test says so."""

    def __init__(self) -> None:
        self.steps: asyncio.Queue[str | BaseException | None] = asyncio.Queue()
        self.starts = 0
        self.is_running = False

    async def start(self) -> AsyncGenerator[str, None]:
        """Yield pieces until the end is played."""
        self.starts += 1
        self.is_running = True
        try:
            while (step := await self.steps.get()) is not None:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            self.is_running = False

    async def play(self, *steps: str | BaseException | None) -> None:
        """Let the generation take these steps: pieces, an error to raise, or None for the end."""
        for step in steps:
            self.steps.put_nowait(step)
        await settle()


class Participant:
    """A task that reads a flight to its end and keeps what it got."""

    def __init__(self, flights: Flights, key: str = KEY) -> None:
        self.generation = Generation()
        self.got: list[str] = []
        self.task = asyncio.get_running_loop().create_task(self.run(flights, key))

    async def run(self, flights: Flights, key: str) -> None:
        """Join and read."""
        async with aclosing(flights.join(key, self.generation.start)) as pieces:
            async for piece in pieces:
                self.got.append(piece)

    async def leave(self) -> None:
        """Go before the end."""
        self.task.cancel()
        await asyncio.wait([self.task])

    @property
    def has_ended(self) -> bool:
        """Whether the answer was read to its end."""
        return self.task.done() and not self.task.cancelled() and self.task.exception() is None

    @property
    def has_failed(self) -> bool:
        """Whether the generation's failure reached it."""
        return (
            self.task.done() and not self.task.cancelled() and isinstance(self.task.exception(), EngineError)
        )


async def settle() -> None:
    """Let every task run until each waits for something that the test has yet to do."""
    for _ in range(20):
        await asyncio.sleep(0)


async def join(flights: Flights, count: int) -> list[Participant]:
    """Start participants one after another: the first leads."""
    participants: list[Participant] = []
    for _ in range(count):
        participants.append(Participant(flights))
        await settle()
    return participants


def generation_tasks() -> list[asyncio.Task[Any]]:
    """List the loop's tasks that are flights' generations."""
    return [task for task in asyncio.all_tasks() if "_Flight" in repr(task)]


def assert_nothing_left(flights: Flights) -> None:
    """Check that no flight, no generation and no task is left."""
    assert repr(flights) == "<SingleFlight open=0 generations=0>"
    assert generation_tasks() == []


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run each test on asyncio's own event loop and on uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def flights() -> Flights:
    """Flights whose pieces are kept up to five characters."""
    return SingleFlight(max_buffered=5, size_of=len)


async def test_all_get_the_same_from_the_beginning(flights: Flights) -> None:
    """One generation serves everybody, and who comes late is given what came before."""
    leader, follower = await join(flights, 2)
    await leader.generation.play("a", "b")
    (late,) = await join(flights, 1)
    assert late.got == ["a", "b"]
    await leader.generation.play("c", None)

    assert leader.got == follower.got == late.got == ["a", "b", "c"]
    assert leader.has_ended
    assert follower.has_ended
    assert late.has_ended
    assert (follower.generation.starts, late.generation.starts) == (0, 0)
    assert_nothing_left(flights)


async def test_other_keys_are_not_shared(flights: Flights) -> None:
    """Participants of two keys get an answer each."""
    one, two = Participant(flights, "one"), Participant(flights, "two")
    await settle()
    assert flights.open == 2
    await one.generation.play("1", None)
    await two.generation.play("2", None)

    assert (one.got, two.got) == (["1"], ["2"])
    assert_nothing_left(flights)


async def test_a_finished_flight_is_forgotten(flights: Flights) -> None:
    """A request that comes after the end has a generation of its own: nothing is cached."""
    (first,) = await join(flights, 1)
    await first.generation.play("a", None)
    (second,) = await join(flights, 1)
    await second.generation.play("b", None)

    assert (first.got, second.got) == (["a"], ["b"])
    assert_nothing_left(flights)


async def test_an_answer_without_pieces_ends_for_all(flights: Flights) -> None:
    """A generation that ends at once ends every participant, and nobody starts another."""
    leader, follower = await join(flights, 2)
    await leader.generation.play(None)

    assert leader.has_ended
    assert follower.has_ended
    assert follower.generation.starts == 0


async def test_a_leader_that_leaves_takes_nothing_with_it(flights: Flights) -> None:
    """The generation goes on for the followers, and is not started again."""
    leader, follower = await join(flights, 2)
    await leader.generation.play("a")
    await leader.leave()
    assert leader.generation.is_running
    await leader.generation.play("b", None)

    assert follower.got == ["a", "b"]
    assert follower.generation.starts == 0
    assert_nothing_left(flights)


async def test_a_follower_that_leaves_hurts_nobody(flights: Flights) -> None:
    """The leader and the other followers get the whole answer."""
    leader, leaver, stayer = await join(flights, 3)
    await leader.generation.play("a")
    await leaver.leave()
    await leader.generation.play("b", None)

    assert leader.got == stayer.got == ["a", "b"]
    assert_nothing_left(flights)


async def test_the_last_to_leave_ends_the_generation(flights: Flights) -> None:
    """With nobody left the generation is cancelled, and closed before the last one's leaving ends."""
    leader, follower = await join(flights, 2)
    await leader.generation.play("a")
    await leader.leave()
    await follower.leave()

    assert not leader.generation.is_running
    assert_nothing_left(flights)


async def test_a_generator_that_is_closed_leaves(flights: Flights) -> None:
    """Closing between two pieces is leaving, as a cancellation is."""
    generation = Generation()
    await generation.play("a", "b")
    async with aclosing(flights.join(KEY, generation.start)) as pieces:
        assert await anext(pieces) == "a"

    assert not generation.is_running
    assert_nothing_left(flights)


async def test_who_comes_after_the_last_has_left_starts_anew(flights: Flights) -> None:
    """A generation that is being closed takes nobody in."""
    (first,) = await join(flights, 1)
    first.task.cancel()
    (second,) = await join(flights, 1)
    await second.generation.play("b", None)

    assert second.got == ["b"]
    assert_nothing_left(flights)


async def test_a_generation_cancelled_before_its_first_step_leaves_nobody_waiting(flights: Flights) -> None:
    """A loop that cancels all its tasks may find one that has not begun; its leader is told all the same."""
    leader = Participant(flights)
    await asyncio.sleep(0)
    (task,) = generation_tasks()
    task.cancel()
    await asyncio.wait([leader.task])

    assert leader.task.cancelled()
    assert leader.generation.starts == 0
    assert_nothing_left(flights)


async def test_a_failure_promotes_a_follower(flights: Flights) -> None:
    """The leader has its error; the eldest follower starts over, and the others follow it."""
    leader, second, third = await join(flights, 3)
    await leader.generation.play(EngineError())

    assert leader.has_failed
    assert (second.generation.starts, third.generation.starts) == (1, 0)
    await second.generation.play("b", None)
    assert second.got == third.got == ["b"]
    assert_nothing_left(flights)


async def test_every_follower_may_try_once(flights: Flights) -> None:
    """When each generation fails, each participant gets the failure of its own one."""
    participants = await join(flights, 3)
    for participant in participants:
        await participant.generation.play(EngineError())

    assert [participant.has_failed for participant in participants] == [True, True, True]
    assert [participant.generation.starts for participant in participants] == [1, 1, 1]
    assert_nothing_left(flights)


async def test_a_failure_after_a_piece_reaches_those_who_got_it(flights: Flights) -> None:
    """A follower that was given a piece gets what came before the failure, then the failure."""
    leader, follower = await join(flights, 2)
    await leader.generation.play("a", "b", EngineError())

    assert leader.has_failed
    assert follower.has_failed
    assert leader.got == follower.got == ["a", "b"]
    assert follower.generation.starts == 0
    assert_nothing_left(flights)


async def test_a_failure_without_its_leader_promotes_a_follower(flights: Flights) -> None:
    """When the leader has left and its generation fails with nothing given, the next one starts its own."""
    leader, second = await join(flights, 2)
    await leader.leave()
    await leader.generation.play(EngineError())
    await second.generation.play("b", None)

    assert second.got == ["b"]
    assert_nothing_left(flights)


async def test_a_start_that_raises_is_a_failure(flights: Flights) -> None:
    """An iterator that cannot even be made fails the leader with that error."""

    def start() -> AsyncIterator[str]:
        raise EngineError

    with pytest.raises(EngineError):
        await anext(flights.join(KEY, start))

    assert_nothing_left(flights)


async def test_a_generation_cancelled_from_within_leaves_nobody_waiting(flights: Flights) -> None:
    """A cancellation that no participant asked for ends the leader and promotes the follower."""
    leader, follower = await join(flights, 2)
    await leader.generation.play(asyncio.CancelledError())

    assert leader.task.cancelled()
    await follower.generation.play("b", None)
    assert follower.got == ["b"]
    assert_nothing_left(flights)


async def test_a_full_flight_takes_no_newcomers(flights: Flights) -> None:
    """Once the answer is longer than may be kept, who comes has a generation of its own."""
    leader, follower = await join(flights, 2)
    await leader.generation.play("aaa", "bb")
    (late,) = await join(flights, 1)
    assert late.generation.is_running
    await leader.generation.play("c", None)
    assert leader.got == follower.got == ["aaa", "bb", "c"]

    (later,) = await join(flights, 1)
    await late.generation.play("d", None)

    assert late.got == later.got == ["d"]
    assert_nothing_left(flights)


async def test_a_slow_participant_that_is_alone_slows_the_generation(flights: Flights) -> None:
    """The generation pauses while its only reader has all that may be kept before it, and then goes on."""
    generation = Generation()
    await generation.play("aa", "bb", "cc", "d", "e", None)
    async with aclosing(flights.join(KEY, generation.start)) as pieces:
        assert await anext(pieces) == "aa"
        await settle()
        assert generation.steps.qsize() == 2  # "bb", "cc" and "d" are kept

        assert [piece async for piece in pieces] == ["bb", "cc", "d", "e"]

    assert_nothing_left(flights)


async def test_a_slow_participant_in_company_is_cut_off(flights: Flights) -> None:
    """One that has more before it than may be kept does not hold up another, which gets the whole answer."""
    (fast,) = await join(flights, 1)
    async with aclosing(flights.join(KEY, Generation().start)) as slow:
        await fast.generation.play("aa")
        assert await anext(slow) == "aa"
        await fast.generation.play("bb", "cc", "dd", None)

        with pytest.raises(FellBehindError, match="at most 5 behind"):
            await anext(slow)

    assert fast.got == ["aa", "bb", "cc", "dd"]
    assert fast.has_ended
    assert_nothing_left(flights)


async def test_a_slow_participant_is_waited_for_until_another_waits(flights: Flights) -> None:
    """One that lags is not cut off while nobody has read on, but when somebody asks for the next piece."""
    fast, slow = Generation(), Generation()
    async with (
        aclosing(flights.join(KEY, fast.start)) as fast_pieces,
        aclosing(flights.join(KEY, slow.start)) as slow_pieces,
    ):
        await fast.play("a")
        assert await anext(fast_pieces) == "a"
        assert await anext(slow_pieces) == "a"
        await fast.play("bbbbb", "c")
        assert await anext(fast_pieces) == "bbbbb"
        await settle()
        assert fast.steps.qsize() == 1

        assert await anext(fast_pieces) == "c"
        with pytest.raises(FellBehindError):
            await anext(slow_pieces)


class Piece(str):
    """A piece that can be counted while anybody keeps it."""

    __slots__ = ("__weakref__",)


async def test_no_more_is_kept_than_may_be(flights: Flights) -> None:
    """However long the answer, and though one does not read on, only so many pieces are in memory."""
    kept: WeakSet[Piece] = WeakSet()
    most = 0
    both_are_there = asyncio.Event()

    async def start() -> AsyncGenerator[str, None]:
        yield ""
        await both_are_there.wait()
        for number in range(50):
            piece = Piece(number % 10)
            kept.add(piece)
            yield piece

    async with aclosing(flights.join(KEY, start)) as fast, aclosing(flights.join(KEY, start)) as slow:
        await anext(fast)
        await anext(slow)
        both_are_there.set()
        async for _ in fast:
            await settle()
            most = max(most, len(kept))
        assert len(kept) == 1  # the last; nothing for the one that was cut off

    assert most <= 8  # five, the one being made, and the one in each reader's hands


async def test_a_participant_that_lags_less_gets_everything(flights: Flights) -> None:
    """One that is behind by less than may be kept gets the whole answer, also after the generation's end."""
    (fast,) = await join(flights, 1)
    async with aclosing(flights.join(KEY, Generation().start)) as slow:
        await fast.generation.play("aa")
        assert await anext(slow) == "aa"
        await fast.generation.play("bb", "cc", None)
        assert fast.has_ended

        assert [piece async for piece in slow] == ["bb", "cc"]


async def test_iterators_that_cannot_be_closed_are_shared_too(flights: Flights) -> None:
    """A plain asynchronous iterator is enough."""

    class Letters:
        def __init__(self) -> None:
            self.letters = iter("ab")

        def __aiter__(self) -> "Letters":
            return self

        async def __anext__(self) -> str:
            for letter in self.letters:
                return letter
            raise StopAsyncIteration

    assert [piece async for piece in flights.join(KEY, Letters)] == ["a", "b"]


async def test_the_generation_runs_in_its_leaders_context(flights: Flights) -> None:
    """What the leader has set for its task, a trace for one, holds in the generation."""
    name: ContextVar[str] = ContextVar("name")

    async def start() -> AsyncGenerator[str, None]:
        yield name.get()

    name.set("leader")

    assert [piece async for piece in flights.join(KEY, start)] == ["leader"]


async def test_a_failure_with_nobody_left_is_reported_to_the_loop(flights: Flights) -> None:
    """An iterator that fails as it is closed behind the last participant does not go unnoticed."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))

    async def start() -> AsyncGenerator[str, None]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            raise EngineError

    async with aclosing(flights.join(KEY, start)) as pieces:
        await anext(pieces)
    gc.collect()

    assert [type(report["exception"]) for report in reports] == [EngineError]
    assert_nothing_left(flights)


async def test_leaving_does_not_hang_on_a_slow_close(flights: Flights) -> None:
    """Who is cancelled again while the iterator closes is gone; the closing still ends, and takes nobody in."""
    has_begun_to_close, may_close = asyncio.Event(), asyncio.Event()

    async def start() -> AsyncGenerator[str, None]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            has_begun_to_close.set()
            await may_close.wait()

    async def read() -> None:
        async for _ in flights.join(KEY, start):
            pass

    task = asyncio.get_running_loop().create_task(read())
    await settle()
    task.cancel()
    await has_begun_to_close.wait()
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert flights.generations == 1
    (late,) = await join(flights, 1)
    await late.generation.play("b", None)
    assert late.got == ["b"]
    may_close.set()
    await settle()

    assert_nothing_left(flights)


@pytest.mark.parametrize("max_buffered", [0, -1])
def test_a_buffer_for_nothing_is_refused(max_buffered: int) -> None:
    """A flight that may keep nothing is not made."""
    with pytest.raises(LimitError, match="max_buffered"):
        SingleFlight[str, str](max_buffered=max_buffered, size_of=len)


def body(**fields: object) -> dict[str, object]:
    """Make a deterministic chat completion's body."""
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, **fields}


def key(body: dict[str, object], tenant: TenantId = TENANT, path: str = CHAT) -> bytes | None:
    """Make a body's key."""
    return flight_key(body, tenant=tenant, path=path)


def test_equal_requests_have_one_key() -> None:
    """Neither the order of the top-level fields nor who asks makes a difference."""
    fields = body(max_tokens=5)
    by_somebody = body(
        max_tokens=5, user="u", metadata={"a": "b"}, safety_identifier="s", prompt_cache_key="p"
    )

    assert key(fields) == key(dict(reversed(fields.items()))) == key(by_somebody)
    assert key(fields) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "other"},
        {"max_tokens": 6},
        {"seed": 1},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"request_id": "mine"},
        {"cache_salt": "s"},
        {"messages": [{"role": "user", "content": "ho"}]},
        {"an_engines_own_field": None},
    ],
)
def test_whatever_may_change_the_answer_changes_the_key(fields: dict[str, object]) -> None:
    """Any other difference between two bodies, in a field that is unknown here too, keeps them apart."""
    assert key(body(max_tokens=5)) != key(body(**{"max_tokens": 5, **fields}))


def test_the_order_below_the_top_level_counts() -> None:
    """A schema's fields are written in its order, so two orders are two requests."""
    one = body(response_format={"a": {"x": 1, "y": 2}})
    other = body(response_format={"a": {"y": 2, "x": 1}})

    assert key(one) != key(other)


def test_tenants_and_paths_are_kept_apart() -> None:
    """Nothing is shared between tenants, nor between two kinds of call."""
    keys = {
        key(body()),
        key(body(), tenant=TenantId("team-b")),
        key(body(), path="/v1/completions"),
    }

    assert len(keys) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": None},
        {"temperature": 0.1},
        {"temperature": False},
        {"temperature": "0"},
        {"temperature": float("nan")},
        {"n": 2},
        {"n": True},
        {"best_of": 2},
        {"store": True},
    ],
)
def test_what_must_stay_alone_has_no_key(fields: dict[str, object]) -> None:
    """What is sampled, has several choices, is stored, or is not what it should be is never shared."""
    assert key(body(**fields)) is None


def test_a_default_temperature_has_no_key() -> None:
    """A body that does not say its temperature is sampled."""
    fields = body()
    del fields["temperature"]

    assert key(fields) is None


@pytest.mark.parametrize(
    "fields", [{"temperature": 0.0}, {"n": 1}, {"n": None}, {"best_of": 1}, {"store": False}]
)
def test_what_is_said_to_be_deterministic_has_a_key(fields: dict[str, object]) -> None:
    """The ways of asking for one choice at temperature 0 all have a key."""
    assert key(body(**fields)) is not None


def test_calls_with_other_effects_have_no_key() -> None:
    """A path that is not known to generate and do nothing else is never shared."""
    assert key(body(), path="/v1/responses") is None


MAX_BEHIND = 3


class Played(Generation):
    """A generation of the machine below: its pieces carry its name, and it notes those it made."""

    def __init__(self, name: int) -> None:
        super().__init__()
        self.name = name
        self.made: list[str] = []
        self.has_finished = False
        self.is_told_to_end = False

    async def start(self) -> AsyncGenerator[str, None]:
        """Yield and note pieces until the end is played."""
        async with aclosing(super().start()) as pieces:
            async for piece in pieces:
                self.made.append(piece)
                yield piece
        self.has_finished = True

    def tell(self, step: str | BaseException | None) -> None:
        """Tell its next step."""
        self.is_told_to_end = not isinstance(step, str)
        self.steps.put_nowait(step)


@dataclass(eq=False)
class Player:
    """A participant of the machine below; a slow one reads a piece only when it is told to."""

    generation: Played
    is_slow: bool
    got: list[str] = field(default_factory=list)
    may_read: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    task: asyncio.Task[None] = field(init=False)

    async def run(self, flights: Flights) -> None:
        """Join and read."""
        async with aclosing(flights.join(KEY, self.generation.start)) as pieces:
            async for piece in pieces:
                self.got.append(piece)
                if self.is_slow:
                    await self.may_read.acquire()


class SingleFlightMachine(RuleBasedStateMachine):
    """Plays joining, leaving, pieces, failures and ends in any order, on an event loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.flights: Flights = SingleFlight(max_buffered=MAX_BEHIND, size_of=lambda _: 1)
        self.players: list[Player] = []

    def run(self, does: Callable[[], object]) -> None:
        """Do something on the loop, and let everything settle."""

        async def do() -> None:
            does()
            await settle()

        self.loop.run_until_complete(do())

    @property
    def present(self) -> list[Player]:
        """The participants that have neither left nor come to an end."""
        return [player for player in self.players if not player.task.done()]

    @property
    def running(self) -> list[Played]:
        """The generations that wait for a step."""
        generations = [player.generation for player in self.players]
        return [each for each in generations if each.is_running and not each.is_told_to_end]

    @rule(is_slow=st.booleans())
    def join(self, is_slow: bool) -> None:
        """A request comes."""
        player = Player(Played(len(self.players)), is_slow)
        self.players.append(player)

        def start() -> None:
            player.task = self.loop.create_task(player.run(self.flights))

        self.run(start)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """A client hangs up."""
        self.run(data.draw(st.sampled_from(self.present)).task.cancel)

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        """A slow client reads on."""
        self.run(data.draw(st.sampled_from(self.present)).may_read.release)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), count=st.integers(1, 4))
    def make(self, data: st.DataObject, count: int) -> None:
        """A generation makes pieces."""
        generation = data.draw(st.sampled_from(self.running))
        first = len(generation.made) + generation.steps.qsize()
        for number in range(first, first + count):
            generation.tell(f"{generation.name}:{number}")
        self.run(lambda: None)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), fails=st.booleans())
    def end(self, data: st.DataObject, fails: bool) -> None:
        """A generation ends."""
        generation = data.draw(st.sampled_from(self.running))
        self.run(lambda: generation.tell(EngineError(generation.name) if fails else None))

    @invariant()
    def everybody_gets_one_answer_from_its_beginning(self) -> None:
        """What a participant got is the first pieces of one generation, in order and without a gap."""
        for player in self.players:
            if player.got:
                generation = self.players[int(player.got[0].split(":")[0])].generation
                assert player.got == generation.made[: len(player.got)]

    @invariant()
    def ends_are_just(self) -> None:
        """Who came to its end got all of a finished answer, or an error that is its own to bear."""
        for player in self.players:
            if player.task.done() and not player.task.cancelled():
                self.check_end(player, player.task.exception())

    def check_end(self, player: Player, error: BaseException | None) -> None:
        """Check that a participant ended as it should."""
        match error:
            case None:
                assert any(
                    each.generation.has_finished and each.generation.made == player.got
                    for each in self.players
                )
            case EngineError():
                is_own = error.args == (player.generation.name,)
                assert is_own or player.got[:1] == [f"{error.args[0]}:0"]
            case _:
                assert isinstance(error, FellBehindError)
                assert player.is_slow

    @invariant()
    def nothing_is_started_twice_or_kept(self) -> None:
        """At most one flight is open, and there is none, nor a generation, without a participant."""
        assert all(player.generation.starts <= 1 for player in self.players)
        running = sum(player.generation.is_running for player in self.players)
        assert running == self.flights.generations <= len(self.present)
        assert self.flights.open <= min(1, self.flights.generations)

    @invariant()
    def nobody_is_held_up(self) -> None:
        """A participant that is not slow has got every piece that its generation made."""
        for player in self.present:
            if player.got and not player.is_slow:
                generation = self.players[int(player.got[0].split(":")[0])].generation
                assert player.got == generation.made

    def teardown(self) -> None:
        """In the end every generation ends and all read on: everybody comes to an end, and nothing is left."""
        for player in self.players:
            for _ in range(1000):
                player.may_read.release()
        self.run(lambda: None)
        while self.running:
            self.run(lambda: self.running[0].tell(None))
        assert not self.present
        assert (self.flights.open, self.flights.generations) == (0, 0)
        self.ends_are_just()
        self.loop.close()


TestSingleFlight = SingleFlightMachine.TestCase
