"""What the scheduler and its drivers talk about: tickets, their ends, and the actions on them.

A *ticket* is what the scheduler knows of a request. It waits for a *slot*, the right to have one request in
flight on one *upstream* (an engine replica), and it comes to exactly one of the ends in `Outcome`. A *pool*
is the upstreams that serve one model. A *tenant* is who pays, a *session* one conversation or agent run:
calls that share a growing prefix.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NewType, TypeAlias

TicketId = NewType("TicketId", str)
UpstreamId = NewType("UpstreamId", str)
PoolId = NewType("PoolId", str)
TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)


class RequestClass(StrEnum):
    """How urgent a request is; listed from the most to the least urgent."""

    INTERACTIVE = "interactive"
    """A person waits."""

    STANDARD = "standard"
    """The default."""

    BATCH = "batch"
    """Nobody waits: it fills what the others leave free."""


CLASSES = tuple(RequestClass)
"""The classes, the most urgent first."""

NOBODY = TenantId("")
"""The tenant of requests that name none."""


@dataclass(slots=True)
class Ticket:
    """What the scheduler knows of one request. Not to be changed: to make a frozen one takes three times as long.

    Attributes:
        id: Unique among the tickets that have not ended; an ended ticket's id is forgotten.
        pool: The upstreams that may take it.
        size_bytes: Bytes the caller holds for it while it waits (the request's body), 0 or more.
        request_class: How urgent it is.
        tenant: Who pays. Tenants of one class share an engine by their weights.
        weight: The tenant's share beside the others', over 0. The latest ticket's counts.
        session: The conversation it belongs to, unique within the tenant; None for one that stands alone.
        input_tokens: Estimate of the prompt's tokens, 0 or more. The end's `Usage` trues it up.
        max_output_tokens: The most tokens that the answer may have; None where the client set no limit.
        deadline_s: When its first token must have come, on the clock of `now_s`; None for no deadline.
        is_stream: Whether its first token will be told of (`Scheduler.progress`) as it comes.
        avoid: An upstream at which it has failed before: it goes elsewhere where there is room as it comes.
    """

    id: TicketId
    pool: PoolId
    size_bytes: int
    request_class: RequestClass = RequestClass.STANDARD
    tenant: TenantId = NOBODY
    weight: float = 1.0
    session: SessionId | None = None
    input_tokens: int = 0
    max_output_tokens: int | None = None
    deadline_s: float | None = None
    is_stream: bool = False
    avoid: UpstreamId | None = None


class Outcome(StrEnum):
    """The four ends of a ticket; each ticket comes to exactly one of them."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TURNED_AWAY = "turned_away"


SlotEnd: TypeAlias = Literal[Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED]
"""The ends of a ticket that held a slot. A ticket is turned away only before it gets one."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request, as the engine accounts for them.

    Attributes:
        input_tokens: Of the prompt, cached ones included.
        output_tokens: Of the answer.
    """

    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class End:
    """How a ticket gave its slot back.

    Attributes:
        outcome: Its end.
        usage: What it used; None where that is not known, and the estimate stands.
        is_push_back: The engine itself said that it has too much: 429, 503, or no answer in time.
        is_session_over: No further call of its session is expected soon (an agent's final answer).
    """

    outcome: SlotEnd
    usage: Usage | None = None
    is_push_back: bool = False
    is_session_over: bool = False


class TurnAwayReason(StrEnum):
    """Why a ticket got no slot."""

    WAITING_FULL = "waiting_full"
    """As many tickets of its class wait as may wait."""

    WAITING_BYTES_FULL = "waiting_bytes_full"
    """With this ticket, those of its class that wait would hold more bytes than they may."""

    WAITED_TOO_LONG = "waited_too_long"
    """It waited as long as a ticket of its class may wait, or was sure to."""

    DEADLINE = "deadline"
    """Its first token would come after its deadline: foreseen as it came, or passed while it waited."""

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
