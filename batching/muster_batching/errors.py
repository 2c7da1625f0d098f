"""The errors of the batching library.

    BatchingError                 root of all below
    ├── ContractError             the caller's fault: a bug to mend, not a condition to handle
    │   ├── ClockWentBackError    an input's time lies before that of an earlier input
    │   ├── DuplicateTicketError  a ticket's id belongs to one that has not ended
    │   ├── LimitError            a limit is outside its range
    │   ├── ModeError             a handler's mode does not exist (`muster_batching.handler`)
    │   ├── UnknownTicketError    a ticket is not in flight, so it holds no slot to give back
    │   └── WeightError           a ticket's weight is not over 0 and finite
    ├── AnswerCountError          a client gave another number of answers than asked (`muster_batching.handler`)
    ├── FellBehindError           a shared answer was read too slowly (`muster_batching.single_flight`)
    ├── TurnedAway                the ticket's answer is no (from `AsyncScheduler.slot`)
    └── ClosedError               the driver was closed before the ticket's turn (from `AsyncScheduler.slot`)

An input that raises a `ContractError` has changed nothing.
"""

from muster_batching.tickets import TicketId, TurnAwayReason


class BatchingError(Exception):
    """Root of the library's errors."""


class ContractError(BatchingError):
    """The caller broke one of the duties that `muster_batching.scheduler` lists."""


class ClockWentBackError(ContractError):
    """Time went backwards: `now_s` came after `last_s` had been told."""

    def __init__(self, now_s: float, last_s: float) -> None:
        super().__init__(f"expected a time of at least {last_s} s, got {now_s} s")
        self.now_s = now_s
        self.last_s = last_s


class DuplicateTicketError(ContractError):
    """A ticket was submitted under the id of one that waits or is in flight."""

    def __init__(self, ticket_id: TicketId) -> None:
        super().__init__(f"expected a new ticket, got {ticket_id!r}, which has not ended")
        self.ticket_id = ticket_id


class LimitError(ContractError):
    """A limit was set outside its range."""

    def __init__(self, name: str, value: float, least: int) -> None:
        super().__init__(f"expected {name} to be finite and at least {least}, got {value}")
        self.name = name
        self.value = value
        self.least = least


class UnknownTicketError(ContractError):
    """A ticket was finished that is not in flight: never dispatched, or its slot was given back before."""

    def __init__(self, ticket_id: TicketId) -> None:
        super().__init__(f"expected a ticket in flight, got {ticket_id!r}")
        self.ticket_id = ticket_id


class WeightError(ContractError):
    """A ticket was submitted with a weight that is no share."""

    def __init__(self, ticket_id: TicketId, weight: float) -> None:
        super().__init__(f"expected a weight over 0 and finite, got {weight} of {ticket_id!r}")
        self.ticket_id = ticket_id
        self.weight = weight


class TurnedAway(BatchingError):  # noqa: N818 - an answer to the client, not a fault of anyone's
    """The ticket was turned away; the attributes are those of the `TurnAway` action."""

    def __init__(self, reason: TurnAwayReason, retry_after_s: int | None) -> None:
        super().__init__(f"turned away: {reason}, retry after {retry_after_s} s")
        self.reason = reason
        self.retry_after_s = retry_after_s


class ClosedError(BatchingError):
    """The driver takes no more tickets, and those that waited have ended as cancelled."""

    def __init__(self) -> None:
        super().__init__("expected an open driver, got one that was closed")
