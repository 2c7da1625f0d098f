"""What the proxy reads of a request: strict JSON, the fields it schedules by, the types of those it knows.

The body's bytes stay as they came and are what an engine gets. Types are checked here because engines answer
a wrong one with anything from a helpful 400 to a 500; unknown fields are the engine's business and pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from muster_proxy.failures import Reason, RequestError

_Count = Annotated[int, Meta(ge=0, le=2**31)]
_Positive = Annotated[int, Meta(ge=1, le=2**31)]
_Number = float  # msgspec takes integers for it too
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Name = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]


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
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None


class Function(Struct):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: _Name
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


class StreamOptions(Struct):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class ChatRequest(Struct):
    """The fields of a chat completion request that have a type of OpenAI's."""

    model: Annotated[str, Meta(min_length=1, max_length=512)]
    messages: Annotated[list[Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: _Positive | None = None
    max_completion_tokens: _Positive | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[_Number, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[_Number, Meta(ge=0, le=1)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    logit_bias: dict[str, _Number] | None = None
    user: str | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A chat completion call, read.

    Attributes:
        fields: The body as JSON.
        request: The body's known fields, typed.
    """

    fields: dict[str, Any]
    request: ChatRequest

    @property
    def is_stream(self) -> bool:
        """Whether the answer is asked for as an event stream."""
        return bool(self.request.stream)

    @property
    def max_output_tokens(self) -> int | None:
        """The most tokens that the answer's choices may have together; None where the client set no limit."""
        each = self.request.max_completion_tokens or self.request.max_tokens
        return None if each is None else each * (self.request.n or 1)

    def media(self) -> Iterator[dict[str, Any]]:
        """The parts of messages that are no text: images, sound."""
        for message in self.request.messages:
            if isinstance(message.content, list):
                yield from (part for part in message.content if part.get("type") != "text")


def read_chat(body: bytes) -> Call:
    """Read a chat completion request.

    Raises:
        RequestError: The body is not strict JSON, or a known field has a wrong type or value.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The decoder's message may quote the text around the fault, which is a prompt: give the place only.
        message = f"The request body is not valid JSON (line {error.lineno}, column {error.colno})."
        raise RequestError(Reason.INVALID_JSON, message) from None
    try:
        request = msgspec.convert(fields, ChatRequest)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except RecursionError:
        raise RequestError(Reason.INVALID_JSON, "The request body is nested too deeply.") from None
    _check_tools(request)
    return Call(fields, request)


def refuse_media(call: Call) -> None:
    """Refuse content other than text, for a model that reads no other; engines answer it with a 500.

    Raises:
        RequestError: A message has a part of another type.
    """
    for number, message in enumerate(call.request.messages):
        parts = message.content if isinstance(message.content, list) else []
        if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
            param = f"messages[{number}].content"
            raise RequestError(Reason.INVALID_VALUE, f"Only text is read by this model: '{param}'.", param)


def _check_tools(request: ChatRequest) -> None:
    names = [tool.function.name for tool in request.tools or ()]
    if len(set(names)) < len(names):
        raise RequestError(Reason.INVALID_VALUE, "Two tools have the same name.", "tools")
    choice = request.tool_choice
    if choice not in (None, "none", "auto") and not names:
        raise RequestError(
            Reason.INVALID_VALUE, "tool_choice is only allowed when tools are given.", "tool_choice"
        )
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise RequestError(Reason.INVALID_VALUE, "tool_choice names a tool that is not given.", "tool_choice")


def _invalid(description: str) -> RequestError:
    """Turn msgspec's ``Expected `int`, got `str` - at `$.max_tokens` `` into an error with its param.

    The description holds types and limits of the schema, and the one value that it can hold (that of an
    enum) is cut off: a client's text never comes back in an error.
    """
    problem, _, place = description.partition(" - at ")
    param = place.strip("`").removeprefix("$").removeprefix(".") or None
    problem = problem.replace("`", "")
    if problem.startswith("Invalid enum value"):
        problem = "Invalid value"
    if problem.startswith("Object missing required field"):
        missing = problem.rpartition("field ")[2]
        param = f"{param}.{missing}" if param else missing
        problem = "Missing required field"
    where = f" for '{param}'" if param else ""
    return RequestError(Reason.INVALID_VALUE, f"{problem}{where}.", param)
