"""The application: FastAPI with the relay as plain ASGI routes beside it."""

import contextlib
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import cast

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from muster_batching import AsyncScheduler, Policy, RequestClass, Scheduler, WaitingLimits
from muster_batching.tickets import NOBODY
from muster_observability import logs
from muster_observability.metrics import MetricsEndpoint, new_registry
from muster_observability.request_ids import REQUEST_ID, RequestIds, request_id_of
from muster_proxy import openapi
from muster_proxy.admission import Admission
from muster_proxy.client import Timeouts, UpstreamClient
from muster_proxy.failures import Reason, RequestError, unknown_model
from muster_proxy.generation import Engines
from muster_proxy.keys import Door, Identity, door
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.probing import Watch
from muster_proxy.relay import Relay, RelayRoute
from muster_proxy.settings import ProxySettings
from muster_proxy.ticketing import TicketOffice
from muster_proxy.upstreams import Upstreams
from muster_proxy.wire import Kind

_log = logs.get("proxy")

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/metrics", "/openapi.json"})
"""What may be asked without a key: whatever a cluster asks of every server, and holds nothing of a tenant's."""

KEYED_PATHS = frozenset(
    {"/v1/models", "/v1/models/{model}", "/v1/muster/key", *(kind.value for kind in Kind)}
)
"""What needs a key, where there are keys. A route is in one of the two, or the application does not start."""


@dataclass(slots=True)
class Readiness:
    """Whether the proxy takes work.

    Attributes:
        is_draining: Set when it has been told to stop.
    """

    is_draining: bool = False

    def drain(self) -> None:
        """Take no more work, as far as others are told."""
        self.is_draining = True


@dataclass(slots=True)
class Application:
    """The proxy as an ASGI application.

    The calls to engines go straight to the relay: the way through the framework (its error handler, exit stack and
    router) costs each call as much as everything that the scheduler does for it.

    Attributes:
        framework: Serves everything else.
        readiness: What `/health/ready` says.
        straight: The routes that are served here, by method and path.
    """

    framework: FastAPI
    readiness: Readiness
    straight: dict[tuple[str, str], ASGIApp] = field(default_factory=dict[tuple[str, str], ASGIApp])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        key = (scope.get("method", ""), scope.get("path", ""))
        await self.straight.get(key, self.framework)(scope, receive, send)


def create_app(settings: ProxySettings, keys: Door | None = None) -> Application:
    """The proxy as an ASGI application; its upstreams are probed while its lifespan runs.

    Args:
        settings: The proxy's.
        keys: In place of those of the settings.
    """
    scheduler = AsyncScheduler(Scheduler(_policy(settings)))
    registry = new_registry()
    metrics = ProxyMetrics(registry, scheduler)
    upstreams = Upstreams(
        scheduler, metrics, settings.aliases, stall_s=settings.stall_s, peers=settings.workers
    )
    admission = Admission(keys or door(settings.keys))
    readiness = Readiness()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        client = UpstreamClient(_timeouts(settings))
        office = TicketOffice()
        engines = Engines(scheduler, upstreams, client, office, metrics, retries=settings.retries)
        relay = Relay(admission, upstreams, engines, office, metrics, settings)
        for kind in Kind:
            straight = application.straight["POST", kind.value] = RelayRoute(relay, kind)
            # For what else is asked of its path.
            app.router.routes.append(Route(kind.value, straight, methods=["POST"]))
        check_policies(app.router.routes)
        watch = Watch(upstreams, scheduler, client, scrape_interval_s=settings.scrape_interval_s)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            await stack.enter_async_context(watch.watching(settings.upstreams, relay.keep_alive()))
            yield

    app = FastAPI(title="Muster", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    _tell_errors(app)
    app.add_api_route("/health/live", _live, methods=["GET"])
    app.add_api_route("/health/ready", _ready(upstreams, readiness), methods=["GET"])
    app.add_api_route("/openapi.json", _openapi, methods=["GET"])
    _add_keyed(app, upstreams, admission)
    app.router.routes.append(Route("/metrics", MetricsEndpoint(registry), methods=["GET"]))
    application = Application(app, readiness)
    return application


def _add_keyed(app: FastAPI, upstreams: Upstreams, admission: Admission) -> None:
    """Add what is answered here and needs a key."""
    models = _Models(upstreams, admission)
    app.add_api_route("/v1/models", models.list, methods=["GET"])
    app.add_api_route("/v1/models/{model:path}", models.retrieve, methods=["GET"])  # names have slashes
    app.add_api_route("/v1/muster/key", _key(admission), methods=["GET"])


def _tell_errors(app: FastAPI) -> None:
    app.add_middleware(RequestIds)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestError, _refusal)
    app.add_exception_handler(Exception, _internal_error)


