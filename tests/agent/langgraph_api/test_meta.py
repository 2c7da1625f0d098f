"""What the service tells of itself: that it is there, what it is, and which routes it has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from muster_agent.app import create_app
from muster_agent.settings import AgentSettings
from tests.agent.langgraph_api.asking import Caller
from tests.agent.runs.conftest import Start

METHODS = {"get", "put", "post", "patch", "delete"}


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """None of it is in a database: SQLite will do."""
    return f"sqlite:///{tmp_path}/agent.db"


async def test_it_is_there(start: Start, http: httpx.AsyncClient) -> None:
    """Clients that look whether a server is there, and what it can do, are answered."""
    async with start() as (agent, _client):
        caller = Caller(http, agent)
        assert await caller.get("/ok") == {"ok": True}
        info = await caller.get("/info")
        assert set(info) == {"version", "langgraph_py_version", "flags", "host"}
        assert info["flags"] == {"assistants": True, "crons": False, "langsmith": False}


async def test_what_is_open(start: Start, http: httpx.AsyncClient) -> None:
    """Where there are keys, health and documents need none, and everything else does."""
    async with start(keys={"k1": "ada"}, key="k1") as (agent, _client):
        caller = Caller(http, agent)
        for path in ("/ok", "/info", "/docs", "/openapi.json", "/metrics"):
            assert (await caller.send("GET", path)).status_code == 200
        answer = await caller.send("GET", "/docs")
        assert "/openapi.json" in answer.text


async def test_paths_that_there_are_not(start: Start, http: httpx.AsyncClient) -> None:
    """They are a 404, and other methods a 405 that tells which there are, in the shape of the API."""
    async with start() as (agent, _client):
        caller = Caller(http, agent)
        answer = await caller.send("GET", "/crons")
        assert (answer.status_code, set(answer.json())) == (404, {"detail"})
        answer = await caller.send("PUT", "/threads", {})
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """What `/openapi.json` tells."""
    return create_app(AgentSettings(proxy="http://127.0.0.1:9", database_url="sqlite:///unused.db")).openapi()


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _references(each)


def test_every_reference_is_to_something(document: dict[str, Any]) -> None:
    """No reference in the document leads nowhere, and no definition is left inside of a body."""
    references = set(_references(document))
    assert references
    for reference in references:
        place: Any = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert "$defs" not in str(document)


def test_every_path_is_described(document: dict[str, Any]) -> None:
    """Each operation has a summary, its path's parameters and, where it has one, its body."""
    assert {"/threads/{thread_id}/runs/{run_id}/join", "/store/items", "/runs/batch"} <= set(
        document["paths"]
    )
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert method in METHODS
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == {
                part.strip("{}").removesuffix(":path") for part in path.split("/") if "{" in part
            }
            assert operation["summary"]
            assert ("requestBody" in operation) <= (method != "get")
    body = document["paths"]["/threads/{thread_id}/runs"]["post"]["requestBody"]["content"][
        "application/json"
    ]
    assert body["schema"]["required"] == ["assistant_id"]
    assert document["components"]["schemas"]["Multitask"]["enum"] == [
        "reject",
        "enqueue",
        "interrupt",
        "rollback",
    ]
