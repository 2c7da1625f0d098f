"""One request on its way through the proxy: its identity, its times, and the answer to its client."""

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from muster_batching import Outcome
from muster_observability import logs
from muster_observability.request_ids import REQUEST_ID, is_identifier, request_id_for
from muster_proxy import agent_headers
from muster_proxy.dialects import PLAIN, Dialect
from muster_proxy.failures import Reason, RequestError
from muster_proxy.protocol import READY

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from muster_proxy.generation import Generation
    from muster_proxy.metrics import ProxyMetrics

EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass events on at once
]
_JSON = [(b"content-type", b"application/json")]
_SHARED = (b"x-muster-shared", b"true")
_ID = REQUEST_ID.encode()

# A comment, which readers of events pass over; openai-python does so unless an `id:` came before it, and none does.
_KEEP_ALIVE = b": keep-alive\n\n"


class Exchange:
    """One request and its answer; takes the answer as it comes from an engine.

    Args:
        scope: The ASGI scope.
        receive: The ASGI application's `receive`.
        send: The ASGI application's `send`, of a server that has sent when it returns (`protocol`).

    Attributes:
        started_s: When the request came, on `time.monotonic`.
        is_answered: Whether the last byte of the answer has been handed over.
        request_id: Goes to the engine, to the client and into the log.
        session_id: The conversation or agent run that the client names in `x-session-id`, if any.
        dialect: Of the API that was called.
        model: The model asked for, once known to exist.
        tenant: Who pays, once known.
        is_stream: Whether the answer is asked for as events.
        generation: What is made for it, from the moment at which it asks for a slot.
        is_shared: Whether another request leads that generation.
    """

    __slots__ = (
        "_first_byte_s",
        "_flow",
        "_headers",
        "_send",
        "_sent_bytes",
        "_status",
        "_written_s",
        "dialect",
        "generation",
        "is_answered",
        "is_shared",
        "is_stream",
        "model",
        "receive",
        "request_id",
        "scope",
        "session_id",
        "started_s",
        "tenant",
    )

    def __init__(self, scope: "Scope", receive: "Receive", send: "Send", dialect: Dialect = PLAIN) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.dialect = dialect
        self.started_s = self._written_s = time.monotonic()
        self._first_byte_s: float | None = None
        self._status = 0
        self._sent_bytes = 0
        self._flow: Awaitable[None] = READY
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of a name counts
        self.is_answered = False
        self.request_id = scope["muster.request_id"] = request_id_for(self.header(_ID))
        session_id = self.header(b"x-session-id")
        self.session_id = session_id if session_id and is_identifier(session_id) else None
        self.model = self.tenant = ""
        self.is_stream = False
        self.generation: Generation | None = None
        self.is_shared = False

    def header(self, name: bytes) -> str | None:
        """The first request header of that lower-case name."""
        value = self._headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def has_begun(self) -> bool:
        """Whether the client has been sent the head of an answer."""
        return self._status != 0

    @property
    def upstream(self) -> str | None:
        """The name of the upstream that answers, once dispatched."""
        return None if self.generation is None else self.generation.upstream

    @property
    def waited_s(self) -> float:
        """Seconds that it waited for a slot; one that joins a generation of another's waits for none."""
        return 0.0 if self.generation is None or self.is_shared else self.generation.waited_s

    def has_answered(self) -> bool:
        """Whether the last byte of the answer has been handed over."""
        return self.is_answered

    def begin(self, generation: "Generation") -> None:
        """Hear whose answer comes; a stream's head is sent, unless it has been to keep the client waiting."""
        self.generation = generation
        self._first_byte_s = time.monotonic()
        if generation.is_event_stream and not self.has_begun:
            self._head(200, EVENT_STREAM)

    def take(self, piece: bytes) -> Awaitable[None] | None:
        """Pass on whole events, or a whole answer; what it returns is to be awaited before the next piece."""
        assert self.generation is not None  # noqa: S101  `begin` comes first
        if self.generation.is_event_stream:
            return self._write(piece)
        return self._answer(200, _JSON, piece)

    async def finish(self) -> None:
        """End a stream, and wait until the client has what was sent."""
        if not self.is_answered:
            self._write(b"", more=False)
        await self._flow

    def keep_alive(self, now_s: float, after_s: float) -> None:
        """Send a comment where nothing was sent for so long: something between may close a connection that is silent.

        A stream that still waits begins with it. What fails then can only be told as an event.
        """
        if now_s - self._written_s < after_s or self._flow is not READY or self.is_answered:
            return
        if not self.has_begun:
            self._head(200, EVENT_STREAM)
        self._write(_KEEP_ALIVE)

    async def fail(self, error: RequestError) -> None:
        """Tell the client of a failure: as an answer, or as the end of a stream that has begun."""
        if self.is_answered:
            return
        if self.has_begun:
            self._write(self.dialect.error_events(error), more=False)
        else:
            self._answer(error.http_status, error.headers(), self.dialect.error_body(error))
        await self._flow

    def answer(self, body: bytes) -> None:
        """Send a whole answer that Muster itself has made."""
        self._answer(200, _JSON, body)

    def record(self, outcome: Outcome, metrics: "ProxyMetrics", reason: Reason | None = None) -> None:
        """Write the request's metrics and its one log line."""
        duration_s = time.monotonic() - self.started_s
        ttft_s = None if self._first_byte_s is None else self._first_byte_s - self.started_s
        metrics.ended(outcome, duration_s)
        generation, waited_s = self.generation, self.waited_s
        upstream = None if generation is None else generation.upstream
        if upstream is not None:
            metrics.answered(waited_s, ttft_s)
        usage = None if generation is None else generation.usage
        logs.info(
            "proxy",
            "request",
            {
                "request_id": self.request_id,
                "session_id": self.session_id,
                **agent_headers.read(self._headers),
                "tenant": self.tenant,
                "path": self.scope["path"],
                "model": self.model,
                "stream": self.is_stream,
                "outcome": outcome,
                "status": self._status or 499,  # nginx's word for a client that left before its answer
                "code": reason,
                "upstream": upstream,
                "tries": 0 if generation is None else generation.tries,
                "shared": self.is_shared,
                "queue_ms": _ms(waited_s),
                "ttft_ms": None if ttft_s is None else _ms(ttft_s),
                "total_ms": _ms(duration_s),
                "input_tokens": usage.input_tokens if usage else None,
                "output_tokens": usage.output_tokens if usage else None,
                "sent_bytes": self._sent_bytes,
            },
        )

    def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> Awaitable[None] | None:
        if self._first_byte_s is None:
            self._first_byte_s = time.monotonic()
        self._head(status, [*headers, (b"content-length", b"%d" % len(body))])
        return self._write(body, more=False)

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        now_s = time.monotonic()
        headers = [*headers, (_ID, self.request_id.encode()), (b"server-timing", self._server_timing(now_s))]
        if (upstream := self.upstream) is not None:
            headers.append((b"x-muster-upstream", upstream.encode()))
        if self.is_shared:
            headers.append(_SHARED)
        self._send({"type": "http.response.start", "status": status, "headers": headers})

    def _write(self, data: bytes, *, more: bool = True) -> Awaitable[None] | None:
        self._sent_bytes += len(data)
        self._written_s = time.monotonic()
        self.is_answered = not more
        flow = self._flow = self._send({"type": "http.response.body", "body": data, "more_body": more})
        return None if flow is READY else flow

    def _server_timing(self, now_s: float) -> bytes:
        taken = b"%.2f" % ((now_s - self.started_s) * 1000)
        total = b"" if self.is_stream else b", total;dur=" + taken
        return b"queue;dur=%.2f, ttft;dur=%b%b" % (self.waited_s * 1000, taken, total)


def _ms(seconds: float) -> float:
    """Milliseconds, to the hundredth; `round` takes ten times as long."""
    return int(seconds * 100_000) / 100
