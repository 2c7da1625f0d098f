"""Answers in the shape of OpenAI's chat completions, whole and in chunks.

Tool activity is shown as text in `reasoning_content` (and `reasoning`, as some front ends call it), never as
`tool_calls`: clients take those for calls that they must make themselves. Programs that want to know more ask for
`agent_events`.
"""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import orjson

from muster_agent import failures
from muster_agent.failures import Failure
from muster_agent.openai_api.approvals import question
from muster_agent.openai_api.happenings import Ended, Reader, Said, Spoke, ToolUsed, Usage
from muster_agent.openai_api.transcript import SEPARATOR

if TYPE_CHECKING:
    from muster_agent.runs.events import StoredEvent

DONE = b"data: [DONE]\n\n"

_OUT_OF_STEPS = "I stopped without finding an answer: there were too many steps."


def broken_off(failure: Failure) -> bytes:
    """The end of a stream that failed after it had begun."""
    return b"data: " + orjson.dumps(failure.body) + b"\n\n" + DONE


@dataclass(frozen=True, slots=True)
class Heading:
    """What every part of an answer says of it.

    Attributes:
        answer_id: Its identifier.
        created: When it began, in seconds since 1970.
        model: The assistant's name.
        shows_events: Whether what tools did is told to programs too.
    """

    answer_id: str
    created: int
    model: str
    shows_events: bool = False


@dataclass(slots=True)
class ChunkWriter:
    """Writes one streamed answer as server-sent events.

    Args:
        heading: What every chunk says.
        reader: Reads the run's events.
        wants_usage: Whether the stream ends with a usage chunk; each other chunk then has `usage: null`.
    """

    heading: Heading
    reader: Reader
    wants_usage: bool
    _message_id: str | None = None
    _is_cut: bool = False
    _said: set[str] = field(default_factory=set[str])

    def opening(self) -> bytes:
        """The chunk that says who speaks."""
        return self._delta({"role": "assistant", "content": ""})

    def write(self, event: "StoredEvent") -> bytes:
        """What is sent for one event of the run.

        Raises:
            Failure: It has failed.
        """
        written = b""
        for happening in self.reader.read(event):
            match happening:
                case Said():
                    written += self._text(happening.message_id, happening.text)
                case Spoke():
                    written += self._spoke(happening)
                case ToolUsed():
                    written += self._tool(happening)
                case Ended(failure=Failure() as failure):
                    raise failure
                case Ended():
                    written += self._closing(happening)
        return written

    def broken_off(self, failure: Failure) -> bytes:
        """The end of a stream that failed after it had begun; no finish reason is made up for it."""
        return broken_off(failure)

    def _text(self, message_id: str, text: str) -> bytes:
        if self._message_id not in {None, message_id}:
            text = SEPARATOR + text
        self._message_id = message_id
        self._said.add(message_id)
        return self._delta({"content": text})

    def _spoke(self, message: Spoke) -> bytes:
        self._is_cut = message.is_cut or message.is_given_up
        if message.text and message.message_id not in self._said:  # a model that did not stream
            return self._text(message.message_id, message.text)
        return b""

    def _tool(self, tool: ToolUsed) -> bytes:
        delta: dict[str, Any] = {"reasoning_content": tool.line, "reasoning": tool.line}
        if self.heading.shows_events:
            delta["agent_events"] = [_tool_event(tool)]
        return self._delta(delta)

    def _closing(self, end: Ended) -> bytes:
        """Everything after the last piece."""
        written = b""
        final: dict[str, Any] = {}
        if end.is_limited:
            written += self._text("limit", _OUT_OF_STEPS)
        if end.interrupts:
            written += self._text("question", question(end.interrupts))
            final["agent_interrupt"] = end.interrupts[0]
        written += self._delta(final, "length" if self._is_cut or end.is_limited else "stop")
        if self.wants_usage:
            written += self._chunk([], usage_of(self.reader.usage))
        return written + DONE

    def _delta(self, delta: dict[str, Any], finish_reason: Literal["stop", "length"] | None = None) -> bytes:
        choice: dict[str, object] = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, object]], usage: dict[str, Any] | None) -> bytes:
        chunk: dict[str, object] = {
            "id": self.heading.answer_id,
            "object": "chat.completion.chunk",
            "created": self.heading.created,
            "model": self.heading.model,
            "choices": choices,
        }
        if self.wants_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


@dataclass(slots=True)
class Completion:
    """A whole answer, as it becomes known.

    Args:
        heading: What it says of itself.
        reader: Reads the run's events.
    """

    heading: Heading
    reader: Reader
    _messages: list[Spoke] = field(default_factory=list[Spoke])
    _tools: list[ToolUsed] = field(default_factory=list[ToolUsed])
    end: Ended | None = None

    def take(self, event: "StoredEvent") -> None:
        """Take in one event of the run."""
        for happening in self.reader.read(event):
            match happening:
                case Spoke():
                    self._messages.append(happening)
                case ToolUsed():
                    self._tools.append(happening)
                case Ended():
                    self.end = happening
                case Said():
                    pass

    @property
    def failure(self) -> Failure | None:
        """Why there is no answer."""
        return failures.run_cancelled() if self.end is None else self.end.failure

    def body(self) -> dict[str, Any]:
        """The answer, when the run has ended well."""
        end = self.end or Ended()
        message: dict[str, Any] = {
            "role": "assistant",
            "content": SEPARATOR.join(self._texts(end)),
            "refusal": None,
            "reasoning_content": (reasoning := "".join(self._reasoning()) or None),
            "reasoning": reasoning,
        }
        if end.interrupts:
            message["agent_interrupt"] = end.interrupts[0]
        if self.heading.shows_events:
            message["agent_events"] = [_tool_event(tool) for tool in self._tools]
        is_cut = end.is_limited or any(each.is_cut or each.is_given_up for each in self._messages[-1:])
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": "length" if is_cut else "stop",
        }
        return {
            "id": self.heading.answer_id,
            "object": "chat.completion",
            "created": self.heading.created,
            "model": self.heading.model,
            "choices": [choice],
            "usage": usage_of(self.reader.usage),
        }

    def _texts(self, end: Ended) -> Generator[str]:
        """The last message, and what is asked."""
        if self._messages and self._messages[-1].text:
            yield self._messages[-1].text
        if end.is_limited:
            yield _OUT_OF_STEPS
        if end.interrupts:
            yield question(end.interrupts)

    def _reasoning(self) -> Generator[str]:
        for message in self._messages[:-1]:
            if message.text:
                yield f"{message.text}\n"
        for tool in self._tools:
            yield tool.line


def _tool_event(tool: ToolUsed) -> dict[str, Any]:
    return {
        "type": "tool",
        "id": tool.call_id,
        "name": tool.name,
        "arguments": tool.arguments,
        "output": tool.result,
        "status": "completed" if tool.is_ok else "failed",
    }


def usage_of(usage: Usage) -> dict[str, Any]:
    """Tokens as chat completions tell them."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }
