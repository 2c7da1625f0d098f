"""A run, told as a response: the object as it stands, and the events that lead to it.

The events follow from the run's own events alone, number by number, so a client that comes back to a stream gets the
rest of the very stream that it left.

Tools are told as reasoning items, which every client of the Responses API has to survive: it neither has to know them
nor takes them for calls of its own. Programs that ask for them get items of a type of ours instead.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from muster_agent.failures import Failure
from muster_agent.openai_api import response_items
from muster_agent.openai_api.happenings import Ended, Reader, Said, Spoke, ToolUsed, Usage
from muster_agent.openai_api.transcript import SEPARATOR

if TYPE_CHECKING:
    from muster_agent.runs.events import StoredEvent

_OUT_OF_STEPS = "max_steps"
_OUT_OF_TOKENS = "max_output_tokens"

Event = dict[str, Any]


@dataclass(slots=True)
class ResponseWriter:
    """Writes one response.

    Args:
        response: What it begins as; it is filled in as the run goes on.
        reader: Reads the run's events.
        shows_tools: Whether tool calls are items for programs.
        after: The number of the last event that the client has.
    """

    response: dict[str, Any]
    reader: Reader
    shows_tools: bool = False
    after: int = -1
    _next: int = 0
    _tools: int = 0
    _open: tuple[str, str] | None = None  # the message that is being written, and its text
    _has_text: bool = False
    _reason: str | None = None
    _items: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def opening(self) -> bytes:
        """The events that a stream begins with."""
        return self._sent(self._begun())

    def take(self, event: "StoredEvent") -> list[Event]:
        """The events that follow from one of the run's.

        Raises:
            Failure: The run has failed; see `broken_off`.
        """
        return [told for happening in self.reader.read(event) for told in self._told(happening)]

    def write(self, event: "StoredEvent") -> bytes:
        """The same as server-sent events.

        Raises:
            Failure: The run has failed.
        """
        return self._sent(self.take(event))

    def broken_off(self, failure: Failure) -> bytes:
        """The end of a stream whose run has failed."""
        self.fail(failure)
        return self._sent([self._final("response.failed")])

    def fail(self, failure: Failure) -> None:
        """The run has failed, or was cancelled."""
        self._settle()
        if failure.code == "run_cancelled":
            self.response["status"] = "cancelled"
            return
        self.response["status"] = "failed"
        self.response["error"] = error_of(failure)

    def _begun(self) -> Generator[Event]:
        names = ["response.created", "response.in_progress"]
        if self.response["background"]:
            names.insert(1, "response.queued")
        for name in names:
            yield self._event(name, response={**self.response, "output": []})

    def _told(self, happening: Said | Spoke | ToolUsed | Ended) -> Generator[Event]:
        match happening:
            case Said():
                yield from self._said(happening.message_id, happening.text)
            case Spoke():
                yield from self._spoke(happening)
            case ToolUsed():
                yield from self._tool(happening)
            case Ended(failure=Failure() as failure):
                raise failure
            case Ended():
                yield from self._ended(happening)

    def _said(self, message_id: str, text: str) -> Generator[Event]:
        if self._open is not None and self._open[0] != message_id:
            yield from self._close()
        if self._open is None:
            yield from self._begin_message(message_id)
            # Clients put all text together, and an earlier message is not part of this one's sentence.
            text = SEPARATOR + text if self._has_text else text
        self._has_text = True
        self._open = (message_id, self._open[1] + text if self._open else text)
        yield self._of_part("response.output_text.delta", message_id, delta=text, logprobs=[])

    def _begin_message(self, message_id: str) -> Generator[Event]:
        self._items.append(response_items.message(message_id, None))
        yield self._of_item("response.output_item.added", item=self._items[-1])
        yield self._of_part("response.content_part.added", message_id, part=response_items.text_part(""))

    def _spoke(self, message: Spoke) -> Generator[Event]:
        self._reason = _OUT_OF_STEPS if message.is_given_up else _OUT_OF_TOKENS if message.is_cut else None
        if self._open is None and message.calls_tools:
            if message.text:  # beside its calls, and nobody has seen it yet: it is not the answer
                yield from self._reasoning(message.message_id, f"{message.text}\n")
            return
        if self._open is None:
            yield from self._said(message.message_id, message.text)
        yield from self._close()

    def _close(self) -> Generator[Event]:
        assert self._open is not None  # noqa: S101 - the callers have seen to it
        message_id, text = self._open
        self._open = None
        self._items[-1] = response_items.message(message_id, text)
        yield self._of_part("response.output_text.done", message_id, text=text, logprobs=[])
        yield self._of_part("response.content_part.done", message_id, part=response_items.text_part(text))
        yield self._of_item("response.output_item.done", item=self._items[-1])

    def _tool(self, tool: ToolUsed) -> Generator[Event]:
        self._tools += 1
        if not self.shows_tools:
            yield from self._reasoning(f"{self._tools}_{tool.call_id}", tool.line)
            return
        self._items.append(response_items.tool_call(tool, self._tools))
        yield self._of_item("response.output_item.added", item={**self._items[-1], "status": "in_progress"})
        yield self._of_item("response.output_item.done", item=self._items[-1])

    def _reasoning(self, name: str, text: str) -> Generator[Event]:
        item = response_items.reasoning(name, text)
        self._items.append(item)
        where = {"item_id": item["id"], "summary_index": 0}
        empty = {"type": "summary_text", "text": ""}
        yield self._of_item("response.output_item.added", item=response_items.reasoning(name, None))
        yield self._of_item("response.reasoning_summary_part.added", **where, part=empty)
        yield self._of_item("response.reasoning_summary_text.delta", **where, delta=text)
        yield self._of_item("response.reasoning_summary_text.done", **where, text=text)
        yield self._of_item("response.reasoning_summary_part.done", **where, part=item["summary"][0])
        yield self._of_item("response.output_item.done", item=item)

    def _ended(self, end: Ended) -> Generator[Event]:
        if self._open is not None:
            yield from self._close()
        for interrupt in end.interrupts:
            yield from self._approval(interrupt)
        reason = _OUT_OF_STEPS if end.is_limited else self._reason
        self._settle()
        self.response["status"] = "completed" if reason is None else "incomplete"
        if reason is not None:
            self.response["incomplete_details"] = {"reason": reason}
        yield self._final(f"response.{self.response['status']}")

    def _approval(self, interrupt: Mapping[str, Any]) -> Generator[Event]:
        item = response_items.approval(interrupt, is_complete=True)
        self._items.append(item)
        begun = response_items.approval(interrupt, is_complete=False)
        where = {"item_id": item["id"]}
        yield self._of_item("response.output_item.added", item=begun)
        yield self._of_item("response.function_call_arguments.delta", **where, delta=item["arguments"])
        named = {"name": item["name"], "arguments": item["arguments"]}
        yield self._of_item("response.function_call_arguments.done", **where, **named)
        yield self._of_item("response.output_item.done", item=item)

    def _settle(self) -> None:
        """What is written so far is what the response has."""
        if self._open is not None:
            broken = response_items.message(*self._open)
            self._items[-1] = {**broken, "status": "incomplete"}
            self._open = None
        self.response["output"] = list(self._items)
        self.response["usage"] = usage_of(self.reader.usage)

    def snapshot(self) -> dict[str, Any]:
        """The response as it stands in the middle of its run, which has begun."""
        done = [item for item in self._items if item.get("status") != "in_progress"]
        return {**self.response, "status": "in_progress", "output": done}

    def _final(self, name: str) -> Event:
        return self._event(name, response=dict(self.response))

    def _of_part(self, kind: str, message_id: str, /, **fields: object) -> Event:
        item_id = response_items.message(message_id, None)["id"]
        return self._of_item(kind, item_id=item_id, content_index=0, **fields)

    def _of_item(self, kind: str, /, **fields: object) -> Event:
        return self._event(kind, output_index=len(self._items) - 1, **fields)

    def _event(self, kind: str, /, **fields: object) -> Event:
        event = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return event

    def _sent(self, events: "list[Event] | Generator[Event]") -> bytes:
        wanted = [event for event in events if event["sequence_number"] > self.after]
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in wanted
        )


def error_of(failure: Failure) -> dict[str, Any]:
    """A failure as responses tell it. OpenAI has a closed list of codes; ours stands behind the message."""
    match failure.status:
        case 429:
            code = "rate_limit_exceeded"
        case status if status < 500:  # noqa: PLR2004 - HTTP's own number
            code = "invalid_prompt"
        case _:
            code = "server_error"
    ours = failure.code or failure.error_type
    return {"code": code, "message": f"{failure.message} ({ours})"}


def usage_of(usage: Usage) -> dict[str, Any]:
    """Tokens as responses tell them."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
