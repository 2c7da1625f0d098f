"""Long conversations: the older part is replaced by a summary before it fills the model's context."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from langchain.agents import AgentState
from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse, SummarizationMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    get_buffer_string,
)
from langchain_core.messages.utils import count_tokens_approximately
from langgraph.constants import TAG_NOSTREAM

from muster_agent import identity
from muster_agent.agents.declarations import Summaries
from muster_agent.agents.middleware.asking import answered
from muster_agent.agents.summarised import as_summary, is_summary
from muster_agent.agents.turns import kept_of, model_calls
from muster_agent.models import ModelName
from muster_agent.wire import encodable

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

_ASSUMED_CONTEXT_TOKENS = 4096


_CHARACTERS_A_TOKEN = 4

_TASK = (
    "Below is the older part of a conversation between a user and an assistant with tools. Write down, briefly and in "
    "the user's language, what the assistant must know to go on with it: what the user wants and has said of "
    "themselves, what was found out and decided, what is still open. Facts, names and numbers exactly. Nothing else."
)

_LEFT_OUT = "The older part of the conversation is left out here. In it the user said:"


class _NoSummaryError(Exception):
    """There is no summary.

    Attributes:
        older: The messages that it was to be of.
    """

    def __init__(self, older: Sequence[AnyMessage]) -> None:
        self.older = older
        super().__init__(f"no summary of {len(older)} messages")


class LongConversations(AgentMiddleware[AgentState[Any], Any, Any]):
    """LangChain's summaries, with a limit that follows from the model's context.

    They are made as part of the model call rather than by a node of their own, which would be one more step of the
    graph before every call. A summary stands in place of messages for good. So it carries what the rules around calls
    must know of them (`agents/summarised.py`), and what a model writes is kept only where it is a whole answer.

    Args:
        model: Writes the summaries.
        name: Finds the model's name and its context.
        wanted: When they are made, and of what.
        untrusted: Names of tools that bring content from outside.
    """

    def __init__(
        self, model: BaseChatModel, name: ModelName, wanted: Summaries, untrusted: Collection[str]
    ) -> None:
        super().__init__()
        self._model = model
        self._name = name
        self._wanted = wanted
        self._untrusted = untrusted

    async def awrap_model_call(  # pyright: ignore[reportIncompatibleMethodOverride] - narrower in its generics only
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> ModelResponse[Any]:
        """Call the model with a conversation that fits, and keep what was made of it.

        Raises:
            Failure: The call failed, or the one for a summary.
        """
        if _tokens(request.messages) < await self._context_tokens() * self._wanted.share:
            return await handler(request)
        try:
            changes = await self._shortened(request)
        except _NoSummaryError as error:
            return await handler(await self._fitting(request, error.older))
        if not changes:
            return await handler(request)
        kept = [message for message in changes if not isinstance(message, RemoveMessage)]
        response = await handler(request.override(messages=kept))
        return ModelResponse(result=[*changes, *response.result])

    async def _shortened(self, request: ModelRequest[Any]) -> list[Any]:
        """What is to become of a conversation; nothing where all of it is to stay.

        Raises:
            _NoSummaryError: The model wrote none.
            Failure: The model did not answer.
        """
        messages = request.messages
        made = model_calls(messages)
        identity.begin_step(made + 1)
        written: list[AIMessage] = []
        summaries: SummarizationMiddleware[Any, Any] = SummarizationMiddleware(
            self._model,
            # Whether it is time is decided above, where the model is known: this limit is always met.
            trigger=("tokens", 1),
            keep=("messages", self._wanted.keep_messages),
            # What is too long is cut below. LangChain would make a summary up where it had to cut everything.
            trim_tokens_to_summarize=None,
            summarizer=partial(self._summarise, written, is_first=made == 0),
        )
        shortened = await summaries.abefore_model(cast("Any", {"messages": messages}), request.runtime)
        if shortened is None:
            return []
        remove, summary, *stays = cast("list[Any]", shortened["messages"])
        older = messages[: len(messages) - len(stays)]
        noted = kept_of(older, self._untrusted).noted_on(
            summary, *(answer.usage_metadata for answer in written)
        )
        return [remove, noted, *stays]

    async def _summarise(self, written: list[AIMessage], older: list[AnyMessage], *, is_first: bool) -> str:
        """Have the model tell what has been said; the newest part of it where even that is too long.

        Its answer is added to what is `written`.
        """
        if len(older) == 1 and is_summary(older[0]):  # another one would be no shorter, and say less
            raise _NoSummaryError([])
        told = get_buffer_string(older)[-await self._most_characters() :]
        quietly: RunnableConfig = {"tags": [TAG_NOSTREAM]}  # its words are no part of the answer
        name = await self._name.get()

        async def ask() -> AIMessage:
            asked = [SystemMessage(_TASK), HumanMessage(told)]
            return await self._model.ainvoke(asked, quietly, model=name, temperature=0)

        with identity.calling("summary"):
            answer = await answered(ask, is_first=is_first)
        text = str(encodable(str(answer.text))).strip()
        # An answer that broke off, was cut or calls a tool is none that a conversation could be given up for.
        if not text or answer.response_metadata.get("finish_reason") != "stop":
            raise _NoSummaryError(older)
        written.append(answer)
        return text

    async def _fitting(self, request: ModelRequest[Any], older: Sequence[AnyMessage]) -> ModelRequest[Any]:
        """A request without a summary of its older part; where it is too long, without that part, for this call."""
        context = await self._context_tokens()
        # The estimate is rough, and instructions, tools and the answer have to fit as well.
        most_tokens = context * (1 + self._wanted.share) / 2
        if not older or _tokens(request.messages) < most_tokens:
            return request
        said = _said(older)[-await self._most_characters() // 2 :]
        stand_in = kept_of(older, self._untrusted).noted_on(as_summary(f"{_LEFT_OUT}\n\n{said}"))
        return request.override(messages=[stand_in, *request.messages[len(older) :]])

    async def _context_tokens(self) -> int:
        return self._wanted.context_tokens or await self._name.context_tokens() or _ASSUMED_CONTEXT_TOKENS

    async def _most_characters(self) -> int:
        return int(await self._context_tokens() * self._wanted.share) * _CHARACTERS_A_TOKEN


def _tokens(messages: Sequence[AnyMessage]) -> int:
    return count_tokens_approximately(messages, use_usage_metadata_scaling=True)


def _said(messages: Sequence[AnyMessage]) -> str:
    """The beginning and the end of what the user has said: an earlier summary, and what is to be done now."""
    texts = [str(message.text) for message in messages if isinstance(message, HumanMessage)]
    return "\n\n".join(dict.fromkeys([*texts[:1], *texts[-1:]]))
