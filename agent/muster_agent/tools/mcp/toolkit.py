"""The tools of MCP servers, as tools of the agent."""

import functools
import ssl
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.to_thread
import httpx
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from mcp import types
from pydantic import PrivateAttr

from muster_agent.tools.complaints import ToolComplaint, ToolkitError
from muster_agent.tools.mcp.client import quieten
from muster_agent.tools.mcp.http import open_http
from muster_agent.tools.mcp.listing import Offer, offers
from muster_agent.tools.mcp.results import cut, text_of
from muster_agent.tools.mcp.session import (
    ChangedError,
    Connect,
    LostError,
    RefusedError,
    SilentError,
    UnreachableError,
)
from muster_agent.tools.mcp.settings import McpServer, McpSettings, enabled_servers, filled_in
from muster_agent.tools.mcp.stdio import environment, open_process
from muster_agent.tools.mcp.tenants import Sessions
from muster_agent.tools.mcp.unseen import without_unseen
from muster_observability import logs

_log = logs.get("agent.mcp")

_MOST_ERROR_CHARACTERS: Final = 1000


@asynccontextmanager
async def open_mcp(
    settings: McpSettings, *, tenant_of: Callable[[], str]
) -> AsyncGenerator[Sequence[BaseTool]]:
    """Open the servers and yield their tools; leaving ends all sessions and processes.

    Each server is asked for its tools once, in a session that is then closed. A tenant's session is opened by
    its first call, so a process of a server runs per tenant, not per service.

    Args:
        settings: The servers.
        tenant_of: The tenant of the run that is asking now; called in that run's context.

    Raises:
        ToolkitError: The settings are wrong, or a server that is not optional cannot be opened in its time.
    """
    quieten()
    servers = await anyio.to_thread.run_sync(enabled_servers, settings)
    connects = await anyio.to_thread.run_sync(_connects, servers)
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        sessions = {name: Sessions(name, connects[name], server, group) for name, server in servers.items()}
        try:
            yield await _tools(servers, sessions, tenant_of)
        except Exception as error:  # noqa: BLE001 - raised below: a task group would wrap it
            failure = error
        finally:
            for kept in sessions.values():
                kept.close()
    if failure is not None:
        raise failure


class McpTool(BaseTool):
    """A tool of a server."""

    _sessions: Sessions = PrivateAttr()
    _offer: Offer = PrivateAttr()
    _limits: McpServer = PrivateAttr()
    _tenant_of: Callable[[], str] = PrivateAttr()

    @classmethod
    def of(
        cls, offer: Offer, sessions: Sessions, limits: McpServer, tenant_of: Callable[[], str]
    ) -> "McpTool":
        """Make the tool that an offer describes."""
        tool = cls(
            name=offer.name,
            description=offer.description,
            args_schema=offer.schema,
            metadata={"changes_world": not offer.is_read_only, "untrusted": True},
        )
        tool._offer, tool._sessions = offer, sessions
        tool._limits, tool._tenant_of = limits, tenant_of
        return tool

    def _run(self, *_args: object, **_arguments: object) -> str:
        raise NotImplementedError("this tool is asynchronous")

    async def _arun(self, /, *_args: object, **arguments: object) -> str:
        """Call the server. Nothing is a parameter here but what the model wrote, whatever it is called."""
        result = await self._asked(arguments)
        text = text_of(result, self._limits.most_characters)
        if result.isError:
            raise ToolComplaint(cut(text, _MOST_ERROR_CHARACTERS))
        return text

    async def _asked(self, arguments: dict[str, object]) -> types.CallToolResult:
        try:
            return await self._sessions.call(self._tenant_of(), self._offer, arguments)
        except UnreachableError as error:
            self._log("mcp server cannot be reached", because=str(error))
            raise ToolComplaint("The server of this tool cannot be reached now. Nothing was done.") from None
        except ChangedError:
            self._log("mcp tool has changed since it was opened; refused")
            raise ToolComplaint("This tool is not available.") from None
        except SilentError:
            self._log("mcp tool did not answer in time")
            raise ToolComplaint(
                f"The tool did not answer within {self._limits.timeout_s:g} seconds and was cancelled. "
                "It may have done something."
            ) from None
        except LostError:
            self._log("mcp session broke during a call")
            raise ToolComplaint(
                "The connection to the tool broke. Whether it did something is not known."
            ) from None
        except RefusedError as error:
            raise ToolComplaint(cut(without_unseen(str(error)), _MOST_ERROR_CHARACTERS)) from None

    def _log(self, event: str, **fields: object) -> None:
        _log.warning(event, server=self._sessions.server, tool=self._offer.tool, **fields)


def _connects(servers: Mapping[str, McpServer]) -> dict[str, Connect]:
    """How each server is connected to; reads certificates, so it belongs in a thread.

    Raises:
        ToolkitError: A variable that the settings refer to is not set.
    """
    tls = httpx.create_ssl_context() if any(server.url for server in servers.values()) else None
    return {name: _connect(name, server, tls) for name, server in servers.items()}


def _connect(name: str, server: McpServer, tls: ssl.SSLContext | None) -> Connect:
    try:
        if tls is None or server.way == "stdio":
            return functools.partial(open_process, name, server, environment(filled_in(server.env)))
        return functools.partial(open_http, server, filled_in(server.headers), tls)
    except ToolkitError as error:
        raise ToolkitError(f"mcp: server {name!r}: {error}") from None


async def _tools(
    servers: Mapping[str, McpServer], sessions: Mapping[str, Sessions], tenant_of: Callable[[], str]
) -> list[BaseTool]:
    listings = await _listings(sessions)
    tools: list[BaseTool] = []
    taken: set[str] = set()
    for name, server in servers.items():
        try:
            listing = _listing(name, listings[name])
            found = offers(name, server, listing, taken)
        except ToolkitError as error:
            if not server.optional:
                raise
            _log.error("mcp server left out", server=name, because=str(error))
            continue
        made = (McpTool.of(offer, sessions[name], server, tenant_of) for offer in found)
        tools += _usable(name, made)
    return tools


async def _listings(sessions: Mapping[str, Sessions]) -> dict[str, list[types.Tool] | UnreachableError]:
    """Ask all servers at once."""
    found: dict[str, list[types.Tool] | UnreachableError] = {}

    async def ask(name: str) -> None:
        try:
            found[name] = await sessions[name].listing()
        except UnreachableError as error:
            found[name] = error

    async with anyio.create_task_group() as group:
        for name in sessions:
            group.start_soon(ask, name)
    return found


def _listing(name: str, found: list[types.Tool] | UnreachableError) -> list[types.Tool]:
    if isinstance(found, UnreachableError):
        raise ToolkitError(f"mcp: server {name!r} {found}; mend it, or set `optional` or `disabled` for it")
    return found


def _usable(server: str, tools: Iterable[McpTool]) -> list[BaseTool]:
    """Those that can be told to a model: what LangChain cannot write would break every run."""
    usable: list[BaseTool] = []
    for tool in tools:
        try:
            convert_to_openai_tool(tool)
        except Exception as error:  # noqa: BLE001 - a stranger's schema may break it in any way
            _log.error("mcp tool left out", server=server, tool=tool.name, because=type(error).__name__)
        else:
            usable.append(tool)
    return usable
