"""One request on its way through the proxy: its identity, its times, and the answer to its client."""

import time
from typing import TYPE_CHECKING

from muster_batching import Outcome
from muster_observability import logs
from muster_observability.request_ids import is_identifier, request_id_of
from muster_proxy.failures import RequestError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from muster_proxy.generation import Generation
    from muster_proxy.metrics import ProxyMetrics

_SHARED = (b"x-muster-shared", b"true")

_log = logs.get("proxy")


class Exchange:
    """One request and its answer.

    Args:
        scope: The ASGI scope.
        receive: The ASGI application's `receive`.
        send: The ASGI application's `send`.

    Attributes:
        started_s: When the request came, on `time.monotonic`.
        is_answered: Whether the last byte of the answer has been handed over.
        request_id: Goes to the engine, to the client and into the log.
        session_id: The conversation or agent run that the client names in `x-session-id`, if any.
        model: The model asked for, once known to exist.
        generation: What is made for it, from the moment at which it asks for a slot.
        is_shared: Whether another request leads that generation.
    """

    def __init__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.started_s = time.monotonic()
        self._first_byte_s: float | None = None
        self._status = 0
        self._sent_bytes = 0
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of a name counts
        self.is_answered = False
        self.request_id = request_id_of(scope)
        session_id = self.header(b"x-session-id")
        self.session_id = session_id if session_id and is_identifier(session_id) else None
        self.model = ""
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

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the answer."""
        self._status = status
        self._first_byte_s = time.monotonic()
        headers = [*headers, (b"server-timing", self._server_timing().encode())]
        if (upstream := self.upstream) is not None:
            headers.append((b"x-muster-upstream", upstream.encode()))
        if self.is_shared:
            headers.append(_SHARED)
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

    def record(self, outcome: Outcome, metrics: "ProxyMetrics", error: RequestError | None = None) -> None:
        """Write the request's metrics and its one log line."""
        duration_s = time.monotonic() - self.started_s
        ttft_s = None if self._first_byte_s is None else self._first_byte_s - self.started_s
        metrics.ended(outcome, duration_s)
        upstream, waited_s = self.upstream, self.waited_s
        if upstream is not None:
            metrics.answered(waited_s, ttft_s)
        usage = None if self.generation is None else self.generation.usage
        _log.info(
            "request",
            request_id=self.request_id,
            session_id=self.session_id,
            model=self.model,
            stream=self.is_stream,
            outcome=outcome.value,
            status=self._status or 499,  # nginx's word for a client that left before its answer
            code=error.reason.value if error else None,
            upstream=upstream,
            shared=self.is_shared,
            queue_ms=_ms(waited_s),
            ttft_ms=None if ttft_s is None else _ms(ttft_s),
            total_ms=_ms(duration_s),
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            sent_bytes=self._sent_bytes,
        )

    def _server_timing(self) -> str:
        taken_ms = _ms(time.monotonic() - self.started_s)
        total = "" if self.is_stream else f", total;dur={taken_ms}"
        return f"queue;dur={_ms(self.waited_s)}, ttft;dur={taken_ms}{total}"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
