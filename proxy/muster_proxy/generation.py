"""One request to an engine: it waits for its slot, is sent, and its answer comes in pieces.

Who takes the pieces is no concern of this module: the one client that asked, or all who share the generation.
Closing the iterator of pieces early gives the slot back and closes the engine's connection, which is how an engine
is told to abort.
"""

import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, TypeAlias

import msgspec
import orjson

from muster_batching import AsyncScheduler, Slot, Ticket, TurnedAway, UpstreamId, Usage
from muster_proxy import sse
from muster_proxy.client import Answer, UpstreamClient
from muster_proxy.failures import TURNED_AWAY, Reason, RequestError
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.ticketing import TicketOffice
from muster_proxy.tools.emulation import ToolEmulation
from muster_proxy.upstreams import Upstreams

# Answers are read whole before they are passed on (but for streams), so that a broken one becomes a clean
# error. The largest honest one is some megabytes: n answers with log probabilities.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# An error's body is read for its message; engines have been seen to answer with whole HTML pages.
_MAX_ERROR_BYTES = 64 * 1024

_PROGRESS_EVENTS = 32
"""Events of a stream between two notes of its progress: an account is then off by some tokens, and the notes cost
nothing beside the events."""

# How vLLM, SGLang and llama.cpp say that a stream has failed. Their words may hold addresses: ours are sent.
_ERROR_EVENT = b'data: {"error"'

# Quotes inside of JSON strings are escaped, so what an answer says cannot look like this.
_STOPPED = re.compile(rb'"finish_reason"\s*:\s*"stop"')
_NO_CONTENT = re.compile(rb'"content"\s*:\s*""')

_PUSH_BACKS = (Reason.UPSTREAM_BUSY, Reason.UPSTREAM_TIMEOUT)
_UNREACHABLE = (Reason.NO_HEALTHY_UPSTREAM, Reason.UPSTREAM_LOST)

_MOST_TOKENS = 2**31

