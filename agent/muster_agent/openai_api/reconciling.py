"""What a run starts with: its input as it came, or a chat client's whole transcript made to fit its thread."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

    from muster_agent.agents.assistants import Graph


async def prepare_input(graph: "Graph", config: "RunnableConfig", kwargs: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a graph's input
    """The graph's input."""
    _ = graph, config
    return kwargs["input"]
