"""`POST /v1/chat/completions`, and vLLM's `/v1/chat/completions/batch`."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from muster_proxy.wire.limits import (
    MOST_MESSAGES,
    MOST_PROMPTS,
    MOST_TOOLS,
    FunctionName,
    Parts,
    Positive,
    Probabilities,
)
from muster_proxy.wire.media import Content
from muster_proxy.wire.requests import Completed
from muster_proxy.wire.strict import invalid


class CalledFunction(Struct):
    """The function of a tool call; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct):
    """A tool call that an assistant message carries."""

    function: CalledFunction
    id: str = ""
    type: Literal["function"] = "function"


class Message(Struct):
    """One message of a conversation, as far as its types are checked."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Parts | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Struct):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool that the model may use."""

    function: Function
    type: Literal["function"]


class NamedFunction(Struct):
    """The name of the function that must be called."""

    name: str


class NamedChoice(Struct):
    """A `tool_choice` that names one tool."""

    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(Struct):
    """A JSON schema that the answer must follow."""

    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """The form that the answer must have."""

    type: str
    json_schema: JsonSchema | None = None


class _Chat(Completed, kw_only=True):
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: Probabilities | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, Any] | None = None

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that all choices may have together; None where the client set no limit."""
        each = self.max_completion_tokens or self.max_tokens
        return None if each is None else each * self.choices


class ChatRequest(_Chat, kw_only=True):
    """The fields of a chat completion request that have a type of OpenAI's, or a limit."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    tools: Annotated[list[Tool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        return self.n or 1

    @property
    def has_tools(self) -> bool:
        """Whether it offers the model tools to call."""
        return bool(self.tools)

    @property
    def names_tool(self) -> bool:
        """Whether it names the tool that must be called."""
        return isinstance(self.tool_choice, NamedChoice)

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        return contents_of(self.messages, "messages")

    def check(self) -> None:
        """Check that tools and the choice among them go together.

        Raises:
            RequestError: They do not.
        """
        if self.tools is None and self.tool_choice is None:
            return
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise invalid("Two tools have the same name.", "tools")
        choice = self.tool_choice
        if choice not in (None, "none", "auto") and not names:
            raise invalid("tool_choice is only allowed when tools are given.", "tool_choice")
        if isinstance(choice, NamedChoice) and choice.function.name not in names:
            raise invalid("tool_choice names a tool that is not given.", "tool_choice")


_Conversation = Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]


class BatchChatRequest(_Chat, kw_only=True):
    """Several conversations at once, answered by one choice each.

    What each of them has besides (tools and the like) is checked when it is read as a request of its own.
    """

    messages: Annotated[list[_Conversation], Meta(min_length=1, max_length=MOST_PROMPTS)]

    @property
    def choices(self) -> int:
        """How many sequences the engine makes of it."""
        return len(self.messages)

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        for number, conversation in enumerate(self.messages):
            yield from contents_of(conversation, f"messages[{number}]")

    def check(self) -> None:
        """Check that nothing is asked for that a batch has not.

        Raises:
            RequestError: A stream, or more than one choice.
        """
        if self.stream:
            raise invalid("A batch of chats is not streamed.", "stream")
        if self.n not in (None, 1):
            raise invalid("A batch of chats has one choice for each conversation.", "n")


def contents_of(messages: Iterable[Message], place: str) -> Iterator[Content]:
    """The contents of a conversation that come in parts."""
    for number, message in enumerate(messages):
        if isinstance(message.content, list):
            yield f"{place}[{number}].content", message.content
