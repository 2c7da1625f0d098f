"""An MCP server over standard streams: `python over_stdio.py`."""

import json
import os
import sys
from pathlib import Path

from mcp.server.fastmcp import FastMCP

mcp = FastMCP("process", log_level="ERROR")


@mcp.tool()
def pid() -> str:
    """The process of this server."""
    return str(os.getpid())


@mcp.tool()
def environment() -> str:
    """The variables that this server was given, and its folder."""
    return json.dumps({**os.environ, "folder": str(Path.cwd())})


@mcp.tool()
def die() -> str:
    """End the process in the middle of the call."""
    os._exit(3)


@mcp.tool()
def grumble() -> str:
    """Print what is not part of the protocol."""
    print("x" * 10_000, "\nsecond line", file=sys.stderr, flush=True)  # noqa: T201 - the point
    return "grumbled"


if __name__ == "__main__":
    mcp.run()