def check_policies(routes: list[BaseRoute]) -> None:
    """Check that every route says who may ask it.

    Raises:
        RuntimeError: One does not.
    """
    for route in routes:
        path = cast("str", getattr(route, "path", "")).replace(":path}", "}")
        if (path in OPEN_PATHS) == (path in KEYED_PATHS):
            raise RuntimeError(f"expected {path} in one of OPEN_PATHS and KEYED_PATHS")


def _timeouts(settings: ProxySettings) -> Timeouts:
    return Timeouts(
        connect_s=settings.connect_timeout_s,
        first_byte_s=settings.first_byte_timeout_s,
        idle_s=settings.idle_timeout_s,
        total_s=settings.total_timeout_s,
    )


def _policy(settings: ProxySettings) -> Policy:
    waiting = WaitingLimits(settings.max_waiting, settings.max_waiting_bytes, settings.max_wait_s)
    return Policy(
        waiting={
            RequestClass.INTERACTIVE: waiting,
            RequestClass.STANDARD: waiting,
            RequestClass.BATCH: WaitingLimits(
                settings.batch_max_waiting, settings.batch_max_waiting_bytes, settings.batch_max_wait_s
            ),
        },
        max_hold_s=settings.max_wait_s / 2,
    )


async def _openapi() -> Response:
    return Response(openapi.encoded(), media_type="application/json")


async def _live() -> JSONResponse:
    return JSONResponse({"status": "live"})


def _ready(upstreams: Upstreams, readiness: Readiness):  # noqa: ANN202  a route handler
    async def ready() -> JSONResponse:
        if readiness.is_draining:
            return JSONResponse({"status": "stopping"}, 503)
        if upstreams.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "waiting for an engine"}, 503, {"retry-after": "1"})

    return ready


class _Models:
    """The handlers that tell of models.

    Args:
        upstreams: Serve them.
        admission: Says who may ask.
    """

    def __init__(self, upstreams: Upstreams, admission: Admission) -> None:
        self._upstreams = upstreams
        self._admission = admission

    async def list(self, request: Request) -> Response:
        """All of them."""
        _identify(self._admission, request)
        return _json({"object": "list", "data": self._upstreams.entries()})

    async def retrieve(self, request: Request) -> Response:
        """One, by its name or alias."""
        _identify(self._admission, request)
        name: str = request.path_params["model"]
        entry = next((each for each in self._upstreams.entries() if each["id"] == name), None)
        if entry is None:
            raise unknown_model("model")
        return _json(entry)


def _key(admission: Admission):  # noqa: ANN202  a route handler
    async def key(request: Request) -> Response:
        """Tell whose key came; never the key, nor anything that is computed from it."""
        identity = _identify(admission, request)
        told = {
            "object": "muster.key",
            "tenant": NOBODY if admission.is_open else identity.tenant,
            "name": identity.key_name,
            "class": identity.ceiling,
        }
        return _json(told, {"cache-control": "no-store"})

    return key


def _identify(admission: Admission, request: Request) -> Identity:
    headers = request.headers
    return admission.identify(headers.get("authorization"), headers.get("x-api-key"), request.client)


def _json(body: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), headers=headers, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    """A path or method that does not exist, in OpenAI's shape."""
    assert isinstance(error, HTTPException)  # noqa: S101  it is registered for these
    if error.status_code == 405:  # noqa: PLR2004  HTTP's own number
        told = RequestError(Reason.METHOD_NOT_ALLOWED, allow=(error.headers or {}).get("Allow"))
    else:
        told = RequestError(Reason.URL_NOT_FOUND, status=error.status_code)
    return await _refusal(request, told)


async def _refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101  it is registered for these
    request_id = request_id_of(request.scope)
    _log.info("refused", request_id=request_id, status=error.http_status, code=error.reason.value)
    return _response(error)


async def _internal_error(request: Request, _error: Exception) -> Response:
    """A fault of ours outside of the relay; the server logs its trace."""
    response = _response(RequestError(Reason.INTERNAL_ERROR))
    # This handler runs outside of every middleware.
    response.headers[REQUEST_ID] = request_id_of(request.scope)
    return response


def _response(error: RequestError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.http_status, headers)
