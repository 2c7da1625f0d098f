"""The batching library: it keeps engines full, in a fair order, and needs the standard library alone.

`Scheduler` decides and does nothing else; `AsyncScheduler` drives it on asyncio; `muster_batching.testing`
plays it on a virtual clock. The contract between the two is the docstring of `muster_batching.scheduler`.
"""

from muster_batching.aio import AsyncScheduler, Slot
from muster_batching.errors import (
    BatchingError,
    ClockWentBackError,
    ClosedError,
    ContractError,
    DuplicateTicketError,
    LimitError,
    TurnedAway,
    UnknownTicketError,
)
from muster_batching.scheduler import Scheduler, Stats
from muster_batching.tickets import (
    Action,
    Dispatch,
    Outcome,
    PoolId,
    SlotEnd,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
)
from muster_batching.upstreams import UpstreamReport
from muster_batching.waiting import WaitingLimits

__all__ = [
    "Action",
    "AsyncScheduler",
    "BatchingError",
    "ClockWentBackError",
    "ClosedError",
    "ContractError",
    "Dispatch",
    "DuplicateTicketError",
    "LimitError",
    "Outcome",
    "PoolId",
    "Scheduler",
    "Slot",
    "SlotEnd",
    "Stats",
    "Ticket",
    "TicketId",
    "TurnAway",
    "TurnAwayReason",
    "TurnedAway",
    "UnknownTicketError",
    "UpstreamId",
    "UpstreamReport",
    "WaitingLimits",
]
