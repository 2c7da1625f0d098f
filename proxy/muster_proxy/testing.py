"""A fake engine for tests: a real HTTP server that speaks as vLLM does, from a script.

The contract tests (`tests/proxy/test_engine_contract.py`) hold it to what a real engine does.

    async with FakeVllm() as engine:
        engine.script(Reply("Paris."))
        ...  # point a proxy at engine.url
        assert engine.requests[0].body["model"] == engine.model
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muster_observability import server

if TYPE_CHECKING:
    import uvicorn

_CREATED = 1_700_000_000


@dataclass(frozen=True)
class Reply:
    """What the engine does with one request.

    Attributes:
        text: The answer; a stream gives it word by word.
        finish_reason: How it ends.
        status: Of the HTTP answer; anything but 200 answers with `error`.
        error: The body of an error.
        headers: More headers of an error.
        raw: The answer's body, in these pieces, in place of what `text` would give.
        content_type: Of a raw answer.
        release: The first byte waits for it.
        breaks_after: Pieces after which the connection is cut; 0 cuts it before the answer's head.
        pauses_after: Pieces after which a stream waits for `resume`.
        resume: See `pauses_after`.
    """

    text: str = "Hello there, how are you?"
    finish_reason: str = "stop"
    status: int = 200
    error: Mapping[str, Any] | bytes = field(default_factory=dict[str, Any])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    raw: Sequence[bytes] | None = None
    content_type: str = "application/json"
    release: asyncio.Event | None = None
    breaks_after: int | None = None
    pauses_after: int | None = None
    resume: asyncio.Event | None = None


@dataclass(frozen=True)
class Received:
    """A request that the engine got."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Any]


class _CutError(Exception):
    """Leaves the answer unfinished: the server then cuts the connection."""


class FakeVllm:
    """A fake engine on 127.0.0.1, serving for as long as its `async with` block runs.

    Args:
        model: The model that it serves.
        port: 0 takes a free one.
        more: More fields of the model's entry in `/v1/models`.

    Attributes:
        requests: What it got, in order.
        arrived: Released once for each request.
        aborted: Released once for each request whose connection was closed before its answer was complete.
        in_flight: Requests that it works on now.
        peak: The most that it ever worked on at once.
        is_loading: Whether it answers 503 as an engine that loads its weights.
    """

    def __init__(
        self, model: str = "fake-model", port: int = 0, more: Mapping[str, Any] | None = None
    ) -> None:
        self.model = model
        self.requests: list[Received] = []
        self.arrived = asyncio.Semaphore(0)
        self.aborted = asyncio.Semaphore(0)
        self.in_flight = 0
        self.peak = 0
        self.is_loading = False
        self._more = dict(more or {})
        self._script: deque[Reply] = deque()
        self._listener = server.bind(port, "port")
        app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
        )
        self._serving = server.serving(_Quiet(app), self._listener)
        self._server: uvicorn.Server | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Its root URL."""
        return f"http://{server.LOOPBACK}:{self.port}"

    def script(self, *replies: Reply) -> None:
        """Give the next requests these replies; requests beyond the script get `Reply()`."""
        self._script.extend(replies)

    async def __aenter__(self) -> Self:
        self._server = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._serving.__aexit__(None, None, None)
        self._listener.close()

    def cut(self, scope: Scope) -> None:
        """Close a request's connection as a process that is killed does: at once, with a reset."""
        connections: set[Any] = set(self._server.server_state.connections) if self._server else set()
        for connection in connections:
            if connection.client == scope["client"]:
                connection.transport.abort()

    async def _health(self, _request: Request) -> Response:
        return Response(status_code=503 if self.is_loading else 200)

    async def _models(self, _request: Request) -> Response:
        entry = {"id": self.model, "object": "model", "created": _CREATED, "owned_by": "vllm"}
        return JSONResponse({"object": "list", "data": [entry | self._more]})

    async def _chat(self, request: Request) -> Response:
        raw = await request.body()
        body = json.loads(raw)
        self.requests.append(Received(request.url.path, dict(request.headers), raw, body))
        reply = self._script.popleft() if self._script else Reply()
        self.arrived.release()
        return _Answer(self, reply, body)


class _Answer(Response):
    """Plays a reply, and notices when its connection is closed before the end."""

    def __init__(self, engine: FakeVllm, reply: Reply, body: dict[str, Any]) -> None:
        super().__init__()
        self._engine = engine
        self._reply = reply
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._engine
        engine.in_flight += 1
        engine.peak = max(engine.peak, engine.in_flight)
        playing = asyncio.ensure_future(self._play(scope, receive, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({playing, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done():
                playing.cancel()
                engine.aborted.release()
        finally:
            engine.in_flight -= 1
            gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await playing

    async def _play(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = self._reply
        if reply.release is not None:
            await reply.release.wait()
        if reply.breaks_after == 0:
            self._engine.cut(scope)
            return
        if reply.status != 200:  # noqa: PLR2004  HTTP's own number
            error = reply.error if isinstance(reply.error, bytes) else json.dumps(reply.error).encode()
            answer = Response(error, reply.status, dict(reply.headers), "application/json")
        elif reply.raw is not None:
            answer = StreamingResponse(self._paced(reply.raw), media_type=reply.content_type)
        elif self._body.get("stream"):
            pieces = [b"data: " + json.dumps(each).encode() + b"\n\n" for each in self._chunks()]
            answer = StreamingResponse(
                self._paced([*pieces, b"data: [DONE]\n\n"]), media_type="text/event-stream"
            )
        else:
            answer = JSONResponse(self._completion())
        await answer(scope, _never(receive), send)

    async def _paced(self, pieces: Sequence[bytes]) -> AsyncGenerator[bytes]:
        for number, piece in enumerate(pieces):
            if number == self._reply.breaks_after:
                raise _CutError
            if number == self._reply.pauses_after and self._reply.resume is not None:
                await self._reply.resume.wait()
            yield piece

    def _words(self) -> list[str]:
        return [word for word in self._reply.text.replace(" ", "\0 ").split("\0") if word]

    def _usage(self) -> dict[str, int]:
        prompt, completion = len(self._body["messages"]), len(self._words())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _completion(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self._reply.text}
        choices = [
            {"index": index, "message": message, "logprobs": None, "finish_reason": self._reply.finish_reason}
            for index in range(self._body.get("n") or 1)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage()}

    def _chunks(self) -> list[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [({"content": word}, None) for word in self._words()]
        deltas.append(({}, self._reply.finish_reason))
        chunks = [
            {**head, "choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]}
            for delta, reason in deltas
            for index in range(self._body.get("n") or 1)
        ]
        options: dict[str, Any] = self._body.get("stream_options") or {}
        if options.get("include_usage"):
            chunks.append({**head, "choices": [], "usage": self._usage()})
        return chunks

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": "chatcmpl-fake",
            "object": kind,
            "created": _CREATED,
            "model": self._engine.model,
        }


class _Quiet:
    """Ends a cut answer without a trace in the log; uvicorn closes the connection of any that is unfinished."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        with contextlib.suppress(_CutError):
            await self._app(scope, receive, send)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _never(_receive: Receive) -> Receive:
    """A `receive` that says nothing: the disconnect is watched for elsewhere."""

    async def receive() -> Mapping[str, Any]:
        await asyncio.Event().wait()
        return {}

    return receive  # pyright: ignore[reportReturnType]  it never returns
