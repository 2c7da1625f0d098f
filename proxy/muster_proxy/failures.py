"""Every way in which a request can fail, and what its client is told: one table, in OpenAI's error shape.

`{"error": {"message", "type", "param", "code"}}`, with `retry-after` (whole seconds) and `x-should-retry`
(read by OpenAI's SDKs) where trying again can help. Messages never hold a prompt, an address or a trace.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import orjson

from muster_batching import TurnAwayReason


class Reason(StrEnum):
    """Why a request failed; its value is the error's `code`."""

    INVALID_JSON = "invalid_json"
    INVALID_VALUE = "invalid_value"
    INVALID_HTTP = "invalid_http"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    UNSUPPORTED_ENCODING = "unsupported_content_encoding"
    BODY_TOO_LARGE = "request_too_large"
    INVALID_API_KEY = "invalid_api_key"
    TOO_MANY_BAD_KEYS = "too_many_bad_keys"
    AUTHENTICATION_UNAVAILABLE = "authentication_unavailable"
    MODEL_NOT_FOUND = "model_not_found"
    URL_NOT_FOUND = "unknown_url"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_REJECTED = "request_rejected"
    REQUEST_QUARANTINED = "request_quarantined"
    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    READ_TOO_SLOWLY = "read_too_slowly"
    UPSTREAM_BUSY = "upstream_busy"
    NO_HEALTHY_UPSTREAM = "no_healthy_upstream"
    UPSTREAM_LOST = "upstream_lost"
    UPSTREAM_STREAM_ERROR = "upstream_stream_error"
    UPSTREAM_PROTOCOL_ERROR = "upstream_protocol_error"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_AUTH_ERROR = "upstream_auth_error"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    SHUTTING_DOWN = "server_shutting_down"
    INTERNAL_ERROR = "internal_error"


class Row(NamedTuple):
    """How a reason is told: HTTP status, OpenAI's error type, message, seconds until a retry helps."""

    status: int
    type: str
    message: str
    retry_after_s: float | None = None


_CALLER = "invalid_request_error"
_OURS = "server_error"

TABLE: dict[Reason, Row] = {
    Reason.INVALID_JSON: Row(400, _CALLER, "The request body is not valid JSON."),
    Reason.INVALID_VALUE: Row(400, _CALLER, "The request has an invalid value."),
    Reason.INVALID_HTTP: Row(400, _CALLER, "The request is not valid HTTP/1.1."),
    Reason.HEADERS_TOO_LARGE: Row(431, _CALLER, "The request's line and headers are too large or too many."),
    Reason.REQUEST_TIMEOUT: Row(408, _CALLER, "The request did not come whole in time."),
    Reason.UNSUPPORTED_ENCODING: Row(415, _CALLER, "Send the request body without content-encoding."),
    Reason.BODY_TOO_LARGE: Row(413, _CALLER, "The request body is too large."),
    Reason.INVALID_API_KEY: Row(
        401, _CALLER, "Incorrect API key provided. Send one as authorization: Bearer KEY."
    ),
    Reason.TOO_MANY_BAD_KEYS: Row(
        429, "rate_limit_error", "Too many wrong API keys came from this address.", 30
    ),
    Reason.AUTHENTICATION_UNAVAILABLE: Row(503, _OURS, "The API key cannot be checked just now.", 2),
    Reason.MODEL_NOT_FOUND: Row(404, _CALLER, "The model does not exist."),
    Reason.URL_NOT_FOUND: Row(404, _CALLER, "There is nothing at this URL."),
    Reason.METHOD_NOT_ALLOWED: Row(405, _CALLER, "This URL does not take this method."),
    Reason.REQUEST_REJECTED: Row(400, _CALLER, "The engine rejected the request."),
    Reason.REQUEST_QUARANTINED: Row(
        400, _CALLER, "Engines died with this request; it is sent to none for an hour."
    ),
    Reason.QUEUE_FULL: Row(429, "rate_limit_error", "Too many requests are waiting.", 1),
    Reason.QUEUE_TIMEOUT: Row(429, "rate_limit_error", "The request waited too long for its turn.", 1),
    Reason.DEADLINE_UNREACHABLE: Row(
        429, "rate_limit_error", "The first token would come after the request's deadline.", 1
    ),
    Reason.READ_TOO_SLOWLY: Row(408, _CALLER, "The answer was read too slowly."),
    Reason.UPSTREAM_BUSY: Row(503, _OURS, "The engine takes no more requests just now.", 1),
    Reason.NO_HEALTHY_UPSTREAM: Row(503, _OURS, "No engine that serves this model can be reached.", 2),
    Reason.UPSTREAM_LOST: Row(503, _OURS, "The engine was lost before it answered.", 2),
    Reason.UPSTREAM_STREAM_ERROR: Row(502, _OURS, "The engine was lost in the middle of the answer."),
    Reason.UPSTREAM_PROTOCOL_ERROR: Row(502, _OURS, "The engine's answer could not be understood."),
    Reason.UPSTREAM_ERROR: Row(502, _OURS, "The engine failed."),
    Reason.UPSTREAM_AUTH_ERROR: Row(502, _OURS, "The engine refused this server's credentials."),
    Reason.UPSTREAM_TIMEOUT: Row(504, _OURS, "The engine took too long."),
    Reason.SHUTTING_DOWN: Row(503, _OURS, "The server is shutting down.", 2),
    Reason.INTERNAL_ERROR: Row(500, _OURS, "The server failed."),
}

