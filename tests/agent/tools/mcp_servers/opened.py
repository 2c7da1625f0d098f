"""Opens servers as the agent does."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.tools import BaseTool

from muster_agent.tools.mcp.settings import McpSettings
from muster_agent.tools.mcp.toolkit import open_mcp

Tools = dict[str, BaseTool]


class Tenant:
    """Whose run it is; a test says who."""

    def __init__(self) -> None:
        self.name = "red"

    def __call__(self) -> str:
        """The tenant of the run that asks."""
        return self.name


@asynccontextmanager
async def opened(servers: dict[str, dict[str, Any]], tenant: Tenant | None = None) -> AsyncGenerator[Tools]:
    """The tools of these servers by name."""
    settings = McpSettings.model_validate({"mcpServers": servers})
    async with open_mcp(settings, tenant_of=tenant or Tenant()) as tools:
        yield {tool.name: tool for tool in tools}
