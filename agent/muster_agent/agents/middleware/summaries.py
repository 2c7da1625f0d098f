"""Long conversations: the older part is replaced by a summary before it fills the model's context."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import openai
from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, SummarizationMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, RemoveMessage, SystemMessage, get_buffer_string
from langgraph.constants import TAG_NOSTREAM

from muster_agent import failures, identity
from muster_agent.models import ModelName

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_ASSUMED_CONTEXT_TOKENS = 4096


_CHARACTERS_A_TOKEN = 4

_TASK = (
    "Below is the older part of a conversation between a user and an assistant with tools. Write down, briefly and in "
    "the user's language, what the assistant must know to go on with it: what the user wants and has said of "
    "themselves, what was found out and decided, what is still open. Facts, names and numbers exactly. Nothing else."
)


class LongConversations(AgentMiddleware[AgentState[Any], Any, Any]):
    """LangChain's summaries, with a limit that follows from the model's context.

    They are made as part of the model call rather than by a node of their own, which would be one more step of the
    graph before every call.

    Args:
        model: Writes the summaries.
        name: Finds the model's name and its context.
        share: Share of the context that a conversation may fill.
        context_tokens: The context; None for what the proxy tells.
        keep_messages: Messages that stay as they are.
    """

    def __init__(
        self,
        model: BaseChatModel,
        name: ModelName,
        share: float,
        context_tokens: int | None,
        keep_messages: int,
    ) -> None:
        super().__init__()
        self._model = model
        self._name = name
        self._share = share
        self._context_tokens = context_tokens
        # Whether it is time is decided below, where the model is known: its own limit is always met then.
        self._summaries: SummarizationMiddleware[Any, Any] = SummarizationMiddleware(
            model, trigger=("tokens", 1), keep=("messages", keep_messages), summarizer=self._summarise
        )

    async def awrap_model_call(  # pyright: ignore[reportIncompatibleMethodOverride] - narrower in its generics only
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Call the model with a conversation that fits, and keep what was made of it."""
        if self._summaries.token_counter(request.messages) < await self._most_tokens():
            return await handler(request)
        shortened = await self._summaries.abefore_model(
            cast("Any", {"messages": request.messages}), request.runtime
        )
        if shortened is None:
            return await handler(request)
        changes: list[Any] = shortened["messages"]
        kept = [message for message in changes if not isinstance(message, RemoveMessage)]
        response = await handler(request.override(messages=kept))
        return ModelResponse(result=[*changes, *response.result])

    async def _most_tokens(self) -> float:
        context = self._context_tokens or await self._name.context_tokens() or _ASSUMED_CONTEXT_TOKENS
        return context * self._share

    async def _summarise(self, messages: list[AnyMessage]) -> str:
        """Have the model tell what has been said; the newest part of it where even that is too long."""
        told = get_buffer_string(messages)[-int(await self._most_tokens()) * _CHARACTERS_A_TOKEN :]
        quietly: RunnableConfig = {"tags": [TAG_NOSTREAM]}  # its words are no part of the answer
        with identity.calling("summary"):
            try:
                answer = await self._model.ainvoke(
                    [SystemMessage(_TASK), HumanMessage(told)],
                    quietly,
                    model=await self._name.get(),
                    temperature=0,
                )
            except openai.OpenAIError as error:
                raise failures.of_model_call(error) from error
        return str(answer.text)
