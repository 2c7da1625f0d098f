"""The relay: a request's life from its first byte to its last (docs/architecture.md tells it in ten steps).

A plain ASGI route, because its cost is the product's cost: the body's bytes go to the engine as they came and
the answer's bytes come back as they are, but for models whose tool calls are emulated.
"""

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Protocol

import msgspec
import orjson

from muster_batching import AsyncScheduler, PoolId, Slot, Ticket, TicketId, TurnedAway
from muster_observability import logs
from muster_observability.request_ids import header_of
from muster_proxy import disconnects, sse, wire
from muster_proxy.client import Answer, UpstreamClient
from muster_proxy.exchange import Exchange
from muster_proxy.failures import TURNED_AWAY, Reason, RequestError
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.tools.emulation import ToolEmulation
from muster_proxy.upstreams import Upstream, Upstreams

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

# Answers are read whole before they are passed on (but for streams), so that a broken one becomes a clean
# error. The largest honest one is some megabytes: n answers with log probabilities.
_MAX_ANSWER_BYTES = 64 * 1024 * 1024
# An error's body is read for its message; engines have been seen to answer with whole HTML pages.
_MAX_ERROR_BYTES = 64 * 1024

_JSON = [(b"content-type", b"application/json")]
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on at once
]

# How vLLM, SGLang and llama.cpp say that a stream has failed. Their words may hold addresses: ours are sent.
_ERROR_EVENT = b'data: {"error"'

_log = logs.get("proxy")


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Accounted(msgspec.Struct):
    usage: _Usage | None = None


class _EngineError(msgspec.Struct):
    message: str | None = None
    param: str | None = None


class _EngineErrorBody(msgspec.Struct):
    error: _EngineError


_engine_errors = msgspec.json.Decoder(_EngineErrorBody)
_accounted = msgspec.json.Decoder(_Accounted)


class StreamRewriter(Protocol):
    """Turns an engine's events into the client's."""

    def feed(self, events: bytes) -> bytes:
        """The client's events for a run of the engine's."""
        ...


