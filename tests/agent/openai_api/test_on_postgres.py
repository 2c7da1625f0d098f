"""What only several connections to a database can show."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from muster_agent.testing import ModelCall, Say, scripted_agent
from tests.postgres import new_database, running_postgres

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of its own."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def database(server: str) -> Iterator[dict[str, Any]]:
    """Settings for an empty database."""
    with new_database(server) as url:
        yield {"database_url": url, "secret": Fernet.generate_key().decode()}


def _count(call: ModelCall) -> Say:
    return Say(str(len([role for role, _ in call.messages if role == "user"])))


async def test_a_new_thread_that_many_name_at_once(ask: Ask, database: dict[str, Any]) -> None:
    """Each request is answered, one after the other, with all before it in mind."""
    async with scripted_agent(improvise=_count, **database) as agent, asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(agent, f"message {number}", thread="t")) for number in range(8)]

    answers = [task.result().json()["choices"][0]["message"]["content"] for task in tasks]
    assert sorted(answers) == [str(number) for number in range(1, 9)]


async def test_one_key_at_once(ask: Ask, database: dict[str, Any]) -> None:
    """Many requests with one key are one run."""
    async with scripted_agent(improvise=_count, **database) as agent, asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(agent, "?", headers={"idempotency-key": "k"})) for _ in range(8)]

    assert len({task.result().headers["x-agent-run-id"] for task in tasks}) == 1
    assert len(agent.model.calls) == 1
