"""What happens around each call of the model."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import openai
from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
from langchain_core.messages import AIMessage, SystemMessage, ToolCall

from muster_agent import failures, identity
from muster_agent.agents.context import AgentContext, context_of
from muster_agent.agents.turns import has_had_enough, model_calls, sendable
from muster_agent.models import ModelName
from muster_agent.wire import encodable

_LONGEST_WAIT_S = 60.0

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
        try:
            response = await _admitted(handler, await self._prepared(request), is_first=made == 0)
        except openai.OpenAIError as error:
            raise failures.of_model_call(error) from error
        except failures.Failure:
            raise
        except Exception as error:  # the SDK raises whatever a broken answer leads to
            raise failures.unreadable_answer() from error
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


async def _admitted(
    handler: Callable[[ModelRequest[AgentContext]], Awaitable[ModelResponse[Any]]],
    request: ModelRequest[AgentContext],
    *,
    is_first: bool,
) -> ModelResponse[Any]:
    """Call the model; a call that the proxy turns away is made again when the proxy says so, until the run's deadline.

    This is the one place where the agent tries again, and the one thing it tries again: 429 and 503 with `retry-after`
    mean that nothing was done. What fails in an engine is the proxy's to try again. A run whose client waits for the
    first call is not kept waiting here: the client is told, and tries again itself.
    """
    while True:
        try:
            return await handler(request)
        except openai.APIStatusError as error:
            wait_s = _retry_after_s(error)
            if wait_s is None or (is_first and not identity.is_patient()):
                raise
            # Those that were turned away together must not come back together.
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.5))  # noqa: S311 - no secret
            identity.count_retry()


def _retry_after_s(error: openai.APIStatusError) -> float | None:
    if error.status_code not in {429, 503}:
        return None
    given = str(error.response.headers.get("retry-after", ""))
    return min(float(given), _LONGEST_WAIT_S) if given.isascii() and given.isdecimal() else None


def _given_up(calls: int) -> AIMessage:
    return AIMessage(
        f"I stopped after {calls} steps without finding an answer.",
        response_metadata={"finish_reason": "length", STOPPED_BY: "model_calls"},
    )


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
    update: dict[str, Any] = {
        "content": encodable(message.content),
        "tool_calls": encodable(calls),
        "invalid_tool_calls": [],
    }
    return message.model_copy(update=update)
