"""MCP servers over HTTP on the loopback interface, in the test's own process so that it sees what they see."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp import types
from mcp.server.fastmcp import FastMCP
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.datastructures import Headers
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from muster_observability import server

NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
ONE_TEXT: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
}
PIXEL = "iVBORw0KGgo="


def tool(name: str, description: str = "", schema: dict[str, Any] = NO_ARGUMENTS) -> types.Tool:
    """A tool as a server lists it."""
    return types.Tool(name=name, description=description or f"The {name} tool.", inputSchema=schema)


class ToolServer:
    """A server whose tools do what their names say; it remembers what it was asked.

    Args:
        tools: What it lists; a test may change them.
        as_json: Answer with JSON bodies, not with streams.
    """

    def __init__(self, *tools: types.Tool, as_json: bool = False) -> None:
        self.tools = list(tools)
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.sessions: list[str] = []
        self.seen: list[Headers] = []
        self.forgotten: set[str] = set()
        self.is_broken = False
        self.mute: set[str] = set()
        self.dripping: dict[str, str] = {}
        self.drips: list[anyio.Event] = []
        self.waiting = anyio.Event()
        self.cancelled = anyio.Event()
        self.ended: defaultdict[str, anyio.Event] = defaultdict(anyio.Event)
        self._mcp: Server[Any, Any] = Server("tools")
        self._mcp.list_tools()(self._list)
        self._mcp.call_tool(validate_input=False)(self._call)
        self._manager = StreamableHTTPSessionManager(self._mcp, json_response=as_json)
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["ToolServer"]:
        """Serve until left."""
        async with self._manager.run(), serving(self) as url:
            self.url = url + "/mcp"
            yield self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server as an ASGI application."""
        headers = Headers(scope=scope)
        self.seen.append(headers)
        if headers.get("mcp-session-id") in self.forgotten:
            await Response(status_code=404)(scope, receive, send)
            return
        if self.is_broken:
            await Response(status_code=500)(scope, receive, send)
            return
        if headers.get("mcp-session-id") in self.mute and scope["method"] == "POST":
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        if (media_type := self.dripping.get(headers.get("mcp-session-id", ""))) and scope["method"] == "POST":
            await StreamingResponse(self._drip(), media_type=media_type)(scope, receive, send)
            return
        await self._manager.handle_request(scope, receive, send)
        if scope["method"] == "DELETE":
            self.ended[headers["mcp-session-id"]].set()

    async def _drip(self) -> AsyncGenerator[bytes]:
        """An answer that never says anything and never stops, until whoever reads it leaves."""
        left = anyio.Event()
        self.drips.append(left)
        try:
            while True:
                yield b":\n\n"
                await anyio.sleep(0.01)
        finally:
            left.set()

    async def _list(self) -> list[types.Tool]:
        return self.tools

    async def _call(self, name: str, arguments: dict[str, Any]) -> list[types.ContentBlock]:
        self.calls.append((name, arguments))
        request: Any = self._mcp.request_context.request
        self.sessions.append(request.headers["mcp-session-id"])
        match name:
            case "wait":
                await self._wait()
            case "fail":
                raise ValueError("there is no such city")
            case "change":
                await self._mcp.request_context.session.send_tool_list_changed()
            case "show":
                return _shown()
            case _:
                pass
        return [types.TextContent(type="text", text=str(arguments.get("text", name)))]

    async def _wait(self) -> None:
        self.waiting.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()


def _shown() -> list[types.ContentBlock]:
    text = types.TextResourceContents(uri="file:///a", text="a file's text")  # pyright: ignore[reportArgumentType] - parsed
    blob = types.BlobResourceContents(uri="file:///b", blob=PIXEL)  # pyright: ignore[reportArgumentType] - parsed
    return [
        types.TextContent(type="text", text="a line"),
        types.ImageContent(type="image", data=PIXEL, mimeType="image/png"),
        types.AudioContent(type="audio", data=PIXEL, mimeType="audio/wav"),
        types.EmbeddedResource(type="resource", resource=text),
        types.EmbeddedResource(type="resource", resource=blob),
        types.ResourceLink(type="resource_link", name="c", uri="file:///c"),  # pyright: ignore[reportArgumentType] - parsed
    ]


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncGenerator[str]:
    """Serve an application; yields its root URL."""
    with server.bind(0, "") as listener:
        async with server.serving(app, listener):
            yield f"http://{server.LOOPBACK}:{listener.getsockname()[1]}"


def answering(response: Callable[[Scope], Response | Awaitable[Response]]) -> ASGIApp:
    """An application that is no MCP server and answers everything with this."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer = response(scope)
        await (answer if isinstance(answer, Response) else await answer)(scope, receive, send)

    return app


def old_server() -> ASGIApp:
    """A server of the older transport, SSE."""
    mcp = FastMCP("old")

    @mcp.tool()
    def greet(name: str) -> str:
        """Greet somebody."""
        return f"Hello, {name}!"

    assert greet
    return mcp.sse_app()
