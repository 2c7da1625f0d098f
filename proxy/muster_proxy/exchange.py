"""One request on its way through the proxy: its identity, its times, and the answer to its client."""

import time
from typing import TYPE_CHECKING

from muster_observability import logs
from muster_observability.request_ids import header_of, is_identifier, request_id_of
from muster_proxy.failures import RequestError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from muster_proxy.metrics import ProxyMetrics

_log = logs.get("proxy")


class Exchange:
    """One request and its answer.

    Args:
        scope: The ASGI scope.
        receive: The ASGI application's `receive`.
        send: The ASGI application's `send`.

    Attributes:
        is_answered: Whether the last byte of the answer has been handed over.
        request_id: Goes to the engine, to the client and into the log.
        session_id: The conversation or agent run that the client names, if any.
        model: The model asked for, once known to exist.
        upstream: The name of the upstream that answers, once dispatched.
        waited_s: Time spent waiting for a slot.
        usage: Input and output tokens as the engine accounted for them.
    """

    def __init__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self._started_s = time.monotonic()
        self._first_byte_s: float | None = None
        self._status = 0
        self._sent_bytes = 0
        self.is_answered = False
        self.request_id = request_id_of(scope)
        session_id = header_of(scope, "x-session-id")
        self.session_id = session_id if session_id and is_identifier(session_id) else None
        self.model = ""
        self.upstream: str | None = None
        self.is_stream = False
        self.waited_s = 0.0
        self.usage: tuple[int, int] | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the client has been sent the head of an answer."""
        return self._status != 0

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the answer."""
        self._status = status
        self._first_byte_s = time.monotonic()
        headers = [*headers, (b"server-timing", self._server_timing().encode())]
        if self.upstream is not None:
            headers.append((b"x-muster-upstream", self.upstream.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body; waits while the client does not read."""
        self._sent_bytes += len(data)
        self.is_answered = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a whole answer."""
        await self.begin(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.write(body, more=False)

    async def fail(self, error: RequestError) -> None:
        """Tell the client of a failure: as an answer, or as the end of a stream that has begun."""
        if not self.has_begun:
            await self.answer(error.http_status, error.headers(), error.body())
        else:
            await self.write(error.events(), more=False)

    def record(self, outcome: str, metrics: "ProxyMetrics", error: RequestError | None = None) -> None:
        """Write the request's metrics and its one log line."""
        duration_s = time.monotonic() - self._started_s
        ttft_s = None if self._first_byte_s is None else self._first_byte_s - self._started_s
        metrics.requests.labels(outcome=outcome).inc()
        metrics.duration_s.observe(duration_s)
        if self.upstream is not None:
            metrics.queue_s.observe(self.waited_s)
            if ttft_s is not None:
                metrics.ttft_s.observe(ttft_s)
        if self.usage is not None:
            metrics.tokens.labels(direction="input").inc(self.usage[0])
            metrics.tokens.labels(direction="output").inc(self.usage[1])
        _log.info(
            "request",
            request_id=self.request_id,
            session_id=self.session_id,
            model=self.model,
            stream=self.is_stream,
            outcome=outcome,
            status=self._status or 499,  # nginx's word for a client that left before its answer
            code=error.reason.value if error else None,
            upstream=self.upstream,
            queue_ms=_ms(self.waited_s),
            ttft_ms=None if ttft_s is None else _ms(ttft_s),
            total_ms=_ms(duration_s),
            input_tokens=self.usage[0] if self.usage else None,
            output_tokens=self.usage[1] if self.usage else None,
            sent_bytes=self._sent_bytes,
        )

    def _server_timing(self) -> str:
        now_s = time.monotonic()
        parts = [f"queue;dur={_ms(self.waited_s)}", f"ttft;dur={_ms(now_s - self._started_s)}"]
        if not self.is_stream:
            parts.append(f"total;dur={_ms(now_s - self._started_s)}")
        return ", ".join(parts)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
