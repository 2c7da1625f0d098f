"""The scheduler on asyncio: a request holds a slot for exactly as long as it is inside an `async with` block.

    driver = AsyncScheduler(Scheduler())
    driver.report(UpstreamId("engine"), UpstreamReport(FixedLimit(8), pools=frozenset({pool}), available=True))
    async with driver.slot(Ticket(TicketId("a"), pool, size_bytes=len(body))) as slot:
        ...  # send the request to slot.upstream_id

There is no background task and no lock. All calls come from one event loop, and none of the scheduler's
inputs is made across an `await`; the loop's one timer is set while tickets wait, and only then.
"""

import asyncio
import functools
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType

from muster_batching.errors import ClosedError, TurnedAway
from muster_batching.samples import EngineSample
from muster_batching.scheduler import Scheduler
from muster_batching.tickets import (
    Action,
    End,
    Outcome,
    Ticket,
    TicketId,
    TurnAway,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import UpstreamReport


@dataclass(slots=True, eq=False)
class Slot:
    """The right to have one request in flight on an upstream, held inside the block that gave it.

    What the block tells of its request makes later decisions better; nothing depends on it.

    Attributes:
        upstream_id: Where to send the request.
        waited_s: Seconds between the ticket's submission and its turn; 0.0 if it did not wait.
    """

    upstream_id: UpstreamId
    waited_s: float
    _progress: Callable[[int], None]
    _usage: Usage | None = None
    _has_failed: bool = False
    _is_push_back: bool = False
    _is_session_over: bool = False

    def progress(self, output_tokens: int) -> None:
        """Say that so many tokens of the answer have come; first when the first token has come."""
        self._progress(output_tokens)

    def used(self, usage: Usage) -> None:
        """Say what the request has used."""
        self._usage = usage

    def failed(self, *, is_push_back: bool = False) -> None:
        """Say that the request failed, where no exception will leave the block to tell so.

        Args:
            is_push_back: The engine itself said that it has too much: 429, 503, or no answer in time.
        """
        self._has_failed = True
        self._is_push_back = is_push_back

    def session_over(self) -> None:
        """Say that no further call of the session is expected soon: this was an agent's final answer."""
        self._is_session_over = True

    def end(self, exc: BaseException | None) -> End:
        """How the ticket ends if its block is left now, by this exception or without one.

        What the block said of its request stands, also if the client left afterwards.
        """
        outcome = Outcome.COMPLETED
        if self._has_failed:
            outcome = Outcome.FAILED
        elif exc is not None:
            is_stopped = isinstance(exc, (asyncio.CancelledError, GeneratorExit))
            outcome = Outcome.CANCELLED if is_stopped else Outcome.FAILED
        return End(outcome, self._usage, self._is_push_back, self._is_session_over)


class AsyncScheduler:
    """Drives a scheduler on the running asyncio (or uvloop) event loop.

    Args:
        scheduler: The scheduler to drive. Nobody else may call its inputs.
        clock: Seconds, monotonic. A test that passes a virtual clock calls `wake` itself.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._turns: dict[TicketId, asyncio.Future[Action]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = math.inf  # of the timer set last
        self._is_closed = False

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler, to read its numbers."""
        return self._scheduler

    def slot(self, ticket: Ticket) -> AbstractAsyncContextManager[Slot]:
        """Wait for the ticket's turn; hold its slot until the block is left.

        A free slot is entered without suspending. Leaving the block gives the slot back, at once and
        exactly once: as cancelled if the task was cancelled or the generator around it closed, as failed if
        another exception leaves or `Slot.failed` was called, else as completed. A task cancelled while it
        waits takes its ticket out of the queue; if its turn had come in that very moment, the slot goes to
        the next.

        Raises:
            TurnedAway: It gets no slot (on entering).
            ClosedError: `aclose` was called before its turn (on entering).
            DuplicateTicketError: A ticket with its id waits or is in flight (on entering).
        """
        return _SlotBlock(ticket, self._enter, self._leave)

    def report(self, upstream_id: UpstreamId, report: UpstreamReport) -> None:
        """Add an upstream or update it: `Scheduler.report`, now."""
        self._apply(self._scheduler.report(upstream_id, report, now_s=self._clock()))

    def sample(self, upstream_id: UpstreamId, sample: EngineSample) -> None:
        """Hear what an engine says of itself: `Scheduler.sample`, now."""
        self._apply(self._scheduler.sample(upstream_id, sample, now_s=self._clock()))

    def remove(self, upstream_id: UpstreamId) -> None:
        """Take an upstream out of service: `Scheduler.remove`, now."""
        self._apply(self._scheduler.remove(upstream_id, now_s=self._clock()))

    def wake(self) -> None:
        """Turn away what has waited too long and set the timer anew; the timer calls it, others may."""
        self._unset_timer()  # it is spent if it made this call
        self._apply(self._scheduler.wake(now_s=self._clock()))

    async def aclose(self) -> None:
        """Take no more tickets, and end those that wait as cancelled: their blocks raise `ClosedError`.

        Slots that are held stay held until their blocks are left. A second call does nothing.
        """
        self._is_closed = True
        turns, self._turns = self._turns, {}
        for ticket_id, turn in turns.items():
            self._scheduler.cancel(ticket_id, now_s=self._clock())
            if not turn.done():
                turn.set_exception(ClosedError())

    async def _enter(self, ticket: Ticket) -> Slot:
        if self._is_closed:
            raise ClosedError
        submitted_s = self._clock()
        waited_s = 0.0
        action = self._own(self._scheduler.submit(ticket, now_s=submitted_s), ticket.id)
        if action is None:
            action = await self._wait_for_turn(ticket.id)
            waited_s = self._clock() - submitted_s
        if isinstance(action, TurnAway):
            raise TurnedAway(action.reason, action.retry_after_s)
        return Slot(action.upstream_id, waited_s, functools.partial(self._progress, ticket.id))

    async def _wait_for_turn(self, ticket_id: TicketId) -> Action:
        turn: asyncio.Future[Action] = asyncio.get_running_loop().create_future()
        self._turns[ticket_id] = turn
        self._set_timer()
        try:
            return await turn
        except BaseException:
            # Whatever ends the wait, the ticket must not stay behind. It may have got its slot between the
            # cancellation and this line: cancel then gives it back.
            self._turns.pop(ticket_id, None)
            self._apply(self._scheduler.cancel(ticket_id, now_s=self._clock()))
            raise

    def _own(self, actions: list[Action], ticket_id: TicketId) -> Action | None:
        """Carry out what a submission led to, but for what is about the newcomer itself, which is returned."""
        own = None
        for action in actions:
            if action.ticket_id == ticket_id:
                own = action
            else:
                self._apply([action])
        return own

    def _progress(self, ticket_id: TicketId, output_tokens: int) -> None:
        self._apply(self._scheduler.progress(ticket_id, output_tokens, now_s=self._clock()))

    def _leave(self, ticket_id: TicketId, end: End) -> None:
        self._apply(self._scheduler.finish(ticket_id, end, now_s=self._clock()))

    def _apply(self, actions: list[Action]) -> None:
        for action in actions:
            turn = self._turns.pop(action.ticket_id)
            # A cancelled turn's task has yet to run; it will find its slot in flight and give it back.
            if not turn.done():
                turn.set_result(action)
        self._set_timer()

    def _set_timer(self) -> None:
        # A timer that is too early is left alone: it finds nothing due and is set anew. So a busy queue,
        # whose first ticket changes at every completion, does not set a timer for each.
        due_s = self._scheduler.next_wakeup_s()
        if due_s is None or due_s < self._timer_due_s:
            self._unset_timer()
        if due_s is not None and self._timer is None:
            delay_s = due_s - self._clock()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self.wake)
            self._timer_due_s = due_s

    def _unset_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _SlotBlock:
    """A class, not an async generator: entering a free slot is on the path of every request."""

    __slots__ = ("_enter", "_leave", "_slot", "_ticket")

    _slot: Slot

    def __init__(
        self,
        ticket: Ticket,
        enter: Callable[[Ticket], Awaitable[Slot]],
        leave: Callable[[TicketId, End], None],
    ) -> None:
        self._ticket = ticket
        self._enter = enter
        self._leave = leave

    async def __aenter__(self) -> Slot:
        self._slot = await self._enter(self._ticket)
        return self._slot

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(self._ticket.id, self._slot.end(exc))
