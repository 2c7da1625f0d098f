"""`/v1/messages`: Anthropic's form, as vLLM gives it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from muster_proxy.testing.dialects.dialect import Dialect, named
from muster_proxy.testing.spoken import Part, Piece, Spoken, Used

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Messages(Dialect):
    """A message and the events of its stream. It has one choice."""

    def whole(self, spoken: Sequence[Spoken], used: Used) -> dict[str, Any]:
        """The message; null fields are left out."""
        [choice] = spoken
        return {
            **self._top(),
            "content": [self._block(number, part) for number, part in enumerate(choice.parts)],
            "model": self._head.model,
            "stop_reason": _stop_reason(choice),
            "usage": _usage(used),
        }

    def grow(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        """The message's start before the first token, each block's start and end, and the token."""
        del index, choice
        events: list[bytes] = []
        if piece.is_first:
            events += [self._started()] if piece.part_index == 0 else []
            events.append(self._block_started(piece))
        if piece.text:
            events.append(named({**_delta(piece), "index": piece.part_index}))
        if piece.ends_part:
            events.append(named({"type": "content_block_stop", "index": piece.part_index}))
        return events

    def end(self, spoken: Sequence[Spoken], used: Used) -> list[bytes]:
        """Why it ended, and its usage; there is no `[DONE]`."""
        delta = {"stop_reason": _stop_reason(spoken[0]), "stop_sequence": None}
        return [
            named({"type": "message_delta", "delta": delta, "usage": _usage(used)}),
            named({"type": "message_stop"}),
        ]

    def fail(self, error: Mapping[str, Any]) -> list[bytes]:
        """An event named `error`, and nothing after it."""
        message = error.get("error", {}).get("message", "")
        return [named({"type": "error", "error": {"type": "internal_error", "message": message}})]

    def _top(self) -> dict[str, Any]:
        return {"id": self._head.name("chatcmpl-"), "type": "message", "role": "assistant"}

    def _started(self) -> bytes:
        no_content: list[dict[str, Any]] = []
        message = {
            **self._top(),
            "content": no_content,
            "model": self._head.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": self._asked.prompt_tokens, "output_tokens": 0},
        }
        return named({"type": "message_start", "message": message})

    def _block_started(self, piece: Piece) -> bytes:
        empty = Part(("",) if piece.part.tool is None else ("{}",), piece.part.tool)
        block = self._block(piece.part_index, empty)
        return named({"type": "content_block_start", "content_block": block, "index": piece.part_index})

    def _block(self, number: int, part: Part) -> dict[str, Any]:
        if part.tool is None:
            return {"type": "text", "text": part.text}
        name = self._head.name("chatcmpl-tool-", number)
        return {"type": "tool_use", "id": name, "name": part.tool, "input": json.loads(part.text)}


def _delta(piece: Piece) -> dict[str, Any]:
    if piece.part.tool is None:
        delta = {"type": "text_delta", "text": piece.text}
    else:
        delta = {"type": "input_json_delta", "partial_json": piece.text}
    return {"type": "content_block_delta", "delta": delta}


def _stop_reason(choice: Spoken) -> str:
    """As vLLM has it: also a tool that had to be called ends with `tool_use` here."""
    return (
        "tool_use" if choice.calls and choice.finish_reason == "stop" else _STOP_REASONS[choice.finish_reason]
    )


def _usage(used: Used) -> dict[str, int]:
    cached = {} if used.cached is None else {"cache_read_input_tokens": used.cached}
    return {"input_tokens": used.prompt, "output_tokens": used.completion, **cached}
