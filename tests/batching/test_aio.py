"""The asyncio driver: who holds a slot, and that leaving the block gives it back whatever happens."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from contextlib import aclosing
from weakref import ref

import pytest

from muster_batching import (
    AimdLimit,
    AsyncScheduler,
    BatchingError,
    ClosedError,
    DuplicateTicketError,
    EngineSample,
    FixedLimit,
    Outcome,
    Policy,
    PoolId,
    RequestClass,
    Scheduler,
    SessionId,
    Slot,
    Ticket,
    TicketId,
    TurnAwayReason,
    TurnedAway,
    UpstreamId,
    UpstreamReport,
    Usage,
    WaitingLimits,
)
from muster_batching.testing import VirtualClock

CHAT = PoolId("chat")
ENGINE = UpstreamId("engine")


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run each test on asyncio's own event loop and on uvloop."""
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def clock() -> VirtualClock:
    """The driver's clock, moved by the test."""
    return VirtualClock()


@pytest.fixture
def driver(clock: VirtualClock) -> AsyncScheduler:
    """A driver of one engine with one slot, where a ticket waits 10 s at most."""
    driver = AsyncScheduler(Scheduler(Policy.of(WaitingLimits(max_wait_s=10.0))), clock)
    driver.report(ENGINE, serving(1))
    return driver


def serving(limit: int) -> UpstreamReport:
    """Make a report of the engine with so many slots."""
    return UpstreamReport(FixedLimit(limit), frozenset({CHAT}), available=True)


def ticket(name: str) -> Ticket:
    """Make a ticket."""
    return Ticket(TicketId(name), CHAT, size_bytes=1)


def ends(driver: AsyncScheduler) -> list[Outcome]:
    """List the ends that tickets came to, after checking that nothing is left behind."""
    assert (driver.scheduler.waiting, driver.scheduler.in_flight) == (0, 0)
    assert driver.scheduler.next_wakeup_s() is None
    return [outcome for outcome, count in driver.scheduler.ends.items() for _ in range(count)]


class Request:
    """A task that takes a slot, holds it until told to let go, and tells where it is."""

    def __init__(self, tasks: asyncio.TaskGroup, driver: AsyncScheduler, name: str) -> None:
        self.driver = driver
        self.ticket = ticket(name)
        self.is_submitted = asyncio.Event()
        self.has_slot = asyncio.Event()
        self.may_leave = asyncio.Event()
        self.slot: Slot | None = None
        self.refusal: BatchingError | None = None
        self.task = tasks.create_task(self.run())

    async def run(self) -> None:
        """Take the slot; whoever awaits `is_submitted` runs after the ticket has been submitted."""
        self.is_submitted.set()
        try:
            async with self.driver.slot(self.ticket) as self.slot:
                self.has_slot.set()
                await self.may_leave.wait()
        except BatchingError as refusal:
            self.refusal = refusal


async def start(tasks: asyncio.TaskGroup, driver: AsyncScheduler, *names: str) -> list[Request]:
    """Start requests one after another, each submitted before the next."""
    requests: list[Request] = []
    for name in names:
        requests.append(Request(tasks, driver, name))
        await requests[-1].is_submitted.wait()
    return requests


def test_a_free_slot_is_entered_without_suspending() -> None:
    """With a slot free, entering neither awaits nor needs an event loop, and it waited for nothing."""
    driver = AsyncScheduler(Scheduler())
    driver.report(ENGINE, serving(1))
    entering = driver.slot(ticket("a")).__aenter__()

    with pytest.raises(StopIteration) as returned:
        entering.__await__().send(None)

    slot = returned.value.value
    assert (slot.upstream_id, slot.waited_s) == (ENGINE, 0.0)
    assert driver.scheduler.in_flight_on(ENGINE) == 1


