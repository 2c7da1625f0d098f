"""One request to an engine: it waits for its slot, is sent, and its answer comes in pieces.

Who takes the pieces is no concern of this module: the one client that asked, or all who share the generation. Ending
the call early gives the slot back and closes the engine's connection, which is how an engine is told to abort.

A generation that fails before anything of its answer has been passed on is tried again where that can help: on another
upstream, at most `retries` times, and only as far as the budget for all retries goes.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import msgspec

from muster_batching import AsyncScheduler, Slot, Ticket, TurnedAway, UpstreamId, Usage
from muster_proxy import wire
from muster_proxy.client import Answer, UpstreamClient
from muster_proxy.dialects import DIALECTS, Dialect
from muster_proxy.failures import TURNED_AWAY, Reason, RequestError
from muster_proxy.health import RetryBudget, Sign
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.quarantine import Fingerprint, Verdict, fingerprint
from muster_proxy.streaming import NOT_UNDERSTOOD, Stream
from muster_proxy.ticketing import TicketOffice
from muster_proxy.tools.emulation import ToolEmulation
from muster_proxy.upstreams import Upstream, Upstreams

# Answers are read whole before they are passed on (but for streams), so that a broken one becomes a clean
# error. The largest honest one is some megabytes: n answers with log probabilities.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# An error's body is read for its message; engines have been seen to answer with whole HTML pages.
_MAX_ERROR_BYTES = 64 * 1024

_UNREACHABLE = (Reason.NO_HEALTHY_UPSTREAM, Reason.UPSTREAM_LOST)

_FATAL = (Reason.UPSTREAM_LOST, Reason.UPSTREAM_STREAM_ERROR, Reason.UPSTREAM_ERROR)
"""What an engine's death looks like to those that die with it."""

_MOST_FATAL = 2
"""Engines that one request may take along, if it is what kills them, before its client is told."""

_RETRIED = (
    Reason.NO_HEALTHY_UPSTREAM,
    Reason.UPSTREAM_LOST,
    Reason.UPSTREAM_BUSY,
    Reason.UPSTREAM_ERROR,
    Reason.UPSTREAM_PROTOCOL_ERROR,
    Reason.UPSTREAM_STREAM_ERROR,
)
"""What another engine may do better. An engine that took too long has had the client's time already."""

_SIGNS = {
    Reason.NO_HEALTHY_UPSTREAM: Sign.REFUSED,
    Reason.UPSTREAM_LOST: Sign.FAILURE,
    Reason.UPSTREAM_STREAM_ERROR: Sign.FAILURE,
    Reason.UPSTREAM_PROTOCOL_ERROR: Sign.FAILURE,
    Reason.UPSTREAM_ERROR: Sign.FAILURE,
    Reason.UPSTREAM_AUTH_ERROR: Sign.FAILURE,
    Reason.UPSTREAM_TIMEOUT: Sign.SILENCE,
    Reason.UPSTREAM_BUSY: Sign.PUSH_BACK,
    Reason.REQUEST_REJECTED: Sign.SUCCESS,
}


class _EngineError(msgspec.Struct):
    message: str | None = None
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_engine_errors = msgspec.json.Decoder(_EngineErrorBody)


@dataclass(slots=True, eq=False)
class Generation:
    """One request to an engine, and what has become of it so far.

    Attributes:
        ticket: What the scheduler knows of it.
        call: The client's.
        headers: As the engine gets them, beside its own, as lines.
        changes: The fields to set in the body, whatever the engine.
        removals: The fields to take out of it.
        cache_salt: Keeps the tenant's prefixes apart in the engine's cache.
        tools: Rewrites the answer, where tool calls are emulated.
        upstream: Where it was sent.
        waited_s: Seconds between its coming and its turn.
        is_event_stream: Whether the engine answers with events.
        usage: The tokens that the engine accounted for.
        tries: Engines that were asked.
        losses: Of these, those that failed or were lost, perhaps by it.
        has_begun: Whether something of the answer was passed on.
    """

    ticket: Ticket
    call: wire.Call
    headers: bytes
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    removals: tuple[str, ...] = ()
    cache_salt: str | None = None
    tools: ToolEmulation | None = None
    upstream: UpstreamId | None = field(default=None, init=False)
    waited_s: float = field(default=0.0, init=False)
    is_event_stream: bool = field(default=False, init=False)
    usage: Usage | None = field(default=None, init=False)
    tries: int = field(default=0, init=False)
    losses: int = field(default=0, init=False)
    has_begun: bool = field(default=False, init=False)

    @property
    def path(self) -> str:
        """Of the call to the engine."""
        return self.call.kind.value

    @property
    def dialect(self) -> Dialect:
        """Of its answer."""
        return DIALECTS[self.call.kind]

    @property
    def fingerprint(self) -> Fingerprint:
        """By which it is known again when it comes again."""
        return fingerprint(self.path, self.call.body)

    def body(self, upstream: Upstream) -> bytes:
        """The request as this upstream gets it.

        Raises:
            RequestError: A value in it is nested too deeply to be written again.
        """
        changes = {**self.changes, **upstream.fields(self.ticket.request_class, self.cache_salt)}
        if self.tools is not None:
            return self.tools.body(changes, self.removals)
        return wire.rewritten(self.call, changes, self.removals)


