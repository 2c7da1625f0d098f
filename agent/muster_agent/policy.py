"""What the agent does around each model call and each tool call.

It is a middleware of LangChain's agent: the graph stays theirs, the rules are here.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import openai
from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, SystemMessage, ToolCall, ToolMessage
from langgraph.errors import GraphBubbleUp
from langgraph.prebuilt.tool_node import ToolCallRequest
from langgraph.types import Command

from muster_agent import failures
from muster_agent.measures import Measures
from muster_agent.tools.complaints import ToolComplaint
from muster_observability import logs

_log = logs.get("agent")


@dataclass(frozen=True, slots=True)
class RunContext:
    """What one run's model calls have in common.

    Args:
        instructions: The system message.
        model_settings: The model's name and the sampling parameters.
    """

    instructions: str
    model_settings: Mapping[str, object]


class RunPolicy(AgentMiddleware[AgentState[Any], RunContext, Any]):
    """Gives model calls the run's settings, checks their answers, and lets no tool kill a run.

    Args:
        measures: Where tool calls are counted.
    """

    def __init__(self, measures: Measures) -> None:
        super().__init__()
        self._measures = measures

    async def awrap_model_call(  # pyright: ignore[reportIncompatibleMethodOverride] - narrower in its generics only
        self,
        request: ModelRequest[RunContext],
        handler: Callable[[ModelRequest[RunContext]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Call the model for this run.

        Raises:
            Failure: The call failed, or its answer broke off.
        """
        context = request.runtime.context
        try:
            response = await handler(
                request.override(
                    system_message=SystemMessage(context.instructions) if context.instructions else None,
                    model_settings=dict(context.model_settings),
                )
            )
        except openai.OpenAIError as error:
            raise failures.of_model_call(error) from error
        except Exception as error:  # the SDK raises whatever a broken answer leads to
            raise failures.unreadable_answer() from error
        return ModelResponse(result=[checked(cast("AIMessage", response.result[-1]))])

    async def awrap_tool_call(
        self,
        request: ToolCallRequest,
        handler: Callable[[ToolCallRequest], Awaitable[ToolMessage | Command[Any]]],
    ) -> ToolMessage | Command[Any]:
        """Call a tool; whatever goes wrong in it is told to the model."""
        name = request.tool_call["name"]
        try:
            result = await handler(request)
        except GraphBubbleUp:  # LangGraph's control flow, no fault
            raise
        except ToolComplaint as complaint:
            result = _tool_error(request, f"Error: {complaint}")
        except Exception as error:  # noqa: BLE001 - the run goes on: a broken tool is one more thing the model is told
            _log.error("tool broke", tool=name, error=type(error).__name__)
            result = _tool_error(request, f"Error: the tool {name} failed.")
        self._measures.tool_called(name, ok=getattr(result, "status", "success") == "success")
        return result


def checked(message: AIMessage) -> AIMessage:
    """A model's answer, fit to be kept and sent back.

    Raises:
        Failure: It ended without saying why, which is how a broken stream looks from here.
    """
    reason: object = message.response_metadata.get("finish_reason")
    if not reason:
        raise failures.unreadable_answer()
    calls: list[ToolCall] = list(message.tool_calls)
    if reason != "length":
        # Arguments that are no JSON would end the run without an answer. Called with none, the tool says
        # what it expects, and the model can mend its call.
        calls += [
            ToolCall(name=call["name"] or "", args={}, id=call["id"], type="tool_call")
            for call in message.invalid_tool_calls
        ]
    return message.model_copy(
        update={
            "content": encodable(message.content),
            "tool_calls": encodable(calls),
            "invalid_tool_calls": [],
        }
    )


def encodable(value: Any) -> Any:  # noqa: ANN401 - any JSON
    """`value` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case list():
            return [encodable(item) for item in cast("list[Any]", value)]
        case dict():
            return {encodable(key): encodable(item) for key, item in cast("dict[Any, Any]", value).items()}
        case _:
            return value


def _tool_error(request: ToolCallRequest, text: str) -> ToolMessage:
    call = request.tool_call
    return ToolMessage(encodable(text), tool_call_id=call["id"] or "", name=call["name"], status="error")
