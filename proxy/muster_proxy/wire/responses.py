"""`POST /v1/responses`."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, cast

from msgspec import Meta, Struct

from muster_proxy.wire.limits import (
    MOST_MESSAGES,
    MOST_TOOLS,
    Count,
    Parts,
    Positive,
    Probabilities,
    ShortText,
)
from muster_proxy.wire.media import RESPONSES_PARTS, Content, PartTypes
from muster_proxy.wire.requests import Sampled
from muster_proxy.wire.strict import invalid


class Item(Struct):
    """One item of the input: a message, a tool's call or its result; the engine knows more of them than this."""

    type: str | None = None
    role: str | None = None
    content: str | Parts | None = None
    output: Any = None


class ResponsesRequest(Sampled, kw_only=True, rename={"max_output": "max_output_tokens"}):
    """The fields of a response request that have a type of OpenAI's, or a limit."""

    part_types: ClassVar[PartTypes] = RESPONSES_PARTS

    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output: Positive | None = None
    max_tool_calls: Count | None = None
    top_logprobs: Probabilities | None = None
    previous_response_id: ShortText | None = None
    store: bool | None = None
    background: bool | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that the answer may have; None where the client set no limit."""
        return self.max_output

    @property
    def has_tools(self) -> bool:
        """Whether it offers the model tools to call."""
        return bool(self.tools)

    def contents(self) -> Iterator[Content]:
        """The contents that come in parts, with their paths: of messages, and of what tools gave."""
        if isinstance(self.input, str):
            return
        for number, item in enumerate(self.input):
            if isinstance(item.content, list):
                yield f"input[{number}].content", item.content
            output = cast("object", item.output)
            if isinstance(output, dict):
                yield f"input[{number}].output", [cast("object", output)]
            elif isinstance(output, list) and item.type in _WITH_PARTS:
                yield f"input[{number}].output", cast("list[object]", output)

    def check(self) -> None:
        """Check that the answer comes on this connection.

        Raises:
            RequestError: It would have to be asked for later, from the one engine that has it.
        """
        if self.background:
            raise invalid("Responses in the background are not served.", "background")


_WITH_PARTS = (None, "function_call_output", "custom_tool_call_output")
