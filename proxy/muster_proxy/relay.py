"""The relay: a request's life from its first byte to its last (docs/architecture.md tells it in ten steps).

A plain ASGI route, because its cost is the product's cost: the body's bytes go to the engine as they came and
the answer's bytes come back as they are, but for models whose tool calls are emulated.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeAlias

from muster_batching import Outcome, RequestClass
from muster_batching.single_flight import FellBehindError, FlightKey, SingleFlight, flight_key
from muster_observability import logs
from muster_proxy import disconnects, wire
from muster_proxy.exchange import Exchange
from muster_proxy.failures import TURNED_AWAY, Reason, RequestError
from muster_proxy.generation import Engines, Generation, Piece
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.settings import ProxySettings
from muster_proxy.ticketing import TicketOffice
from muster_proxy.tools.emulation import ToolEmulation
from muster_proxy.upstreams import Upstreams

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_JSON = [(b"content-type", b"application/json")]
_EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on at once
]

# What a shared answer keeps for those who read it slowly or come late: some thousand events.
_SHARED_BYTES = 1024 * 1024

_log = logs.get("proxy")

_Key: TypeAlias = tuple[FlightKey, RequestClass]


class Relay:
    """`POST /v1/chat/completions`.

    Args:
        upstreams: Say which models there are.
        engines: Carry out what is asked.
        office: Writes the tickets.
        metrics: Counts what happens.
        settings: The proxy's.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        engines: Engines,
        office: TicketOffice,
        metrics: ProxyMetrics,
        settings: ProxySettings,
    ) -> None:
        self._upstreams = upstreams
        self._engines = engines
        self._office = office
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._flights: SingleFlight[_Key, Piece] | None = None
        if settings.single_flight:
            self._flights = SingleFlight(max_buffered=_SHARED_BYTES, size_of=_size_of)

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one request; every way in which it can end is told to the client and recorded once."""
        exchange = Exchange(scope, receive, send)
        outcome, failure = Outcome.FAILED, None
        try:
            await self._serve(exchange)
            outcome = Outcome.COMPLETED
        except RequestError as error:
            failure = error
            if error.reason in TURNED_AWAY.values():
                outcome = Outcome.TURNED_AWAY
            await exchange.fail(error)
        except disconnects.ClientGoneError:
            outcome = Outcome.CANCELLED
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

    async def _serve(self, exchange: Exchange) -> None:
        body = await read_body(exchange, self._max_body_bytes)
        call = wire.read_chat(body)
        exchange.is_stream = call.is_stream
        tools = self._emulation(call)
        exchange.model = call.request.model
        if tools is not None:
            body = tools.body()
        generation = Generation(
            self._office.ticket(exchange, call, len(body)),
            exchange.scope["path"],
            body,
            _headers(exchange),
            tools,
            is_agents=bool(call.request.tools),
        )
        async with disconnects.watch(exchange.receive, lambda: exchange.is_answered):
            await _deliver(exchange, self._pieces(exchange, call, generation))

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

    def _pieces(self, exchange: Exchange, call: wire.Call, generation: Generation) -> AsyncGenerator[Piece]:
        """The pieces of the answer, maybe of a generation that another request leads."""
        key = self._key(call, generation)

        def lead() -> AsyncGenerator[Piece]:
            exchange.generation = generation
            exchange.is_shared = False
            return self._engines.pieces(generation)

        if self._flights is None or key is None:
            return lead()
        exchange.is_shared = True  # until it is asked to lead
        return self._flights.join(key, lead)

    def _key(self, call: wire.Call, generation: Generation) -> _Key | None:
        """What identical requests have in common; None where this one stays alone."""
        if self._flights is None:
            return None
        ticket = generation.ticket
        try:
            key = flight_key(call.fields, tenant=ticket.tenant, path=generation.path)
        except RecursionError:  # its body is nested too deeply to be written again
            return None
        return None if key is None else (key, ticket.request_class)


async def _deliver(exchange: Exchange, pieces: AsyncGenerator[Piece]) -> None:
    """Pass an answer on to its client as it comes; the next piece is taken when the client has taken the last."""
    try:
        async with contextlib.aclosing(pieces):
            generation = await anext(pieces)
            assert isinstance(generation, Generation)  # noqa: S101  it comes first
            exchange.generation = generation
            if generation.is_event_stream:
                await exchange.begin(200, _EVENT_STREAM)
            async for piece in pieces:
                assert isinstance(piece, bytes)  # noqa: S101  it has come
                if generation.is_event_stream:
                    await exchange.write(piece)
                else:
                    await exchange.answer(200, _JSON, piece)
    except FellBehindError as error:
        raise RequestError(Reason.READ_TOO_SLOWLY) from error
    if generation.is_event_stream:
        await exchange.write(b"", more=False)


async def read_body(exchange: Exchange, limit_bytes: int) -> bytes:
    """Read the request's body.

    Raises:
        RequestError: It is larger than `limit_bytes`, or encoded.
        ClientGoneError: The client hung up before its end.
    """
    if exchange.header(b"content-encoding") not in (None, "identity"):
        raise RequestError(Reason.UNSUPPORTED_ENCODING)
    too_large = RequestError(Reason.BODY_TOO_LARGE, f"The request body is larger than {limit_bytes} bytes.")
    declared = exchange.header(b"content-length")
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


def _headers(exchange: Exchange) -> dict[str, str]:
    headers = {"content-type": "application/json", "x-request-id": exchange.request_id}
    if exchange.session_id is not None:
        headers["x-session-id"] = exchange.session_id
    return headers


def _size_of(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else 0