_NOT_UNDERSTOOD = (msgspec.DecodeError, orjson.JSONDecodeError, KeyError, TypeError, IndexError)


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Accounted(msgspec.Struct):
    usage: _Usage | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Concluded(_Accounted):
    choices: list[_Choice] | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a choice ended because the model had no more to say and no tool to call."""
        return any(choice.finish_reason == "stop" for choice in self.choices or ())


class _EngineError(msgspec.Struct):
    message: str | None = None
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_engine_errors = msgspec.json.Decoder(_EngineErrorBody)
_accounted = msgspec.json.Decoder(_Accounted)
_concluded = msgspec.json.Decoder(_Concluded)


class StreamRewriter(Protocol):
    """Turns an engine's events into the client's."""

    def feed(self, events: bytes) -> bytes:
        """The client's events for a run of the engine's."""
        ...


@dataclass(slots=True, eq=False)
class Generation:
    """One request to an engine, and what has become of it so far.

    Attributes:
        ticket: What the scheduler knows of it.
        path: Of the call.
        body: As the engine gets it.
        headers: As the engine gets them, beside its own.
        tools: Rewrites the answer, where tool calls are emulated.
        is_agents: Whether it has tools: an answer without a call of one is then the last of its session for now.
        upstream: Where it was sent.
        waited_s: Seconds between its coming and its turn.
        is_event_stream: Whether the engine answers with events.
        usage: The tokens that the engine accounted for.
    """

    ticket: Ticket
    path: str
    body: bytes
    headers: Mapping[str, str]
    tools: ToolEmulation | None = None
    is_agents: bool = False
    upstream: UpstreamId | None = field(default=None, init=False)
    waited_s: float = field(default=0.0, init=False)
    is_event_stream: bool = field(default=False, init=False)
    usage: Usage | None = field(default=None, init=False)


Piece: TypeAlias = Generation | bytes
"""First the generation itself, so that all who share it know whose answer they get, then the answer's bytes: whole
events of a stream, or all of any other answer."""


class Engines:
    """Carries out generations.

    Args:
        scheduler: Decides when and where each goes.
        upstreams: The engines.
        client: The connections to them.
        office: Hears how many tokens a body had.
        metrics: Counts what happens.
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        upstreams: Upstreams,
        client: UpstreamClient,
        office: TicketOffice,
        metrics: ProxyMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._upstreams = upstreams
        self._client = client
        self._office = office
        self._metrics = metrics

    async def pieces(self, generation: Generation) -> AsyncGenerator[Piece]:
        """Carry out a generation.

        During a stream its slot is held; a whole answer is given when the slot has been given back.

        Raises:
            RequestError: It got no slot, or the engine failed.
        """
        turn = _Turn(generation, self._scheduler, self._upstreams, self._metrics)
        async with turn as slot, self._client.post(*self._request(generation)) as answer:
            if answer.status != 200:  # noqa: PLR2004  HTTP's own number
                raise await _engine_error(answer)
            generation.is_event_stream = answer.is_event_stream
            if answer.is_event_stream:
                stream = _Stream(generation, slot)
                first: Generation | None = generation
                try:
                    while chunk := await answer.chunk():
                        if events := stream.feed(chunk):
                            if first is not None:
                                yield first
                                first = None
                            yield events
                        if stream.is_failed:
                            raise RequestError(Reason.UPSTREAM_STREAM_ERROR)
                    stream.end()
                finally:
                    self._account(generation, slot, stream.usage())
                return
            body = await self._whole(generation, slot, answer)
        yield generation
        yield body

    def _request(self, generation: Generation) -> tuple[str, bytes, dict[str, str]]:
        """URL, body and headers for the upstream at which it has its slot."""
        assert generation.upstream is not None  # noqa: S101  it has its turn
        upstream = self._upstreams[generation.upstream]
        url = f"{upstream.settings.root}{generation.path}"
        return url, generation.body, {**generation.headers, **upstream.headers()}

    async def _whole(self, generation: Generation, slot: Slot, answer: Answer) -> bytes:
        body = await answer.body(_MAX_ANSWER_BYTES)
        try:
            if generation.tools is not None:
                body = generation.tools.answer(body)
            if generation.is_agents:
                told: _Accounted = _concluded.decode(body)
            else:
                told = _accounted.decode(body)
        except _NOT_UNDERSTOOD as error:
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
        if isinstance(told, _Concluded) and told.is_stopped:
            slot.session_over()
        self._account(generation, slot, _counts(told.usage))
        return body

    def _account(self, generation: Generation, slot: Slot, usage: Usage | None) -> None:
        """Note the tokens that an engine accounts for."""
        if usage is None:
            return
        generation.usage = usage
        slot.used(usage)
        self._office.learn(generation.ticket, usage.input_tokens)
        self._metrics.used(usage)


class _Turn:
    """Holds a generation's slot; a class, not a generator, as it is on the path of every request.

    Args:
        generation: Learns where it goes and how long it waited.
        scheduler: Gives the slot, and hears when the engine pushed back.
        upstreams: Hear when one cannot be reached.
        metrics: Count what is turned away.
    """

    __slots__ = ("_block", "_generation", "_metrics", "_slot", "_upstreams")

    _slot: Slot

    def __init__(
        self,
        generation: Generation,
        scheduler: AsyncScheduler,
        upstreams: Upstreams,
        metrics: ProxyMetrics,
    ) -> None:
        self._generation = generation
        self._block = scheduler.slot(generation.ticket)
        self._upstreams = upstreams
        self._metrics = metrics

    async def __aenter__(self) -> Slot:
        try:
            slot = self._slot = await self._block.__aenter__()
        except TurnedAway as turned_away:
            self._metrics.turned_away(turned_away.reason)
            reason = TURNED_AWAY[turned_away.reason]
            raise RequestError(reason, retry_after_s=turned_away.retry_after_s) from turned_away
        self._generation.upstream, self._generation.waited_s = slot.upstream_id, slot.waited_s
        return slot

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        reason = exc.reason if isinstance(exc, RequestError) else None
        if reason in _PUSH_BACKS:
            self._slot.failed(is_push_back=True)
        if reason in _UNREACHABLE:
            self._upstreams.doubt(self._slot.upstream_id)
        await self._block.__aexit__(exc_type, exc, traceback)


