"""The agent service as an ASGI application."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from muster_agent import failures
from muster_agent.chat import ChatEndpoint, failure_response
from muster_agent.chat_request import MODEL_ID
from muster_agent.failures import Failure
from muster_agent.graph import build, connect
from muster_agent.measures import Measures
from muster_agent.models import ModelName
from muster_agent.runs import Runner
from muster_agent.settings import AgentSettings
from muster_agent.threads import Threads
from muster_agent.tools import TOOLS
from muster_observability.metrics import MetricsEndpoint, new_registry
from muster_observability.request_ids import REQUEST_ID, RequestIds, request_id_of


def create_app(settings: AgentSettings) -> FastAPI:
    """Make the application; it asks nothing of the proxy until the first run."""
    registry = new_registry()
    measures = Measures(registry, [tool.name for tool in TOOLS])
    clients = connect(settings)
    graph = build(clients.model, measures, settings.max_steps)
    runner = Runner(
        graph,
        Threads(graph, settings.max_threads),
        ModelName(settings.model, clients.openai),
        measures,
        settings,
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncGenerator[None]:
        yield
        await clients.http.aclose()

    app = FastAPI(
        title="Muster agent",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would lose the body, and some clients their headers
    )
    app.add_route("/ok", _ok, methods=["GET"])
    app.router.routes.append(Route("/metrics", MetricsEndpoint(registry), methods=["GET"]))
    app.add_route("/v1/models", _models, methods=["GET"])
    app.add_route(
        "/v1/chat/completions",
        ChatEndpoint(runner, measures, settings.keep_alive_s).__call__,
        methods=["POST"],
    )
    _shape_failures(app)
    app.add_middleware(RequestIds)
    return app


async def _ok(_request: Request) -> Response:
    return JSONResponse({"ok": True})


async def _models(_request: Request) -> Response:
    model = {"id": MODEL_ID, "object": "model", "created": 0, "owned_by": "muster"}
    return JSONResponse({"object": "list", "data": [model]})


def _shape_failures(app: FastAPI) -> None:
    """Give every failure OpenAI's shape, those of the framework included."""

    @app.exception_handler(Failure)
    async def failed(_request: Request, failure: Failure) -> Response:
        return failure_response(failure)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        words = HTTPStatus(error.status_code).phrase
        message = f"{words}: {request.method} {request.url.path}"[:300]
        response = failure_response(failures.of_status(error.status_code, message))
        response.headers.update(error.headers or {})  # `allow` on a 405
        return response

    @app.exception_handler(Exception)
    async def broke(request: Request, _error: Exception) -> Response:
        response = failure_response(failures.internal())
        # This handler runs outside of every middleware.
        response.headers[REQUEST_ID] = request_id_of(request.scope)
        return response
