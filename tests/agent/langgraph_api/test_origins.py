"""Pages of other sites: a browser lets those use the service that are named, and no others."""

import json

import httpx
import pytest
from pydantic import ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from muster_agent.settings import AgentSettings
from muster_agent.testing import ScriptedAgent
from tests.agent.langgraph_api.asking import Caller, improvise, run
from tests.agent.langgraph_api.listening import new_thread
from tests.agent.runs.conftest import Start

PAGE = "http://localhost:3000"
ALLOWED = f"{PAGE}/, https://chat.example.org:443"
KEYS = {"sk-ada": "ada"}
EXPOSED = {
    "location",
    "content-location",
    "x-pagination-total",
    "x-pagination-next",
    "x-request-id",
    "x-agent-run-id",
    "x-agent-thread-id",
}


async def _preflight(http: httpx.AsyncClient, agent: ScriptedAgent, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,x-api-key",
    }
    return await http.options(f"{agent.url}/threads/search", headers=headers)


async def test_a_page_that_is_named(start: Start, http: httpx.AsyncClient) -> None:
    """Its browser asks without a key and is told yes; it may read the headers that clients need, also of a stream."""
    async with start(improvise=improvise, keys=KEYS, key="sk-ada", allowed_origins=ALLOWED) as (
        agent,
        _client,
    ):
        asked = await _preflight(http, agent, PAGE)
        caller = Caller(http, agent, "sk-ada")
        found = await caller.send("POST", "/threads/search", {}, {"origin": PAGE})
        streamed = await caller.send("POST", "/runs/stream", run(), {"origin": "https://chat.example.org"})
        nobody = await http.post(f"{agent.url}/threads/search", json={}, headers={"origin": PAGE})

    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert "x-api-key" in asked.headers["access-control-allow-headers"]
    assert asked.headers["x-request-id"]
    assert found.headers["access-control-allow-origin"] == PAGE
    assert set(found.headers["access-control-expose-headers"].split(", ")) == EXPOSED
    assert streamed.headers["access-control-allow-origin"] == "https://chat.example.org"
    assert streamed.headers["location"]
    assert (nobody.status_code, nobody.headers["access-control-allow-origin"]) == (401, PAGE)


@pytest.mark.parametrize("path", ["/threads", "/v1/chat/completions"])
async def test_a_page_of_another_site_changes_nothing(
    start: Start, http: httpx.AsyncClient, path: str
) -> None:
    """What its browser sends without asking is refused; a page that is named, or is ours, may."""
    async with start(improvise=improvise, allowed_origins=ALLOWED) as (agent, client):
        body = {"model": "muster-agent", "messages": [{"role": "user", "content": "?"}]}

        async def send(site: str, origin: str) -> httpx.Response:
            headers = {"content-type": "text/plain", "sec-fetch-site": site, "origin": origin}
            return await http.post(f"{agent.url}{path}", content=json.dumps(body), headers=headers)

        refused = [await send("cross-site", "https://evil.example"), await send("same-site", "null")]
        assert not await client.threads.search()
        assert not agent.model.calls
        let_in = [await send("cross-site", PAGE), await send("same-origin", "http://proxied")]

    assert {answer.status_code for answer in refused} == {403}
    assert all(answer.headers["x-request-id"] for answer in refused)
    assert {answer.status_code for answer in let_in} == {200}


@pytest.mark.parametrize("allowed", ["", ALLOWED])
async def test_a_page_that_is_not_named(start: Start, http: httpx.AsyncClient, allowed: str) -> None:
    """Its browser is not told that it may, neither before a request nor with an answer."""
    async with start(allowed_origins=allowed) as (agent, _client):
        asked = await _preflight(http, agent, "https://evil.example")
        answer = await http.get(f"{agent.url}/ok", headers={"origin": "https://evil.example"})

    assert asked.status_code in {400, 405}
    for each in (asked, answer):
        assert "access-control-allow-origin" not in each.headers


async def test_a_failure_of_the_service_can_be_read(start: Start, http: httpx.AsyncClient) -> None:
    """A page that is named gets to know that the service failed, with the request's id, and not why."""
    broken = {"broken": {"graph": "tests.agent.langgraph_api.graphs:breaking"}}
    async with start(agents=broken, allowed_origins=ALLOWED) as (agent, _client):
        path = f"{agent.url}/assistants/broken/graph"
        told, other = [
            await http.get(path, headers={"origin": origin}) for origin in (PAGE, "https://evil.example")
        ]

    assert (told.status_code, told.headers["access-control-allow-origin"]) == (500, PAGE)
    assert told.headers["x-request-id"]
    assert "CANARY" not in told.text
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("origin", [PAGE, "https://chat.example.org"])
async def test_a_socket_of_a_page_that_is_named(start: Start, origin: str) -> None:
    """It may speak, as a page of the service's own origin may."""
    async with start(allowed_origins=ALLOWED) as (agent, _client):
        url = f"{agent.url.replace('http', 'ws')}/threads/{new_thread()}/stream/events"
        async with connect(url, additional_headers={"origin": origin}, proxy=None) as connection:
            await connection.send(json.dumps({"id": 1, "method": "state.get"}))
            assert json.loads(await connection.recv())["type"] == "success"


@pytest.mark.parametrize("origin", ["https://evil.example", "http://[", "null", "http://localhost:3001"])
async def test_a_socket_of_any_other_page(start: Start, origin: str) -> None:
    """It is closed with a word, whatever the browser calls the page."""
    async with start(allowed_origins=ALLOWED) as (agent, _client):
        url = f"{agent.url.replace('http', 'ws')}/threads/{new_thread()}/stream/events"
        async with connect(url, additional_headers={"origin": origin}, proxy=None) as connection:
            with pytest.raises(ConnectionClosedError) as closed:
                await connection.recv()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4403


@pytest.mark.parametrize("wrong", ["*", "localhost:3000", "http://a/b", "http://[", "http://u@a", "https://"])
def test_what_is_no_origin(wrong: str) -> None:
    """A setting that no page's origin equals is an error, and so is one that every page would pass."""
    with pytest.raises(ValidationError):
        AgentSettings(allowed_origins=wrong)  # pyright: ignore[reportArgumentType] - as the environment has it


def test_origins_are_as_browsers_write_them() -> None:
    """Commas stand between them; case, a slash at the end and the scheme's own port make no difference."""
    settings = AgentSettings.model_validate(
        {"allowed_origins": " HTTP://LocalHost:3000/ ,https://a.example:443,"}
    )

    assert settings.allowed_origins == ("http://localhost:3000", "https://a.example")
