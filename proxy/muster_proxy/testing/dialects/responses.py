"""`/v1/responses`."""

from collections.abc import Mapping, Sequence
from typing import Any

from muster_proxy.testing.dialects.dialect import Dialect, named
from muster_proxy.testing.spoken import Part, Piece, Spoken, Used

_DEFAULTS: dict[str, Any] = {
    "parallel_tool_calls": True,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "background": False,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "previous_response_id": None,
    "prompt": None,
    "reasoning": None,
    "service_tier": "auto",
    "text": None,
    "top_logprobs": None,
    "truncation": "disabled",
    "user": None,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "instructions": None,
    "metadata": None,
}
"""The fields of a request that its answer repeats."""

_NOTHING = ("kv_transfer_params", "ec_transfer_params", "input_messages", "output_messages")


class Responses(Dialect):
    """A response and the events of its stream. It has one choice."""

    _sequence_number = 0

    def whole(self, spoken: Sequence[Spoken], used: Used) -> dict[str, Any]:
        """The response as it is in the end."""
        [choice] = spoken
        is_cut = choice.finish_reason == "length"
        output = [self._item(number, part, "completed") for number, part in enumerate(choice.parts)]
        return self._response(
            "incomplete" if is_cut else "completed",
            output=output,
            incomplete_details={"reason": "max_output_tokens"} if is_cut else None,
            usage=_usage(used),
        )

    def begin(self) -> list[bytes]:
        """The response, twice, before any token is made."""
        response = self._response("in_progress", output=[], incomplete_details=None, usage=None)
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def grow(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        """An item's start before its first token, the token, and the item's end after its last."""
        del index, choice
        events = self._started(piece) if piece.is_first else []
        if piece.text:
            events.append(self._delta(piece))
        return [*events, *self._done(piece)] if piece.ends_part else events

    def end(self, spoken: Sequence[Spoken], used: Used) -> list[bytes]:
        """The response as it is in the end; there is no `[DONE]`."""
        return [self._event("response.completed", response=self.whole(spoken, used))]

    def fail(self, error: Mapping[str, Any]) -> list[bytes]:
        """Nothing: vLLM has no event for it here and cuts the connection."""
        del error
        return []

    def _response(self, status: str, **changing: object) -> dict[str, Any]:
        head = self._head
        repeated = {name: self._asked.body.get(name, default) for name, default in _DEFAULTS.items()}
        return {
            "id": head.name("resp_"),
            "created_at": head.created_s,
            "model": head.model,
            "object": "response",
            **repeated,
            "status": status,
            **changing,
            **dict.fromkeys(_NOTHING),
        }

    def _event(self, kind: str, **fields: object) -> bytes:
        number = self._sequence_number
        self._sequence_number += 1
        return named({**fields, "sequence_number": number, "type": kind})

    def _started(self, piece: Piece) -> list[bytes]:
        place = {"output_index": piece.part_index}
        item = self._item(piece.part_index, Part(("",), piece.part.tool), "in_progress")
        if piece.part.tool is not None:
            return [self._event("response.output_item.added", item=item, **place)]
        item["content"] = []
        part = _text("", logprobs=[])
        return [
            self._event("response.output_item.added", item=item, **place),
            self._event("response.content_part.added", **self._place(piece), content_index=0, part=part),
        ]

    def _delta(self, piece: Piece) -> bytes:
        place = {**self._place(piece), "delta": piece.text}
        if piece.part.tool is not None:
            return self._event("response.function_call_arguments.delta", **place)
        return self._event("response.output_text.delta", **place, content_index=0, logprobs=[])

    def _done(self, piece: Piece) -> list[bytes]:
        item = self._item(piece.part_index, piece.part, "completed")
        ended = self._event_of_end(piece, item)
        return [*ended, self._event("response.output_item.done", item=item, output_index=piece.part_index)]

    def _event_of_end(self, piece: Piece, item: dict[str, Any]) -> list[bytes]:
        place, text = self._place(piece), piece.part.text
        if piece.part.tool is not None:
            kind = "response.function_call_arguments.done"
            return [self._event(kind, **place, arguments=text, name=piece.part.tool)]
        [part] = item["content"]
        place["content_index"] = 0
        return [
            self._event("response.output_text.done", **place, logprobs=[], text=text),
            self._event("response.content_part.done", **place, part=part),
        ]

    def _place(self, piece: Piece) -> dict[str, Any]:
        return {"item_id": self._item_name(piece.part_index, piece.part), "output_index": piece.part_index}

    def _item_name(self, number: int, part: Part) -> str:
        return self._head.name("msg_" if part.tool is None else "fc_", number)

    def _item(self, number: int, part: Part, status: str) -> dict[str, Any]:
        name = self._item_name(number, part)
        if part.tool is None:
            content = [_text(part.text, logprobs=None)]
            message = {"role": "assistant", "type": "message", "phase": None}
            return {"id": name, "content": content, **message, "status": status}
        call_id = self._head.name("chatcmpl-tool-", number)
        call = {"arguments": part.text, "call_id": call_id, "name": part.tool, "type": "function_call"}
        return {"id": name, **call, **dict.fromkeys(["async", "caller", "namespace"]), "status": status}


def _text(text: str, *, logprobs: list[Any] | None) -> dict[str, Any]:
    no_annotations: list[Any] = []
    return {"annotations": no_annotations, "text": text, "type": "output_text", "logprobs": logprobs}


def _usage(used: Used) -> dict[str, Any]:
    no_turns: list[int] = []
    read = {"cached_tokens": used.cached or 0, "cache_write_tokens": 0}
    made = {"reasoning_tokens": 0, "tool_output_tokens": 0}
    return {
        "input_tokens": used.prompt,
        "input_tokens_details": {
            **read,
            "input_tokens_per_turn": no_turns,
            "cached_tokens_per_turn": no_turns,
        },
        "output_tokens": used.completion,
        "output_tokens_details": {
            **made,
            "output_tokens_per_turn": no_turns,
            "tool_output_tokens_per_turn": no_turns,
        },
        "total_tokens": used.prompt + used.completion,
    }
