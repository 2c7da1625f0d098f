"""`POST /v1/messages`: Anthropic's API, which vLLM serves too."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from msgspec import Meta, Struct

from muster_proxy.wire.limits import (
    MOST_MESSAGES,
    MOST_TOOLS,
    FunctionName,
    Parts,
    Positive,
    Share,
    StopTexts,
    Temperature,
    TopK,
)
from muster_proxy.wire.media import MESSAGES_PARTS, Content, PartTypes
from muster_proxy.wire.requests import Request


class Turn(Struct):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Parts


class OfferedTool(Struct):
    """A tool that the model may call; `input_schema` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(Struct):
    """Which tool the model should call."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None


class MessagesRequest(Request, kw_only=True):
    """The fields of a message request that have a type of Anthropic's, or a limit."""

    part_types: ClassVar[PartTypes] = MESSAGES_PARTS

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Positive
    system: str | Parts | None = None
    stream: bool | None = None
    stop_sequences: StopTexts | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    tools: Annotated[list[OfferedTool], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    @property
    def is_stream(self) -> bool:
        """Whether the answer is asked for as an event stream."""
        return bool(self.stream)

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that the answer may have."""
        return self.max_tokens

    @property
    def tier(self) -> str | None:
        """The `service_tier`."""
        return self.service_tier

    @property
    def has_tools(self) -> bool:
        """Whether it offers the model tools to call."""
        return bool(self.tools)

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths."""
        if isinstance(self.system, list):
            yield "system", self.system
        for number, turn in enumerate(self.messages):
            if isinstance(turn.content, list):
                yield f"messages[{number}].content", turn.content
