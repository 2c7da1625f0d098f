"""The ASGI messages of an answer, and the headers of a call, which are the same whichever client is used."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Message

PATH = "/v1/chat/completions"
REQUEST_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}

END: "Message" = {"type": "http.response.body", "body": b"", "more_body": False}


def head(status: int, content_type: str, content_length: str | None) -> "Message":
    """The head of an answer: of the engine's headers, those that tell of the body."""
    headers = [(b"content-type", content_type.encode("latin-1"))]
    if content_length is not None:
        headers.append((b"content-length", content_length.encode("latin-1")))
    return {"type": "http.response.start", "status": status, "headers": headers}


def piece(body: bytes) -> "Message":
    """A piece of its body."""
    return {"type": "http.response.body", "body": body, "more_body": True}
