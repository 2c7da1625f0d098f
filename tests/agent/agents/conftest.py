"""What the tests of agents' rules share."""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import ModelCall, Reply, ScriptedAgent, scripted_agent
from tests.agent.runs.tools import EFFECTS

Serve = Callable[..., AbstractAsyncContextManager[tuple[ScriptedAgent, LangGraphClient]]]
"""Serve the one agent of this declaration on a script."""


@pytest.fixture
def serve() -> Serve:
    """Serves an agent, and a client of LangGraph's that may be used for it."""

    @asynccontextmanager
    async def serving(
        declared: Mapping[str, Any],
        *script: Reply,
        improvise: Callable[[ModelCall], Reply] | None = None,
    ) -> AsyncGenerator[tuple[ScriptedAgent, LangGraphClient]]:
        agents = {"agent": {"openai_model": "muster-agent", **declared}}
        async with (
            scripted_agent(*script, improvise=improvise, agents=agents) as agent,
            get_client(url=agent.url, timeout=60) as client,
        ):
            yield agent, client

    return serving


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tools that change the world write what they do."""
    path = tmp_path / "effects"
    monkeypatch.setenv(EFFECTS, str(path))
    return path
