"""Long conversations: the older part is replaced by a summary before it fills the model's context."""

from typing import Any

import openai
from langchain.agents import AgentState
from langchain.agents.middleware import SummarizationMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, get_buffer_string
from langgraph.runtime import Runtime

from muster_agent import failures, identity
from muster_agent.models import ModelName

_ASSUMED_CONTEXT_TOKENS = 4096


_CHARACTERS_A_TOKEN = 4

_TASK = (
    "Below is the older part of a conversation between a user and an assistant with tools. Write down, briefly and in the "
    "user's language, what the assistant must know to go on with it: what the user wants and has said of themselves, "
    "what was found out and decided, what is still open. Facts, names and numbers exactly. Nothing else."
)


class LongConversations(SummarizationMiddleware):
    """LangChain's summaries, with a limit that follows from the model's context.

    Args:
        model: Writes the summaries.
        name: Finds the model's name and its context.
        share: Share of the context that a conversation may fill.
        context_tokens: The context; None for what the proxy tells.
        keep_messages: Messages that stay as they are.
    """

    def __init__(
        self, model: BaseChatModel, name: ModelName, share: float, context_tokens: int | None, keep_messages: int
    ) -> None:
        # Whether it is time is decided below, where the model is known: its own limit is always met then.
        keep = ("messages", keep_messages)
        super().__init__(model, trigger=("tokens", 1), keep=keep, summarizer=self._summarise)  # pyright: ignore[reportArgumentType] - a literal's type is not kept
        self._thinker = model
        self._name = name
        self._share = share
        self._context_tokens = context_tokens

    async def abefore_model(self, state: AgentState[Any], runtime: Runtime[Any]) -> dict[str, Any] | None:
        """Shorten the conversation where it is long."""
        if self.token_counter(state["messages"]) < await self._context() * self._share:
            return None
        return await super().abefore_model(state, runtime)

    async def _context(self) -> int:
        return self._context_tokens or await self._name.context_tokens() or _ASSUMED_CONTEXT_TOKENS

    async def _summarise(self, messages: list[AnyMessage]) -> str:
        """Have the model tell what has been said; the newest part of it where even that is too long."""
        most = int(await self._context() * self._share) * _CHARACTERS_A_TOKEN
        told = get_buffer_string(messages)[-most:]
        with identity.calling("summary"):
            try:
                answer = await self._thinker.ainvoke(
                    [SystemMessage(_TASK), HumanMessage(told)], model=await self._name.get(), temperature=0
                )
            except openai.OpenAIError as error:
                raise failures.of_model_call(error) from error
        return str(answer.text)
