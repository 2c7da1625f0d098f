"""An engine that answers at the pace that a request asks for, and computes nothing.

    python -m tests.benchmarks.peers.paced_engine [--port N] [--slots N]

prints its port and serves OpenAI's chat completions, `/v1/models`, `/health`, `/metrics` in vLLM's names and `/stats`
until it is told to stop. It writes prepared bytes straight to the transport, so that what is measured is what stands in
front of it.
"""

import argparse
import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Any, cast

import httptools
import orjson
import uvloop

from tests.benchmarks.peers.pace import MODEL, Fault, Pace

BACKLOG = 4096
UNLIMITED = 1_000_000

_ABOUT = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": MODEL}
_JSON = b"application/json"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One event of a stream, in an HTTP chunk of its own as an engine writes it."""
    text = orjson.dumps({**_ABOUT, "object": "chat.completion.chunk", "choices": choices, **more})
    return _chunk(b"data: %s\n\n" % text)


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


def _delta(delta: dict[str, str], finish_reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]


_ROLE = _event(_delta({"role": "assistant", "content": ""}))
_TOKEN = _event(_delta({"content": " token"}))
_STOP = _event(_delta({}, "stop"))
_END = _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 50, "completion_tokens": tokens, "total_tokens": 50 + tokens}


@functools.cache
def _whole(tokens: int) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " token" * tokens},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return orjson.dumps({**_ABOUT, "object": "chat.completion", "choices": [choice], "usage": _usage(tokens)})


class PacedEngine:
    """Who is being answered.

    Args:
        slots: Requests that are answered at a time; the rest waits, first come first served.
    """

    def __init__(self, slots: int = UNLIMITED) -> None:
        self._slots = asyncio.Semaphore(slots)
        self.running = self.waiting = self.peak = 0
        self.started = self.finished = self.aborted = 0

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """The right to be answered, for the length of the block."""
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()

    def page(self, path: bytes) -> tuple[bytes, bytes]:
        """Body and content type of what GET answers at a path; peers ask for paths of their own."""
        match path:
            case b"/v1/models":
                model = {
                    "id": MODEL,
                    "object": "model",
                    "created": 1,
                    "owned_by": "vllm",
                    "max_model_len": 4096,
                }
                return orjson.dumps({"object": "list", "data": [model]}), _JSON
            case b"/metrics":
                return self._metrics(), b"text/plain; version=0.0.4; charset=utf-8"
            case b"/stats":
                counts = {name: value for name, value in vars(self).items() if isinstance(value, int)}
                return orjson.dumps(counts), _JSON
            case _:
                return orjson.dumps({"model_path": MODEL, "served_model_name": MODEL}), _JSON

    def _metrics(self) -> bytes:
        shown = {
            "num_requests_running": self.running,
            "num_requests_waiting": self.waiting,
            "kv_cache_usage_perc": 0.1,
        }
        lines = (f'vllm:{name}{{model_name="{MODEL}"}} {value}\n' for name, value in shown.items())
        return "".join(lines).encode()


class Answering(asyncio.Protocol):
    """One connection to the engine; requests on it come one after the other."""

    def __init__(self, engine: PacedEngine) -> None:
        self._engine = engine
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._body = b"", b""
        self._generation: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Hang up, now."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the signature is asyncio's
        """Called by the event loop. A closed connection aborts the request, as in vLLM."""
        if self._generation is not None and not self._generation.done():
            self._generation.cancel()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._url, self._body = b"", b""

    def on_url(self, url: bytes) -> None:
        """Called by the parser, perhaps with a part of it."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Called by the parser, perhaps with a part of it."""
        self._body += body

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._parser.get_method() == b"GET":
            self._send(*self._engine.page(self._url.partition(b"?")[0]))
        else:
            self._generation = asyncio.ensure_future(self._generate(orjson.loads(self._body)))

    def _send(self, body: bytes, content_type: bytes = _JSON, status: bytes = b"200 OK") -> None:
        head = b"HTTP/1.1 %s\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % (status, content_type, len(body)) + body)

    async def _generate(self, request: dict[str, Any]) -> None:
        engine = self._engine
        engine.started += 1
        try:
            async with engine.slot():
                await self._answer(
                    Pace.read(request), bool((request.get("stream_options") or {}).get("include_usage"))
                )
        except asyncio.CancelledError:
            engine.aborted += 1
            raise
        engine.finished += 1

    async def _answer(self, pace: Pace, with_usage: bool) -> None:
        if pace.first_ms:
            await asyncio.sleep(pace.first_ms / 1e3)
        if pace.fault is Fault.ERROR:
            error = {"message": "Made to fail.", "type": "InternalServerError", "code": 500}
            self._send(orjson.dumps({"error": error}), status=b"500 Internal Server Error")
        elif pace.is_stream:
            await self._stream(pace, with_usage)
        elif pace.fault is Fault.NONE:
            self._send(_whole(pace.tokens))
        else:
            await self._fail(pace)

    async def _stream(self, pace: Pace, with_usage: bool) -> None:
        self._transport.write(_STREAM_HEAD + _ROLE)
        clock = asyncio.get_running_loop().time
        due_s = clock()
        for number in range(pace.tokens):
            if pace.gap_ms:
                due_s += pace.gap_ms / 1e3  # from the last due time, so that lateness does not add up
                await asyncio.sleep(max(0.0, due_s - clock()))
            if pace.fault is not Fault.NONE and number >= pace.fault_at:
                await self._fail(pace)
                return
            self._transport.write(_TOKEN)
        usage = _event([], usage=_usage(pace.tokens)) if with_usage else b""
        self._transport.write(_STOP + usage + _END)

    async def _fail(self, pace: Pace) -> None:
        if pace.fault is Fault.RESET:
            self._transport.abort()
        elif pace.fault is Fault.SHORT:
            if not pace.is_stream:
                self._transport.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999\r\n\r\n{"
                )
            self._transport.close()
        else:
            await asyncio.Event().wait()  # until the connection is closed


async def _serve(port: int, slots: int) -> None:
    engine = PacedEngine(slots)
    loop = asyncio.get_running_loop()
    serving = await loop.create_server(lambda: Answering(engine), "127.0.0.1", port, backlog=BACKLOG)
    print(serving.sockets[0].getsockname()[1], flush=True)
    await serving.serve_forever()


def main() -> None:
    """Serve until told to stop."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    options.add_argument("--slots", type=int, default=UNLIMITED, help="requests answered at a time")
    chosen = options.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_serve(chosen.port, chosen.slots))


if __name__ == "__main__":
    main()
