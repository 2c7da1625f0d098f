"""A chat completions request as this service understands it, checked before anything runs."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from muster_agent import failures
from muster_agent.openai_api.reading import Strict, parsed

_MAX_MESSAGES = 10_000
_MAX_STOPS = 16
_MAX_TOKENS = 1_000_000

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


class Message(Strict):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_as_text)]
    tool_calls: object = None

    @property
    def is_instruction(self) -> bool:
        """Whether it instructs the run rather than being part of the conversation."""
        return self.role in {"system", "developer"}


class StreamOptions(Strict):
    """What an answer carries besides the answer; `include_agent_events` is ours, and counts unstreamed too."""

    include_usage: bool | None = None
    include_agent_events: bool | None = None


class JsonSchema(Strict):
    """The form of an answer."""

    name: str = Field(min_length=1, max_length=256)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(Strict):
    """What an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("json_schema is needed for this type")
        return self


class ChatRequest(Strict):
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
    response_format: ResponseFormat | None = None
    metadata: dict[str, object] | None = None
    prompt_cache_key: str | None = None
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
    def shows_agent_events(self) -> bool:
        """Whether the answer tells what tools did in a form for programs."""
        return self.stream_options is not None and self.stream_options.include_agent_events is True

    @property
    def conversation(self) -> list[dict[str, str]]:
        """The user and assistant messages, each with its role and its text."""
        return [
            {"role": message.role, "content": message.content}
            for message in self.messages
            if not message.is_instruction
        ]

    @property
    def sampling(self) -> dict[str, Any]:
        """What goes with each model call of the run, by the names that `ChatOpenAI` takes."""
        given: dict[str, object] = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop": [self.stop] if isinstance(self.stop, str) else self.stop,
        }
        form = (
            None
            if self.response_format is None
            else self.response_format.model_dump(by_alias=True, exclude_unset=True)
        )
        return sampling_of(given, self.max_completion_tokens or self.max_tokens, form)


def sampling_of(
    given: Mapping[str, object], limit: int | None, form: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What goes with each model call, by the names that `ChatOpenAI` takes.

    Args:
        given: What has the same name everywhere.
        limit: Most tokens of an answer.
        form: OpenAI's `response_format`.
    """
    sampling = {name: value for name, value in given.items() if value is not None and value != []}
    extra: dict[str, Any] = {}
    if limit is not None:
        # Every OpenAI-compatible engine knows this name; ChatOpenAI would send the newer one alone.
        extra["max_tokens"] = limit
    if form is not None and form["type"] != "text":
        # Given to ChatOpenAI by its name, it would have the SDK read the answer and refuse our tools.
        extra["response_format"] = {name: value for name, value in form.items() if value is not None}
    return {**sampling, "extra_body": extra} if extra else sampling


def parse(body: bytes) -> ChatRequest:
    """Read and check a request.

    Raises:
        Failure: 400.
    """
    request = parsed(body, ChatRequest)
    _check(request)
    return request


def _check(request: ChatRequest) -> None:
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