class _Stream:
    """An event stream on its way: whole events only, so that nobody is ever sent half of one.

    Args:
        generation: It gives the rules.
        slot: Hears of the tokens.

    Attributes:
        is_failed: Whether the engine has said so, in an event that is kept back.
    """

    def __init__(self, generation: Generation, slot: Slot) -> None:
        self.is_failed = False
        self._generation = generation
        self._slot = slot
        self._borders = sse.EventBorders()
        self._rewriter: StreamRewriter | None = generation.tools.stream() if generation.tools else None
        self._tokens = 0
        self._next_note = 1  # told at this many tokens
        self._usage_events = self._last_events = b""

    def feed(self, chunk: bytes) -> bytes:
        """The events that go to those who take the answer; none while an event is not whole.

        Raises:
            RequestError: The engine's bytes are not understood.
        """
        try:
            events = self._borders.feed(chunk)
        except sse.EventTooLargeError as error:
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
        if not events:
            return b""
        if b'"usage"' in events:
            self._usage_events = events
        self._last_events = events
        self._count(events)
        if _ERROR_EVENT in events:
            events, self.is_failed = _up_to_error(events)
        if self._rewriter is not None:
            events = _rewritten(events, self._rewriter)
        if self._generation.is_agents and _STOPPED.search(events):
            self._slot.session_over()
        return events

    def end(self) -> None:
        """The engine has closed the stream.

        Raises:
            RequestError: It did so before the end.
        """
        if not self._last_events.rstrip().endswith(b"data: [DONE]"):
            raise RequestError(Reason.UPSTREAM_STREAM_ERROR)

    def usage(self) -> Usage | None:
        """What the engine accounts for; where it does not, the scheduler hears of what has been counted here."""
        usage = _usage_in(self._usage_events)
        if usage is None:
            self._slot.used(Usage(self._generation.ticket.input_tokens, self._tokens))
        return usage

    def _count(self, events: bytes) -> None:
        """Count an event for a token, and tell of the first and then of every `_PROGRESS_EVENTS`."""
        count = events.count(b"\n\n") or 1
        if not self._tokens and count == 1 and _NO_CONTENT.search(events):
            return  # the role alone, which some engines send before they have computed the prompt
        self._tokens += count
        if self._tokens >= self._next_note:
            self._next_note = self._tokens + _PROGRESS_EVENTS
            self._slot.progress(self._tokens)


def _rewritten(events: bytes, rewriter: StreamRewriter) -> bytes:
    try:
        return rewriter.feed(events)
    except _NOT_UNDERSTOOD as error:
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error


def _up_to_error(events: bytes) -> tuple[bytes, bool]:
    """The events before one that says that the stream has failed, and whether there is one."""
    if events.startswith(_ERROR_EVENT):
        return b"", True
    before, error, _ = events.partition(b"\n" + _ERROR_EVENT)
    return (before + b"\n", True) if error else (events, False)


def _usage_in(events: bytes) -> Usage | None:
    """The last usage that a run of events accounts for."""
    found = None
    for data in sse.data_of(events):
        with contextlib.suppress(msgspec.DecodeError):
            found = _counts(_accounted.decode(data).usage) or found
    return found


def _counts(usage: _Usage | None) -> Usage | None:
    """The tokens accounted for; None where there are none or they make no sense."""
    if usage is None or not (0 <= usage.prompt_tokens <= _MOST_TOKENS >= usage.completion_tokens >= 0):
        return None
    return Usage(usage.prompt_tokens, usage.completion_tokens)


async def _engine_error(answer: Answer) -> RequestError:
    """What the client is told of an engine's error: its message where the request is at fault, else ours."""
    status = answer.status
    if status in (429, 503):
        return RequestError(
            Reason.UPSTREAM_BUSY, status=status, retry_after_s=_seconds(answer.header("retry-after"))
        )
    if status in (401, 403):
        return RequestError(Reason.UPSTREAM_AUTH_ERROR)
    if not 400 <= status < 500:  # noqa: PLR2004  HTTP's classes of status
        return RequestError(Reason.UPSTREAM_ERROR)
    told = _EngineError()
    with contextlib.suppress(msgspec.DecodeError):
        told = _engine_errors.decode(await answer.body(_MAX_ERROR_BYTES)).error
    return RequestError(Reason.REQUEST_REJECTED, told.message, told.param, status=status)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