async def test_a_slot_goes_to_the_next_when_the_block_is_left(
    driver: AsyncScheduler, clock: VirtualClock
) -> None:
    """A waiting block is entered when the one before it is left, and knows how long it waited."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        clock.advance(3.0)
        assert not second.has_slot.is_set()
        first.may_leave.set()
        await second.has_slot.wait()
        assert second.slot is not None
        assert (second.slot.upstream_id, second.slot.waited_s) == (ENGINE, 3.0)
        second.may_leave.set()

    assert ends(driver) == [Outcome.COMPLETED, Outcome.COMPLETED]


async def test_a_failure_that_was_handled_counts_as_failed(driver: AsyncScheduler) -> None:
    """A block that says its request failed gives the slot back as failed."""
    async with driver.slot(ticket("a")) as slot:
        slot.failed()

    assert ends(driver) == [Outcome.FAILED]


async def test_an_exception_counts_as_failed(driver: AsyncScheduler) -> None:
    """An exception leaves the block unchanged and gives the slot back exactly once."""
    with pytest.raises(LookupError):
        async with driver.slot(ticket("a")):
            raise LookupError

    assert ends(driver) == [Outcome.FAILED]


async def test_a_task_is_cancelled_inside(driver: AsyncScheduler) -> None:
    """Cancelling the holder gives its slot to the next at once."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        first.task.cancel()
        await second.has_slot.wait()
        second.may_leave.set()

    assert ends(driver) == [Outcome.COMPLETED, Outcome.CANCELLED]


async def test_a_failure_said_before_the_cancellation_stands(driver: AsyncScheduler) -> None:
    """A client that leaves after the engine failed does not hide the failure."""
    async with asyncio.TaskGroup() as tasks:
        (first,) = await start(tasks, driver, "a")
        assert first.slot is not None
        first.slot.failed()
        first.task.cancel()

    assert ends(driver) == [Outcome.FAILED]


async def test_a_generator_is_closed_inside(driver: AsyncScheduler) -> None:
    """Closing the generator that streams an answer gives its slot back as cancelled."""

    async def stream() -> AsyncGenerator[int, None]:
        async with driver.slot(ticket("a")):
            yield 1
            yield 2

    async with aclosing(stream()) as events:
        async for _ in events:
            break

    assert ends(driver) == [Outcome.CANCELLED]


async def test_a_task_is_cancelled_while_it_waits(driver: AsyncScheduler) -> None:
    """A client that leaves the queue is out of it as soon as its task runs, and holds up nobody."""
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        second.task.cancel()
        await asyncio.wait([second.task])
        assert driver.scheduler.waiting == 1
        first.may_leave.set()
        await third.has_slot.wait()
        third.may_leave.set()

    assert not second.has_slot.is_set()
    assert ends(driver) == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.CANCELLED]


async def test_a_task_is_cancelled_after_its_dispatch(driver: AsyncScheduler) -> None:
    """A task cancelled between its dispatch and its first step inside passes its slot on."""
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        driver.report(ENGINE, serving(2))
        assert driver.scheduler.in_flight == 2
        second.task.cancel()
        await third.has_slot.wait()
        assert driver.scheduler.in_flight == 2
        first.may_leave.set()
        third.may_leave.set()

    assert not second.has_slot.is_set()
    assert ends(driver) == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.CANCELLED]


async def test_a_task_is_cancelled_just_before_its_dispatch(driver: AsyncScheduler) -> None:
    """A slot given to a task that was cancelled a moment earlier is passed on."""
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        second.task.cancel()
        driver.report(ENGINE, serving(2))
        assert driver.scheduler.in_flight == 2
        await third.has_slot.wait()
        assert driver.scheduler.in_flight == 2
        first.may_leave.set()
        third.may_leave.set()

    assert not second.has_slot.is_set()
    assert ends(driver) == [Outcome.COMPLETED, Outcome.COMPLETED, Outcome.CANCELLED]


