"""What the scheduler and its drivers talk about: tickets, their ends, and the actions on them.

A *ticket* is what the scheduler knows of a request. It waits for a *slot*, the right to have one request in
flight on one *upstream* (an engine replica), and it comes to exactly one of the ends in `Outcome`. A *pool*
is the upstreams that serve one model.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NewType, TypeAlias

TicketId = NewType("TicketId", str)
UpstreamId = NewType("UpstreamId", str)
PoolId = NewType("PoolId", str)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the scheduler knows of one request.

    Attributes:
        id: Unique among the tickets that have not ended; an ended ticket's id is forgotten.
        pool: The upstreams that may take it.
        size_bytes: Bytes the caller holds for it while it waits (the request's body), 0 or more.
    """

    id: TicketId
    pool: PoolId
    size_bytes: int


class Outcome(StrEnum):
    """The four ends of a ticket; each ticket comes to exactly one of them."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TURNED_AWAY = "turned_away"


SlotEnd: TypeAlias = Literal[Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED]
"""The ends of a ticket that held a slot. A ticket is turned away only before it gets one."""


class TurnAwayReason(StrEnum):
    """Why a ticket got no slot."""

    WAITING_FULL = "waiting_full"
    """As many tickets wait as may wait."""

    WAITING_BYTES_FULL = "waiting_bytes_full"
    """With this ticket, those waiting would hold more bytes than they may."""

    WAITED_TOO_LONG = "waited_too_long"
    """It waited as long as a ticket may wait."""

    NO_UPSTREAM = "no_upstream"
    """No upstream of its pool is available now."""

    UNKNOWN_POOL = "unknown_pool"
    """No upstream has ever served its pool."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the ticket's request to the upstream now; it holds one of the upstream's slots from here on."""

    ticket_id: TicketId
    upstream_id: UpstreamId


@dataclass(frozen=True, slots=True)
class TurnAway:
    """Tell the client that its request will not be served; the ticket has ended.

    Attributes:
        ticket_id: The ticket that ended.
        reason: What stood in its way.
        retry_after_s: Whole seconds after which a new try makes sense, 1 to 60; None where waiting does not
            help.
    """

    ticket_id: TicketId
    reason: TurnAwayReason
    retry_after_s: int | None


Action: TypeAlias = Dispatch | TurnAway
"""What a driver carries out for the scheduler."""
