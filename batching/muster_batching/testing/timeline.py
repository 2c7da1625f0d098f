"""Time that a test moves by hand, and a log of all that a scheduler decides in it.

Played with two tickets and an engine with one slot, the log is the whole history:

    timeline = Timeline(Scheduler())
    timeline.report(engine, UpstreamReport(FixedLimit(1), pools=frozenset({chat}), available=True))
    timeline.submit(Ticket(first, chat, size_bytes=10))
    timeline.submit(Ticket(second, chat, size_bytes=10))
    timeline.advance(3.0)
    timeline.finish(first, Outcome.COMPLETED)
    assert timeline.log == [(0.0, Dispatch(first, engine)), (3.0, Dispatch(second, engine))]
"""

from muster_batching.errors import ClockWentBackError
from muster_batching.samples import EngineSample
from muster_batching.scheduler import Scheduler
from muster_batching.tickets import Action, End, SlotEnd, Ticket, TicketId, UpstreamId, Usage
from muster_batching.upstreams import UpstreamReport


class VirtualClock:
    """A clock that stands still until it is told to move, and never goes back.

    Args:
        now_s: What it shows at first, in seconds.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def __call__(self) -> float:
        """Read the clock, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move on by so many seconds.

        Raises:
            ClockWentBackError: They are negative.
        """
        self.advance_to(self._now_s + seconds)

    def advance_to(self, now_s: float) -> None:
        """Move on to a time; unlike `advance` this hits a wake-up time to the last bit.

        Raises:
            ClockWentBackError: The time has passed.
        """
        if now_s < self._now_s:
            raise ClockWentBackError(now_s, self._now_s)
        self._now_s = now_s


class Timeline:
    """Plays events against a scheduler on a virtual clock, and keeps the whole history of its actions.

    It does a driver's duties: the events happen at the clock's time, and while time moves on, `wake` is
    called at each moment that the scheduler asks for.

    Attributes:
        scheduler: The scheduler that is played against.
        clock: Its clock, at 0 to begin with.
        log: Every action with the time at which it was decided, oldest first.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.clock = VirtualClock()
        self.log: list[tuple[float, Action]] = []

    def submit(self, ticket: Ticket) -> None:
        """A request comes."""
        self._record(self.scheduler.submit(ticket, now_s=self.clock()))

    def progress(self, ticket_id: TicketId, output_tokens: int) -> None:
        """Tokens of an answer come."""
        self._record(self.scheduler.progress(ticket_id, output_tokens, now_s=self.clock()))

    def finish(self, ticket_id: TicketId, outcome: SlotEnd, usage: Usage | None = None) -> None:
        """An answer ends."""
        self.end(ticket_id, End(outcome, usage))

    def end(self, ticket_id: TicketId, end: End) -> None:
        """An answer ends, with all that is known of it."""
        self._record(self.scheduler.finish(ticket_id, end, now_s=self.clock()))

    def cancel(self, ticket_id: TicketId) -> None:
        """A client leaves."""
        self._record(self.scheduler.cancel(ticket_id, now_s=self.clock()))

    def report(self, upstream_id: UpstreamId, report: UpstreamReport) -> None:
        """An upstream comes or changes."""
        self._record(self.scheduler.report(upstream_id, report, now_s=self.clock()))

    def sample(self, upstream_id: UpstreamId, sample: EngineSample) -> None:
        """An engine's metrics have been read."""
        self._record(self.scheduler.sample(upstream_id, sample, now_s=self.clock()))

    def remove(self, upstream_id: UpstreamId) -> None:
        """An upstream goes."""
        self._record(self.scheduler.remove(upstream_id, now_s=self.clock()))

    def advance(self, seconds: float) -> None:
        """Time passes, with a `wake` at each moment that falls due."""
        until_s = self.clock() + seconds
        while (due_s := self.scheduler.next_wakeup_s()) is not None and due_s <= until_s:
            self.clock.advance_to(due_s)
            self._record(self.scheduler.wake(now_s=due_s))
        self.clock.advance_to(until_s)

    def _record(self, actions: list[Action]) -> None:
        self.log.extend((self.clock(), action) for action in actions)
