"""The library's front door for programs: `await handler.add_request(request)` gives the answer.

    async with BatchHandler(client, max_batch_size=32) as handler:
        answer = await handler.add_request({"model": "m", "messages": [...]}, tenant=TenantId("team-a"))

Two modes, chosen by `mode`:

- `continuous`, the default: each request takes a slot of its own, at most `max_batch_size` at a time, and is
  sent by `client.chat_completion(request)`. Nobody waits for a batch to fill or to end, so `timeout_ms` plays
  no part; who is next when a slot comes free is the scheduler's to say.
- `window`, the prototype's way: requests gather until there are `max_batch_size`, or `timeout_ms` after the
  first; they are sent as one `client.batch_chat_completion(requests)`, and the next batch goes when that call
  has ended. A request's class, tenant, session and deadline play no part.

A task that is cancelled takes its request with it. One that has not been sent never is; a call that nobody
waits for any more is cancelled. Otherwise each request ends with its answer, the client's error,
`TurnedAway` or `ClosedError`. The wait for a turn is bounded; how long a call may take is the client's to
bound.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import count
from types import TracebackType
from typing import Generic, Literal, Protocol, Self, TypeAlias, TypeVar, cast, overload, runtime_checkable

from muster_batching.aio import AsyncScheduler
from muster_batching.errors import BatchingError, ClosedError, ContractError, LimitError, TurnedAway
from muster_batching.limits import FixedLimit
from muster_batching.policy import Policy, WaitingLimits
from muster_batching.scheduler import Scheduler, Stats
from muster_batching.single_flight import SingleFlight, flight_key
from muster_batching.tickets import (
    NOBODY,
    PoolId,
    RequestClass,
    SessionId,
    TenantId,
    Ticket,
    TicketId,
    TurnAwayReason,
    UpstreamId,
    Usage,
)
from muster_batching.upstreams import UpstreamReport
from muster_batching.window import Window

Request = TypeVar("Request")
Answer = TypeVar("Answer")
_Request_contra = TypeVar("_Request_contra", contravariant=True)
_Answer_co = TypeVar("_Answer_co", covariant=True)

Mode: TypeAlias = Literal["continuous", "window"]

_POOL = PoolId("client")
_UPSTREAM = UpstreamId("client")


@runtime_checkable
class ChatClient(Protocol[_Request_contra, _Answer_co]):
    """What continuous mode asks of a client."""

    def chat_completion(self, request: _Request_contra, /) -> Awaitable[_Answer_co]:
        """Send one request; a cancelled call closes its connection to the engine."""
        ...


@runtime_checkable
class BatchChatClient(Protocol[_Request_contra, _Answer_co]):
    """What window mode asks of a client."""

    def batch_chat_completion(
        self, requests: Sequence[_Request_contra], /
    ) -> Awaitable[Sequence[_Answer_co]]:
        """Send requests as one call; return their answers in the same order."""
        ...


class ModeError(ContractError):
    """The client lacks the method that the mode calls, or there is no such mode."""

    def __init__(self, mode: str) -> None:
        super().__init__(
            f"expected 'continuous' and a client with chat_completion, or 'window' and one with"
            f" batch_chat_completion, got {mode!r} and a client that does not fit it"
        )
        self.mode = mode


class AnswerCountError(BatchingError):
    """A batch's call returned more or fewer answers than there were requests: nobody's can be told."""

    def __init__(self, expected: int, got: int) -> None:
        super().__init__(f"expected {expected} answers, got {got}")
        self.expected = expected
        self.got = got


def chat_key(request: object) -> Hashable | None:
    """Make the key of an OpenAI chat completion's body: `flight_key`; any other request stays alone."""
    if not isinstance(request, Mapping):
        return None
    body = cast("Mapping[str, object]", request)
    return flight_key(body, tenant=NOBODY, path="/v1/chat/completions")


def no_tokens(_request: object) -> int:
    """Estimate nothing of a request."""
    return 0


def no_usage(_answer: object) -> Usage | None:
    """Know nothing of what an answer cost."""
    return None


