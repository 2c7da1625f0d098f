"""LangGraph's first streaming protocol: events of one run, named by their stream mode.

The shapes are those of a recorded LangGraph server. `messages-tuple` is what graphs themselves call `messages`; the
mode that clients call `messages` has each message as it has grown so far; `events` are LangChain's own of whatever runs
within the graph, in their second version.
"""

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from langchain_core.messages import AIMessageChunk, BaseMessage, BaseMessageChunk, message_chunk_to_message

from muster_agent.wire import interrupt_as_json, to_json

EVENTS = "events"

MODES = (
    "values",
    "messages",
    "messages-tuple",
    "updates",
    EVENTS,
    "debug",
    "tasks",
    "checkpoints",
    "custom",
)
"""What a client may ask for."""

Written = tuple[str, bytes]
"""An event's name and its data."""

Part = tuple[tuple[str, ...], str, Any]
"""What a graph streams: the namespace of the graph within it that speaks, the stream mode, and what it says."""

_INTERRUPT = "__interrupt__"
_HIDDEN = "langsmith:hidden"


def graph_modes(modes: Iterable[str]) -> list[str]:
    """The graph's own stream modes for what a client asked for."""
    asked = ["messages" if mode == "messages-tuple" else mode for mode in modes if mode != EVENTS]
    return list(dict.fromkeys(asked))


async def with_events(events: AsyncGenerator[Mapping[str, Any]]) -> AsyncGenerator[Part]:
    """A graph's parts, which it streams as events of its own, and everything else that happens as `events`."""
    async with aclosing(events) as happening:
        async for event in happening:
            if _HIDDEN in event.get("tags", ()):
                continue
            if event["event"] == "on_chain_stream" and not event["parent_ids"]:
                yield event["data"]["chunk"]
            else:
                yield (), EVENTS, event


@dataclass(slots=True)
class Encoder:
    """Writes what a graph streams.

    Args:
        modes: What the client asked for.
    """

    modes: Sequence[str]
    _grown: dict[str, BaseMessageChunk] = field(default_factory=dict[str, BaseMessageChunk])
    _announced: set[str] = field(default_factory=set[str])

    def write(self, namespace: Sequence[str], mode: str, part: Any) -> Generator[Written]:  # noqa: ANN401 - a graph's own
        """The events for one part of a graph's stream."""
        where = "".join(f"|{step}" for step in namespace)
        match mode:
            case "messages":
                yield from self._message(where, *part)
            case "values":
                yield f"values{where}", to_json(_with_plain_interrupts(part))
            case "checkpoints" | "debug":
                yield f"{mode}{where}", to_json(_without_internals(part))
            case _:
                yield f"{mode}{where}", to_json(part)

    def _message(self, where: str, message: BaseMessage, metadata: Mapping[str, Any]) -> Generator[Written]:
        if "messages-tuple" in self.modes:
            yield f"messages{where}", to_json([message, metadata])
        if "messages" in self.modes:
            yield from self._as_grown(message, metadata)

    def _as_grown(self, message: BaseMessage, metadata: Mapping[str, Any]) -> Generator[Written]:
        name = str(message.id)
        if name not in self._announced:
            self._announced.add(name)
            yield "messages/metadata", to_json({name: {"metadata": metadata}})
        if not isinstance(message, BaseMessageChunk):
            yield "messages/complete", to_json([message])
            return
        known = self._grown.get(name)
        grown = message if known is None else known + message
        self._grown[name] = grown
        yield "messages/partial", to_json([message_chunk_to_message(grown)])
        if isinstance(message, AIMessageChunk) and message.chunk_position == "last":
            del self._grown[name]


def _with_plain_interrupts(part: Any) -> Any:  # noqa: ANN401 - a state
    if not isinstance(part, dict) or _INTERRUPT not in part:
        return cast("Any", part)
    values = cast("dict[str, Any]", part)
    return {**values, _INTERRUPT: [interrupt_as_json(each) for each in values[_INTERRUPT]]}


def _without_internals(part: Any) -> Any:  # noqa: ANN401 - any JSON
    """Leave out what graphs keep for themselves in a configuration, which has no JSON."""
    match part:
        case dict():
            items = cast("dict[Any, Any]", part).items()
            return {
                key: _without_internals(value)
                for key, value in items
                if not (isinstance(key, str) and key.startswith("__pregel"))
            }
        case list():
            return [_without_internals(item) for item in cast("list[Any]", part)]
        case _:
            return part
