"""By which names the service may be asked for: a page whose own name points here is not let in."""

import httpx
import pytest
from pydantic import ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

from muster_agent.hosts import is_own
from muster_agent.settings import AgentSettings
from tests.agent.langgraph_api.asking import improvise
from tests.agent.langgraph_api.listening import new_thread
from tests.agent.runs.conftest import Start

LISTED = "agents.example.org"
REBOUND = "evil.example:8081"


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8081", "127.0.0.1:8081", "10.1.2.3", "[::1]:8081", "[fe80::1]"),
        *("gpu-box:8081", "agent", "app.localhost", "box.local:8081", "host.docker.internal:8081"),
        *("agent.muster.svc:80", "agent.muster.svc.cluster.local.", LISTED, "Agents.Example.org:443", None),
    ],
)
def test_names_that_nobody_can_own(host: str | None) -> None:
    """Addresses, names of this machine, its network and its cluster are the service's own, and so are listed ones."""
    assert is_own(host, [LISTED])


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", REBOUND, "127.0.0.1.evil.example", "1.2.3.4.5", "localhost.evil.example"),
        *("local.example", "evil-local.example", f"x.{LISTED}", f"{LISTED}.evil.example", "[::1"),
    ],
)
def test_names_that_anybody_may_own(host: str) -> None:
    """A name in public DNS is not, whatever it looks like."""
    assert not is_own(host, [LISTED])


@pytest.mark.parametrize("key", [None, "made-up"])
async def test_a_page_whose_name_points_here(start: Start, http: httpx.AsyncClient, key: str | None) -> None:
    """Where no key is needed it may do nothing, and a key of its own making is of no use to it."""
    async with start(improvise=improvise, allowed_hosts=LISTED) as (agent, _client):
        headers = {"origin": f"http://{REBOUND}"} | ({"x-api-key": key} if key else {})

        async def ask(path: str, host: str) -> httpx.Response:
            body = {"model": "muster-agent", "messages": [{"role": "user", "content": "?"}]}
            return await http.post(f"{agent.url}{path}", json=body, headers={**headers, "host": host})

        made = await ask("/threads", REBOUND)
        chat = await ask("/v1/chat/completions", REBOUND)
        calls = len(agent.model.calls)
        listed = await ask("/v1/chat/completions", LISTED)

    assert (made.status_code, chat.status_code, calls) == (403, 403, 0)
    assert "MUSTER_AGENT_ALLOWED_HOSTS" in made.json()["detail"]
    assert chat.json()["error"]["code"] == "unknown_host"
    assert listed.status_code == 200


async def test_a_socket_of_a_page_whose_name_points_here(start: Start) -> None:
    """It is closed with a word."""
    async with start() as (agent, _client):
        here = httpx.URL(agent.url)
        url = f"ws://{REBOUND}/threads/{new_thread()}/stream/events"
        page = {"origin": f"http://{REBOUND}"}
        async with connect(
            url, host=here.host, port=here.port, additional_headers=page, proxy=None
        ) as connection:
            with pytest.raises(ConnectionClosedError) as closed:
                await connection.recv()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4403


async def test_a_good_key_is_as_good_as_a_name(start: Start, http: httpx.AsyncClient) -> None:
    """Where keys are needed no page has one: any name will do, unless the service acts with its own key."""
    async with start(keys={"sk-ada": "ada"}, key="sk-ada") as (agent, _client):
        url, named = f"{agent.url}/threads", {"host": REBOUND}
        good = await http.post(url, json={}, headers={**named, "x-api-key": "sk-ada"})
        wrong = await http.post(url, json={}, headers={**named, "x-api-key": "sk-bob"})
    async with start(keys={"sk-own": "own"}, api_key="sk-own") as (agent, _client):
        url = f"{agent.url}/threads"
        keyless = await http.post(url, json={}, headers=named)
        here = await http.post(url, json={})

    assert [each.status_code for each in (good, wrong, keyless, here)] == [200, 401, 403, 200]


@pytest.mark.parametrize(
    "wrong", ["https://a.example", "a.example:8081", "a.example/", "u@a.example", "[::1"]
)
def test_what_is_no_name(wrong: str) -> None:
    """A setting that no `Host` equals is an error."""
    with pytest.raises(ValidationError):
        AgentSettings(allowed_hosts=wrong)  # pyright: ignore[reportArgumentType] - as the environment has it


def test_names_are_as_they_are_compared() -> None:
    """Commas stand between them; case makes no difference."""
    settings = AgentSettings.model_validate({"allowed_hosts": " Agents.Example.org ,b.example,"})

    assert settings.allowed_hosts == ("agents.example.org", "b.example")
