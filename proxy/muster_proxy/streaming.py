"""An event stream on its way from an engine to whoever takes it: judged, counted, its usage read."""

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

import msgspec
import orjson

from muster_batching import Usage
from muster_proxy import sse
from muster_proxy.failures import Reason, RequestError

if TYPE_CHECKING:
    from muster_proxy.generation import Generation, Taker, Turn

NOT_UNDERSTOOD = (msgspec.DecodeError, orjson.JSONDecodeError, KeyError, TypeError, IndexError)
"""What reading an answer raises that is not as it should be."""

_PROGRESS_EVENTS = 32
"""Events of a stream between two notes of its progress: an account is then off by some tokens, and the notes cost
nothing beside the events."""

_NO_CONTENT = b'"content":""'


class StreamRewriter(Protocol):
    """Turns an engine's events into the client's."""

    def feed(self, events: bytes) -> bytes:
        """The client's events for a run of the engine's."""
        ...


class Stream:
    """An event stream on its way: whole events only, so that nobody is ever sent half of one.

    Args:
        generation: It gives the rules.
        turn: Hears of the tokens.
        taker: Is given the events.
    """

    __slots__ = (
        "_borders",
        "_dialect",
        "_generation",
        "_hides_usage",
        "_last_events",
        "_may_be_final",
        "_next_note",
        "_progress",
        "_rewriter",
        "_taker",
        "_tokens",
        "_turn",
        "_usage",
    )

    def __init__(self, generation: "Generation", turn: "Turn", taker: "Taker") -> None:
        self._generation = generation
        self._dialect = generation.dialect
        self._turn = turn
        self._taker = taker
        self._progress = turn.upstream.progress
        self._borders = sse.EventBorders()
        self._rewriter: StreamRewriter | None = generation.tools.stream() if generation.tools else None
        self._may_be_final = generation.call.may_be_final
        self._hides_usage = not generation.call.wants_usage
        self._tokens = 0
        self._next_note = 1  # told at this many tokens
        self._usage: Usage | None = None
        self._last_events = b""

    def feed(self, chunk: bytes) -> Awaitable[object] | None:
        """Pass on the events that are whole now.

        Raises:
            RequestError: The engine's bytes are not understood, or say that it has failed.
        """
        self._progress.heard(time.monotonic())
        try:
            events = self._borders.feed(chunk)
        except sse.EventTooLargeError as error:
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
        if not events:
            return None
        dialect = self._dialect
        if dialect.is_failure(events):
            return self._fail(events)
        if not sse.is_understood(events):
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR)
        self._last_events = events
        self._count(events)
        if b'"usage"' in events:
            self._usage = dialect.usage_in(events) or self._usage
            if self._hides_usage:
                events = dialect.without_usage(events)
        return self._pass_on(events)

    def end(self) -> None:
        """The engine has closed the stream.

        Raises:
            RequestError: It did so before the end.
        """
        if not self._dialect.is_end(self._last_events):
            raise RequestError(Reason.UPSTREAM_STREAM_ERROR)

    def usage(self) -> Usage | None:
        """What the engine accounts for; where it does not, the scheduler hears of what has been counted here."""
        if self._usage is None:
            self._turn.slot.used(Usage(self._generation.ticket.input_tokens, self._tokens))
        return self._usage

    def _pass_on(self, events: bytes) -> Awaitable[object] | None:
        if self._rewriter is not None:
            events = _rewritten(events, self._rewriter)
        if self._may_be_final and self._dialect.is_final(events):
            self._turn.slot.session_over()
        if not events:
            return None
        if not self._generation.has_begun:
            self._generation.has_begun = True
            self._taker.begin(self._generation)
        return self._taker.take(events)

    def _fail(self, events: bytes) -> None:
        """Pass on what came before the engine's failure, of which the client is told in our words."""
        if before := self._dialect.before_failure(events):
            self._pass_on(before)
        raise RequestError(Reason.UPSTREAM_STREAM_ERROR)

    def _count(self, events: bytes) -> None:
        """Count an event for a token, and tell of the first and then of every `_PROGRESS_EVENTS`."""
        count = events.count(b"\n\n") or 1
        if not self._tokens:
            if count == 1 and _NO_CONTENT in events.replace(b" ", b""):
                return  # the role alone, which some engines send before they have computed the prompt
            self._turn.begin()
        self._tokens += count
        if self._tokens >= self._next_note:
            self._next_note = self._tokens + _PROGRESS_EVENTS
            self._turn.slot.progress(self._tokens)


def _rewritten(events: bytes, rewriter: StreamRewriter) -> bytes:
    try:
        return rewriter.feed(events)
    except NOT_UNDERSTOOD as error:
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
