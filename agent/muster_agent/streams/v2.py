"""LangGraph's second streaming protocol: events of a thread, by method and by the graph that speaks.

The shapes are those of a recorded LangGraph server. A run's beginning and end are not written here: they follow from
what every run has in its log (see `streams.tape`), so that they cannot be missing or come before the run has ended.
"""

import uuid
from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from langchain_core._api import suppress_langchain_beta_warning
from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.stream.transformers import (  # pyright: ignore[reportMissingTypeStubs] - typed inline
    CheckpointsTransformer,
    CustomTransformer,
)
from langgraph.types import Command, Interrupt

from muster_agent.streams.v1 import Written
from muster_agent.wire import to_json

if TYPE_CHECKING:
    from muster_agent.agents.assistants import Graph

PROTOCOL = 2

QUESTION = "input.requested"
"""The method of an event by which a run asks a person."""

# Neither a node's name nor an identifier has it.
_SEPARATOR = "\x1f"

# Clients fork threads at checkpoints, and custom events are seldom; the rest is the graph's own choice.
_ALWAYS = (CustomTransformer, CheckpointsTransformer)


def stored_name(method: str, namespace: Iterable[str]) -> str:
    """The name under which an event is stored: who wants it can be told without reading it."""
    return _SEPARATOR.join((method, *namespace))


def read_name(name: str) -> tuple[str, list[str]]:
    """The method and the namespace in an event's stored name."""
    method, *namespace = name.split(_SEPARATOR)
    return method, namespace


@asynccontextmanager
async def streaming(
    graph: "Graph",
    start: Any,  # noqa: ANN401 - a graph's input
    config: RunnableConfig,
    wishes: Mapping[str, Any],
) -> AsyncGenerator[AsyncGenerator[Mapping[str, Any]]]:
    """What the graph says, event by event; leaving the block stops it.

    Args:
        graph: The graph.
        start: Its input.
        config: Its configuration.
        wishes: More of what `astream` takes: `context`, `interrupt_before`, `interrupt_after`, `durability`.
    """
    known = tuple(graph.stream_transformers or ())
    more = [each for each in _ALWAYS if each not in known]
    with suppress_langchain_beta_warning():  # the call has no pause in which others' warnings would be lost
        run: Any = await cast("Any", graph).astream_events(
            start, config, version="v3", transformers=more, **wishes
        )
    async with run:
        yield run


class Encoder:
    """Writes what a graph says.

    What the graph asks a person is kept until `questions`: whoever hears of it may answer at once, and an answer can be
    taken only when the run has ended.
    """

    def __init__(self) -> None:
        self._questions: dict[str, Written] = {}
        self._speaking: dict[str, str] = {}

    def write(self, event: Mapping[str, Any]) -> Generator[Written]:
        """The events for one event of the graph."""
        params: Mapping[str, Any] = event["params"]
        namespace: list[str] = params["namespace"]
        timestamp: int = params["timestamp"]
        for interrupt in params.get("interrupts") or ():
            self._ask(namespace, timestamp, interrupt)
        for where, method, data in self._said(event["method"], namespace, params["data"]):
            yield _written(where, method, timestamp, data)

    def questions(self) -> Iterable[Written]:
        """What the graph asks a person."""
        return self._questions.values()

    def _ask(self, namespace: list[str], timestamp: int, interrupt: Interrupt) -> None:
        # LangGraph's clients do not agree on the name of the value.
        data = {"interrupt_id": interrupt.id, "payload": interrupt.value, "value": interrupt.value}
        # The innermost graph tells first, and its parents repeat it.
        self._questions.setdefault(interrupt.id, _written(namespace, QUESTION, timestamp, data))

    def _said(
        self,
        method: str,
        namespace: list[str],
        data: Any,  # noqa: ANN401 - a graph's own
    ) -> Generator[tuple[list[str], str, Any]]:
        match method:
            case "messages":
                yield from ((namespace, method, each) for each in self._message(*data))
            case "lifecycle":  # of a graph inside: it names itself in its data
                inner = dict(data)
                yield inner.pop("namespace", namespace), method, inner
            case "tools":
                yield from _tool(namespace, data)
            case "updates" if "__interrupt__" in data:
                return
            case "checkpoints":
                yield namespace, method, _checkpoint(data)
            case "custom" if isinstance(data, dict) and isinstance(
                name := cast("Any", data).get("name"), str
            ):
                yield namespace, f"custom:{name}", data
            case _ if method.startswith("custom:"):  # a transformer's named channel
                yield namespace, method, {"name": method.removeprefix("custom:"), "payload": data}
            case _:
                yield namespace, method, brief(data)

    def _message(self, part: Any, metadata: Mapping[str, Any]) -> Generator[dict[str, Any]]:  # noqa: ANN401 - likewise
        """Say which message each piece belongs to: two models may speak at once."""
        if isinstance(part, BaseMessage):
            # A message that a node returns is in the state; one of a model that does not stream is heard here alone.
            if metadata.get("ls_integration") != "langgraph":
                yield from whole_message(part)
            return
        call = str(metadata.get("run_id", ""))
        if part["event"] == "message-start":
            self._speaking[call] = str(part.get("id") or call)
            yield {**part, "run_id": call}
            return
        yield {**part, "message_id": self._speaking.get(call, call), "run_id": call}
        if part["event"] in {"message-finish", "error"}:
            self._speaking.pop(call, None)


