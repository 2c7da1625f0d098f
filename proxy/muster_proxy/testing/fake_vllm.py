"""A fake engine: a real HTTP server that speaks as vLLM does, from a script or from a model of an engine.

The contract tests (`tests/proxy/test_engine_contract.py`) hold it to what a real engine does.

    async with FakeVllm() as engine:
        engine.script(Reply("Paris."))
        ...  # point a proxy at engine.url
        assert engine.requests[0].body["model"] == engine.model

With a profile it answers what is not scripted as that engine would, at that engine's pace:

    async with FakeVllm(profile=H200_8B) as engine:
        ...
"""

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muster_batching.samples import EngineSample
from muster_batching.testing import EngineProfile
from muster_observability import server
from muster_proxy.testing import asked, engine_metrics
from muster_proxy.testing.engine_metrics import EngineReading, EngineTotals
from muster_proxy.testing.engine_run import EngineRun
from muster_proxy.testing.modelled import ModelledAnswer

if TYPE_CHECKING:
    import uvicorn

_CREATED = 1_700_000_000
_MAX_MODEL_LEN = 32_768

MetricsMode: TypeAlias = Literal["honest", "missing", "stale", "zero", "full"]
"""What `/metrics` tells: the truth; nothing, with a 404; what it told last; no requests at all; or an engine with
no room and a long queue."""

_FULL_QUEUE = 1_000

_Play: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


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
        more: More fields of the model's entry in `/v1/models`; with a profile, `max_model_len` is heeded.
        profile: The engine to be, for requests that are not scripted; without one they get `Reply()`.
        speed: How many times faster than that engine it is.

    Attributes:
        requests: What it got, in order.
        arrived: Released once for each request.
        aborted: Released once for each request whose connection was closed before its answer was complete.
        in_flight: Requests that it works on now.
        peak: The most that it ever worked on at once.
        is_loading: Whether it answers 503 as an engine that loads its weights.
        metrics: What `/metrics` tells: at first the truth with a profile, nothing without one.
    """

    def __init__(
        self,
        model: str = "fake-model",
        port: int = 0,
        more: Mapping[str, Any] | None = None,
        *,
        profile: EngineProfile | None = None,
        speed: float = 1.0,
    ) -> None:
        self.model = model
        self.requests: list[Received] = []
        self.arrived = asyncio.Semaphore(0)
        self.aborted = asyncio.Semaphore(0)
        self.in_flight = 0
        self.peak = 0
        self.is_loading = False
        self.metrics: MetricsMode = "honest" if profile else "missing"
        self._run = EngineRun(profile, speed) if profile else None
        self._more = {**self._context(profile), **(more or {})}
        self._told = b""
        self._script: deque[Reply] = deque()
        self._listener = server.bind(port, "port")
        self._app = _Quiet(Starlette(routes=self._routes()))
        self._serving = server.serving(self._app, self._listener)
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
        """Give the next requests these replies; requests beyond the script get `Reply()`, or the model's answer."""
        self._script.extend(replies)

    def serve(self) -> server.ExitCode:
        """Serve as a process of its own until SIGINT or SIGTERM, in place of the `async with` block."""
        return server.serve(self._app, self._listener, part="fake-vllm", drain_s=1.0)

    async def __aenter__(self) -> Self:
        self._server = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._serving.__aexit__(None, None, None)
        if self._run is not None:
            self._run.close()
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

    async def _metrics(self, _request: Request) -> Response:
        if self.metrics == "missing":
            return Response(status_code=404)
        if self.metrics != "stale" or not self._told:
            self._told = engine_metrics.text_of(self._reading())
        return Response(self._told, media_type="text/plain; version=1.0.0; charset=utf-8")

    async def _completions(self, request: Request) -> Response:
        raw = await request.body()
        try:
            body = json.loads(raw)
        except ValueError:
            refused = asked.RefusedError(400, "Bad Request", "1 validation error: JSON decode error", "body")
            return JSONResponse(refused.body, refused.status)
        self.requests.append(Received(request.url.path, dict(request.headers), raw, body))
        reply = self._script.popleft() if self._script else None
        self.arrived.release()
        if reply is None and self._run is not None:
            return self._modelled(self._run, request, body)
        return _Answer(self, _Scripted(self, reply or Reply(), body).play)

    def _modelled(self, run: EngineRun, request: Request, body: dict[str, Any]) -> Response:
        is_chat = request.url.path.endswith("/chat/completions")
        if (priority := request.headers.get("x-vllm-priority")) is not None:
            body = {**body, "priority": int(priority)}
        try:
            wish = asked.read(
                body, is_chat=is_chat, model=self.model, max_model_len=self._more["max_model_len"]
            )
        except asked.RefusedError as refused:
            return JSONResponse(refused.body, refused.status)
        name = f"{'chatcmpl' if is_chat else 'cmpl'}-{len(self.requests):016x}"
        head = {"created": _CREATED, "model": self.model}
        return _Answer(self, ModelledAnswer(run, wish, name, head).play)

    def _routes(self) -> list[Route]:
        routes = [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._completions, methods=["POST"]),
        ]
        if self._run is not None:
            routes.append(Route("/v1/completions", self._completions, methods=["POST"]))
        return routes

    def _reading(self) -> EngineReading:
        profile = self._run.model.profile if self._run else None
        totals = self._run.totals if self._run else EngineTotals()
        return EngineReading(self.model, self._sample(), profile, totals)

    def _sample(self) -> EngineSample:
        honest = self._run.sample() if self._run else EngineSample(self.in_flight, 0)
        if self.metrics == "zero":
            return replace(honest, running=0, waiting=0, kv_usage=0.0)
        if self.metrics == "full":
            return replace(honest, waiting=_FULL_QUEUE, kv_usage=1.0)
        return honest

    @staticmethod
    def _context(profile: EngineProfile | None) -> dict[str, int]:
        return {"max_model_len": min(_MAX_MODEL_LEN, profile.kv_tokens)} if profile else {}


class _Answer(Response):
    """Plays an answer, and notices when its connection is closed before the end."""

    def __init__(self, engine: FakeVllm, play: _Play) -> None:
        super().__init__()
        self._engine = engine
        self._play = play

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._engine
        engine.in_flight += 1
        engine.peak = max(engine.peak, engine.in_flight)
        playing = asyncio.ensure_future(self._play(scope, _never(receive), send))
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


class _Scripted:
    """Plays a reply."""

    def __init__(self, engine: FakeVllm, reply: Reply, body: dict[str, Any]) -> None:
        self._engine = engine
        self._reply = reply
        self._body = body

    async def play(self, scope: Scope, receive: Receive, send: Send) -> None:
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
        await answer(scope, receive, send)

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
