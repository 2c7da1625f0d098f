"""`/v1/completions`."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from muster_proxy.testing.dialects.chat import told, usage
from muster_proxy.testing.dialects.dialect import DONE, FINGERPRINT, Dialect, alternatives, data
from muster_proxy.testing.spoken import Piece, Spoken, Used


class Completions(Dialect):
    """A text completion and its chunks; a tool is never called here."""

    def whole(self, spoken: Sequence[Spoken], used: Used) -> dict[str, Any]:
        """All choices: those of the first prompt, then those of the next."""
        return {
            **self._top(),
            "choices": [self._choice(index, choice) for index, choice in enumerate(spoken)],
            "service_tier": None,
            "system_fingerprint": FINGERPRINT,
            "usage": {**usage(used), "completion_tokens_details": None},
            **dict.fromkeys(["kv_transfer_params", "ec_transfer_params", "metrics"]),
        }

    def grow(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        """The token; the first has the prompt before it if that is to be repeated."""
        prompt = self._echoed(index) if piece.is_first and piece.part_index == 0 else ""
        event = {
            "index": index,
            "text": prompt + piece.text,
            "logprobs": self._logprobs([piece.text]),
            "finish_reason": choice.finish_reason if piece.is_last else None,
            **dict.fromkeys(["stop_reason", "prompt_token_ids", "token_ids"]),
        }
        ending = piece.is_last and not self._asked.has_usage
        more = {"system_fingerprint": FINGERPRINT} if ending else {}
        return [data({**self._top(), "choices": [event], **more})]

    def end(self, spoken: Sequence[Spoken], used: Used) -> list[bytes]:
        """The usage, if it was asked for, and the end."""
        if not self._asked.has_usage or not spoken:
            return [DONE]
        no_choices: list[dict[str, Any]] = []
        last = {
            **self._top(),
            "choices": no_choices,
            "usage": told(used),
            "system_fingerprint": FINGERPRINT,
        }
        return [data(last), DONE]

    def _top(self) -> dict[str, Any]:
        head = self._head
        return {
            "id": head.name("cmpl-"),
            "object": "text_completion",
            "created": head.created_s,
            "model": head.model,
        }

    def _choice(self, index: int, choice: Spoken) -> dict[str, Any]:
        nothing = ("stop_reason", "token_ids", "prompt_logprobs", "prompt_token_ids", "routed_experts")
        return {
            "index": index,
            "text": self._echoed(index) + choice.text,
            "logprobs": self._logprobs([token for part in choice.parts for token in part.tokens]),
            "finish_reason": choice.finish_reason,
            **dict.fromkeys(nothing),
        }

    def _echoed(self, index: int) -> str:
        return self._asked.prompts[index // self._asked.choices] if self._asked.has_echo else ""

    def _logprobs(self, tokens: Sequence[str]) -> dict[str, Any] | None:
        if self._asked.alternatives is None:
            return None
        made = [token for token in tokens if token]
        likeliest = [alternatives(token, self._asked.alternatives) for token in made]
        return {
            "text_offset": [0, *accumulate(len(token) for token in made)][: len(made)],
            "token_logprobs": [each[0][1] for each in likeliest],
            "tokens": made,
            "top_logprobs": [dict(each) for each in likeliest],
        }
