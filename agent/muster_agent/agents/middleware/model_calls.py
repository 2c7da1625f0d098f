"""What happens around each call of the model."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, SystemMessage, ToolCall

from muster_agent import identity
from muster_agent.agents.context import AgentContext, context_of
from muster_agent.agents.middleware.answers import checked
from muster_agent.agents.middleware.asking import answered
from muster_agent.agents.turns import has_had_enough, model_calls, sendable
from muster_agent.models import ModelName

STOPPED_BY = "stopped_by"
"""In an answer's `response_metadata`: the limit that ended the run."""


@dataclass(frozen=True, slots=True)
class CallRules:
    """How an agent calls its model.

    Attributes:
        name: Finds the model's name.
        prompt: The standing instructions.
        temperature: Unless a run has its own.
        most_calls: Model calls between two messages of the user.
        most_tools: Tool calls that one message may ask for.
        one_at_a_time: Tools of which a message may ask for one call only: each waits for a person.
    """

    name: ModelName
    prompt: str
    temperature: float
    most_calls: int
    most_tools: int
    one_at_a_time: frozenset[str] = frozenset()


class ModelCalls(AgentMiddleware[AgentState[Any], AgentContext, Any]):
    """Gives a model call its instructions, settings and identity, checks its answer, and ends runs that go on and on.

    Args:
        rules: How.
    """

    def __init__(self, rules: CallRules) -> None:
        super().__init__()
        self._rules = rules

    async def awrap_model_call(  # pyright: ignore[reportIncompatibleMethodOverride] - narrower in its generics only
        self,
        request: ModelRequest[AgentContext],
        handler: Callable[[ModelRequest[AgentContext]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Call the model.

        Raises:
            Failure: The call failed, or its answer broke off.
        """
        made = model_calls(request.messages)
        if made >= self._rules.most_calls:
            return ModelResponse(result=[_given_up(made)])
        identity.begin_step(made + 1)
        prepared = await self._prepared(request)
        response = await answered(lambda: handler(prepared), is_first=made == 0)
        answer = checked(cast("AIMessage", response.result[-1]))
        return ModelResponse(result=[self._with_fewer_calls(answer)])

    async def _prepared(self, request: ModelRequest[AgentContext]) -> ModelRequest[AgentContext]:
        context, rules = context_of(request.runtime), self._rules
        instructions = "\n\n".join(text for text in (rules.prompt, context.get("instructions", "")) if text)
        messages = request.messages
        # Small models call tools for ever. With the last call it may make, the model answers.
        is_last = model_calls(messages) + 1 >= rules.most_calls or has_had_enough(messages)
        settings = {
            **request.model_settings,
            "temperature": rules.temperature,
            **context.get("sampling", {}),
            "model": await rules.name.get(),
        }
        return request.override(
            messages=cast("Any", sendable(messages)),
            tool_choice="none" if is_last and request.tools else request.tool_choice,
            system_message=SystemMessage(instructions) if instructions else None,
            model_settings=settings,
        )

    def _with_fewer_calls(self, answer: AIMessage) -> AIMessage:
        """Leave out calls beyond what one message may ask for; the model can ask again when it has the results."""
        kept: list[ToolCall] = []
        waiting = 0
        for call in answer.tool_calls[: self._rules.most_tools]:
            waiting += call["name"] in self._rules.one_at_a_time
            if waiting > 1 and call["name"] in self._rules.one_at_a_time:
                continue
            kept.append(call)
        return (
            answer if len(kept) == len(answer.tool_calls) else answer.model_copy(update={"tool_calls": kept})
        )


def _given_up(calls: int) -> AIMessage:
    return AIMessage(
        f"I stopped after {calls} steps without finding an answer.",
        response_metadata={"finish_reason": "length", STOPPED_BY: "model_calls"},
    )
