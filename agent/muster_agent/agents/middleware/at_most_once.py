"""A tool that changes the world is carried out at most once for each call, whatever dies in between."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import BaseTool
from langgraph.prebuilt.tool_node import ToolCallRequest

from muster_agent.agents.middleware.answers import is_broken
from muster_agent.agents.middleware.tool_errors import ToolHandler, ToolResult, refusal
from muster_agent.runs import holds, journal

if TYPE_CHECKING:
    from muster_storage import Database

_UNKNOWN = (
    "Error: this call was begun before and broken off. Nobody knows whether it took effect, so it was not carried out "
    "again. Find out before you try it with a new call."
)
_BROKEN = "Error: the arguments are no JSON object, so nothing was done. Make the call again with an object."


def changes_world(tool: BaseTool | None) -> bool:
    """Whether a tool may change anything outside; one that does not say counts as if it did."""
    return tool is not None and bool((tool.metadata or {}).get("changes_world", True))


class AtMostOnce(AgentMiddleware[AgentState[Any], Any, Any]):
    """Writes a call down before it is carried out, and its result after; a call that is written down is not repeated.

    Args:
        database: Gives the database of the journal.
    """

    def __init__(self, database: Callable[[], "Database"]) -> None:
        super().__init__()
        self._database = database

    async def awrap_tool_call(self, request: ToolCallRequest, handler: ToolHandler) -> ToolResult:
        """Call a tool, unless it changes the world and has been called."""
        if not changes_world(request.tool):
            return await handler(request)
        asking, call_id = _asking(request), request.tool_call["id"]
        if is_broken(asking, call_id):
            return refusal(request, _BROKEN)
        lease = holds.current().lease
        key = journal.CallKey(lease.thread_id, str(asking.id), call_id or "")
        begun = await self._database().run(journal.begin, lease, key)
        if begun.result is not None:
            return ToolMessage.model_validate(begun.result)
        if not begun.is_first:
            return refusal(request, _UNKNOWN)
        result = await handler(request)
        if isinstance(result, ToolMessage):
            await self._database().run(journal.end, key, result.model_dump(mode="json"))
        return result


def _asking(request: ToolCallRequest) -> AIMessage:
    """The model's message that asks for the call."""
    return next(message for message in reversed(request.state["messages"]) if isinstance(message, AIMessage))
