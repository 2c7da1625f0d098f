"""What is known of a run and of a thread, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    """LangGraph's words for how a run is doing."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"  # cancelled, or waiting for a person


class ThreadStatus(StrEnum):
    """LangGraph's words for how a thread is doing."""

    IDLE = "idle"
    BUSY = "busy"
    INTERRUPTED = "interrupted"
    ERROR = "error"


class Multitask(StrEnum):
    """What becomes of a run that comes while another is on its thread."""

    REJECT = "reject"
    ENQUEUE = "enqueue"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class Cancel(StrEnum):
    """What becomes of what a cancelled run has done: it is kept, or taken back with the run itself."""

    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class ThreadBusyError(Exception):
    """A run is on the thread, and what was asked for must not happen beside it."""


class ThreadNotFoundError(Exception):
    """The tenant has no such thread."""


class ThreadExistsError(Exception):
    """The tenant has such a thread already."""


class LeaseLostError(Exception):
    """Another process has taken the run over: this one writes nothing more of it."""


Row = Mapping[Any, Any]
"""A row of a table, by its columns' names."""

UNFINISHED = (RunStatus.PENDING, RunStatus.RUNNING)


@dataclass(frozen=True, slots=True)
class NewThread:
    """A thread to be made.

    Attributes:
        thread_id: A UUID.
        tenant: Whose it is.
        metadata: The client's.
        is_temporary: Whether it goes with its only run.
    """

    thread_id: str
    tenant: str
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    is_temporary: bool = False


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made.

    Attributes:
        run_id: A UUID.
        thread_id: Its thread.
        tenant: Whose it is.
        assistant_id: What runs.
        kwargs: What was asked for, as JSON.
        metadata: The client's and ours.
        multitask: What if another run is there.
        timeout_s: Seconds from its start after which it is stopped.
        request_id: Of the request that made it, for logs.
        delay_s: Seconds before it may start.
        sealed_key: The caller's key, encrypted.
        idempotency_key: A second run with the same one is the first.
    """

    run_id: str
    thread_id: str
    tenant: str
    assistant_id: str
    kwargs: Mapping[str, Any]
    metadata: Mapping[str, Any]
    multitask: Multitask
    timeout_s: float
    request_id: str
    delay_s: float = 0.0
    sealed_key: bytes | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one run, until another process has a higher fence.

    Attributes:
        thread_id: The thread.
        run_id: The run.
        fence: Higher than that of every earlier owner of the thread.
    """

    thread_id: str
    run_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run that this process is to run.

    Attributes:
        lease: The right to.
        run: Its row.
        events: Events that earlier attempts have written.
        left_s: Seconds until its deadline; 0 or less when it has passed.
        asked: What waits for a person on the thread, by task.
    """

    lease: Lease
    run: Row
    events: int
    left_s: float
    asked: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended and what its thread shows since.

    Attributes:
        status: The run's.
        thread_status: The thread's, if no other run waits.
        values: The state's values, or None to leave what is shown.
        interrupts: What waits for a person, by task.
        error: `{"error": name, "message": text}`.
        approval_s: Seconds until what waits for a person is denied; None for no limit.
        keeps_due: Whether that is what waited before: its time does not begin anew.
        final: The last event, as JSON.
    """

    status: RunStatus
    thread_status: ThreadStatus
    final: bytes
    values: Any = None
    interrupts: Mapping[str, Any] | None = None
    error: Mapping[str, str] | None = None
    approval_s: float | None = None
    keeps_due: bool = False
