"""What happens in a run, read from its events, for those who tell it in OpenAI's shapes.

Text is what the answering node says: a graph of this service has one, `model`, and whatever else calls a model (a
summary) does not speak to the client. Of a mounted graph every message counts.

A run that goes on in another process makes its last model call again. What it repeats is told once, as long as it says
the same.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import orjson

from muster_agent import failures
from muster_agent.agents import summarised
from muster_agent.failures import Failure
from muster_agent.runs.complaints import failure_of
from muster_agent.wire import encodable

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Assistant
    from muster_agent.runs.events import StoredEvent

ANSWERING_NODE = "model"

_TURNED_AWAY = frozenset({429, 503})
_LONGEST_SHOWN = 200
_STEP_LIMITS = frozenset({"GraphRecursionError"})


@dataclass(slots=True)
class Usage:
    """Tokens of model calls, summed.

    Attributes:
        input_tokens: What they were given.
        output_tokens: What they wrote.
        cached_tokens: How many of the input the engine had already.
        reasoning_tokens: How many of the output were thoughts.
        cache_write_tokens: How many of the input the engine has put by for later calls.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, told: Mapping[str, Any]) -> None:
        """Count one call, by LangChain's `usage_metadata`."""
        read, wrote = fields_of(told.get("input_token_details")), fields_of(told.get("output_token_details"))
        self.input_tokens += _count(told.get("input_tokens"))
        self.output_tokens += _count(told.get("output_tokens"))
        self.cached_tokens += _count(read.get("cache_read"))
        self.cache_write_tokens += _count(read.get("cache_creation"))
        self.reasoning_tokens += _count(wrote.get("reasoning"))


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a message; told of streamed runs only."""

    message_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Spoke:
    """A message is complete.

    Attributes:
        message_id: Its identifier.
        text: All of it.
        calls_tools: Whether it asks for tools, so that more follows.
        is_cut: Whether its token limit cut it off.
        is_given_up: Whether the run ended with it for want of steps.
    """

    message_id: str
    text: str
    calls_tools: bool
    is_cut: bool
    is_given_up: bool


@dataclass(frozen=True, slots=True)
class ToolUsed:
    """A tool was called and has returned.

    Attributes:
        call_id: The call.
        name: The tool.
        arguments: What it was given; None where it is not known.
        result: What it gave.
        is_ok: Whether it did what it was asked.
    """

    call_id: str
    name: str
    arguments: Mapping[str, Any] | None
    result: str
    is_ok: bool

    @property
    def line(self) -> str:
        """It, told to a person: `calculator(expression='23*7') → 161`."""
        given = (
            "…"
            if self.arguments is None
            else ", ".join(f"{name}={_shortened(repr(value))}" for name, value in self.arguments.items())
        )
        return f"{self.name}({given}) → {_shortened(' '.join(self.result.split()))}\n"


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over; nothing follows.

    Attributes:
        interrupts: What waits for a person, each with `id` and `value`.
        failure: Why there is no answer, if there is none. It says whether the request may be repeated: where the run
            has done something, or may have, a second run would do it again.
        is_limited: Whether its graph ran out of steps.
    """

    interrupts: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    failure: Failure | None = None
    is_limited: bool = False


Happening = Said | Spoke | ToolUsed | Ended


