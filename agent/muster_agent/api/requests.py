"""Reading requests: their bodies, paths and senders. What is wrong with one is told as `{"detail": ...}`."""

import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast

import orjson
from fastapi import FastAPI
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.api import document
from muster_agent.api.content import NUL, ContentError, read_json
from muster_agent.callers import Caller
from muster_agent.service import Service
from muster_agent.wire import to_json

MAX_BODY_BYTES = 10_000_000
MAX_METADATA_BYTES = 262_144

_MOST_FILTERS = 64

_Model = TypeVar("_Model", bound=BaseModel)

Handler = Callable[[Request], Awaitable[Response]]


class ApiError(Exception):
    """A request cannot be answered.

    Attributes:
        status: The HTTP status.
        detail: What was expected and what was got; no prompt.
    """

    def __init__(self, status: int, detail: str) -> None:
        self.status = status
        self.detail = detail
        super().__init__(detail)


class Body(BaseModel):
    """A request's body. Fields that are not listed are ignored: clients are of many releases."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Json:
    """A JSON response that is written as states are."""

    value: Any
    status: int = 200
    headers: dict[str, str] | None = None

    def response(self) -> Response:
        """It."""
        return Response(to_json(self.value), self.status, self.headers, "application/json")


def add(
    app: FastAPI,
    method: str,
    path: str,
    handler: Handler,
    body: type[BaseModel] | None = None,
    query: Sequence[str] = (),
) -> None:
    """Add a route; `body` and `query` are what its documentation tells of the request."""
    extra = document.operation(path, body, query)
    name = handler.__name__.strip("_").replace("_", " ").capitalize()
    app.add_api_route(
        path, handler, methods=[method], openapi_extra=extra, response_class=Response, summary=name
    )


async def read(request: Request, model: type[_Model]) -> _Model:
    """The request's body.

    Raises:
        ApiError: 400, no JSON; 413, too long; 422, not what the model says.
    """
    content = await _json(request)
    return check(model, {} if content is None else content)


def check(model: type[_Model], content: object) -> _Model:
    """What a client sent, as the model says it is.

    Raises:
        ApiError: 422, it is not.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ApiError(422, _explain(error)) from None


async def _json(request: Request) -> object:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")
    if not body:
        return None
    try:
        return read_json(body)
    except ContentError as error:
        raise ApiError(400, f"The body is {error}.") from None


def _is_small(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
        raise ValueError(f"it is larger than {MAX_METADATA_BYTES} bytes")
    return metadata


def _are_few(filters: dict[str, Any]) -> dict[str, Any]:
    # Each key is a condition of a query, those of objects inside too.
    if _keys_in(filters) > _MOST_FILTERS:
        raise ValueError(f"it has more than {_MOST_FILTERS} keys")
    return filters


def _keys_in(value: object) -> int:
    if not isinstance(value, dict):
        return 0
    inside = cast("dict[str, Any]", value)
    return len(inside) + sum(_keys_in(each) for each in inside.values())


Metadata = Annotated[dict[str, Any], AfterValidator(_is_small)]
"""What a client notes beside a thread or a run."""

Filters = Annotated[dict[str, Any], AfterValidator(_are_few)]
"""What is searched for."""


def _explain(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part)[:64] for part in detail["loc"]) or "body"
    return f"{where}: {detail['msg'].removeprefix('Value error, ')}"[:500]


def path_id(request: Request, name: str, words: str) -> str:
    """A UUID of the request's path, in its usual spelling.

    Raises:
        ApiError: 422, it is none.
    """
    return checked_id(request.path_params[name], words)


def checked_id(text: str, words: str) -> str:
    """A UUID in its usual spelling.

    Raises:
        ApiError: 422, it is none.
    """
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise ApiError(422, f"Invalid {words} ID: must be a UUID") from None


def query_text(request: Request, name: str) -> str | None:
    """A text of the request's query; None where it is not there.

    Raises:
        ApiError: 422, it has a NUL, which PostgreSQL cannot store.
    """
    text = request.query_params.get(name)
    if text is not None and NUL in text:
        raise ApiError(422, f"{name} must be text without NUL")
    return text


def number(request: Request, name: str, default: int, most: int) -> int:
    """A number of the request's query, from 0 to `most`.

    Raises:
        ApiError: 422, it is none.
    """
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or len(text) > 9 or int(text) > most:  # noqa: PLR2004 - digits
        raise ApiError(422, f"{name} must be a number from 0 to {most}")
    return int(text)


def is_set(request: Request, name: str) -> bool:
    """Whether a flag of the query is set."""
    return request.query_params.get(name, "").lower() in {"1", "true", "yes"}


def service_of(request: Request) -> Service:
    """The service."""
    service: Service = request.app.state.service
    return service


async def caller_of(request: Request) -> Caller:
    """Who sends the request.

    Raises:
        Failure: Nobody, or the proxy cannot be asked.
    """
    return await service_of(request).callers.identify(request.headers)
