"""The `mcp` package's client, with what it lacks."""

import logging
from contextlib import suppress
from datetime import timedelta
from typing import Final

import anyio
from mcp import ClientSession, types
from mcp.shared.message import MessageMetadata
from mcp.shared.session import ProgressFnT, ReceiveResultT

ENDED: Final[tuple[int, str]] = (types.CONNECTION_CLOSED, "Connection closed")
"""How the package tells those who wait that the connection has ended."""
FORGOTTEN: Final[tuple[int, str]] = (32600, "Session terminated")
"""How the package reports status 404: the server does not know the session (any more)."""
_TELLING_S: Final = 1.0
"""Seconds that telling a server of a cancelled call may hold up the caller."""
_MOST_LISTED: Final = 1000


class Client(ClientSession):
    """The package's client, which forgets a cancelled call; this one tells the server."""

    async def call(self, tool: str, arguments: dict[str, object]) -> types.CallToolResult:
        """Call a tool.

        The package's own `call_tool` checks the answer against the tool's output schema, on the event loop,
        with patterns that the server has chosen; only text is used here, so nothing is gained by it.
        """
        params = types.CallToolRequestParams(name=tool, arguments=arguments)
        request = types.ClientRequest(types.CallToolRequest(params=params))
        return await self.send_request(request, types.CallToolResult)

    async def send_request(
        self,
        request: types.ClientRequest,
        result_type: type[ReceiveResultT],
        request_read_timeout_seconds: timedelta | None = None,
        metadata: MessageMetadata = None,
        progress_callback: ProgressFnT | None = None,
    ) -> ReceiveResultT:
        """Send a request; one that is cancelled is cancelled at the server, too."""
        number = self._request_id  # what the next request gets: nothing runs between here and there
        try:
            return await super().send_request(
                request, result_type, request_read_timeout_seconds, metadata, progress_callback
            )
        except anyio.get_cancelled_exc_class():
            if isinstance(request.root, types.CallToolRequest):
                await self._tell_cancelled(number)
            raise

    async def _tell_cancelled(self, number: int) -> None:
        params = types.CancelledNotificationParams(requestId=number)
        notification = types.ClientNotification(types.CancelledNotification(params=params))
        with anyio.move_on_after(_TELLING_S, shield=True):
            with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # nobody is left to tell
                await self.send_notification(notification)


async def listed(client: ClientSession) -> list[types.Tool]:
    """All tools of the server, page by page, up to a number that no model could choose from."""
    page = await client.list_tools()
    tools = list(page.tools)
    while page.nextCursor and len(tools) < _MOST_LISTED:
        page = await client.list_tools(params=types.PaginatedRequestParams(cursor=page.nextCursor))
        tools += page.tools
    return tools


def _is_ours(record: logging.LogRecord) -> bool:
    return "/mcp/shared/" not in record.pathname


def quieten() -> None:
    """Keep the package's own log lines out of ours: they hold addresses, session ids and what servers send.

    It logs under its modules' names, as `client`, and from `mcp.shared` on the root logger itself.
    """
    for name in ("mcp", "client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger().addFilter(_is_ours)  # once: adding the same filter again does nothing