TURNED_AWAY: dict[TurnAwayReason, Reason] = {
    TurnAwayReason.WAITING_FULL: Reason.QUEUE_FULL,
    TurnAwayReason.WAITING_BYTES_FULL: Reason.QUEUE_FULL,
    TurnAwayReason.WAITED_TOO_LONG: Reason.QUEUE_TIMEOUT,
    TurnAwayReason.DEADLINE: Reason.DEADLINE_UNREACHABLE,
    TurnAwayReason.NO_UPSTREAM: Reason.NO_HEALTHY_UPSTREAM,
    TurnAwayReason.UNKNOWN_POOL: Reason.MODEL_NOT_FOUND,
}


@dataclass(eq=False)
class RequestError(Exception):
    """A request that fails, with what its client is told.

    Attributes:
        reason: The row of the table.
        message: Instead of the row's own.
        param: The field of the request that is at fault, as `messages[0].content`.
        retry_after_s: Instead of the row's own.
        status: Instead of the row's own.
        allow: The methods that the URL takes, for a 405.
    """

    reason: Reason
    message: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    status: int | None = None
    allow: str | None = None

    @property
    def http_status(self) -> int:
        """The HTTP status to answer with."""
        return self.status or TABLE[self.reason].status

    def body(self) -> bytes:
        """The error in OpenAI's shape, as JSON."""
        row = TABLE[self.reason]
        error = {
            "message": self.message or row.message,
            "type": row.type,
            "param": self.param,
            "code": self.reason.value,
        }
        return orjson.dumps({"error": error})

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of an HTTP answer with this error."""
        headers = [(b"content-type", b"application/json")]
        retry_after_s = self.retry_after_s or TABLE[self.reason].retry_after_s
        if retry_after_s is not None:
            headers += [
                (b"retry-after", str(math.ceil(retry_after_s)).encode()),
                (b"x-should-retry", b"true"),
            ]
        if self.allow is not None:
            headers.append((b"allow", self.allow.encode("latin-1")))
        return headers

    def events(self) -> bytes:
        """The error as the end of an event stream that has begun."""
        return b"data: " + self.body() + b"\n\ndata: [DONE]\n\n"


def unknown_model(param: str) -> RequestError:
    """The error of a model's name that none has.

    Args:
        param: Where it was named.
    """
    return RequestError(
        Reason.MODEL_NOT_FOUND, "The model does not exist; GET /v1/models lists those that do.", param
    )
