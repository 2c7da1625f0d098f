"""The batching library: it keeps engines full, in a fair order, and needs the standard library alone.

`BatchHandler` is the front door for programs. `Scheduler` decides and does nothing else; `AsyncScheduler` drives
it on asyncio; `muster_batching.testing` plays it on a virtual clock, against a model of an engine. The contract
between the two is the docstring of `muster_batching.scheduler`.
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
    WeightError,
)
from muster_batching.handler import AnswerCountError, BatchHandler, HandlerOptions, ModeError
from muster_batching.limits import AimdLimit, EngineQueueLimit, FixedLimit
from muster_batching.orders import ClassRule
from muster_batching.policy import Policy, WaitingLimits
from muster_batching.samples import EngineSample
from muster_batching.scheduler import Scheduler, Stats, WaitReason
from muster_batching.single_flight import FellBehindError, SingleFlight, flight_key
from muster_batching.tickets import (
    Action,
    Dispatch,
    End,
    Outcome,
    PoolId,
    RequestClass,
    SessionId,
    SlotEnd,
    TenantId,
    Ticket,
    TicketId,
    TurnAway,
    TurnAwayReason,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import UpstreamReport

__all__ = [
    "Action",
    "AimdLimit",
    "AnswerCountError",
    "AsyncScheduler",
    "BatchHandler",
    "BatchingError",
    "ClassRule",
    "ClockWentBackError",
    "ClosedError",
    "ContractError",
    "Dispatch",
    "DuplicateTicketError",
    "End",
    "EngineQueueLimit",
    "EngineSample",
    "FellBehindError",
    "FixedLimit",
    "HandlerOptions",
    "LimitError",
    "ModeError",
    "Outcome",
    "Policy",
    "PoolId",
    "RequestClass",
    "Scheduler",
    "SessionId",
    "SingleFlight",
    "Slot",
    "SlotEnd",
    "Stats",
    "TenantId",
    "Ticket",
    "TicketId",
    "TurnAway",
    "TurnAwayReason",
    "TurnedAway",
    "UnknownTicketError",
    "UpstreamId",
    "UpstreamReport",
    "Usage",
    "WaitReason",
    "WaitingLimits",
    "WeightError",
    "flight_key",
]
