"""What runs need of the rest of the service."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from muster_agent.agents.assistants import Assistants, Graph
    from muster_agent.checkpoints import Memory
    from muster_agent.runs.events import EventLog
    from muster_agent.runs.execution import Execution
    from muster_agent.runs.holds import Hold
    from muster_storage import Database


@dataclass(frozen=True, slots=True)
class Services:
    """What an execution works with.

    Attributes:
        database: Where runs are.
        log: Where their events go.
        memory: What graphs remember.
        assistants: What can run.
        acting_for: Makes the run's model calls carry its identity and its caller's key.
        measured: Measures an attempt.
        prepare_input: Makes a graph's input of what was asked for.
        approval_s: Seconds until what waits for a person is denied, if it ever is.
        ended: Told when an attempt is over.
    """

    database: "Database"
    log: "EventLog"
    memory: "Memory"
    assistants: "Assistants"
    acting_for: Callable[[Mapping[str, Any], "Hold"], AbstractAsyncContextManager[None]]
    measured: Callable[[Mapping[str, Any]], AbstractContextManager[Any]]
    prepare_input: Callable[["Graph", "RunnableConfig", Mapping[str, Any]], Awaitable[Any]]
    approval_s: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None]
    ended: Callable[["Execution"], None]
