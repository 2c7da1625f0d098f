"""How a scheduler treats its classes: every number that an operator may want to choose."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from muster_batching.errors import LimitError
from muster_batching.orders import ClassRule
from muster_batching.tickets import RequestClass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class WaitingLimits:
    """How much of a class may wait.

    Attributes:
        max_waiting: Tickets. An engine with 256 slots and answers of 20 s works off the default in 80 s; each
            also holds a client's connection, and many systems let a process have 1024 open files.
        max_waiting_bytes: Bytes of all waiting tickets together. The default is 256 KiB for each of 1000
            tickets, room for a prompt of some 60,000 tokens.
        max_wait_s: Seconds that one ticket waits. The default is half of the 600 s for which the OpenAI SDKs
            wait, so that the other half is left for the answer.

    Raises:
        LimitError: A limit is negative or not finite.
    """

    max_waiting: int = 1000
    max_waiting_bytes: int = 256 * MIB
    max_wait_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_waiting_bytes", "max_wait_s"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise LimitError(name, value, 0)


_WAITING = MappingProxyType(
    {
        RequestClass.INTERACTIVE: WaitingLimits(),
        RequestClass.STANDARD: WaitingLimits(),
        # Nobody waits for it: as many lines as a batch of OpenAI's has, for as long as it may take.
        RequestClass.BATCH: WaitingLimits(max_waiting=50_000, max_wait_s=86_400.0),
    }
)

_RULES = MappingProxyType(
    {
        RequestClass.STANDARD: ClassRule(ageing_s=10.0, share=0.25),
        RequestClass.BATCH: ClassRule(ageing_s=30.0, share=0.1),
    }
)


@dataclass(frozen=True, slots=True)
class Policy:
    """How a scheduler treats its classes and sessions.

    Attributes:
        waiting: How much of each class may wait.
        rules: When each class but the most urgent goes ahead of more urgent ones, and how far.
        max_hold_s: The longest that the session gate holds a call. The default is half of `max_wait_s`.
    """

    waiting: Mapping[RequestClass, WaitingLimits] = field(default_factory=lambda: _WAITING)
    rules: Mapping[RequestClass, ClassRule] = field(default_factory=lambda: _RULES)
    max_hold_s: float = 150.0

    @classmethod
    def of(cls, waiting: WaitingLimits) -> "Policy":
        """The policy with the same waiting limits for every class."""
        return cls(waiting=dict.fromkeys(RequestClass, waiting))