async def test_a_task_is_cancelled_after_it_was_turned_away(driver: AsyncScheduler) -> None:
    """A ticket that was turned away has ended; its task's cancellation does not end it again."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        driver.remove(ENGINE)
        second.task.cancel()
        first.may_leave.set()

    assert second.task.cancelled()
    assert ends(driver) == [Outcome.COMPLETED, Outcome.TURNED_AWAY]


async def test_a_coroutine_is_closed_while_it_waits(driver: AsyncScheduler) -> None:
    """A wait that ends without a cancellation takes its ticket out of the queue too."""
    async with driver.slot(ticket("a")):
        entering = driver.slot(ticket("b")).__aenter__().__await__()
        entering.send(None)
        assert driver.scheduler.waiting == 1
        entering.close()
        assert driver.scheduler.waiting == 0

    assert ends(driver) == [Outcome.COMPLETED, Outcome.CANCELLED]


class Name(str):
    """A name that can be watched for being let go."""

    __slots__ = ("__weakref__",)


async def test_nothing_is_kept_of_a_client_that_left_the_queue(driver: AsyncScheduler) -> None:
    """Clients that come and leave while the engine is busy do not add up in memory."""
    name = Name("b")
    async with driver.slot(ticket("a")):
        entering = driver.slot(ticket(name)).__aenter__().__await__()
        entering.send(None)
        entering.close()
        remains = ref(name)
        del name, entering
        gc.collect()

        assert remains() is None


async def test_a_ticket_is_turned_away_as_it_comes(driver: AsyncScheduler) -> None:
    """Entering raises the reason and the delay, and no slot is held."""
    driver.remove(ENGINE)

    with pytest.raises(TurnedAway, match="turned away: no_upstream, retry after 2 s") as caught:
        await driver.slot(ticket("a")).__aenter__()

    assert (caught.value.reason, caught.value.retry_after_s) == (TurnAwayReason.NO_UPSTREAM, 2)
    assert ends(driver) == [Outcome.TURNED_AWAY]


async def test_a_waiting_ticket_is_turned_away_by_a_removal(driver: AsyncScheduler) -> None:
    """The removal of the last upstream reaches the block that waits for it, and spares the one inside."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        driver.remove(ENGINE)
        await asyncio.wait([second.task])
        assert first.has_slot.is_set()
        first.may_leave.set()

    assert isinstance(second.refusal, TurnedAway)
    assert second.refusal.reason is TurnAwayReason.NO_UPSTREAM
    assert ends(driver) == [Outcome.COMPLETED, Outcome.TURNED_AWAY]


async def test_waking_turns_away_what_has_waited_too_long(
    driver: AsyncScheduler, clock: VirtualClock
) -> None:
    """A wake on time turns a ticket away, and one before it does nothing."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        clock.advance_to(9.9)
        driver.wake()
        assert driver.scheduler.waiting == 1
        clock.advance_to(10.0)
        driver.wake()
        await asyncio.wait([second.task])
        first.may_leave.set()

    assert isinstance(second.refusal, TurnedAway)
    assert second.refusal.reason is TurnAwayReason.WAITED_TOO_LONG
    assert ends(driver) == [Outcome.COMPLETED, Outcome.TURNED_AWAY]


async def test_the_timer_turns_tickets_away() -> None:
    """On the real clock each ticket that waits too long is turned away, with nobody's help."""
    driver = AsyncScheduler(Scheduler(Policy.of(WaitingLimits(max_wait_s=0.01))))
    driver.report(ENGINE, serving(1))
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        await asyncio.wait([second.task, third.task])
        first.may_leave.set()

    assert isinstance(second.refusal, TurnedAway)
    assert second.refusal.reason is TurnAwayReason.WAITED_TOO_LONG
    assert ends(driver) == [Outcome.COMPLETED, Outcome.TURNED_AWAY, Outcome.TURNED_AWAY]


async def test_the_timer_outlives_the_ticket_it_was_set_for() -> None:
    """When the first of the queue leaves, those behind it are still turned away in time."""
    driver = AsyncScheduler(Scheduler(Policy.of(WaitingLimits(max_wait_s=0.01))))
    driver.report(ENGINE, serving(1))
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        second.task.cancel()
        await asyncio.wait([third.task])
        first.may_leave.set()

    assert isinstance(third.refusal, TurnedAway)
    assert ends(driver) == [Outcome.COMPLETED, Outcome.CANCELLED, Outcome.TURNED_AWAY]


async def test_an_idle_driver_leaves_nothing_on_the_loop(clock: VirtualClock) -> None:
    """Once nobody waits no timer is left: nothing on the loop keeps a driver alive that was let go."""

    async def let_one_wait(driver: AsyncScheduler) -> None:
        async with asyncio.TaskGroup() as tasks:
            first, second = await start(tasks, driver, "a", "b")
            first.may_leave.set()
            await second.has_slot.wait()
            second.may_leave.set()

    driver = AsyncScheduler(Scheduler(), clock)
    driver.report(ENGINE, serving(1))
    await let_one_wait(driver)
    remains = ref(driver)
    del driver
    gc.collect()

    assert remains() is None


async def test_a_ticket_id_in_use_is_refused(driver: AsyncScheduler) -> None:
    """Entering with the id of a ticket in flight raises, and leaves the holder its slot."""
    async with driver.slot(ticket("a")):
        with pytest.raises(DuplicateTicketError):
            await driver.slot(ticket("a")).__aenter__()
        assert driver.scheduler.in_flight == 1

    assert ends(driver) == [Outcome.COMPLETED]


