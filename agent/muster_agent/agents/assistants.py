"""Assistants: the agents of this service as LangGraph's clients see them."""

import asyncio
import inspect
import itertools
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langgraph.graph import StateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph.pregel import Pregel  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph_sdk.runtime import _ExecutionRuntime, _ReadRuntime  # pyright: ignore[reportPrivateUsage] - what factories of LangGraph's server are given

from muster_agent.agents.building import Parts, build, open_tools, untrusted_among
from muster_agent.agents.declarations import AgentsFile, Declaration
from muster_agent.agents.importing import imported
from muster_agent.tools.complaints import ToolkitError

if TYPE_CHECKING:
    from muster_agent.checkpoints import Memory

Graph = Pregel[Any, Any, Any, Any]
"""A graph that can be run."""

# By which LangGraph's server makes the identifier of a graph's own assistant from the graph's name.
_NAMESPACE = uuid.UUID("6ba7b821-9dad-11d1-80b4-00c04fd430c8")

EXECUTION = "threads.create_run"


class UnknownAssistantError(Exception):
    """There is no such assistant.

    Attributes:
        known: The names that there are.
    """

    def __init__(self, wanted: str, known: Sequence[str]) -> None:
        self.wanted = wanted
        self.known = known
        super().__init__(wanted)


@dataclass(frozen=True, slots=True)
class Assistant:
    """One agent.

    Attributes:
        graph_id: Its name.
        assistant_id: Its UUID, which follows from the name.
        openai_model: Its name for OpenAI's clients.
        declaration: What it is declared to be.
        tools: Its tools; of a mounted graph they are not known.
        made_at: When it was declared, that is, when the service started.
        source: A graph, or what makes one.
    """

    graph_id: str
    assistant_id: str
    openai_model: str
    declaration: Declaration
    tools: "Sequence[BaseTool]"
    made_at: datetime
    source: Any

    @asynccontextmanager
    async def open(
        self, memory: "Memory", config: RunnableConfig | None = None, access: str = EXECUTION
    ) -> AsyncGenerator[Graph]:
        """The graph with its memory, for as long as the block lasts.

        Args:
            memory: What it remembers.
            config: The run's configuration, for factories.
            access: What it is wanted for, for factories.
        """
        async with AsyncExitStack() as opened:
            graph = self.source
            if not isinstance(graph, Pregel):
                graph = await _made(self.source, config or RunnableConfig(), access, memory, opened)
            graph = cast("Graph", graph)
            bound: Any = graph.copy({"checkpointer": memory.saver, "store": memory.store})
            yield bound


class Assistants:
    """The agents of a service.

    Args:
        agents: By name.
    """

    def __init__(self, agents: Mapping[str, Assistant]) -> None:
        self._by_name = dict(agents)
        self._by_id = {agent.assistant_id: agent for agent in agents.values()}
        self._by_model = {agent.openai_model: agent for agent in agents.values()}

    def __iter__(self):  # noqa: ANN204 - an iterator over them
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str) -> Assistant:
        """The assistant of this UUID or name.

        Raises:
            UnknownAssistantError: There is none.
        """
        found = self._by_id.get(name) or self._by_name.get(name)
        if found is None:
            raise UnknownAssistantError(name, list(self._by_name))
        return found

    def by_id(self, assistant_id: str) -> Assistant | None:
        """The assistant of this UUID."""
        return self._by_id.get(assistant_id)

    def by_model(self, model: str) -> Assistant | None:
        """The assistant that OpenAI's clients know by this name."""
        return self._by_model.get(model) or self._by_name.get(model)


async def open_assistants(agents: AgentsFile, parts: Parts, opened: AsyncExitStack) -> Assistants:
    """Make the agents; their tools live as long as `opened`.

    Raises:
        ToolkitError: A tool or a graph cannot be had.
    """
    tools = {
        name: [] if declared.graph else await open_tools(declared.tools, opened)
        for name, declared in agents.agents.items()
    }
    untrusted = untrusted_among(itertools.chain(*tools.values()))
    made = {
        name: await _assistant(name, declared, tools[name], parts, untrusted)
        for name, declared in agents.agents.items()
    }
    models = [assistant.openai_model for assistant in made.values()]
    if twice := [model for model in models if models.count(model) > 1]:
        raise ToolkitError(f"two agents have the openai_model {twice[0]}: give each its own")
    return Assistants(made)


async def _assistant(
    name: str, declared: Declaration, tools: Sequence[BaseTool], parts: Parts, untrusted: frozenset[str]
) -> Assistant:
    source = (
        await asyncio.to_thread(_mounted, declared.graph)
        if declared.graph
        else build(name, declared, tools, parts, untrusted)
    )
    return Assistant(
        graph_id=name,
        assistant_id=str(uuid.uuid5(_NAMESPACE, name)),
        openai_model=declared.openai_model or name,
        declaration=declared,
        tools=tools,
        made_at=datetime.now(UTC),
        source=source,
    )


def _mounted(path: str) -> object:
    source = imported(path)
    if isinstance(source, StateGraph):
        return cast("Any", source).compile()
    is_graph = isinstance(source, Pregel) or callable(source)
    if not is_graph:
        raise ToolkitError(
            f"{path} is no graph: expected a compiled graph, a builder, or a function that makes one"
        )
    return cast("object", source)


async def _made(
    factory: Callable[..., Any], config: RunnableConfig, access: str, memory: "Memory", opened: AsyncExitStack
) -> object:
    """What a factory makes: a graph, a builder, something to await, or a context manager."""
    made: Any = factory(*_arguments(factory, config, access, memory))
    if isinstance(made, Awaitable):
        made = await cast("Awaitable[Any]", made)
    if isinstance(made, AbstractAsyncContextManager):
        made = await opened.enter_async_context(cast("AbstractAsyncContextManager[Any]", made))
    return cast("Any", made).compile() if isinstance(made, StateGraph) else made


def _arguments(
    factory: Callable[..., Any], config: RunnableConfig, access: str, memory: "Memory"
) -> list[Any]:
    """A factory takes the configuration, the runtime, both or nothing; it says which by the names of its parameters."""
    store, anything = memory.store, cast("Any", access)
    runtime: Any = (
        cast("Any", _ExecutionRuntime)(access_context=EXECUTION, store=store, context=None)
        if access == EXECUTION
        else cast("Any", _ReadRuntime)(access_context=anything, store=store)
    )
    wanted = [
        parameter.name
        for parameter in inspect.signature(factory).parameters.values()
        if parameter.default is inspect.Parameter.empty
    ]
    given = {"runtime": runtime, "config": config}
    return [given.get(name, config) for name in wanted]