class Relay:
    """`POST /v1/chat/completions`.

    Args:
        scheduler: Decides when and where each request goes.
        upstreams: The engines.
        client: The connections to them.
        metrics: Counts what happens.
        max_body_bytes: The largest request body.
    """

    def __init__(
        self,
        scheduler: AsyncScheduler,
        upstreams: Upstreams,
        client: UpstreamClient,
        metrics: ProxyMetrics,
        *,
        max_body_bytes: int,
    ) -> None:
        self._scheduler = scheduler
        self._upstreams = upstreams
        self._client = client
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        # Not the request's id, which a client may choose, and choose twice.
        self._ticket_numbers = itertools.count()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one request; every way in which it can end is told to the client and recorded once."""
        exchange = Exchange(scope, receive, send)
        outcome, failure = "failed", None
        try:
            outcome = await self._serve(exchange)
        except RequestError as error:
            failure = error
            outcome = "turned_away" if error.reason in TURNED_AWAY.values() else "failed"
            await exchange.fail(error)
        except disconnects.ClientGoneError:
            outcome = "cancelled"
        except asyncio.CancelledError:
            # The server has waited as long as it may: tell those who still listen that this is no answer.
            failure = RequestError(Reason.SHUTTING_DOWN)
            await exchange.fail(failure)
            raise
        except Exception:  # noqa: BLE001  a fault of ours costs one request, and is logged whole
            failure = RequestError(Reason.INTERNAL_ERROR)
            _log.exception("internal error", request_id=exchange.request_id)
            await exchange.fail(failure)
        finally:
            exchange.record(outcome, self._metrics, failure)

    async def _serve(self, exchange: Exchange) -> str:
        body = await read_body(exchange, self._max_body_bytes)
        call = wire.read_chat(body)
        exchange.is_stream = call.is_stream
        tools = self._emulation(call)
        exchange.model = call.request.model
        if tools is not None:
            body = tools.body()
        async with disconnects.watch(exchange.receive, lambda: exchange.is_answered):
            ticket = Ticket(TicketId(str(next(self._ticket_numbers))), PoolId(exchange.model), len(body))
            try:
                async with self._scheduler.slot(ticket) as slot:
                    await self._relay(exchange, slot, body, tools)
            except TurnedAway as turned_away:
                raise RequestError(
                    TURNED_AWAY[turned_away.reason], retry_after_s=turned_away.retry_after_s
                ) from turned_away
        return "completed"

    def _emulation(self, call: wire.Call) -> ToolEmulation | None:
        model = call.request.model
        if model not in self._upstreams.models():
            if not self._upstreams.all_known:
                raise RequestError(Reason.NO_HEALTHY_UPSTREAM, "No engine has answered yet.")
            raise RequestError(
                Reason.MODEL_NOT_FOUND,
                "The model does not exist; GET /v1/models lists those that do.",
                "model",
            )
        if self._upstreams.reads_text_alone(model):
            wire.refuse_media(call)
        mode = self._upstreams.tool_mode(model)
        if mode == "none" and call.request.tools and call.request.tool_choice != "none":
            raise RequestError(Reason.INVALID_VALUE, "This model does not call tools.", "tools")
        return ToolEmulation.of(call) if mode == "emulated" else None

    async def _relay(self, exchange: Exchange, slot: Slot, body: bytes, tools: ToolEmulation | None) -> None:
        upstream = self._upstreams[slot.upstream_id]
        exchange.upstream, exchange.waited_s = upstream.id, slot.waited_s
        url = f"{upstream.settings.root}{exchange.scope['path']}"
        try:
            async with self._client.post(url, body, _headers(exchange, upstream)) as answer:
                if answer.status != 200:  # noqa: PLR2004  HTTP's own number
                    raise await _engine_error(answer)
                if answer.is_event_stream:
                    await self._pass_stream(exchange, answer, tools)
                else:
                    await self._pass_whole(exchange, answer, tools)
        except RequestError as error:
            if error.reason in (Reason.NO_HEALTHY_UPSTREAM, Reason.UPSTREAM_LOST):
                self._upstreams.doubt(upstream.id)
            raise

    async def _pass_whole(self, exchange: Exchange, answer: Answer, tools: ToolEmulation | None) -> None:
        body = await answer.body(_MAX_ANSWER_BYTES)
        try:
            usage = _accounted.decode(body).usage
            if tools is not None:
                body = tools.answer(body)
        except (msgspec.DecodeError, KeyError, TypeError, IndexError) as error:
            raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
        exchange.usage = _counts(usage)
        await exchange.answer(200, _JSON, body)

    async def _pass_stream(self, exchange: Exchange, answer: Answer, tools: ToolEmulation | None) -> None:
        """Pass events on, whole ones only; what the client has been sent is never half an event."""
        borders = sse.EventBorders()
        rewriter = tools.stream() if tools is not None else None
        usage_events = last = b""
        async with contextlib.aclosing(answer.chunks()) as chunks:
            async for chunk in chunks:
                events = _whole_events(borders, chunk)
                if not events:
                    continue
                if b'"usage"' in events:
                    usage_events = events
                last = events
                good, is_failed = _up_to_error(events)
                await self._pass_events(exchange, good, rewriter)
                if is_failed:
                    raise RequestError(Reason.UPSTREAM_STREAM_ERROR)
        exchange.usage = _usage_in(usage_events)
        if not last.rstrip().endswith(b"data: [DONE]"):
            raise RequestError(Reason.UPSTREAM_STREAM_ERROR)
        await exchange.write(b"", more=False)

    async def _pass_events(self, exchange: Exchange, events: bytes, rewriter: StreamRewriter | None) -> None:
        if rewriter is not None:
            try:
                events = rewriter.feed(events)
            except (orjson.JSONDecodeError, KeyError, TypeError, IndexError) as error:
                raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error
        if not events:
            return
        if not exchange.has_begun:
            await exchange.begin(200, _EVENT_STREAM)
        await exchange.write(events)


async def read_body(exchange: Exchange, limit_bytes: int) -> bytes:
    """Read the request's body.

    Raises:
        RequestError: It is larger than `limit_bytes`, or encoded.
        ClientGoneError: The client hung up before its end.
    """
    if header_of(exchange.scope, "content-encoding") not in (None, "identity"):
        raise RequestError(Reason.UNSUPPORTED_ENCODING)
    too_large = RequestError(Reason.BODY_TOO_LARGE, f"The request body is larger than {limit_bytes} bytes.")
    declared = header_of(exchange.scope, "content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit_bytes:
        raise too_large
    held = bytearray()
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise disconnects.ClientGoneError
        held += message.get("body", b"")
        if len(held) > limit_bytes:
            raise too_large
        if not message.get("more_body", False):
            return bytes(held)


def _headers(exchange: Exchange, upstream: Upstream) -> dict[str, str]:
    headers = {"content-type": "application/json", "x-request-id": exchange.request_id, **upstream.headers()}
    if exchange.session_id is not None:
        headers["x-session-id"] = exchange.session_id
    return headers


def _whole_events(borders: sse.EventBorders, chunk: bytes) -> bytes:
    try:
        return borders.feed(chunk)
    except sse.EventTooLargeError as error:
        raise RequestError(Reason.UPSTREAM_PROTOCOL_ERROR) from error


def _up_to_error(events: bytes) -> tuple[bytes, bool]:
    """The events before one that says that the stream has failed, and whether there is one."""
    if events.startswith(_ERROR_EVENT):
        return b"", True
    before, error, _ = events.partition(b"\n" + _ERROR_EVENT)
    return (before + b"\n", True) if error else (events, False)


def _usage_in(events: bytes) -> tuple[int, int] | None:
    """The last usage that a run of events accounts for."""
    found = None
    for data in sse.data_of(events):
        with contextlib.suppress(msgspec.DecodeError):
            found = _counts(_accounted.decode(data).usage) or found
    return found


def _counts(usage: _Usage | None) -> tuple[int, int] | None:
    return None if usage is None else (usage.prompt_tokens, usage.completion_tokens)


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
