"""How often tools are called between two messages of the user."""

from typing import Any

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware
from langgraph.prebuilt.tool_node import ToolCallRequest

from muster_agent.agents.middleware.tool_errors import ToolHandler, ToolResult, refusal
from muster_agent.agents.turns import earlier_calls


class ToolLimits(AgentMiddleware[AgentState[Any], Any, Any]):
    """Refuses calls beyond a number, and the same call again and again; the model is told, and can still answer.

    Args:
        most: Calls of all tools.
        most_same: Calls of one tool with the same arguments.
    """

    def __init__(self, most: int, most_same: int) -> None:
        super().__init__()
        self._most = most
        self._most_same = most_same

    async def awrap_tool_call(self, request: ToolCallRequest, handler: ToolHandler) -> ToolResult:
        """Call a tool, unless it has been called too often."""
        call = request.tool_call
        earlier = earlier_calls(request.state["messages"], call["id"])
        if len(earlier) >= self._most:
            return refusal(
                request, f"Error: no more tool calls: {self._most} were made. Answer with what you know."
            )
        same = earlier.count((call["name"], repr(sorted(call["args"].items()))))
        if same >= self._most_same:
            return refusal(
                request,
                f"Error: {call['name']} was called {same} times with these arguments, and its result will not change. "
                "Do something else, or answer with what you know.",
            )
        return await handler(request)
