"""No tool ends a run: what goes wrong in one is told to the model."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware
from langchain_core.messages import ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from muster_agent.measures import Measures
from muster_agent.runs.records import LeaseLostError
from muster_agent.tools.complaints import ToolComplaint
from muster_agent.wire import encodable
from muster_observability import logs

_log = logs.get("agent")

ToolResult = ToolMessage | Command[Any]
ToolHandler = Callable[[ToolCallRequest], Awaitable[ToolResult]]


def refusal(request: ToolCallRequest, text: str) -> ToolMessage:
    """A tool's result that tells the model why there is none."""
    call = request.tool_call
    return ToolMessage(encodable(text), tool_call_id=call["id"] or "", name=call["name"], status="error")


class ToolErrors(AgentMiddleware[AgentState[Any], Any, Any]):
    """Tells the model of errors and of time that has run out, and cuts long results.

    Args:
        measures: Where calls are counted.
        timeout_s: Seconds for a call.
        most_characters: Longest result.
    """

    def __init__(self, measures: Measures, timeout_s: float, most_characters: int) -> None:
        super().__init__()
        self._measures = measures
        self._timeout_s = timeout_s
        self._most_characters = most_characters

    async def awrap_tool_call(self, request: ToolCallRequest, handler: ToolHandler) -> ToolResult:
        """Call a tool."""
        name = request.tool_call["name"]
        result = await self._called(name, request, handler)
        self._measures.tool_called(name, ok=getattr(result, "status", "success") == "success")
        return self._cut(result)

    async def _called(self, name: str, request: ToolCallRequest, handler: ToolHandler) -> ToolResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await handler(request)
        except (GraphBubbleUp, LeaseLostError):  # the graph's control flow, and the end of our right to go on
            raise
        except ToolComplaint as complaint:
            return refusal(request, f"Error: {complaint}")
        except TimeoutError:
            return refusal(request, f"Error: the tool {name} took too long and was stopped.")
        except Exception as error:  # noqa: BLE001 - the run goes on: a broken tool is one more thing the model is told
            _log.error("tool broke", tool=name[:64], error=type(error).__name__)
            return refusal(request, f"Error: the tool {name} failed.")

    def _cut(self, result: ToolResult) -> ToolResult:
        if not isinstance(result, ToolMessage) or not isinstance(result.content, str):
            return result
        content = str(encodable(result.content))
        left_out = len(content) - self._most_characters
        if left_out > 0:
            content = f"{content[: self._most_characters]}\n[{left_out} more characters were cut off]"
        return result if content == result.content else result.model_copy(update={"content": content})