class Taker(Protocol):
    """Takes an answer as it comes."""

    def begin(self, generation: Generation) -> None:
        """Hear whose answer comes, before its first piece."""
        ...

    def take(self, piece: bytes) -> Awaitable[object] | None:
        """Take whole events of a stream, or all of any other answer; the next comes when the awaitable is done."""
        ...


Piece: TypeAlias = Generation | bytes
"""First the generation itself, so that all who share it know whose answer they get, then the answer's bytes."""


class Engines:
    """Carries out generations.

    Args:
        scheduler: Decides when and where each goes.
        upstreams: The engines.
        client: The connections to them.
        office: Hears how many tokens a body had.
        metrics: Counts what happens.
        retries: How often one request may be tried again.
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        upstreams: Upstreams,
        client: UpstreamClient,
        office: TicketOffice,
        metrics: ProxyMetrics,
        *,
        retries: int,
    ) -> None:
        self._scheduler = scheduler
        self._upstreams = upstreams
        self._client = client
        self._office = office
        self._metrics = metrics
        self._retries = retries
        self._budget = RetryBudget()
        self._suspects: set[Fingerprint] = set()
        self._one_suspect = asyncio.Lock()

    async def carry_out(self, generation: Generation, taker: Taker) -> None:
        """Carry out a generation.

        During a stream its slot is held; a whole answer is given when the slot has been given back. With one that
        engines died with, no other such is in flight.

        Raises:
            RequestError: It got no slot, or the engine failed.
        """
        if self._is_suspect(generation):
            await self._carry_out_alone(generation, taker)
        else:
            await self._carry_out(generation, taker)

    def _is_suspect(self, generation: Generation) -> bool:
        """Whether it may be what engines died of.

        Raises:
            RequestError: It is (`REQUEST_QUARANTINED`).
        """
        quarantine = self._upstreams.quarantine
        if quarantine.is_empty:
            return False
        verdict = quarantine.verdict(generation.fingerprint, time.monotonic())
        if verdict is Verdict.QUARANTINED:
            raise RequestError(Reason.REQUEST_QUARANTINED)
        return verdict is Verdict.SUSPECT

    async def _carry_out_alone(self, generation: Generation, taker: Taker) -> None:
        request = generation.fingerprint
        if request in self._suspects:
            raise RequestError(
                Reason.QUEUE_FULL, "Engines died with this request, and another like it is being tried."
            )
        self._suspects.add(request)
        try:
            async with self._one_suspect:
                self._is_suspect(generation)
                await self._carry_out(generation, taker)
        finally:
            self._suspects.discard(request)

    async def _carry_out(self, generation: Generation, taker: Taker) -> None:
        try:
            await self._try(generation, taker)
        except RequestError as error:
            if not (self._may_retry(generation, error) and await self._retry(generation, taker)):
                raise

    async def _retry(self, generation: Generation, taker: Taker) -> bool:
        """Try again until it is done; False where the budget has nothing left."""
        core = self._scheduler.scheduler
        with self._budget.retry(core.in_flight + core.waiting) as is_granted:
            while is_granted:
                self._metrics.retried()
                generation.ticket = self._office.again(generation.ticket, generation.upstream)
                try:
                    await self._try(generation, taker)
                    break
                except RequestError as error:
                    if not self._may_retry(generation, error):
                        raise
            return is_granted

    def _may_retry(self, generation: Generation, error: RequestError) -> bool:
        """Whether a failure may be followed by another try: nothing was passed on, and another engine is there."""
        if error.reason not in _RETRIED or generation.has_begun or generation.tries > self._retries:
            return False
        if generation.losses >= _MOST_FATAL or (generation.losses and self._is_suspect(generation)):
            return False
        return generation.upstream is not None and self._upstreams.has_other(
            generation.ticket.pool, generation.upstream
        )

    async def _try(self, generation: Generation, taker: Taker) -> None:
        async with Turn(generation, self._scheduler, self._upstreams, self._metrics) as turn:
            body = await self._send(generation, turn, taker)
        if body is not None:
            generation.has_begun = True
            taker.begin(generation)
            if (flow := taker.take(body)) is not None:
                await flow

    async def _send(self, generation: Generation, turn: "Turn", taker: Taker) -> bytes | None:
        """Send it to the engine at which it has its slot; returns a whole answer, None after a stream."""
        upstream = turn.upstream
        headers = upstream.header_lines + generation.headers
        posting = self._client.post(upstream.origin, generation.path, headers, generation.body(upstream))
        async with posting as answer:
            if answer.status != 200:  # noqa: PLR2004  HTTP's own number
                raise await _engine_error(answer)
            if answer.is_event_stream is not generation.call.is_stream:
                return await self._unexpected(generation, answer)
            if not answer.is_event_stream:
                return await self._whole(generation, turn.slot, answer)
            generation.is_event_stream = True
            stream = Stream(generation, turn, taker)
            try:
                await answer.pour(stream.feed)
                stream.end()
            finally:
                self._account(generation, turn.slot, stream.usage())
        return None

    async def _unexpected(self, generation: Generation, answer: Answer) -> bytes:
        """An answer that is no stream where one was asked for, or one where none was: it can only be an error."""
        if not answer.is_event_stream:
            generation.dialect.usage_of(await answer.body(_MAX_ERROR_BYTES))
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR)

    async def _whole(self, generation: Generation, slot: Slot, answer: Answer) -> bytes:
        body = await answer.body(_MAX_ANSWER_BYTES)
        if generation.tools is not None:
            body = _emulated(generation.tools, body)
        usage = generation.dialect.usage_of(body)
        if generation.call.may_be_final and generation.dialect.is_final(body):
            slot.session_over()
        self._account(generation, slot, usage)
        return body

    def _account(self, generation: Generation, slot: Slot, usage: Usage | None) -> None:
        """Note the tokens that an engine accounts for."""
        if usage is None:
            return
        generation.usage = usage
        slot.used(usage)
        self._office.learn(generation.ticket, usage.input_tokens)
        self._metrics.used(usage)


async def pieces(engines: Engines, generation: Generation) -> AsyncGenerator[Piece]:
    """The pieces of a generation for those who take them one by one, each at their own pace.

    Raises:
        RequestError: As `Engines.carry_out`.
    """
    counter = _Counter()
    work = asyncio.get_running_loop().create_task(engines.carry_out(generation, counter))
    work.add_done_callback(counter.close)
    try:
        while (piece := await counter.next()) is not None:
            yield piece
        await work
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError, RequestError):
            await work


class _Counter:
    """Hands pieces over one at a time: the next is made when the last has been taken."""

    def __init__(self) -> None:
        self._pieces: list[Piece] = []
        self._taken: asyncio.Future[None] | None = None
        self._news = asyncio.Event()
        self._is_closed = False

    def begin(self, generation: Generation) -> None:
        """See `Taker`."""
        self._pieces.append(generation)

    def take(self, piece: bytes) -> Awaitable[object]:
        """See `Taker`."""
        self._pieces.append(piece)
        self._taken = asyncio.get_running_loop().create_future()
        self._news.set()
        return self._taken

    def close(self, _work: object) -> None:
        """No more will come."""
        self._is_closed = True
        self._news.set()

    async def next(self) -> Piece | None:
        """The next piece, None after the last."""
        if not self._pieces:
            if self._taken is not None and not self._taken.done():
                self._taken.set_result(None)
            if not self._is_closed:
                self._news.clear()
                await self._news.wait()
        return self._pieces.pop(0) if self._pieces else None


class Turn:
    """Holds a generation's slot and tells what became of it; a class, as it is on the path of every request.

    Args:
        generation: Learns where it goes and how long it waited.
        scheduler: Gives the slot, and hears when the engine pushed back.
        upstreams: Hear how the engine fares.
        metrics: Count what is turned away.

    Attributes:
        slot: The slot.
        upstream: Where it is.
        has_begun: Whether the first token has come.
    """

    __slots__ = (
        "_block",
        "_dispatched_s",
        "_generation",
        "_metrics",
        "_upstreams",
        "has_begun",
        "slot",
        "upstream",
    )

    slot: Slot
    upstream: Upstream

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
        self.has_begun = False

    async def __aenter__(self) -> Self:
        generation = self._generation
        try:
            slot = self.slot = await self._block.__aenter__()
        except TurnedAway as turned_away:
            self._metrics.turned_away(turned_away.reason)
            reason = TURNED_AWAY[turned_away.reason]
            raise RequestError(reason, retry_after_s=turned_away.retry_after_s) from turned_away
        generation.upstream = slot.upstream_id
        generation.waited_s += slot.waited_s
        generation.tries += 1
        self.upstream = self._upstreams[slot.upstream_id]
        self._dispatched_s = time.monotonic()
        self.upstream.progress.sent(self._dispatched_s)
        return self

    def begin(self) -> None:
        """Tell that the first token has come."""
        self.has_begun = True
        self.upstream.progress.began(time.monotonic())
        self.upstream.progress.answered(self._dispatched_s)
        if self._upstreams.is_on_trial(self.upstream):  # else its end tells: it may yet be lost
            self._upstreams.note(self.upstream, Sign.SUCCESS, self._dispatched_s)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._tell(exc)
        finally:
            await self._block.__aexit__(exc_type, exc, traceback)

    def _tell(self, exc: BaseException | None) -> None:
        """Tell what became of the request at its engine."""
        progress = self.upstream.progress
        progress.ended(has_begun=self.has_begun)
        reason = exc.reason if isinstance(exc, RequestError) else None
        sign = Sign.SUCCESS if exc is None else _SIGNS.get(reason, Sign.NEUTRAL) if reason else Sign.NEUTRAL
        if sign is Sign.SUCCESS:
            progress.answered(self._dispatched_s)
        elif sign is Sign.SILENCE and progress.has_passed_by(self._dispatched_s):
            sign = Sign.NEUTRAL
        # A stream that falls silent in its middle is in trouble by itself: an engine with too much is slow with all.
        if sign is Sign.PUSH_BACK or (sign is Sign.SILENCE and not self.has_begun):
            self.slot.failed(is_push_back=True)
        self._upstreams.note(self.upstream, sign, self._dispatched_s)
        quarantine = self._upstreams.quarantine
        if reason in _FATAL:
            self._generation.losses += 1
            quarantine.failed(self._generation.fingerprint, self.upstream.id, time.monotonic())
        elif sign is Sign.SUCCESS and not quarantine.is_empty:
            quarantine.answered(self._generation.fingerprint)
        if reason in _UNREACHABLE:
            self._upstreams.doubt(self.upstream, is_refused=reason is Reason.NO_HEALTHY_UPSTREAM)


def _emulated(tools: ToolEmulation, body: bytes) -> bytes:
    try:
        return tools.answer(body)
    except NOT_UNDERSTOOD as error:
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error


async def _engine_error(answer: Answer) -> RequestError:
    """What the client is told of an engine's error: its message where the request is at fault, else ours."""
    status = answer.status
    if status in (429, 503):
        return RequestError(
            Reason.UPSTREAM_BUSY, status=status, retry_after_s=_seconds(answer.header(b"retry-after"))
        )
    if status in (401, 403):
        return RequestError(Reason.UPSTREAM_AUTH_ERROR)
    if not 400 <= status < 500:  # noqa: PLR2004  HTTP's classes of status
        return RequestError(Reason.UPSTREAM_ERROR)
    told = _EngineError()
    # vLLM repeats what was wrong, however long that was. Unread it is no less the request's fault.
    with contextlib.suppress(msgspec.DecodeError, RequestError):
        told = _engine_errors.decode(await answer.body(_MAX_ERROR_BYTES)).error
    param = told.param and told.param.removeprefix("body.")  # vLLM's word for all that is not in the URL
    return RequestError(Reason.REQUEST_REJECTED, told.message, param, status=status)


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.isdigit() else None
