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
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from muster_batching.samples import EngineSample
from muster_batching.testing import EngineProfile
from muster_observability import server
from muster_proxy.testing import asked, engine_metrics, plain
from muster_proxy.testing.engine_metrics import EngineReading, EngineTotals
from muster_proxy.testing.engine_run import EngineRun
from muster_proxy.testing.modelled import ModelledAnswer
from muster_proxy.testing.scripted import CutError, Reply, ScriptedAnswer, Stage
from muster_proxy.testing.spoken import Head

if TYPE_CHECKING:
    import uvicorn

_CREATED_S = 1_700_000_000
_MAX_MODEL_LEN = 32_768

MetricsMode: TypeAlias = Literal["honest", "missing", "stale", "zero", "full"]
"""What `/metrics` tells: the truth; nothing, with a 404; what it told last; no requests at all; or an engine with
no room and a long queue."""

_FULL_QUEUE = 1_000

_Play: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_GENERATING: Mapping[str, asked.Route] = {
    "/v1/chat/completions": "chat",
    "/v1/chat/completions/batch": "batch",
    "/v1/completions": "completions",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
}


@dataclass(frozen=True)
class Received:
    """A request that the engine got."""

    path: str
    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Any]


class FakeVllm:
    """A fake engine on 127.0.0.1, serving for as long as its `async with` block runs.

    It serves what generates, `/tokenize` and `/detokenize`, and what pooling models serve: `/v1/embeddings`,
    `/v1/rerank` and `/v1/score`. What is scripted is answered whatever is asked for; the rest only if vLLM would.

    Args:
        model: The model that it serves.
        port: 0 takes a free one.
        more: More fields of the model's entry in `/v1/models`; `max_model_len` is heeded.
        profile: The engine to be, for requests that are not scripted; without one they get `Reply()`.
        speed: How many times faster than that engine it is.
        pooling: Whether it serves what pooling models serve; vLLM with a model that generates does not.

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
        pooling: bool = True,
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
        self._max_model_len: int = self._more.get("max_model_len", _MAX_MODEL_LEN)
        self._plain = plain.Plain(self._max_model_len)
        self._told = b""
        self._script: deque[Reply] = deque()
        self._listener = server.bind(port, "port")
        self._app = _Quiet(_application(self._routes(pooling=pooling)))
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
        entry = {"id": self.model, "object": "model", "created": _CREATED_S, "owned_by": "vllm"}
        return JSONResponse({"object": "list", "data": [entry | self._more]})

    async def _metrics(self, _request: Request) -> Response:
        if self.metrics == "missing":
            return Response(status_code=404)
        if self.metrics != "stale" or not self._told:
            self._told = engine_metrics.text_of(self._reading())
        return Response(self._told, media_type="text/plain; version=1.0.0; charset=utf-8")

    async def _post(self, request: Request) -> Response:
        raw = await request.body()
        route = _GENERATING.get(request.url.path)
        try:
            body = _read(request, raw)
            self.requests.append(Received(request.url.path, dict(request.headers), raw, body))
            reply = self._script.popleft() if self._script else None
            self.arrived.release()
            given = {
                name: value for name, value in body.items() if value is not None
            }  # null is as good as absent
            return _Answer(self, self._play(request, given, reply))
        except asked.RefusedError as refused:
            return JSONResponse(refused.body_for(route), refused.status)

    def _play(self, request: Request, body: dict[str, Any], reply: Reply | None) -> _Play:
        """How a request is answered; what no script is for is judged first."""
        route = _GENERATING.get(request.url.path)
        head = Head(len(self.requests), _CREATED_S, self.model)
        if reply is None and route is not None:
            asked.check(body, route, model=self.model, max_model_len=self._max_model_len)
            if self._run is not None:
                wish = asked.read(_with_priority(request, body), route)
                return ModelledAnswer(self._run, wish, head, self._max_model_len).play
        no_body: Mapping[str, Any] = {}
        answer = self._plain.answer(request.url.path, body, head) if route is None and not reply else no_body
        stage = Stage(asked.read(body, route) if route else None, head, answer, self.cut)
        return ScriptedAnswer(reply or Reply(), stage).play

    def _routes(self, *, pooling: bool) -> list[Route]:
        paths = [*_GENERATING, *plain.TOKEN_PATHS, *(plain.POOLING_PATHS if pooling else ())]
        return [
            Route("/health", self._health),
            Route("/metrics", self._metrics),
            Route("/v1/models", self._models),
            *(Route(path, self._post, methods=["POST"]) for path in paths),
        ]

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


class _Quiet:
    """Ends a cut answer without a trace in the log; uvicorn closes the connection of any that is unfinished."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        with contextlib.suppress(CutError):
            await self._app(scope, receive, send)


def _application(routes: list[Route]) -> Starlette:
    """The routes, and FastAPI's own words, which are vLLM's, for a path or a method that is not among them."""

    def refuse(_request: Request, error: Exception) -> Response:
        status, said = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
        return JSONResponse({"detail": said}, status)

    return Starlette(routes=routes, exception_handlers={HTTPException: refuse})


def _read(request: Request, raw: bytes) -> dict[str, Any]:
    """A body's JSON.

    Raises:
        RefusedError: It is none, or no object.
    """
    kind = request.headers.get("content-type", "application/json")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise asked.RefusedError(400, "Bad Request", "1 validation error: Unsupported Media Type", None)
    try:
        body = json.loads(raw)
    except ValueError:
        message = "1 validation error: JSON decode error"
        raise asked.RefusedError(400, "Bad Request", message, "body") from None
    if not isinstance(body, dict):
        message = "1 validation error: Input should be a valid dictionary"
        raise asked.RefusedError(400, "Bad Request", message, "body")
    return body  # pyright: ignore[reportUnknownVariableType]  JSON's keys are texts


def _with_priority(request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """The body, with the priority that a header gives in place of its own."""
    priority = request.headers.get("x-vllm-priority")
    return body if priority is None else {**body, "priority": int(priority)}


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _never(_receive: Receive) -> Receive:
    """A `receive` that says nothing: the disconnect is watched for elsewhere."""

    async def receive() -> Mapping[str, Any]:
        await asyncio.Event().wait()
        return {}

    return receive  # pyright: ignore[reportReturnType]  it never returns
