"""`/v1/chat/completions`, and its `/batch`, whose answer is one choice for each conversation."""

from collections.abc import Sequence
from typing import Any

from muster_proxy.testing.dialects.dialect import DONE, FINGERPRINT, Dialect, alternatives, data
from muster_proxy.testing.spoken import Piece, Spoken, Used


class Chat(Dialect):
    """A chat completion and its chunks."""

    def whole(self, spoken: Sequence[Spoken], used: Used) -> dict[str, Any]:
        """All choices; the fields that vLLM adds are null."""
        nothing = ("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params")
        return {
            **self._top("chat.completion"),
            "choices": [self._choice(index, choice) for index, choice in enumerate(spoken)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(used), "completion_tokens_details": None},
            **dict.fromkeys([*nothing, "ec_transfer_params", "metrics"]),
        }

    def grow(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        """The role before the first token, a call's name before its arguments, then the token."""
        events: list[bytes] = []
        if piece.is_first and piece.part_index == 0:
            events.append(self._chunk(self._opening(index), prompt_token_ids=None, prompt_text=None))
        if piece.part.tool is None:
            events.append(self._text(index, choice, piece))
        else:
            events += self._call(index, choice, piece)
        return events

    def end(self, spoken: Sequence[Spoken], used: Used) -> list[bytes]:
        """The usage, if it was asked for, and the end."""
        if not self._asked.has_usage or not spoken:
            return [DONE]
        no_choices: list[dict[str, Any]] = []
        top = self._top("chat.completion.chunk")
        last = {**top, "choices": no_choices, "usage": told(used), "system_fingerprint": FINGERPRINT}
        return [data(last), DONE]

    def _top(self, kind: str) -> dict[str, Any]:
        head = self._head
        return {"id": head.name("chatcmpl-"), "object": kind, "created": head.created_s, "model": head.model}

    def _choice(self, index: int, choice: Spoken) -> dict[str, Any]:
        return {
            "index": index,
            "message": self._message(index, choice),
            "logprobs": self._logprobs([token for part in choice.parts for token in part.tokens]),
            "finish_reason": choice.finish_reason,
            **dict.fromkeys(["stop_reason", "token_ids", "routed_experts"]),
        }

    def _message(self, index: int, choice: Spoken) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text}
        message |= dict.fromkeys(["refusal", "annotations", "audio", "function_call"])
        if choice.calls:
            message["tool_calls"] = [
                {**self._call_head(index, number), "function": {"name": part.tool, "arguments": part.text}}
                for number, part in enumerate(choice.parts)
                if part.tool is not None
            ]
        return {**message, "reasoning": None}

    def _call_head(self, index: int, part_index: int) -> dict[str, Any]:
        return {"id": self._head.name("chatcmpl-tool-", 256 * index + part_index), "type": "function"}

    def _opening(self, index: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _text(self, index: int, choice: Spoken, piece: Piece) -> bytes:
        delta = {"content": piece.text} if piece.text else {}
        logprobs = self._logprobs([piece.text])
        return self._delta(index, delta, choice.finish_reason if piece.is_last else None, logprobs)

    def _call(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        place = choice.calls.index(piece.part)
        events: list[bytes] = []
        if piece.is_first:
            head = {**self._call_head(index, piece.part_index), "index": place}
            events.append(self._calls(index, {**head, "function": {"name": piece.part.tool}}))
        events.append(self._calls(index, {"index": place, "function": {"arguments": piece.text}}))
        if piece.is_last:
            events.append(self._delta(index, {}, choice.finish_reason))
        return events

    def _calls(self, index: int, call: dict[str, Any]) -> bytes:
        return self._delta(index, {"content": None, "tool_calls": [call]}, None)

    def _delta(
        self, index: int, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        if reason is None:
            return self._chunk({**choice, "token_ids": None})
        more = {} if self._asked.has_usage else {"system_fingerprint": FINGERPRINT}
        return self._chunk({**choice, "stop_reason": None, "token_ids": None}, **more)

    def _chunk(self, choice: dict[str, Any], **more: str | None) -> bytes:
        return data({**self._top("chat.completion.chunk"), "choices": [choice], **more})

    def _logprobs(self, tokens: Sequence[str]) -> dict[str, Any] | None:
        if self._asked.alternatives is None:
            return None
        return {"content": [self._logprob(token) for token in tokens if token]}

    def _logprob(self, token: str) -> dict[str, Any]:
        likeliest = alternatives(token, self._asked.alternatives or 0)
        entries = [
            {"token": each, "logprob": logprob, "bytes": list(each.encode())} for each, logprob in likeliest
        ]
        return {**entries[0], "top_logprobs": entries[: self._asked.alternatives]}


def usage(used: Used) -> dict[str, Any]:
    """The usage of a whole answer, as far as chats and completions agree."""
    details = None if used.cached is None else {"cached_tokens": used.cached}
    return {
        "prompt_tokens": used.prompt,
        "total_tokens": used.prompt + used.completion,
        "completion_tokens": used.completion,
        "prompt_tokens_details": details,
    }


def told(used: Used) -> dict[str, Any]:
    """The usage that ends a stream: as that of a whole answer, without what is not known."""
    return {name: value for name, value in usage(used).items() if value is not None}