@dataclass(frozen=True, kw_only=True)  # with slots, Python 3.11 cannot make a HandlerOptions[..., ...]()
class HandlerOptions(Generic[Request, Answer]):
    """What is seldom chosen.

    Attributes:
        max_waiting: Requests that may wait for their turn; further ones are turned away.
        max_wait_s: Seconds that one waits for its turn before it is turned away; in window mode beyond its
            window.
        tokens_of: Estimates the tokens of a request's prompt, 0 or more. In continuous mode the tenants' and
            the sessions' turns go by it.
        usage_of: Reads from an answer what it cost, which trues up the estimate; None where it does not tell.
        key_of: Says which requests may share an answer, those of equal keys; None for one that may not.
    """

    max_waiting: int = 1000
    max_wait_s: float = 300.0
    tokens_of: Callable[[Request], int] = no_tokens
    usage_of: Callable[[Answer], Usage | None] = no_usage
    key_of: Callable[[Request], Hashable | None] = chat_key


@dataclass(frozen=True, slots=True)
class _Terms:
    request_class: RequestClass
    tenant: TenantId
    session: SessionId | None
    deadline_s: float | None


class BatchHandler(Generic[Request, Answer]):
    """Sends a program's requests to one client, in batches; the module's docstring says how.

    All calls come from one event loop. An async context manager: leaving the block calls `aclose`.

    Args:
        client: Where requests go. It stays the caller's to close.
        max_batch_size: Requests in flight at most, or in window mode in one call; 1 or more.
        timeout_ms: Milliseconds that a window stays open for others after its first request, 0 or more.
        mode: `continuous` or `window`.
        single_flight: Let requests of one key, tenant and class that are under way together share one answer
            (`muster_batching.single_flight`). The first one's session and deadline count.
        options: The rest.

    Raises:
        LimitError: A number is outside its range.
        ModeError: The client lacks the method that the mode calls.
    """

    @overload
    def __init__(
        self,
        client: ChatClient[Request, Answer],
        *,
        max_batch_size: int = ...,
        timeout_ms: float = ...,
        mode: Literal["continuous"] = ...,
        single_flight: bool = ...,
        options: HandlerOptions[Request, Answer] | None = ...,
    ) -> None: ...
    @overload
    def __init__(
        self,
        client: BatchChatClient[Request, Answer],
        *,
        max_batch_size: int = ...,
        timeout_ms: float = ...,
        mode: Literal["window"],
        single_flight: bool = ...,
        options: HandlerOptions[Request, Answer] | None = ...,
    ) -> None: ...
    def __init__(
        self,
        client: ChatClient[Request, Answer] | BatchChatClient[Request, Answer],
        *,
        max_batch_size: int = 32,
        timeout_ms: float = 100.0,
        mode: Mode = "continuous",
        single_flight: bool = False,
        options: HandlerOptions[Request, Answer] | None = None,
    ) -> None:
        _check_least("max_batch_size", max_batch_size, 1)
        _check_least("timeout_ms", timeout_ms, 0)
        self._options = options or HandlerOptions[Request, Answer]()
        self._sender: _Sender[Request, Answer]
        if mode == "continuous" and isinstance(client, ChatClient):
            self._sender = _SlotSender(client, max_batch_size, self._options)
        elif mode == "window" and isinstance(client, BatchChatClient):
            self._sender = _WindowSender(client, max_batch_size, timeout_ms / 1000, self._options)
        else:
            raise ModeError(mode)
        self._flights = (
            SingleFlight[Hashable, Answer](max_buffered=2, size_of=_one) if single_flight else None
        )

    async def add_request(
        self,
        request: Request,
        *,
        request_class: RequestClass = RequestClass.STANDARD,
        tenant: TenantId = NOBODY,
        session: SessionId | None = None,
        ttft_deadline_s: float | None = None,
    ) -> Answer:
        """Send a request when its turn comes; return its answer.

        Args:
            request: What the client is given, as it is.
            request_class: How urgent it is.
            tenant: Who pays; tenants of one class take turns.
            session: The conversation it belongs to; None for a request that stands alone.
            ttft_deadline_s: Seconds from now in which its first token must come: the request is turned away
                as soon as that is sure not to happen. None for no deadline.

        Raises:
            TurnedAway: Too many wait, or it has waited or would wait too long.
            ClosedError: The handler was closed before its turn.
            AnswerCountError: The batch's call did not return an answer for each request.
            Exception: What the client raises, as it is; in window mode for all of the batch.
        """
        deadline_s = None if ttft_deadline_s is None else time.monotonic() + ttft_deadline_s
        terms = _Terms(request_class, tenant, session, deadline_s)
        key = self._options.key_of(request) if self._flights is not None else None
        if self._flights is None or key is None:
            return await self._sender.send(request, terms)
        start = partial(self._send_as_stream, request, terms)
        async with aclosing(self._flights.join((tenant, request_class, key), start)) as answers:
            return await anext(answers)

    @property
    def stats(self) -> Stats:
        """What was sent so far; in window mode a batch is one call, else see `Stats`."""
        return self._sender.stats

    async def aclose(self) -> None:
        """Take no more requests, and end those that wait for their turn: they raise `ClosedError`.

        What has been sent is answered. In window mode this waits for the running call, and cancels it if the
        wait is cancelled; in continuous mode calls belong to the tasks that made them, and are not waited for.
        """
        await self._sender.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _send_as_stream(self, request: Request, terms: _Terms) -> AsyncGenerator[Answer, None]:
        yield await self._sender.send(request, terms)


