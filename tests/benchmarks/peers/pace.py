"""What a request asks of the paced engine. It stands in the prompt, which every proxy passes on as it is."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

MODEL = "fake-model"

_WORDS = re.compile(r"(first_ms|gap_ms|fault|fault_at)=(\w+)")
_PADDING = "x" * 150
"""Brings a prompt to some 200 characters, a short question's size."""


class Fault(StrEnum):
    """What the engine does wrong, if anything."""

    NONE = "none"
    RESET = "reset"
    """The connection is reset."""
    ERROR = "error"
    """The answer is a 500."""
    SHORT = "short"
    """The answer ends early, with an orderly close."""
    STALL = "stall"
    """Nothing more is sent until the other side closes."""


@dataclass(frozen=True)
class Pace:
    """How the engine is to answer one request.

    Attributes:
        tokens: Length of the answer.
        is_stream: As server-sent events, a token each; else whole.
        first_ms: Milliseconds before a whole answer, or before a stream begins.
        gap_ms: Milliseconds before each token of a stream.
        fault: What goes wrong.
        fault_at: The token of a stream before which it does.
    """

    tokens: int = 16
    is_stream: bool = False
    first_ms: int = 0
    gap_ms: int = 0
    fault: Fault = Fault.NONE
    fault_at: int = 0

    def body(self) -> bytes:
        """The body of a chat completion request that asks for this."""
        words = (
            f"first_ms={self.first_ms} gap_ms={self.gap_ms} fault={self.fault.value} fault_at={self.fault_at}"
        )
        request: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": f"{words} {_PADDING}"}],
            "max_tokens": self.tokens,
            "temperature": 0.7,
        }
        if self.is_stream:
            request["stream"] = True
        return orjson.dumps(request)

    @classmethod
    def read(cls, request: dict[str, Any]) -> "Pace":
        """What a request asks for.

        Args:
            request: The decoded body. A prompt without these words asks for an answer at once.
        """
        words = dict(_WORDS.findall(str(request["messages"][-1]["content"])))
        return cls(
            tokens=request.get("max_tokens") or request.get("max_completion_tokens") or 16,
            is_stream=bool(request.get("stream")),
            first_ms=int(words.get("first_ms", 0)),
            gap_ms=int(words.get("gap_ms", 0)),
            fault=Fault(words.get("fault", "none")),
            fault_at=int(words.get("fault_at", 0)),
        )
