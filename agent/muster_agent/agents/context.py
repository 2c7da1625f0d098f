"""What a run's model calls have in common beyond their agent."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from langgraph.runtime import Runtime


class AgentContext(TypedDict, total=False):
    """A run's context, as clients may send it and as it is stored with the run.

    Attributes:
        instructions: Said to the model behind the agent's prompt, in this run only.
        sampling: Goes with each model call, by the names that `ChatOpenAI` takes.
    """

    instructions: str
    sampling: dict[str, Any]


def context_of(runtime: Runtime[AgentContext]) -> AgentContext:
    """The run's context; empty where a client sent something else."""
    given = cast("object", runtime.context)
    return cast("AgentContext", given) if isinstance(given, Mapping) else AgentContext()
