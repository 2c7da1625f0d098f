"""A request of the Responses API as this service understands it, checked before anything runs."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, model_validator

from muster_agent import failures
from muster_agent.openai_api.approvals import APPROVE
from muster_agent.openai_api.chat_request import sampling_of
from muster_agent.openai_api.reading import Strict, parsed

TOOL_CALLS = "agent.tool_calls"
"""In `include`: tool calls are output items of our own, for programs, and not only told to people."""

_MOST_ITEMS = 10_000
_MAX_TOKENS = 1_000_000
_OWN_TOOLS = "This model runs its own tools and takes none from the client."
_NO_THREAD = (
    "This answers a call of an earlier response: name it with previous_response_id, or its conversation."
)


class Format(Strict):
    """What the text of an answer looks like."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, min_length=1, max_length=256)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    description: str | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> Self:
        if self.type == "json_schema" and (self.name is None or self.schema_ is None):
            raise ValueError("name and schema are needed for this type")
        return self

    def as_response_format(self) -> dict[str, Any]:
        """It, as chat completions have it."""
        if self.type != "json_schema":
            return {"type": self.type}
        known = {
            "name": self.name,
            "schema": self.schema_,
            "strict": self.strict,
            "description": self.description,
        }
        return {
            "type": self.type,
            "json_schema": {key: value for key, value in known.items() if value is not None},
        }


class Text(Strict):
    """Settings of the text."""

    format: Format | None = None


class ConversationName(Strict):
    """A conversation, by its identifier."""

    id: str


def _said(value: object) -> object:
    """A text is one message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


def _named(value: object) -> object:
    return {"id": value} if isinstance(value, str) else value


class ResponseRequest(Strict):
    """A request for one response."""

    model: str
    input: Annotated[list[Any], Field(min_length=1, max_length=_MOST_ITEMS), BeforeValidator(_said)]
    instructions: str | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: Annotated[ConversationName | None, BeforeValidator(_named)] = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_output_tokens: int | None = Field(default=None, ge=1, le=_MAX_TOKENS)
    text: Text | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    include: list[str] | None = None
    tools: object = None
    tool_choice: object = None

    @property
    def is_stored(self) -> bool:
        """Whether the response can be asked for later."""
        return self.store is not False

    @property
    def has_thread(self) -> bool:
        """Whether it goes on with something."""
        return self.previous_response_id is not None or self.conversation is not None

    @property
    def form(self) -> dict[str, Any] | None:
        """The answer's form as chat completions have it."""
        return (
            None if self.text is None or self.text.format is None else self.text.format.as_response_format()
        )

    @property
    def sampling(self) -> dict[str, Any]:
        """What goes with each model call of the run."""
        given = {"temperature": self.temperature, "top_p": self.top_p}
        return sampling_of(given, self.max_output_tokens, self.form)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to what waits for a person.

    Attributes:
        call_id: The call that asked.
        output: The answer.
        where: The field of the request, for complaints.
    """

    call_id: str
    output: str
    where: str


@dataclass(slots=True)
class Input:
    """What a request brings.

    Attributes:
        instructions: System and developer messages: for this run only.
        messages: User and assistant messages, each with its role and its text.
        answers: To what waits for a person.
        items: All of it, as it is shown again.
    """

    instructions: list[str] = field(default_factory=list[str])
    messages: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    answers: list[Answer] = field(default_factory=list[Answer])
    items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def parse(body: bytes) -> tuple[ResponseRequest, Input]:
    """Read and check a request.

    Raises:
        Failure: 400.
    """
    request = parsed(body, ResponseRequest)
    _check(request)
    given = input_of(request.input)
    _check_input(request, given)
    return request, given


def _check(request: ResponseRequest) -> None:
    if request.tools not in (None, []):
        raise failures.bad_request(_OWN_TOOLS, param="tools")
    # `auto` is what clients send that send every field; it asks for nothing beyond what happens anyway.
    if request.tool_choice not in (None, "none", "auto"):
        raise failures.bad_request(_OWN_TOOLS, param="tool_choice")
    if request.previous_response_id is not None and request.conversation is not None:
        raise failures.bad_request(
            "Expected previous_response_id or conversation, not both.", param="previous_response_id"
        )
    if request.background and not request.is_stored:
        raise failures.bad_request("A response in the background must be stored.", param="store")


def _check_input(request: ResponseRequest, given: Input) -> None:
    if given.answers:
        if not request.has_thread:
            raise failures.bad_request(_NO_THREAD, param=given.answers[0].where)
        if given.messages:
            raise failures.bad_request(
                "An answer to a call comes in a request of its own, without messages.", param="input"
            )
        return
    if not given.messages or given.messages[-1]["role"] != "user":
        raise failures.bad_request("The last message must be the user's.", param="input")


def input_of(items: list[Any]) -> Input:
    """Input items as this service takes them.

    Raises:
        Failure: 400, one is not understood.
    """
    given = Input()
    for place, item in enumerate(items):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise failures.bad_request(f"{where}: expected an object", param=where)
        _take(given, cast("dict[str, Any]", item), where)
    return given


def _take(given: Input, item: dict[str, Any], where: str) -> None:
    match item.get("type", "message"):
        case "message":
            _take_message(given, item, where)
        case "function_call_output":
            _take_answer(given, item, where)
        case "reasoning" | "agent_tool_call":  # what an earlier response told of its tools
            pass
        case "function_call" if item.get("name") == APPROVE:
            pass
        case "function_call":
            raise failures.bad_request(_OWN_TOOLS, param=where)
        case _:
            raise failures.bad_request(f"{where}: expected a message or a function_call_output", param=where)


def _take_message(given: Input, item: dict[str, Any], where: str) -> None:
    text = _text(item.get("content"), f"{where}.content")
    match item.get("role"):
        case "system" | "developer" as role:
            given.instructions.append(text)
        case "user" | "assistant" as role:
            given.messages.append({"role": role, "content": text})
        case _:
            raise failures.bad_request(
                f"{where}.role: expected user, assistant, system or developer", param=f"{where}.role"
            )
    kind = "output_text" if role == "assistant" else "input_text"
    part: dict[str, Any] = {"type": kind, "text": text}
    if kind == "output_text":
        part["annotations"] = []
    given.items.append({"type": "message", "role": role, "status": "completed", "content": [part]})


def _take_answer(given: Input, item: dict[str, Any], where: str) -> None:
    call_id = item.get("call_id")
    if not isinstance(call_id, str):
        raise failures.bad_request(f"{where}.call_id: expected a string", param=f"{where}.call_id")
    output = _text(item.get("output"), f"{where}.output")
    given.answers.append(Answer(call_id, output, f"{where}.output"))
    given.items.append(
        {"type": "function_call_output", "call_id": call_id, "output": output, "status": "completed"}
    )


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    parts = cast("list[object]", content) if isinstance(content, list) else []
    texts = [_part(part, where) for part in parts]
    if not texts:
        raise failures.bad_request(f"{where}: expected a string or a list of text parts", param=where)
    return "\n".join(texts)


def _part(part: object, where: str) -> str:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case _:
            raise failures.bad_request(f"{where}: only text parts are understood", param=where)
