"""The relay: a request's life from its first byte to its last (docs/architecture.md tells it in ten steps).

A plain ASGI route, because its cost is the product's cost: the body's bytes go to the engine as they came, but for the
fields that only the proxy sets, and the answer's bytes come back as they are, but for models whose tool calls are
emulated.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeAlias

from muster_batching import Outcome, RequestClass
from muster_batching.single_flight import FellBehindError, FlightKey, SingleFlight, flight_key
from muster_observability import logs
from muster_proxy import disconnects, wire
from muster_proxy.admission import Admission
from muster_proxy.dialects import DIALECTS
from muster_proxy.exchange import Exchange
from muster_proxy.explicit_batch import ExplicitBatch
from muster_proxy.failures import TURNED_AWAY, Reason, RequestError, unknown_model
from muster_proxy.generation import Engines, Generation, Piece, pieces
from muster_proxy.keys import Identity
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.settings import ProxySettings, ToolMode
from muster_proxy.ticketing import TicketOffice
from muster_proxy.tools.emulation import ToolEmulation
from muster_proxy.upstreams import Model, Upstreams
from muster_proxy.wire import Call, Kind

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

# What a shared answer keeps for those who read it slowly or come late: some thousand events.
_SHARED_BYTES = 1024 * 1024

_KEEP_ALIVE_CHECK_S = 1.0

_log = logs.get("proxy")

_Key: TypeAlias = tuple[FlightKey, RequestClass]


class Relay:
    """Serves the calls that go to engines.

    Args:
        admission: Says whose a request is.
        upstreams: Say which models there are.
        engines: Carry out what is asked.
        office: Writes the tickets.
        metrics: Counts what happens.
        settings: The proxy's.
    """

    def __init__(
        self,
        admission: Admission,
        upstreams: Upstreams,
        engines: Engines,
        office: TicketOffice,
        metrics: ProxyMetrics,
        settings: ProxySettings,
    ) -> None:
        self._admission = admission
        self._upstreams = upstreams
        self._engines = engines
        self._office = office
        self._metrics = metrics
        self._max_body_bytes = settings.max_body_bytes
        self._keep_alive_s = settings.keep_alive_s
        self._streams: set[Exchange] = set()
        self._flights: SingleFlight[_Key, Piece] | None = None
        if settings.single_flight:
            self._flights = SingleFlight(max_buffered=_SHARED_BYTES, size_of=_size_of)

    async def keep_alive(self) -> None:
        """Let no stream be silent for long, for as long as this runs."""
        while self._keep_alive_s:
            await asyncio.sleep(min(_KEEP_ALIVE_CHECK_S, self._keep_alive_s))
            self._keep_alive_now()

    def _keep_alive_now(self) -> None:
        """See `keep_alive`, which is to keep none of them in its sleep."""
        now_s = time.monotonic()
        for exchange in tuple(self._streams):
            exchange.keep_alive(now_s, self._keep_alive_s)

    async def answer(self, kind: Kind, exchange: Exchange) -> None:
        """Serve one request; every way in which it can end is told to the client and recorded once."""
        outcome = Outcome.FAILED
        reason: Reason | None = (
            None  # not the error: with its trace it would keep this request's body in memory
        )
        try:
            await self._serve(kind, exchange)
            outcome = Outcome.COMPLETED
        except RequestError as error:
            reason = error.reason
            if reason in TURNED_AWAY.values():
                outcome = Outcome.TURNED_AWAY
            await exchange.fail(error)
        except disconnects.ClientGoneError:
            outcome = Outcome.CANCELLED
        except asyncio.CancelledError:
            # The server has waited as long as it may: tell those who still listen that this is no answer.
            reason = Reason.SHUTTING_DOWN
            await exchange.fail(RequestError(reason))
            raise
        except Exception:  # noqa: BLE001  a fault of ours costs one request, and is logged whole
            reason = Reason.INTERNAL_ERROR
            _log.exception("internal error", request_id=exchange.request_id)
            await exchange.fail(RequestError(reason))
        finally:
            self._streams.discard(exchange)
            exchange.record(outcome, self._metrics, reason)

    async def _serve(self, kind: Kind, exchange: Exchange) -> None:
        identity = self._admission.identify(
            exchange.header(b"authorization"), exchange.header(b"x-api-key"), exchange.scope["client"]
        )
        exchange.tenant = identity.tenant
        call = wire.read(kind, await read_body(exchange, self._max_body_bytes))
        if call.is_stream:
            exchange.is_stream = True
            self._streams.add(exchange)
        exchange.model = self._model(call)
        async with disconnects.watch(exchange.receive, exchange.has_answered):
            if kind is Kind.CHAT_BATCH:
                batch = ExplicitBatch(self._engines, call)
                exchange.answer(await batch.answer(lambda each: self._generation(exchange, each, identity)))
            else:
                await self._deliver(exchange, self._generation(exchange, call, identity))
        await exchange.finish()

    def _model(self, call: Call) -> str:
        """The model that is meant."""
        model = self._upstreams.model_of(call.model)
        if model is not None:
            return model
        if not self._upstreams.all_known:
            raise RequestError(Reason.NO_HEALTHY_UPSTREAM, "No engine has answered yet.")
        raise unknown_model("model")

    def _generation(self, exchange: Exchange, call: Call, identity: Identity) -> Generation:
        model = self._upstreams.model(exchange.model)
        _check(call, model)
        tools = _emulation(call, model.tool_mode)
        changes = call.usage_changes()
        if exchange.model != call.model:
            changes["model"] = exchange.model
        return Generation(
            self._office.ticket(exchange, call, identity),
            call,
            _headers(exchange),
            changes,
            wire.names_to_strip(call),
            identity.cache_salt,
            tools,
        )

    async def _deliver(self, exchange: Exchange, generation: Generation) -> None:
        """Pass an answer on to its client as it comes; maybe that of a generation that another request leads."""
        key = self._key(generation)
        if self._flights is None or key is None:
            exchange.generation = generation
            await self._engines.carry_out(generation, exchange)
            return

        def lead() -> AsyncGenerator[Piece]:
            exchange.generation = generation
            exchange.is_shared = False
            return pieces(self._engines, generation)

        exchange.is_shared = True  # until it is asked to lead
        await _share(exchange, self._flights.join(key, lead))

    def _key(self, generation: Generation) -> _Key | None:
        """What identical requests have in common; None where this one stays alone."""
        if self._flights is None:
            return None
        ticket = generation.ticket
        try:
            key = flight_key(generation.call.fields, tenant=ticket.tenant, path=generation.path)
        except RecursionError:  # its body is nested too deeply to be written again
            return None
        return None if key is None else (key, ticket.request_class)


class RelayRoute:
    """The ASGI application of one route; a class, as Starlette takes functions for something else.

    Args:
        relay: Serves it.
        kind: Which route.
    """

    def __init__(self, relay: Relay, kind: Kind) -> None:
        self._relay = relay
        self._kind = kind
        self._dialect = DIALECTS[kind]

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one call."""
        await self._relay.answer(self._kind, Exchange(scope, receive, send, self._dialect))