def _check_least(name: str, value: float, least: int) -> None:
    if not least <= value < math.inf:
        raise LimitError(name, value, least)


def _one(_answer: object) -> int:
    # An answer is a flight's only piece, and a buffer of two never full.
    return 1


class _Sender(Protocol[_Request_contra, _Answer_co]):
    """A mode."""

    @property
    def stats(self) -> Stats:
        """What was sent so far."""
        ...

    async def send(self, request: _Request_contra, terms: _Terms, /) -> _Answer_co:
        """Send one request when its turn comes."""
        ...

    async def aclose(self) -> None:
        """End what waits."""
        ...


class _SlotSender(Generic[Request, Answer]):
    """Continuous mode: a slot for each request, on one upstream with a fixed limit."""

    def __init__(
        self,
        client: ChatClient[Request, Answer],
        max_batch_size: int,
        options: HandlerOptions[Request, Answer],
    ) -> None:
        self._client = client
        self._tokens_of = options.tokens_of
        self._usage_of = options.usage_of
        self._numbers = count()
        limits = WaitingLimits(max_waiting=options.max_waiting, max_wait_s=options.max_wait_s)
        self._driver = AsyncScheduler(Scheduler(Policy.of(limits)))
        self._driver.report(
            _UPSTREAM, UpstreamReport(FixedLimit(max_batch_size), frozenset({_POOL}), available=True)
        )

    @property
    def stats(self) -> Stats:
        return self._driver.scheduler.stats

    async def send(self, request: Request, terms: _Terms) -> Answer:
        async with self._driver.slot(self._ticket(request, terms)) as slot:
            answer = await self._client.chat_completion(request)
            usage = self._usage_of(answer)
            if usage is not None:
                slot.used(usage)
            return answer

    async def aclose(self) -> None:
        await self._driver.aclose()

    def _ticket(self, request: Request, terms: _Terms) -> Ticket:
        return Ticket(
            TicketId(str(next(self._numbers))),
            _POOL,
            size_bytes=0,  # a program's request is no body that is kept for it
            request_class=terms.request_class,
            tenant=terms.tenant,
            session=terms.session,
            input_tokens=self._tokens_of(request),
            deadline_s=terms.deadline_s,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter(Generic[Request, Answer]):
    request: Request
    answer: asyncio.Future[Answer]


class _WindowSender(Generic[Request, Answer]):
    """Window mode: drives a `Window`. It owns the task of the running call, and one timer while some wait."""

    def __init__(
        self,
        client: BatchChatClient[Request, Answer],
        max_batch_size: int,
        timeout_s: float,
        options: HandlerOptions[Request, Answer],
    ) -> None:
        self._client = client
        self._window = Window[_Waiter[Request, Answer]](
            max_batch_size, timeout_s, options.max_waiting, options.max_wait_s
        )
        self._call: asyncio.Task[Sequence[Answer]] | None = None
        self._sent: dict[_Waiter[Request, Answer], int] = {}  # those of the call that still wait, by place
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def stats(self) -> Stats:
        return self._window.stats

    async def send(self, request: Request, _terms: _Terms) -> Answer:
        if self._is_closed:
            raise ClosedError
        now_s = time.monotonic()
        if self._window.is_full:
            raise TurnedAway(TurnAwayReason.WAITING_FULL, self._window.retry_after_s(now_s))
        waiter = _Waiter(request, asyncio.get_running_loop().create_future())
        self._window.add(waiter, now_s)
        self._proceed()
        try:
            return await waiter.answer
        except BaseException:
            # After a cancellation it must not stay behind; whoever was answered is known nowhere any more.
            self._forget(waiter)
            raise

    async def aclose(self) -> None:
        self._is_closed = True
        for waiter in self._window.take_all(time.monotonic()):
            _fail(waiter, ClosedError())
        self._proceed()
        if self._call is not None:
            await _end_of(self._call)

    def _proceed(self) -> None:
        """Send what is due, turn away what has waited too long, set the timer for what comes next."""
        now_s = time.monotonic()
        if batch := self._window.take_batch(now_s):
            self._sent = {waiter: place for place, waiter in enumerate(batch)}
            self._call = asyncio.get_running_loop().create_task(self._send_batch(batch))
            self._call.add_done_callback(self._end_call)
        for waiter in self._window.take_expired(now_s):
            retry_after_s = self._window.retry_after_s(now_s)
            _fail(waiter, TurnedAway(TurnAwayReason.WAITED_TOO_LONG, retry_after_s))
        self._set_timer(now_s)

    def _set_timer(self, now_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._window.next_wakeup_s
        if due_s is not None:
            self._timer = asyncio.get_running_loop().call_later(due_s - now_s, self._proceed)

    async def _send_batch(self, batch: list[_Waiter[Request, Answer]]) -> Sequence[Answer]:
        answers = await self._client.batch_chat_completion([waiter.request for waiter in batch])
        if len(answers) != len(batch):
            raise AnswerCountError(len(batch), len(answers))
        return answers

    def _end_call(self, call: asyncio.Task[Sequence[Answer]]) -> None:
        # In a callback and not in the task: one that is cancelled before its first step never runs.
        sent, self._sent, self._call = self._sent, {}, None
        self._window.end_batch()
        if sent:
            # With nobody left to be told, a failure is left to asyncio, which reports what none retrieved.
            self._hand_out(call, sent)
        self._proceed()

    def _hand_out(
        self, call: asyncio.Task[Sequence[Answer]], sent: Mapping[_Waiter[Request, Answer], int]
    ) -> None:
        error = self._cancellation() if call.cancelled() else call.exception()
        for waiter, place in sent.items():
            if error is not None:
                _fail(waiter, error)
            elif not waiter.answer.done():
                waiter.answer.set_result(call.result()[place])

    def _cancellation(self) -> BaseException:
        return ClosedError() if self._is_closed else asyncio.CancelledError()

    def _forget(self, waiter: _Waiter[Request, Answer]) -> None:
        if self._window.discard(waiter, time.monotonic()):
            self._set_timer(time.monotonic())
        elif self._sent.pop(waiter, None) is not None and not self._sent and self._call is not None:
            self._call.cancel()


def _fail(waiter: _Waiter[Request, Answer], error: BaseException) -> None:
    # A waiter that was cancelled a moment ago has yet to run, and leaves by itself.
    if not waiter.answer.done():
        waiter.answer.set_exception(error)


async def _end_of(call: asyncio.Task[object]) -> None:
    """Wait for the end of a call whatever it is; if the wait is cancelled, cancel it and wait on."""
    try:
        await asyncio.wait([call])
    except asyncio.CancelledError:
        call.cancel()
        await asyncio.wait([call])
        raise
