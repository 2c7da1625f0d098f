"""LangGraph's second streaming protocol: events of a thread, by method, with a number in the thread."""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from langchain_core.runnables import RunnableConfig

from muster_agent.streams.v1 import Written
from muster_agent.wire import to_json

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Graph
    from muster_agent.runs.records import Outcome

PROTOCOL = 2


class Encoder:
    """Writes what a graph streams.

    Args:
        run_id: The run.
        graph_name: The graph's name.
    """

    def __init__(self, run_id: str, graph_name: str) -> None:
        self._run_id = run_id
        self._graph_name = graph_name

    def begun(self) -> Generator[Written]:
        """The events for a run that has begun."""
        yield "lifecycle", to_json({"namespace": [], "data": {"event": "running", "graph_name": self._graph_name}})

    def write(self, event: Mapping[str, Any]) -> Generator[Written]:
        """The events for one event of the graph."""
        yield event["method"], to_json(event["params"])


@asynccontextmanager
async def streaming(
    graph: "Graph", start: Any, config: RunnableConfig, kwargs: Mapping[str, Any]  # noqa: ANN401 - a graph's input
) -> AsyncGenerator[AsyncGenerator[Mapping[str, Any]]]:
    """What the graph says, event by event."""
    raise NotImplementedError
    yield


def ending(outcome: "Outcome") -> Generator[Written]:
    """The events for a run that has ended."""
    yield "lifecycle", to_json({"namespace": [], "data": {"event": outcome.status}})
