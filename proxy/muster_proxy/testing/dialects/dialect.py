"""What the dialects have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from muster_proxy.testing.asked import Asked
from muster_proxy.testing.spoken import Head, Piece, Spoken, Used

FINGERPRINT = "vllm-0.32.0-fake"
DONE = b"data: [DONE]\n\n"


class Dialect(ABC):
    """Puts one answer into the form of a route; each method of a stream gives the events that are due then.

    Args:
        asked: The request.
        head: What all of the answer's objects say.
    """

    def __init__(self, asked: Asked, head: Head) -> None:
        self._asked = asked
        self._head = head

    @abstractmethod
    def whole(self, spoken: Sequence[Spoken], used: Used) -> dict[str, Any]:
        """The body of an answer that is no stream."""

    def begin(self) -> list[bytes]:
        """The events before any token is made."""
        return []

    @abstractmethod
    def grow(self, index: int, choice: Spoken, piece: Piece) -> list[bytes]:
        """The events of a choice's next token."""

    @abstractmethod
    def end(self, spoken: Sequence[Spoken], used: Used) -> list[bytes]:
        """The events after the last token."""

    def fail(self, error: Mapping[str, Any]) -> list[bytes]:
        """The events with which a stream ends that cannot go on; none where it is cut instead."""
        return [data(error), DONE]


def data(event: Mapping[str, Any]) -> bytes:
    """An event without a name."""
    return b"data: " + orjson.dumps(event) + b"\n\n"


def named(event: Mapping[str, Any]) -> bytes:
    """An event under the name that its `type` says."""
    name: str = event["type"]
    return b"event: " + name.encode() + b"\n" + data(event)


def alternatives(token: str, count: int) -> list[tuple[str, float]]:
    """The likeliest tokens in a token's place, itself first, each with the logarithm of its probability."""
    return [(token if rank == 0 else f"{token}{rank}", -0.5 - rank) for rank in range(max(1, count))]