async def test_closing_ends_what_waits_and_spares_what_runs(driver: AsyncScheduler) -> None:
    """The waiting end as cancelled and are told so, a held slot stays held, and nobody new comes in."""
    async with asyncio.TaskGroup() as tasks:
        first, second, third = await start(tasks, driver, "a", "b", "c")
        await driver.aclose()
        await driver.aclose()
        assert driver.scheduler.waiting == 0
        await asyncio.wait([second.task, third.task])
        assert driver.scheduler.in_flight == 1
        first.may_leave.set()

    with pytest.raises(ClosedError):
        await driver.slot(ticket("d")).__aenter__()
    assert first.refusal is None
    assert isinstance(second.refusal, ClosedError)
    assert isinstance(third.refusal, ClosedError)
    assert ends(driver) == [Outcome.COMPLETED, Outcome.CANCELLED, Outcome.CANCELLED]


@pytest.mark.parametrize("is_closed_first", [True, False])
async def test_closing_crosses_a_cancellation(driver: AsyncScheduler, *, is_closed_first: bool) -> None:
    """A task cancelled in the moment of closing ends as cancelled, and its ticket ends once."""
    async with asyncio.TaskGroup() as tasks:
        first, second = await start(tasks, driver, "a", "b")
        if is_closed_first:
            await driver.aclose()
            second.task.cancel()
        else:
            second.task.cancel()
            await driver.aclose()
        first.may_leave.set()

    assert second.task.cancelled()
    assert ends(driver) == [Outcome.COMPLETED, Outcome.CANCELLED]


async def test_what_a_block_tells_of_its_request_reaches_the_scheduler(clock: VirtualClock) -> None:
    """Tokens, use, push-back and a session's end are told by the slot, and count."""
    driver = AsyncScheduler(Scheduler(), clock)
    driver.report(ENGINE, UpstreamReport(AimdLimit(initial=10, least=1), frozenset({CHAT}), available=True))
    driver.sample(ENGINE, EngineSample(0, 0, kv_tokens=1000))
    calls = [
        Ticket(TicketId(name), CHAT, 1, session=SessionId(name), input_tokens=400, is_stream=True)
        for name in "abcd"
    ]
    async with driver.slot(calls[0]) as first:
        async with driver.slot(calls[1]) as second:
            first.progress(1)
            held = asyncio.ensure_future(driver.slot(calls[2]).__aenter__())
            await asyncio.sleep(0)
            assert driver.scheduler.held == 1
            second.used(Usage(390, 10))
            second.session_over()
        third = await held
        third.failed(is_push_back=True)
        driver.remove(ENGINE)

    assert driver.scheduler.ends[Outcome.COMPLETED] == 2
    assert driver.scheduler.in_flight == 1


async def test_a_slot_that_was_pushed_back_lowers_the_limit(clock: VirtualClock) -> None:
    """A request that the engine refused for its load counts against a probed limit."""
    driver = AsyncScheduler(Scheduler(), clock)
    driver.report(ENGINE, UpstreamReport(AimdLimit(initial=10, least=1), frozenset({CHAT}), available=True))
    async with driver.slot(ticket("a")) as slot:
        slot.failed(is_push_back=True)

    assert driver.scheduler.slots_on(ENGINE) == 1


async def test_a_submission_that_lets_others_go_first_enters_them_too(clock: VirtualClock) -> None:
    """When room that was kept for people is free again, a newcomer's coming sends those who waited before it."""
    driver = AsyncScheduler(Scheduler(), clock)
    driver.report(ENGINE, serving(26))
    async with driver.slot(Ticket(TicketId("person"), CHAT, 1, RequestClass.INTERACTIVE)):
        pass
    lines = [Ticket(TicketId(str(number)), CHAT, 1, RequestClass.BATCH) for number in range(27)]
    for line in lines[:25]:
        await driver.slot(line).__aenter__()
    waiting = asyncio.ensure_future(driver.slot(lines[25]).__aenter__())
    await asyncio.sleep(0)
    assert driver.scheduler.waiting == 1
    clock.advance(10.0)
    newcomer = asyncio.ensure_future(driver.slot(lines[26]).__aenter__())
    await waiting
    assert driver.scheduler.in_flight == 26
    newcomer.cancel()
    await asyncio.wait([newcomer])

    assert driver.scheduler.waiting == 0
