"""The application: FastAPI with the relay as a plain ASGI route on it."""

import contextlib
from collections.abc import AsyncGenerator, Mapping

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from muster_batching import AsyncScheduler, Policy, RequestClass, Scheduler, WaitingLimits
from muster_observability.metrics import MetricsEndpoint, new_registry
from muster_observability.request_ids import REQUEST_ID, RequestIds, request_id_of
from muster_proxy.client import UpstreamClient
from muster_proxy.failures import Reason, RequestError
from muster_proxy.generation import Engines
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.relay import Relay
from muster_proxy.settings import ProxySettings
from muster_proxy.ticketing import TicketOffice
from muster_proxy.upstreams import Upstreams


def create_app(settings: ProxySettings) -> FastAPI:
    """The proxy as an ASGI application; its upstreams are probed while its lifespan runs."""
    scheduler = AsyncScheduler(Scheduler(_policy(settings)))
    registry = new_registry()
    metrics = ProxyMetrics(registry, scheduler)
    upstreams = Upstreams(
        settings.upstreams, scheduler, metrics, scrape_interval_s=settings.scrape_interval_s
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        client = UpstreamClient(
            connect_timeout_s=settings.connect_timeout_s, idle_timeout_s=settings.idle_timeout_s
        )
        office = TicketOffice()
        engines = Engines(scheduler, upstreams, client, office, metrics)
        relay = Relay(upstreams, engines, office, metrics, settings)
        path = "/v1/chat/completions"
        straight["POST", path] = relay
        app.router.routes.append(Route(path, relay, methods=["POST"]))  # for what else is asked of its path
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(client.close)
            await stack.enter_async_context(upstreams.watching(client))
            yield

    app = FastAPI(title="Muster", lifespan=lifespan, redirect_slashes=False, openapi_url=None)
    straight: dict[tuple[str, str], ASGIApp] = {}
    app.add_middleware(StraightRoutes, routes=straight)
    app.add_middleware(RequestIds)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    app.add_api_route("/health/live", _live, methods=["GET"])
    app.add_api_route("/health/ready", _ready(upstreams), methods=["GET"])
    app.add_api_route("/v1/models", _models(upstreams), methods=["GET"])
    app.router.routes.append(Route("/metrics", MetricsEndpoint(registry), methods=["GET"]))
    return app


class StraightRoutes:
    """Takes the calls of some routes straight to them.

    The way through the framework (its error handler, exit stack and router) costs each call as much as everything
    that the scheduler does for it, and these routes need none of it.

    Args:
        app: The application inside, for all other calls.
        routes: By method and path; it may grow.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        key = (scope.get("method", ""), scope.get("path", ""))
        await self._routes.get(key, self._app)(scope, receive, send)


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


async def _live() -> JSONResponse:
    return JSONResponse({"status": "live"})


def _ready(upstreams: Upstreams):  # noqa: ANN202  a route handler
    async def ready() -> JSONResponse:
        if upstreams.is_ready:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "waiting for an engine"}, 503, {"retry-after": "1"})

    return ready


def _models(upstreams: Upstreams):  # noqa: ANN202  a route handler
    async def models() -> Response:
        body = {"object": "list", "data": list(upstreams.models().values())}
        return Response(orjson.dumps(body), media_type="application/json")

    return models


async def _http_error(_request: Request, error: Exception) -> Response:
    """A path or method that does not exist, in OpenAI's shape."""
    assert isinstance(error, HTTPException)  # noqa: S101  it is registered for these
    if error.status_code == 405:  # noqa: PLR2004  HTTP's own number
        told = RequestError(Reason.METHOD_NOT_ALLOWED, allow=(error.headers or {}).get("Allow"))
    else:
        told = RequestError(Reason.URL_NOT_FOUND, status=error.status_code)
    return _response(told)


async def _internal_error(request: Request, _error: Exception) -> Response:
    """A fault of ours outside of the relay; the server logs its trace."""
    response = _response(RequestError(Reason.INTERNAL_ERROR))
    # This handler runs outside of every middleware.
    response.headers[REQUEST_ID] = request_id_of(request.scope)
    return response


def _response(error: RequestError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    return Response(error.body(), error.http_status, headers)
