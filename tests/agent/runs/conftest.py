"""What the tests of runs share: every one of them runs on SQLite and on PostgreSQL."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import ModelCall, Reply, ScriptedAgent, scripted_agent
from tests.postgres import new_database

SECRET = Fernet.generate_key().decode()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return empty_database(request, tmp_path)


def empty_database(request: pytest.FixtureRequest, folder: Path) -> str:
    """The URL of an empty database of the kind that the request's parameter names."""
    if request.param == "sqlite":
        return f"sqlite:///{folder}/agent.db"
    database: str = request.getfixturevalue("postgres_database")
    return database


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """An empty PostgreSQL database."""
    with new_database(postgres_url) as url:
        yield url


Service = tuple[ScriptedAgent, LangGraphClient]
Start = Callable[..., Any]


@pytest.fixture
def start(database_url: str) -> Start:
    """Starts the service on this database, and a client of it."""

    @asynccontextmanager
    async def run(
        *script: Reply,
        improvise: Callable[[ModelCall], Reply] | None = None,
        agents: Mapping[str, Any] | None = None,
        keys: Mapping[str, str] | None = None,
        key: str | None = None,
        **settings: object,
    ) -> AsyncGenerator[Service]:
        given: dict[str, Any] = {"database_url": database_url, "secret": SECRET, **settings}
        async with (
            scripted_agent(*script, improvise=improvise, agents=agents, keys=keys, **given) as agent,
            get_client(url=agent.url, api_key=key, timeout=30) as client,
        ):
            yield agent, client

    return run