@dataclass(slots=True)
class Reader:
    """Reads a run's events, in their order and from the first.

    Args:
        node: Whose messages are the answer; None for every node's.
    """

    node: str | None
    usage: Usage = field(default_factory=Usage)
    _seen: set[str] = field(default_factory=set[str])
    _calls: dict[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    _failure: Failure | None = None
    _has_acted: bool = False
    _is_limited: bool = False
    _unfinished: "dict[str, str]" = field(default_factory=dict[str, str])
    _repeats: "_Repetition | None" = None

    def read(self, event: "StoredEvent") -> Generator[Happening]:
        """What happens with one event."""
        match event.event:
            case "metadata":
                self._begin_attempt()
            case "messages":
                yield from self._message(*orjson.loads(event.data))
            case "updates":
                self._has_acted = True  # a step has ended: a call of the model, or of tools
                yield from self._updates(orjson.loads(event.data))
            case "error":
                self._fail(orjson.loads(event.data))
            case "end":
                yield self._end(orjson.loads(event.data))
            case _:
                pass

    def _begin_attempt(self) -> None:
        """What an earlier attempt had begun to say will be said again."""
        if self._unfinished:
            identifier, text = self._unfinished.popitem()
            self._repeats = _Repetition(identifier, text)
        self._unfinished.clear()

    def _message(self, message: Mapping[str, Any], metadata: Mapping[str, Any]) -> Generator[Happening]:
        if message.get("type") not in {"AIMessageChunk", "ai"} or not self._answers(
            metadata.get("langgraph_node")
        ):
            return
        text, identifier = text_of(message), str(message.get("id"))
        if identifier in self._seen or not text:
            return
        if self._repeats is not None:
            identifier, text = self._repeats.take(identifier, text)
            if not text:
                return
        self._unfinished[identifier] = self._unfinished.get(identifier, "") + text
        yield Said(identifier, text)

    def _updates(self, updates: Mapping[str, Any]) -> Generator[Happening]:
        for node, update in updates.items():
            parts = cast("list[Any]", update) if isinstance(update, list) else [update]
            for part in parts:
                if isinstance(part, dict):
                    yield from self._written(node, cast("dict[str, Any]", part).get("messages"))

    def _written(self, node: str, written: Any) -> Generator[Happening]:  # noqa: ANN401 - a graph's own
        told = cast("list[Any]", written) if isinstance(written, list) else [written]
        known = [cast("dict[str, Any]", message) for message in told if isinstance(message, dict)]
        self._count_summary(known)
        for message in _of_this_turn(known):
            if message.get("type") == "ai":
                yield from self._spoke(message, is_answer=self._answers(node))
            elif message.get("type") == "tool":
                yield from self._tool(message)

    def _count_summary(self, written: Sequence[Mapping[str, Any]]) -> None:
        """Count the call that wrote a summary: the first message of what a conversation is replaced with."""
        if not written or written[0].get("type") != "remove":
            return
        for message in written[1:2]:
            self.usage.add(fields_of(fields_of(message.get("additional_kwargs")).get(summarised.USAGE)))

    def _spoke(self, message: Mapping[str, Any], *, is_answer: bool) -> Generator[Happening]:
        calls = cast("list[dict[str, Any]]", message.get("tool_calls") or [])
        self._calls |= {str(call.get("id")): call for call in calls}
        identifier = str(message.get("id"))
        if not is_answer or identifier in self._seen:
            return
        self._seen.add(identifier)
        self.usage.add(fields_of(message.get("usage_metadata")))
        told = fields_of(message.get("response_metadata"))
        if self._repeats is not None:
            identifier = self._repeats.known_as(identifier)
            self._repeats = None
        self._unfinished.pop(identifier, None)
        is_given_up = "stopped_by" in told
        is_cut = told.get("finish_reason") == "length" and not is_given_up
        yield Spoke(identifier, text_of(message), bool(calls), is_cut, is_given_up)

    def _tool(self, message: Mapping[str, Any]) -> Generator[Happening]:
        identifier = str(message.get("id"))
        if identifier in self._seen:
            return
        self._seen.add(identifier)
        call_id = str(message.get("tool_call_id"))
        call = self._calls.get(call_id, {})
        is_ok = message.get("status", "success") == "success"
        yield ToolUsed(call_id, str(message.get("name")), call.get("args"), text_of(message), is_ok)

    def _answers(self, node: object) -> bool:
        return self.node is None or node == self.node

    def _fail(self, complaint: Mapping[str, str]) -> None:
        if complaint.get("error") in _STEP_LIMITS:
            self._is_limited = True
        else:
            self._failure = failure_of(complaint)

    def _end(self, told: Mapping[str, Any]) -> Ended:
        result = cast("dict[str, Any]", told.get("result") or {})
        failure = self._failure
        if told["status"] == "interrupted" and not result:
            failure = failures.run_cancelled()
        if failure is not None:
            # The proxy turned the first call away, so nothing has been done.
            is_untouched = failure.status in _TURNED_AWAY and not self._has_acted
            failure = replace(failure, may_be_repeated=is_untouched)
        return Ended(result.get("__interrupt__") or [], failure, self._is_limited)


@dataclass(slots=True)
class _Repetition:
    """A message that is said again: told is only what goes beyond the first time.

    Attributes:
        told_as: The identifier of the first time.
        text: What was said then.
        again: What has been said this time.
        identifier: The identifier of this time.
        differs: Whether it says something else now, and is told from its beginning, as another message.
    """

    told_as: str
    text: str
    again: str = ""
    identifier: str | None = None
    differs: bool = False

    def take(self, identifier: str, text: str) -> tuple[str, str]:
        """How a piece is told: of which message, and what."""
        if self.differs or self.identifier not in {None, identifier}:
            return identifier, text
        self.identifier = identifier
        before, self.again = self.again, self.again + text
        if self.again.startswith(self.text):
            return self.told_as, self.again[max(len(before), len(self.text)) :]
        if self.text.startswith(self.again):
            return self.told_as, ""
        self.differs = True
        return identifier, self.again

    def known_as(self, identifier: str) -> str:
        """The identifier by which a message was told."""
        return identifier if self.differs or self.identifier != identifier else self.told_as


def reader_for(assistant: "Assistant") -> Reader:
    """A reader of an assistant's runs."""
    return Reader(None if assistant.declaration.graph is not None else ANSWERING_NODE)


def fields_of(value: object) -> Mapping[str, Any]:
    """What a JSON object has; nothing where it is none."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, which is one text or a list of parts."""
    content: object = message.get("content")
    if isinstance(content, str):
        return str(encodable(content))
    parts = cast("list[Any]", content) if isinstance(content, list) else []
    texts = [part if isinstance(part, str) else _text_of_part(part) for part in parts]
    return str(encodable("".join(texts)))


def _text_of_part(part: Any) -> str:  # noqa: ANN401 - any JSON
    fields = fields_of(part)
    return str(fields.get("text") or "") if fields.get("type") == "text" else ""


def _of_this_turn(known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What an update adds to the turn: some graphs give back the whole conversation, and a summary rewrites it."""
    if any(message.get("type") == "remove" for message in known):
        return known[-1:]
    humans = [place for place, message in enumerate(known) if message.get("type") == "human"]
    return known[humans[-1] + 1 :] if humans else known


def _count(told: object) -> int:
    return told if isinstance(told, int) else 0


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
