"""Reading requests of OpenAI's clients: whatever is wrong with one is a 4xx that names the field, and never a 5xx.

Fields that are not listed are ignored. Where a JSON key is repeated, the last one counts.
"""

from typing import TypeVar, cast

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from muster_agent import failures
from muster_agent.agents.assistants import Assistant
from muster_agent.api.requests import MAX_BODY_BYTES, service_of
from muster_agent.failures import Failure
from muster_agent.nesting import is_too_deep

_LONGEST_COMPLAINT = 300

_Model = TypeVar("_Model", bound=BaseModel)


class Strict(BaseModel):
    """A part of a request: types are not converted, since a client that sends others means something else."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


async def read_body(request: Request) -> bytes:
    """The body, under its size limit; a longer one is refused before it is read.

    Raises:
        Failure: 413, or 415 for a compressed body.
        ClientDisconnect: The client left.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise failures.of_status(415, "Compressed request bodies are not accepted.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
    return bytes(body)


def _too_large() -> Failure:
    return failures.of_status(413, f"The body is larger than {MAX_BODY_BYTES} bytes.")


def parsed(body: bytes, model: type[_Model]) -> _Model:
    """A body as a model.

    Raises:
        Failure: 400.
    """
    try:
        # Refuses NaN, lone surrogates and deep nesting, which the standard library lets through.
        content: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # The parser's message tells what was expected and where, not what was there.
        raise failures.bad_request(f"The body is not JSON: {error}", code="invalid_json") from None
    if is_too_deep(body, content):
        raise failures.bad_request("The body is nested too deeply.", code="invalid_json")
    if not isinstance(content, dict):
        raise failures.bad_request("The body must be a JSON object.", code="invalid_body")
    try:
        return model.model_validate(cast("dict[str, object]", content))
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> Failure:
    """The first thing that is wrong; what was sent is not repeated, since it may be a prompt."""
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"]]
    where = "".join(parts).lstrip(".")[:_LONGEST_COMPLAINT]
    message = detail["msg"].removeprefix("Value error, ")
    return failures.bad_request(f"{where}: {message}"[:_LONGEST_COMPLAINT], param=where)


def assistant_of(request: Request, model: str) -> Assistant:
    """The assistant that a client calls by `model`.

    Raises:
        Failure: 404, there is none.
    """
    found = service_of(request).assistants.by_model(model)
    if found is None:
        raise failures.unknown_model(model)
    return found
