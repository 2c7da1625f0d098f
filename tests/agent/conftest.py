"""What the agent's tests share."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from blockbuster import blockbuster_ctx
from starlette.types import ASGIApp

from muster_agent.app import create_app
from muster_agent.settings import AgentSettings
from muster_agent.testing import ScriptedAgent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]


@pytest.fixture(autouse=True)
def _no_blocking() -> Generator[None]:
    """A call that blocks the event loop from the agent's own code is an error."""
    with blockbuster_ctx("muster_agent") as buster:
        # The registry reads a few lines of /proc when it is scraped; no disk is behind them.
        for function in buster.functions.values():
            function.can_block_in("prometheus_client/process_collector.py", {"collect"})
        yield


@pytest.fixture
async def http() -> AsyncGenerator[httpx.AsyncClient]:
    """A client without opinions."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def ask(http: httpx.AsyncClient) -> Ask:
    """Ask the agent: messages are texts of the user, or (role, text) pairs."""

    async def ask(
        agent: ScriptedAgent,
        *messages: str | tuple[str, str],
        thread: str | None = None,
        headers: dict[str, str] | None = None,
        **fields: object,
    ) -> httpx.Response:
        pairs = [("user", message) if isinstance(message, str) else message for message in messages]
        body = {
            "model": "muster-agent",
            "messages": [{"role": role, "content": text} for role, text in pairs],
            **fields,
        }
        named = {} if thread is None else {"x-session-id": thread}
        url = f"{agent.url}/v1/chat/completions"
        return await http.post(url, json=body, headers={**named, **(headers or {})})

    return ask


@pytest.fixture
def sdk() -> Callable[[ScriptedAgent], openai.AsyncOpenAI]:
    """The client that users have."""
    return lambda agent: openai.AsyncOpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def agent_app(tmp_path: Path) -> Callable[[str], Awaitable[ASGIApp]]:
    """Make the application in front of the proxy of this URL, in a thread: it reads certificates."""

    async def make(proxy: str) -> ASGIApp:
        settings = AgentSettings(proxy=proxy, database_url=f"sqlite:///{tmp_path}/agent.db")
        return await asyncio.to_thread(create_app, settings)

    return make
