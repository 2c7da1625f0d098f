"""Reading requests: their bodies, their paths, and who sends them. What is wrong with one is told as `{"detail": ...}`."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from muster_agent.callers import Caller
from muster_agent.service import Service
from muster_agent.wire import to_json

MAX_BODY_BYTES = 10_000_000

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


def add(app: FastAPI, method: str, path: str, handler: Handler, body: type[BaseModel] | None = None) -> None:
    """Add a route; `body` is what its documentation tells of the request."""
    told: dict[str, Any] = {}
    if body is not None:
        schema = body.model_json_schema(ref_template=f"#/components/schemas/{body.__name__}-{{model}}")
        schema.pop("$defs", None)
        told = {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": True}}
    app.add_api_route(path, handler, methods=[method], openapi_extra=told, response_class=Response)


async def read(request: Request, model: type[_Model]) -> _Model:
    """The request's body.

    Raises:
        ApiError: 400, no JSON; 413, too long; 422, not what the model says.
    """
    content = await _json(request)
    try:
        return model.model_validate({} if content is None else content)
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
        # Refuses NaN, lone surrogates and deep nesting, which the standard library lets through.
        return cast("object", orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not JSON: {error}") from None


def _explain(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"]) or "body"
    return f"{where}: {detail['msg']}"[:500]


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
