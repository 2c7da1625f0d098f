"""What clients are told when the proxy or the model fails."""

import json
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httpx
import openai
import pytest
from starlette.types import ASGIApp

from muster_agent.testing import (
    Break,
    Fail,
    Garble,
    Refuse,
    Reply,
    Say,
    ScriptedAgent,
    scripted_agent,
    serving,
)

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]
Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

BUSY = {"message": "too many", "type": "rate_limit_error", "code": "queue_full", "param": None}
FULL = {"message": "full", "type": "overloaded", "code": "overloaded", "param": None}
LONG = {
    "message": "too long",
    "type": "invalid_request_error",
    "code": "context_length_exceeded",
    "param": "messages",
}
SECRET = {"message": "host engine-7 says 0xdeadbeef", "type": "server_error"}

# reply, status, error type, code, retry-after
TABLE: list[tuple[Reply, int, str, str | None, str | None]] = [
    (Refuse(429, BUSY, {"retry-after": "7"}), 429, "rate_limit_error", "queue_full", "7"),
    (Refuse(503, FULL, {"retry-after": "2"}), 503, "overloaded", "overloaded", "2"),
    (Refuse(400, LONG), 400, "invalid_request_error", "context_length_exceeded", None),
    (Refuse(404, {"message": "no such", "code": 404}), 404, "invalid_request_error", "404", None),
    (Refuse(422, "odd"), 422, "invalid_request_error", None, None),
    (Refuse(401, {"message": "bad key"}), 502, "server_error", "proxy_auth_error", None),
    (Refuse(403, {"message": "bad key"}), 502, "server_error", "proxy_auth_error", None),
    (Refuse(500, SECRET), 502, "server_error", "proxy_unavailable", "1"),
    (Refuse(504, SECRET), 502, "server_error", "proxy_unavailable", "1"),
    (Break(), 503, "server_error", "proxy_unavailable", "1"),
    (Garble(b"<html>not json</html>"), 502, "server_error", "proxy_protocol_error", None),
    (Garble(b'{"choices": null}'), 502, "server_error", "proxy_protocol_error", None),
    (Garble(b"[]"), 502, "server_error", "proxy_protocol_error", None),
    (Say("It is", finish_reason=None), 502, "server_error", "proxy_protocol_error", None),
]


async def test_each_failure_of_a_model_call_has_its_answer(ask: Ask) -> None:
    """Statuses, types, codes and retry-after are those of the table, and the service goes on."""
    async with scripted_agent(*[row[0] for row in TABLE], Say("fine")) as agent:
        responses = [await ask(agent, "?") for _ in TABLE]
        last = await ask(agent, "?")

    got = [
        (
            response.status_code,
            response.json()["error"]["type"],
            response.json()["error"]["code"],
            response.headers.get("retry-after"),
        )
        for response in responses
    ]
    assert got == [row[1:] for row in TABLE]
    assert last.json()["choices"][0]["message"]["content"] == "fine"


async def test_the_proxys_words_are_relayed_where_they_help(ask: Ask) -> None:
    """The caller reads why the proxy refused its request, and nothing of a server's inner life."""
    async with scripted_agent(Refuse(429, BUSY), Refuse(400, LONG), Refuse(500, SECRET)) as agent:
        errors = [(await ask(agent, "?")).json()["error"] for _ in range(3)]

    assert [error["message"] for error in errors] == ["too many", "too long", "The proxy failed."]
    assert errors[1]["param"] == "messages"


async def test_a_stream_that_fails_at_once_has_the_failures_status(ask: Ask) -> None:
    """Before the first event a streamed run fails with the status that an unstreamed one would have."""
    async with scripted_agent(Refuse(429, BUSY, {"retry-after": "7"})) as agent:
        response = await ask(agent, "?", stream=True)

    assert (response.status_code, response.headers["retry-after"]) == (429, "7")
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Break("It is"), "proxy_unavailable"),
        (Say("It is", finish_reason=None), "proxy_protocol_error"),
        (Fail("It is", {"message": "engine gone", "code": "upstream_stream_error"}), "upstream_stream_error"),
        (Fail("It is", {"message": "engine gone"}), "proxy_unavailable"),
    ],
)
async def test_a_stream_that_breaks_says_so(ask: Ask, reply: Reply, code: str) -> None:
    """After the first word a failure is an error event and `[DONE]`, with no finish reason made up."""
    async with scripted_agent(reply) as agent:
        response = await ask(agent, "?", stream=True)

    *chunks, error, done = [
        line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")
    ]
    assert (response.status_code, done) == (200, "[DONE]")
    assert json.loads(error)["error"]["code"] == code
    assert {json.loads(chunk)["choices"][0]["finish_reason"] for chunk in chunks} == {None}


async def test_the_sdk_raises_what_breaks_a_stream(sdk: Sdk) -> None:
    """Users of the OpenAI SDK get an exception, not a short answer."""
    async with scripted_agent(Break("It is")) as agent, sdk(agent) as client:
        stream = await client.chat.completions.create(
            model="muster-agent", messages=[{"role": "user", "content": "?"}], stream=True
        )
        with pytest.raises(openai.APIError, match="connection to the proxy"):
            async for _ in stream:
                pass


async def test_a_proxy_that_is_not_there(
    http: httpx.AsyncClient, agent_app: Callable[[str], Awaitable[ASGIApp]]
) -> None:
    """The service starts without its proxy, and says 503 until it is there."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        app = await agent_app(f"http://127.0.0.1:{unused.getsockname()[1]}")
        async with serving(app) as url:
            ready = await http.get(f"{url}/ok")
            response = await http.post(
                f"{url}/v1/chat/completions",
                json={"model": "muster-agent", "messages": [{"role": "user", "content": "?"}]},
            )

    assert ready.json() == {"ok": True}
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["code"] == "proxy_unavailable"


async def test_a_proxy_without_models_is_asked_again(ask: Ask) -> None:
    """An empty list is a 503, and is not remembered."""
    async with scripted_agent(Say("fine")) as agent:
        listed, agent.model.models = agent.model.models, []
        without = await ask(agent, "?")
        agent.model.models = listed
        with_one = await ask(agent, "?")

    assert (without.status_code, without.json()["error"]["code"]) == (503, "proxy_unavailable")
    assert with_one.status_code == 200
