"""From a declaration to a graph: LangChain's `create_agent`, its tools, and the rules around its calls."""

import asyncio
import importlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from langchain.agents import (
    create_agent,  # pyright: ignore[reportUnknownVariableType] - the type of its `cache` is not given
)
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain.agents.middleware.human_in_the_loop import InterruptOnConfig
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import ToolCallRequest

from muster_agent import identity
from muster_agent.agents.context import AgentContext
from muster_agent.agents.declarations import Approval, Declaration, Tools
from muster_agent.agents.importing import imported
from muster_agent.agents.middleware import AtMostOnce, LongConversations, ModelCalls, ToolErrors, ToolLimits
from muster_agent.agents.middleware.at_most_once import changes_world
from muster_agent.agents.middleware.model_calls import CallRules
from muster_agent.agents.turns import has_read_from_outside
from muster_agent.measures import Measures
from muster_agent.models import ModelName
from muster_agent.tools.calculator import calculator
from muster_agent.tools.clock import current_time
from muster_agent.tools.complaints import ToolkitError

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AnyMessage
    from langgraph.graph.state import CompiledStateGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline

    from muster_storage import Database


@dataclass(frozen=True, slots=True)
class Parts:
    """What agents are made with.

    Attributes:
        model: Thinks.
        name: Finds the name of the service's model.
        prompt: The service's standing instructions.
        measures: Where tool calls are counted.
        database: Gives the database of the journal.
        model_named: Finds another model's name.
    """

    model: "BaseChatModel"
    name: ModelName
    prompt: str
    measures: Measures
    database: Callable[[], "Database"]
    model_named: Callable[[str], ModelName]


async def open_tools(tools: Tools, opened: AsyncExitStack) -> list[BaseTool]:
    """Open an agent's tools; they live as long as `opened`.

    Raises:
        ToolkitError: One cannot be opened, or two have one name.
    """
    found: list[BaseTool] = []
    if tools.calculator:
        found.append(calculator)
    if tools.time:
        found.append(current_time)
    # In a thread: toolkits are imported where they are used, and importing reads files.
    for toolkit in await asyncio.to_thread(_toolkits, tools):
        found += await opened.enter_async_context(toolkit)
    found += [await asyncio.to_thread(_own_tool, path) for path in tools.own]
    names = [tool.name for tool in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolkitError(f"two tools are named {twice[0]}: rename one, or leave one out")
    return found


def _toolkits(tools: Tools) -> list[Any]:
    """The toolkits to open."""
    toolkits: list[Any] = []
    if tools.documents:
        documents = importlib.import_module("muster_agent.tools.documents")
        toolkits += [documents.open_documents(settings) for settings in tools.documents]
    if tools.sql:
        sql = importlib.import_module("muster_agent.tools.sql")
        toolkits += [sql.open_sql(settings) for settings in tools.sql]
    if tools.fetch is not None:
        fetch = importlib.import_module("muster_agent.tools.fetch")
        toolkits.append(fetch.open_fetch(tools.fetch))
    if tools.mcp is not None:
        mcp = importlib.import_module("muster_agent.tools.mcp.toolkit")
        toolkits.append(mcp.open_mcp(tools.mcp, tenant_of=identity.tenant))
    return toolkits


def _own_tool(path: str) -> BaseTool:
    tool = imported(path)
    if not isinstance(tool, BaseTool):
        raise ToolkitError(f"{path} is no LangChain tool: make it one with langchain_core.tools.tool")
    return tool


def untrusted_among(tools: Iterable[BaseTool]) -> frozenset[str]:
    """Names of the tools that bring content from outside."""
    return frozenset(tool.name for tool in tools if (tool.metadata or {}).get("untrusted"))


def build(
    name: str, declaration: Declaration, tools: Sequence[BaseTool], parts: Parts, untrusted: frozenset[str]
) -> "CompiledStateGraph[Any, AgentContext, Any, Any]":
    """Make an agent's graph; it has no memory yet.

    Args:
        name: Its name.
        declaration: What it is to be.
        tools: Its tools.
        parts: What agents are made with.
        untrusted: Tools of all agents that bring content from outside: another agent may have called one on the thread.

    Raises:
        ToolkitError: `approval.tools` names what is no tool of the agent.
    """
    limits, approval = declaration.limits, declaration.approval
    _check_listed(name, tools, approval)
    asks = _asked_about(tools, approval, untrusted)
    model_name = parts.name if declaration.model is None else parts.model_named(declaration.model)
    rules = CallRules(
        name=model_name,
        prompt=parts.prompt if declaration.prompt is None else declaration.prompt,
        temperature=declaration.temperature,
        most_calls=limits.model_calls,
        most_tools=limits.tool_calls,
        one_at_a_time=frozenset(asks),
    )
    # The first is the outermost. Middleware of different contexts do not fit one list for the type checker.
    middleware: list[Any] = [
        ModelCalls(rules),
        ToolErrors(parts.measures, limits.tool_timeout_s, limits.tool_output_characters),
        ToolLimits(limits.tool_calls, limits.same_call),
        AtMostOnce(parts.database),
    ]
    if (summaries := declaration.summaries) is not None:
        middleware.insert(
            0,
            LongConversations(parts.model, model_name, summaries, untrusted),
        )
    if asks:
        middleware.append(HumanInTheLoopMiddleware(interrupt_on=cast("Any", asks)))
    return create_agent(
        parts.model, list(tools), middleware=middleware, context_schema=AgentContext, name=name
    )


def _check_listed(name: str, tools: Sequence[BaseTool], approval: Approval) -> None:
    """Refuse a list of tools to ask about that names none: its author would believe that somebody is asked."""
    known = [tool.name for tool in tools]
    listed = approval.tools if isinstance(approval.tools, list) else ()
    for unknown in (each for each in listed if each not in known):
        raise ToolkitError(
            f"approval.tools of the agent {name} names {unknown}, which is none of its tools: {', '.join(known)}"
        )


def _asked_about(
    tools: Sequence[BaseTool], approval: Approval, untrusted: frozenset[str]
) -> dict[str, bool | InterruptOnConfig]:
    """Which tools ask a person, and when.

    A tool that changes the world asks in any case once the conversation holds content from outside, such as a fetched
    page: what is written there may have told the model to make the call.
    """

    def follows_outside(request: ToolCallRequest) -> bool:
        return has_read_from_outside(cast("list[AnyMessage]", request.state["messages"]), untrusted)

    asks: dict[str, bool | InterruptOnConfig] = {}
    for tool in tools:
        listed = approval.tools if isinstance(approval.tools, list) else ()
        if tool.name in listed or (approval.tools == "changing" and changes_world(tool)):
            asks[tool.name] = InterruptOnConfig(allowed_decisions=["approve", "edit", "reject"])
        elif changes_world(tool) and untrusted:
            asks[tool.name] = InterruptOnConfig(
                allowed_decisions=["approve", "edit", "reject"], when=follows_outside
            )
    return asks
