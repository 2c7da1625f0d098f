"""LangGraph's second protocol over a WebSocket: commands and subscriptions in, answers and events out."""

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosedError

from muster_agent.testing import CallTools, Hold, Say, ScriptedAgent
from tests.agent.langgraph_api.asking import Caller
from tests.agent.langgraph_api.listening import (
    ALL,
    Event,
    ask,
    is_end,
    lifecycle,
    listening,
    new_thread,
    to_the_end,
)
from tests.agent.runs.conftest import Start

CALCULATE = CallTools([("calculator", {"expression": "2+2"})])


class Socket:
    """A client that tells answers from events."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._events: list[Event] = []
        self._answers: dict[int | None, Event] = {}

    async def command(self, number: int, method: str, params: Any) -> Event:
        """The answer to a command; events that come before it are kept."""
        return await self.say(json.dumps({"id": number, "method": method, "params": params}), number)

    async def say(self, text: str, number: int | None) -> Event:
        """The answer to a message."""
        await self._connection.send(text)
        while number not in self._answers:
            await self._receive()
        return self._answers.pop(number)

    async def run(self) -> list[Event]:
        """The events until a run has ended."""
        heard: list[Event] = []
        while not heard or not is_end(heard[-1]):
            while not self._events:
                await self._receive()
            heard.append(self._events.pop(0))
        return heard

    async def _receive(self) -> None:
        message: Event = json.loads(await self._connection.recv())
        if message["type"] == "event":
            self._events.append(message)
        else:
            self._answers[message["id"]] = message


@asynccontextmanager
async def talking(agent: ScriptedAgent, thread: str, **options: Any) -> AsyncGenerator[Socket]:
    """A socket to a thread."""
    url = agent.url.replace("http://", "ws://")
    async with connect(f"{url}/threads/{thread}/stream/events", proxy=None, **options) as connection:
        yield Socket(connection)


async def test_a_run_over_a_socket(start: Start, http: httpx.AsyncClient) -> None:
    """What is heard over a socket is what is heard as a stream, and the answer to a subscription comes before it."""
    async with start(CALCULATE, Say("It is 4.")) as (agent, _client):
        thread = new_thread()
        async with talking(agent, thread) as socket:
            subscribed = await socket.command(1, "subscription.subscribe", {"channels": ALL})
            started = await socket.command(2, "run.start", ask("calc"))
            heard = await socket.run()
        async with listening(http, agent, thread) as events:
            assert await to_the_end(events) == heard

    assert (subscribed["type"], set(subscribed["result"])) == ("success", {"subscription_id"})
    assert heard[0]["event_id"] == f"synth:{started['result']['run_id']}:lc||running"


async def test_a_late_subscription_is_told_all(start: Start) -> None:
    """What has been said already comes first; of two subscriptions each gets its own, until it is given up."""
    async with start(Say("One."), Say("Two.")) as (agent, _client), talking(agent, new_thread()) as socket:
        first = await socket.command(1, "subscription.subscribe", {"channels": ["lifecycle"]})
        await socket.command(2, "run.start", ask("first"))
        heard = await socket.run()
        await socket.command(
            3, "subscription.subscribe", {"channels": ["lifecycle"], "since": heard[0]["seq"]}
        )
        again = await socket.run()
        given_up = await socket.command(4, "subscription.unsubscribe", first["result"])
        await socket.command(5, "run.start", ask("second"))
        last = await socket.run()
        unknown = await socket.command(6, "subscription.unsubscribe", first["result"])

    assert again == heard[1:]
    assert given_up["type"] == "success"
    assert lifecycle(last) == ["running", "completed"]
    assert unknown["error"] == "no_such_subscription"


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "1", "method": "x"}', '{"id": 1}'])
async def test_what_is_no_command(start: Start, text: str) -> None:
    """It is answered as such, and the conversation goes on."""
    async with start() as (agent, _client), talking(agent, new_thread()) as socket:
        told = await socket.say(text, None)
        unknown = await socket.command(1, "nope", {})

    assert (told["type"], told["error"]) == ("error", "invalid_argument")
    assert unknown["error"] == "unknown_command"


@pytest.mark.parametrize("levels", [250, 500, 5000])
async def test_a_command_that_is_nested_deeply(start: Start, http: httpx.AsyncClient, levels: int) -> None:
    """It is refused as over HTTP: what has been stored of it would make every list with it an error."""
    deep = "[" * levels + "]" * levels
    params = f'{{"assistant_id": "agent", "input": {{"messages": [], "deep": {deep}}}}}'
    async with start() as (agent, _client):
        thread = await Caller(http, agent).thread()
        async with talking(agent, thread) as socket:
            number = 1 if levels < 1000 else None  # orjson reads no more, not even the number
            told = await socket.say(f'{{"id": 1, "method": "run.start", "params": {params}}}', number)
            after = await socket.command(2, "state.get", {})
        assert await Caller(http, agent).get(f"/threads/{thread}/runs") == []
        assert len(await Caller(http, agent).post("/threads/search")) == 1

    assert (told["type"], told["error"]) == ("error", "invalid_argument")
    assert after["type"] == "success"


async def test_a_command_with_nul(start: Start, http: httpx.AsyncClient) -> None:
    """It is stored as over HTTP: with U+FFFD in its place."""
    async with start(Say("Fine.")) as (agent, _client):
        thread = new_thread()
        async with talking(agent, thread) as socket:
            await socket.command(1, "subscription.subscribe", {"channels": ["lifecycle"]})
            await socket.command(2, "run.start", ask("a\0b"))
            await socket.run()
        state = await Caller(http, agent).get(f"/threads/{thread}/state")

    assert state["values"]["messages"][0]["content"] == "a\ufffdb"


async def test_bytes_end_the_conversation(start: Start) -> None:
    """A message that is no text is none of the protocol's."""
    async with start() as (agent, _client):
        url = agent.url.replace("http://", "ws://")
        async with connect(f"{url}/threads/{new_thread()}/stream/events", proxy=None) as connection:
            await connection.send(b"{}")
            await connection.wait_closed()
            assert connection.close_code == 1003