async def _share(exchange: Exchange, shared: AsyncGenerator[Piece]) -> None:
    try:
        async with contextlib.aclosing(shared):
            async for piece in shared:
                if isinstance(piece, Generation):
                    exchange.begin(piece)
                elif (flow := exchange.take(piece)) is not None:
                    await flow
    except FellBehindError as error:
        raise RequestError(Reason.READ_TOO_SLOWLY) from error


async def read_body(exchange: Exchange, limit_bytes: int) -> bytes:
    """Read the request's body.

    Raises:
        RequestError: It is larger than `limit_bytes`, or encoded.
        ClientGoneError: The client hung up before its end.
    """
    if exchange.header(b"content-encoding") not in (None, "identity"):
        raise RequestError(Reason.UNSUPPORTED_ENCODING)
    declared = exchange.header(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    held = bytearray()
    while True:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            raise disconnects.ClientGoneError
        body: bytes = message.get("body", b"")
        if len(held) + len(body) > limit_bytes:
            raise _too_large(limit_bytes)
        is_last = not message.get("more_body", False)
        if is_last and not held:  # most come in one piece
            return body
        held += body
        if is_last:
            return bytes(held)


def _too_large(limit_bytes: int) -> RequestError:
    return RequestError(Reason.BODY_TOO_LARGE, f"The request body is larger than {limit_bytes} bytes.")


def _check(call: Call, model: Model) -> None:
    """Refuse media that the model does not read, or that its engine would have to fetch."""
    if not call.contents:
        return
    if model.reads_text_alone:
        wire.refuse_media(call)
    else:
        wire.refuse_remote_media(call, is_fetching_allowed=model.may_fetch_media)


def _emulation(call: Call, mode: ToolMode) -> ToolEmulation | None:
    if mode == "native":
        return None
    if call.kind is Kind.CHAT:
        if mode == "emulated":
            return ToolEmulation.of(call)
        if call.has_tools and call.chat.tool_choice != "none":
            raise RequestError(Reason.INVALID_VALUE, "This model does not call tools.", "tools")
    elif call.has_tools:
        where = f" but on {Kind.CHAT}" if mode == "emulated" else ""
        raise RequestError(Reason.INVALID_VALUE, f"This model does not call tools{where}.", "tools")
    return None


def _headers(exchange: Exchange) -> bytes:
    lines = f"x-request-id: {exchange.request_id}\r\n"  # both are identifiers, which break no line
    if exchange.session_id is not None:
        lines += f"x-session-id: {exchange.session_id}\r\n"
    return lines.encode("ascii")


def _size_of(piece: Piece) -> int:
    return len(piece) if isinstance(piece, bytes) else 0
