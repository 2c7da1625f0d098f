"""The agent service as an ASGI application."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from muster_agent import failures
from muster_agent.agents.declarations import AgentsFile, default_agents
from muster_agent.api import origins
from muster_agent.api.assistants import add_assistants
from muster_agent.api.meta import add_meta
from muster_agent.api.protocol import add_protocol
from muster_agent.api.requests import ApiError, Json
from muster_agent.api.runs import add_runs
from muster_agent.api.store import add_store
from muster_agent.api.thread_stream import add_thread_stream
from muster_agent.api.threads import add_threads
from muster_agent.failures import Failure
from muster_agent.measures import Measures
from muster_agent.openai_api.chat import add_chat
from muster_agent.openai_api.conversations import add_conversations
from muster_agent.openai_api.models import add_models
from muster_agent.openai_api.responses import add_responses
from muster_agent.runs.front import NoRunError
from muster_agent.runs.records import ThreadBusyError, ThreadExistsError, ThreadNotFoundError
from muster_agent.runs.thread_rows import FilterError
from muster_agent.service import open_service
from muster_agent.settings import AgentSettings
from muster_agent.tools.complaints import ToolkitError
from muster_observability.metrics import MetricsEndpoint, new_registry
from muster_observability.request_ids import REQUEST_ID, RequestIds, request_id_of
from muster_storage import StorageError

_CLIENT_LEFT = 499  # nobody reads it; it is what the log shows
_BUSY = "Thread is already running a task. Wait for it to finish or choose a different multitask strategy."


@dataclass(slots=True)
class Opening:
    """How the start went: what could not be opened is the operator's to mend, and needs no trace.

    Attributes:
        problem: What is wrong and what to do; None if nothing is.
    """

    problem: str | None = None


def create_app(
    settings: AgentSettings, agents: AgentsFile | None = None, opening: Opening | None = None
) -> FastAPI:
    """Make the application; it asks nothing of the proxy until the first request.

    Args:
        settings: The service's settings.
        agents: Its agents; None for the one that there is without a file.
        opening: Told what could not be opened when it starts.
    """
    opening = opening or Opening()
    registry = new_registry()
    measures = Measures(registry)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        async with AsyncExitStack() as opened:
            try:
                service = open_service(settings, agents or default_agents(), measures)
                app.state.service = await opened.enter_async_context(service)
            except (StorageError, ToolkitError) as error:
                opening.problem = str(error)
                raise
            yield

    app = FastAPI(
        title="Muster agent",
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would lose the body, and some clients their headers
    )
    add_meta(app)
    app.router.routes.append(Route("/metrics", MetricsEndpoint(registry), methods=["GET"]))
    for add in (
        add_assistants,
        add_threads,
        add_runs,
        add_store,
        add_thread_stream,
        add_protocol,
        add_models,
        add_chat,
        add_responses,
        add_conversations,
    ):
        add(app)
    _tell_failures(app)
    origins.let_in(app, settings.allowed_origins, _foreign)
    app.add_middleware(RequestIds)  # outside of it: preflights have an id, too
    return app


def _tell_failures(app: FastAPI) -> None:
    """Tell every failure in the shape of the interface: OpenAI's under `/v1`, LangGraph's elsewhere."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Failure, _failure)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _broke)
    known: dict[type[Exception], tuple[int, str]] = {
        ThreadNotFoundError: (404, "Thread with ID {} not found"),
        ThreadExistsError: (409, "Thread with ID {} already exists"),
        ThreadBusyError: (409, _BUSY),
        NoRunError: (404, "Not Found"),
        FilterError: (422, "cannot filter by this key"),
    }
    for kind, (status, words) in known.items():
        app.add_exception_handler(kind, _Telling(status, words))


class _Telling:
    """Tells an error whose text names what is meant."""

    def __init__(self, status: int, words: str) -> None:
        self._status = status
        self._words = words

    async def __call__(self, request: Request, error: Exception) -> Response:
        return _told(request, self._status, self._words.format(error))


def _told(request: Request, status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    if request.url.path.startswith("/v1"):
        return failure_response(failures.of_status(status, message), headers)
    return Json({"detail": message}, status, headers).response()


def failure_response(failure: Failure, headers: dict[str, str] | None = None) -> Response:
    """A failure in OpenAI's shape."""
    return Json(failure.body, failure.status, {**failure.headers, **(headers or {})}).response()


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - Starlette types its handlers for any
    return _told(request, error.status, error.detail)


async def _failure(request: Request, failure: Exception) -> Response:
    assert isinstance(failure, Failure)  # noqa: S101 - likewise
    if request.url.path.startswith("/v1"):
        return failure_response(failure)
    return Json({"detail": failure.message}, failure.status, failure.headers).response()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - likewise
    words = HTTPStatus(error.status_code).phrase
    message = f"{words}: {request.method} {request.url.path}"[:300]
    return _told(request, error.status_code, message, dict(error.headers or {}))  # `allow` on a 405


def _foreign(request: Request) -> Response:
    message = "a page of another site may not do this; MUSTER_AGENT_ALLOWED_ORIGINS lets pages in"
    return _told(request, HTTPStatus.FORBIDDEN, message)


async def _left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=_CLIENT_LEFT)


async def _broke(request: Request, _error: Exception) -> Response:
    # This handler runs outside of every middleware.
    allowed = request.app.state.service.settings.allowed_origins
    headers = {REQUEST_ID: request_id_of(request.scope), **origins.headers_for(request, allowed)}
    if request.url.path.startswith("/v1"):
        return failure_response(failures.internal(), headers)
    return Json({"detail": failures.internal().message}, 500, headers).response()
