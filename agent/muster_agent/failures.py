"""Every way a request can fail, in OpenAI's error shape.

Whose fault it is decides the status: the caller's is 4xx, the proxy's or the model's is what the proxy said
where that helps the caller and 502 or 503 otherwise, ours is 500. A proxy's words are relayed only where
they are about the caller's request; other errors may tell of hosts and addresses that are not the caller's.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import openai

_UNPROCESSED = "invalid_request_error"
_SERVER = "server_error"
_TRY_AGAIN_S = "1"

TIMEOUT = "run_timeout"
"""The code of a run that took too long."""


@dataclass(eq=False)
class Failure(Exception):  # noqa: N818 - it is how a request ends, and what the client is shown
    """A request's failure, ready to be shown.

    Args:
        status: The HTTP status, where no answer has begun.
        message: What was expected and what was got; never a prompt.
        error_type: OpenAI's `type`.
        code: OpenAI's `code`, the machine's word for it.
        param: The field of the request that is wrong.
        retry_after: The `retry-after` header's value.
        may_be_repeated: Whether the same request may be sent again; if not, OpenAI's clients are told not to, whatever
            the status.
    """

    status: int
    message: str
    error_type: str = _SERVER
    code: str | None = None
    param: str | None = None
    retry_after: str | None = None
    may_be_repeated: bool = True

    def __post_init__(self) -> None:
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, object]:
        """The JSON object that the client gets."""
        return {
            "error": {
                "message": self.message,
                "type": self.error_type,
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with it."""
        told = {} if self.retry_after is None else {"retry-after": self.retry_after}
        return told if self.may_be_repeated else {**told, "x-should-retry": "false"}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> Failure:
    """The caller's request is wrong."""
    return Failure(400, message, _UNPROCESSED, code, param)


def of_status(status: int, message: str) -> Failure:
    """The caller's request reaches nothing here: 404, 405, 413, 415."""
    return Failure(status, message, _UNPROCESSED)


def unknown_model(name: str) -> Failure:
    """The caller asked for a model that is not here."""
    message = f"The model `{name[:64]}` does not exist here. GET /v1/models lists those that do."
    return Failure(404, message, _UNPROCESSED, "model_not_found", "model")


def run_timeout(limit_s: float) -> Failure:
    """The run took too long."""
    return Failure(504, f"The run took longer than {limit_s:g} seconds.", _SERVER, TIMEOUT)


def run_cancelled() -> Failure:
    """Somebody cancelled the run. Not a status that the SDKs try again."""
    return Failure(400, "The run was cancelled.", _UNPROCESSED, "run_cancelled")


def client_too_slow() -> Failure:
    """The client has read so slowly that the rest of its answer is lost."""
    message = "The answer was read too slowly, and is lost in part."
    return Failure(503, message, _SERVER, "client_too_slow", may_be_repeated=False)


def not_found(message: str, param: str | None = None) -> Failure:
    """The caller has no such thing; it may be another's, which is not told."""
    return Failure(404, message, _UNPROCESSED, "not_found", param)


def internal() -> Failure:
    """A fault of this service."""
    return Failure(500, "The agent service failed. Its log has this request's id.", _SERVER, "internal_error")


def wrong_key() -> Failure:
    """The caller's key is nobody's, or there is none where one is needed."""
    message = "Incorrect API key provided, or none where one is needed."
    return Failure(401, message, _UNPROCESSED, "invalid_api_key")


def unknown_name() -> Failure:
    """The caller asks for a name that is not known to be the service's."""
    message = "This service is not known by the name in Host: list it in MUSTER_AGENT_ALLOWED_HOSTS."
    return Failure(403, message, _UNPROCESSED, "unknown_host")


def proxy_unavailable() -> Failure:
    """The proxy cannot be asked."""
    return _unavailable(503, "The proxy cannot be reached.")


def unreadable_answer() -> Failure:
    """What the proxy sent is no answer of an OpenAI model."""
    message = "The model's answer broke off or could not be read."
    return Failure(502, message, _SERVER, "proxy_protocol_error")


def no_model() -> Failure:
    """The proxy lists no model yet."""
    return Failure(503, "The proxy lists no model.", _SERVER, "proxy_unavailable", retry_after=_TRY_AGAIN_S)


def of_model_call(error: openai.OpenAIError) -> Failure:
    """What the caller is told of a failed call to the proxy."""
    match error:
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return Failure(502, "The proxy refused the key of a model call.", _SERVER, "proxy_auth_error")
        case openai.APIStatusError():
            return _of_answer(error)
        case openai.APIConnectionError():
            return _unavailable(503, "The connection to the proxy failed.")
        case openai.APIError():  # an error event in a stream that had begun
            return Failure(502, "The model's answer broke off.", _SERVER, _code(error) or "proxy_unavailable")
        case _:
            return _unavailable(502, "The call to the proxy failed.")


def _of_answer(error: openai.APIStatusError) -> Failure:
    if error.status_code in {429, 503}:
        retry_after = error.response.headers.get("retry-after")
        kind = error.type or ("rate_limit_error" if error.status_code == 429 else _SERVER)  # noqa: PLR2004 - HTTP's own number
        return Failure(error.status_code, _message(error), kind, _code(error), retry_after=retry_after)
    if 400 <= error.status_code < 500:  # noqa: PLR2004 - HTTP's own numbers
        kind = error.type or _UNPROCESSED
        return Failure(error.status_code, _message(error), kind, _code(error), error.param)
    return _unavailable(502, "The proxy failed.")


def _unavailable(status: int, message: str) -> Failure:
    return Failure(status, message, _SERVER, "proxy_unavailable", retry_after=_TRY_AGAIN_S)


def _code(error: openai.APIError) -> str | None:
    return None if error.code is None else str(error.code)  # some servers send a number


def _message(error: openai.APIError) -> str:
    """The proxy's own words, without what the SDK puts around them."""
    body: object = error.body
    if isinstance(body, dict):
        words: object = body.get("message")  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - foreign JSON
        if isinstance(words, str):
            return words
    return "The proxy turned the model call away."


@contextmanager
def told() -> Generator[None]:
    """Tell what goes wrong with a model call as the client may know it.

    Raises:
        Failure: It went wrong.
    """
    try:
        yield
    except openai.OpenAIError as error:
        raise of_model_call(error) from error
    except Failure:
        raise
    except Exception as error:  # the SDK raises whatever a broken answer leads to
        raise unreadable_answer() from error
