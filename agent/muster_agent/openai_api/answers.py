"""Answers in the shape of OpenAI's chat completions, whole and in chunks.

Tool activity is shown as text in `reasoning_content`, never as `tool_calls`: clients take those for calls
that they must make themselves.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import orjson

from muster_agent.chat_request import MODEL_ID
from muster_agent.failures import Failure
from muster_agent.runs import RunEvent, RunResult, TextWritten, ToolUsed, Usage

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def _new_id() -> str:
    return f"chatcmpl-{uuid.uuid4().hex}"


def _now_s() -> int:
    return int(datetime.now(UTC).timestamp())


@dataclass(frozen=True, slots=True)
class ChunkWriter:
    """Writes one streamed answer as server-sent events.

    Args:
        wants_usage: Whether the stream ends with a usage chunk; each other chunk then has `usage: null`.
    """

    wants_usage: bool
    answer_id: str = field(default_factory=_new_id)
    created: int = field(default_factory=_now_s)

    def opening(self) -> bytes:
        """The chunk that says who speaks."""
        return self._delta({"role": "assistant", "content": ""})

    def event(self, event: RunEvent) -> bytes:
        """A piece of the answer, or of what was done for it."""
        match event:
            case TextWritten(text):
                return self._delta({"content": text})
            case ToolUsed(line):
                return self._delta({"reasoning_content": line})

    def closing(self, result: RunResult) -> bytes:
        """Everything after the last piece."""
        end = self._delta({}, result.finish_reason)
        if self.wants_usage:
            end += self._chunk([], _usage(result.usage))
        return end + DONE

    def _delta(self, delta: dict[str, str], finish_reason: Literal["stop", "length"] | None = None) -> bytes:
        choice: dict[str, object] = {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return self._chunk([choice], None)

    def _chunk(self, choices: list[dict[str, object]], usage: dict[str, int] | None) -> bytes:
        chunk: dict[str, object] = {
            "id": self.answer_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": MODEL_ID,
            "choices": choices,
        }
        if self.wants_usage:
            chunk["usage"] = usage
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def broken_off(failure: Failure) -> bytes:
    """The end of a stream that failed after it had begun; no finish reason is made up for it."""
    return b"data: " + orjson.dumps(failure.body) + b"\n\n" + DONE


def completion(result: RunResult, events: Sequence[RunEvent]) -> bytes:
    """A whole answer.

    Args:
        result: How the run ended.
        events: What was done on the way.
    """
    message = {
        "role": "assistant",
        "content": result.answer,
        "refusal": None,
        "reasoning_content": _reasoning(result, events),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": result.finish_reason}
    return orjson.dumps(
        {
            "id": _new_id(),
            "object": "chat.completion",
            "created": _now_s(),
            "model": MODEL_ID,
            "choices": [choice],
            "usage": _usage(result.usage),
        }
    )


def _reasoning(result: RunResult, events: Sequence[RunEvent]) -> str | None:
    lines = [f"{remark}\n" for remark in result.remarks]
    lines += [event.line for event in events if isinstance(event, ToolUsed)]
    return "".join(lines) or None


def _usage(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
