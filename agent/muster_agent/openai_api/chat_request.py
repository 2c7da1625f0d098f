"""A chat completions request as this service understands it, checked before anything runs.

Whatever is wrong with it is the caller's to mend: a 4xx that names the field, and never a 5xx. Fields that
are not listed are ignored. Where a JSON key is repeated, the last one counts.
"""

from typing import Annotated, Literal, cast

import orjson
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from muster_agent import failures

MODEL_ID = "muster-agent"
"""The one model that this service is."""

_MAX_MESSAGES = 10_000
_MAX_STOPS = 16
_MAX_TOKENS = 1_000_000
_LONGEST_COMPLAINT = 300

_OWN_TOOLS = "This model runs its own tools and takes none from the client."


def _as_text(content: object) -> str:
    """The text of a message: a string, or the text parts of a list, one a line."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "\n".join(_as_part(part) for part in cast("list[object]", content))
    raise ValueError("expected a string or a list of text parts")


def _as_part(part: object) -> str:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            raise ValueError('only parts of the form {"type": "text", "text": "..."} are understood')


class _Strict(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class Message(_Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]
    tool_calls: object = None

    @property
    def is_instruction(self) -> bool:
        """Whether it instructs the run rather than being part of the conversation."""
        return self.role in {"system", "developer"}


class StreamOptions(_Strict):
    """What a streamed answer carries besides the answer."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """A request for one answer of the agent."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=_MAX_MESSAGES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=_MAX_STOPS)]
        | None
    ) = None
    tools: object = None
    tool_choice: object = None
    functions: object = None
    function_call: object = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries the usage."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def instructions(self) -> str:
        """The system and developer messages: for this run only."""
        return "\n\n".join(message.content for message in self.messages if message.is_instruction)

    @property
    def conversation(self) -> list[AnyMessage]:
        """The user and assistant messages."""
        return [
            HumanMessage(message.content) if message.role == "user" else AIMessage(message.content)
            for message in self.messages
            if not message.is_instruction
        ]

    @property
    def sampling(self) -> dict[str, object]:
        """What goes with each model call of the run, by the names that `ChatOpenAI` takes."""
        given: dict[str, object] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
        }
        sampling = {name: value for name, value in given.items() if value is not None and value != []}
        limit = self.max_completion_tokens or self.max_tokens
        if limit is not None:
            # Every OpenAI-compatible engine knows this name; ChatOpenAI would send the newer one alone.
            sampling["extra_body"] = {"max_tokens": limit}
        return sampling


def parse(body: bytes) -> ChatRequest:
    """Read and check a request.

    Raises:
        Failure: 400, or 404 for another model's name.
    """
    try:
        # Refuses NaN, lone surrogates and deep nesting, which the standard library lets through.
        content: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The parser's message tells what was expected and where, not what was there.
        raise failures.bad_request(f"The body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise failures.bad_request("The body must be a JSON object.", code="invalid_body")
    try:
        request = ChatRequest.model_validate(content)
    except ValidationError as error:
        raise _invalid(error) from None
    _check(request)
    return request


def _check(request: ChatRequest) -> None:
    if request.model != MODEL_ID:
        raise failures.unknown_model(request.model)
    if request.n not in {None, 1}:
        raise failures.bad_request("Only one answer at a time: n must be 1.", param="n")
    _check_tools(request)
    _check_roles(request.messages)


def _check_tools(request: ChatRequest) -> None:
    for name in ("tools", "functions"):
        if getattr(request, name) not in (None, []):
            raise failures.bad_request(_OWN_TOOLS, param=name)
    for name in ("tool_choice", "function_call"):
        if getattr(request, name) not in (None, "none"):
            raise failures.bad_request(_OWN_TOOLS, param=name)


def _check_roles(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        if message.tool_calls not in (None, []):
            raise failures.bad_request(_OWN_TOOLS, param=f"messages[{index}].tool_calls")
    spoken = [message.role for message in messages if not message.is_instruction]
    if "user" not in spoken:
        raise failures.bad_request("There is no user message to answer.", param="messages")
    if spoken[-1] != "user":
        raise failures.bad_request("The last message must be the user's.", param="messages")


def _invalid(error: ValidationError) -> failures.Failure:
    """The first thing that is wrong; what was sent is not repeated, since it may be a prompt."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]).lstrip(
        "."
    )
    message = detail["msg"].removeprefix("Value error, ")
    return failures.bad_request(f"{where}: {message}"[:_LONGEST_COMPLAINT], param=where)
