"""Every request has an id, and every response carries it."""

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muster_agent import identity


class RequestIds:
    """Takes the client's `x-request-id` where it is well formed, makes one otherwise, and sends it back.

    The application finds it as `request.state.request_id`.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        given = request.headers.get(identity.REQUEST_ID, "")
        request_id = given if identity.is_well_formed(given) else identity.new_request_id()
        request.state.request_id = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[identity.REQUEST_ID] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)
