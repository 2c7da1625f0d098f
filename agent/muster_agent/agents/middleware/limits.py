"""How often tools are called between two messages of the user."""

from typing import Any

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import AnyMessage, ToolMessage
from langgraph.prebuilt.tool_node import ToolCallRequest

from muster_agent.agents.middleware.tool_errors import ToolHandler, ToolResult, refusal
from muster_agent.agents.turns import NO_MORE_TOOLS, earlier_calls, same_as


class ToolLimits(AgentMiddleware[AgentState[Any], Any, Any]):
    """Refuses calls beyond a number, and answers the same call again and again with its first result.

    Either way the model must answer next.

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
        messages: list[AnyMessage] = request.state["messages"]
        earlier = earlier_calls(messages, call["id"])
        if len(earlier) >= self._most:
            text = f"Error: no more tool calls: {self._most} were made. Answer with what you know."
            return _last_word(refusal(request, text))
        same = same_as(call, earlier)
        if len(same) >= self._most_same:
            # Not an error: a small model repeats what it is told last, and this is what it asked for.
            again = same[0].result or ""
            return _last_word(refusal(request, again).model_copy(update={"status": "success"}))
        return await handler(request)


def _last_word(message: ToolMessage) -> ToolMessage:
    return message.model_copy(update={"response_metadata": {NO_MORE_TOOLS: True}})
