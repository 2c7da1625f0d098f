"""Every request has an id, and every answer carries it."""

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = "x-request-id"

_IDENTIFIER = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_identifier(text: str) -> bool:
    """Whether a client's identifier may be used: 1 to 128 letters, digits, dots, hyphens, underscores.

    Anything else could forge a header or a line of a log.
    """
    return _IDENTIFIER.fullmatch(text) is not None


def header_of(scope: "Scope", name: str) -> str | None:
    """The first request header of that lower-case name."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), None)


def request_id_of(scope: "Scope") -> str:
    """The id that `RequestIds` gave the request."""
    request_id: str = scope["muster.request_id"]
    return request_id


def new_request_id() -> str:
    """A new id; 128 bits of chance, as a UUID of version 4 has."""
    return f"req_{os.urandom(16).hex()}"


def request_id_for(given: str | None) -> str:
    """The client's `x-request-id` where it is an identifier, else a new one."""
    return given if given and is_identifier(given) else new_request_id()


class RequestIds:
    """Takes the client's `x-request-id` where it is an identifier, makes one otherwise, and sends it back.

    Args:
        app: The application inside.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = request_id_for(header_of(scope, REQUEST_ID))
        scope["muster.request_id"] = request_id
        header = (REQUEST_ID.encode(), request_id.encode())

        async def send_with_id(message: "Message") -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        await self._app(scope, receive, send_with_id)