def _written(namespace: Sequence[str], method: str, timestamp: int, data: Any) -> Written:  # noqa: ANN401 - JSON
    params = {"namespace": namespace, "timestamp": timestamp, "data": data}
    return stored_name(method, namespace), to_json(params)


def _tool(namespace: list[str], data: Mapping[str, Any]) -> Generator[tuple[list[str], str, Any]]:
    """A tool call's event; its result is a message too, in a namespace of its own."""
    result = _tool_message(data.get("output"), str(data["tool_call_id"]))
    if result is None:
        yield namespace, "tools", data
        return
    # Without an identifier it would get one when it enters the state, which may be before or after this.
    result.id = result.id or str(uuid.uuid4())
    yield namespace, "tools", {**data, "output": result}
    where = [*namespace, f"tools:{result.tool_call_id}"]
    yield from ((where, "messages", each) for each in whole_message(result))


def _tool_message(output: Any, call_id: str) -> ToolMessage | None:  # noqa: ANN401 - a tool may return anything
    if isinstance(output, ToolMessage):
        return output
    if not isinstance(output, Command):
        return None
    update: Any = cast("Any", output).update
    messages: Sequence[Any] = cast("Any", update).get("messages", ()) if isinstance(update, dict) else ()
    found = (each for each in messages if isinstance(each, ToolMessage) and each.tool_call_id == call_id)
    return next(found, None)


def whole_message(message: BaseMessage) -> Generator[dict[str, Any]]:
    """The events by which a message would have come piece by piece."""
    start: dict[str, Any] = {"event": "message-start", "role": message.type, "id": message.id}
    if isinstance(message, ToolMessage):
        start["tool_call_id"] = message.tool_call_id
    identifier = {"message_id": start["id"]}
    yield start
    for index, block in enumerate(message.content_blocks):
        about = {"index": index, **identifier}
        text = block["text"] if block["type"] == "text" else None
        begun = block if text is None else {**block, "text": ""}
        yield {"event": "content-block-start", "content": begun, **about}
        if text is not None:
            yield {"event": "content-block-delta", "delta": {"type": "text-delta", "text": text}, **about}
        yield {"event": "content-block-finish", "content": block, **about}
    finish: dict[str, Any] = {"event": "message-finish", **identifier}
    if isinstance(message, AIMessage) and message.usage_metadata is not None:
        finish["usage"] = message.usage_metadata
    yield finish


def _checkpoint(data: Mapping[str, Any]) -> dict[str, Any]:
    """What names a checkpoint; its state comes as `values`."""
    metadata = cast("Mapping[str, Any]", data.get("metadata") or {})
    told: dict[str, Any] = {
        "id": _checkpoint_id(data.get("config")),
        "parent_id": _checkpoint_id(data.get("parent_config")),
        "step": metadata.get("step"),
        "source": metadata.get("source"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _checkpoint_id(config: Mapping[str, Any] | None) -> str | None:
    return None if config is None else config.get("configurable", {}).get("checkpoint_id")


def brief(value: Any) -> Any:  # noqa: ANN401 - a graph's state
    """A state, with its messages as this protocol has them: without what is empty or is for the model alone."""
    match value:
        case BaseMessage():
            return _brief_message(value)
        case dict():
            return {key: brief(item) for key, item in cast("dict[Any, Any]", value).items()}
        case list() | tuple():
            return [brief(item) for item in cast("list[Any]", value)]
        case _:
            return value


_FIELDS = ("type", "content", "id", "name", "response_metadata", "tool_calls", "invalid_tool_calls")
_TOOL_FIELDS = ("tool_call_id", "status", "artifact")


def _brief_message(message: BaseMessage) -> dict[str, Any]:
    fields = {name: getattr(message, name, None) for name in _FIELDS}
    told = {name: value for name, value in fields.items() if value or name == "content"}
    if isinstance(message, ToolMessage):
        told |= {name: getattr(message, name) for name in _TOOL_FIELDS}
    return told