async def test_subscriptions_are_bounded(start: Start) -> None:
    """One connection cannot make the service listen without end."""
    async with start() as (agent, _client), talking(agent, new_thread()) as socket:
        wanted = {"channels": ["lifecycle"]}
        told = [await socket.command(number, "subscription.subscribe", wanted) for number in range(65)]
        wrong = await socket.command(99, "subscription.subscribe", {"channels": []})

    assert [answer["type"] for answer in told] == ["success"] * 64 + ["error"]
    assert wrong["error"] == "invalid_argument"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"authorization": "Bearer sk-bob"}, 4404),
        ({"authorization": "Bearer wrong"}, 4401),
        ({}, 4401),
        ({"authorization": "Bearer sk-ada", "origin": "https://evil.example"}, 4403),
    ],
)
async def test_who_may_not_speak(
    start: Start, http: httpx.AsyncClient, headers: dict[str, str], code: int
) -> None:
    """Another tenant, nobody, and a page of another site are sent away with the status that HTTP would have given."""
    held = Hold(Say("One."))
    async with start(held, keys={"sk-ada": "ada", "sk-bob": "bob"}) as (agent, _client):
        thread = new_thread()
        body = {"id": 1, "method": "run.start", "params": ask("mine")}
        ada = {"x-api-key": "sk-ada"}
        assert (await http.post(f"{agent.url}/threads/{thread}/commands", json=body, headers=ada)).is_success
        await agent.model.received()
        with pytest.raises(ConnectionClosedError) as closed:
            async with talking(agent, thread, additional_headers=headers) as socket:
                await socket.command(1, "state.get", {})
        held.release.set()

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == code


async def test_a_page_of_this_very_site_may_speak(start: Start) -> None:
    """A browser says where its page is from; from here it is welcome."""
    async with (
        start() as (agent, _client),
        talking(agent, new_thread(), additional_headers={"origin": agent.url}) as socket,
    ):
        assert (await socket.command(1, "state.get", {}))["type"] == "success"


async def test_what_is_no_thread(start: Start) -> None:
    """A path that names no thread is told as one."""
    async with start() as (agent, _client):
        with pytest.raises(ConnectionClosedError) as closed:
            async with talking(agent, "nowhere") as socket:
                await socket.command(1, "state.get", {})

    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4422
