"""Clients that leave: the model call is closed at once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import CallTools, Hold, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

SHORT = {"agent": {"openai_model": "muster-agent", "limits": {"run_timeout_s": 0.5}}}
MULTIPLY = CallTools([("calculator", {"expression": "23*7"})])


@pytest.mark.parametrize("said", ["", "It is"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_closes_the_model_call(ask: Ask, *, streamed: bool, said: str) -> None:
    """Before and after the model's first word, streamed or not, the model sees its caller hang up."""
    if said and not streamed:
        said = ""  # an unstreamed answer has no first word of its own
    async with scripted_agent(Hold(Say("late"), said=said)) as agent:
        client = asyncio.create_task(ask(agent, "?", stream=streamed))
        await agent.model.received()
        client.cancel()
        await agent.model.aborted()

    assert client.cancelled()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_cancelled_run_is_remembered(ask: Ask, *, streamed: bool) -> None:
    """What a run had done when its client left stays in the thread, whole: each call with its result."""
    async with scripted_agent(Say("one"), MULTIPLY, Hold(Say("late")), Say("two")) as agent:
        await ask(agent, "A", thread="t")
        client = asyncio.create_task(ask(agent, "B", thread="t", stream=streamed))
        for _ in range(3):
            await agent.model.received()
        client.cancel()
        await agent.model.aborted()
        await ask(agent, "C", thread="t")

    seen = [message for message in agent.model.calls[-1].messages if message[0] != "system"]
    tried = [("user", "B"), ("assistant", ""), ("tool", "161")]
    assert seen == [("user", "A"), ("assistant", "one"), *tried, ("user", "C")]


async def test_a_client_that_leaves_the_line_never_runs(ask: Ask) -> None:
    """A run that waits for its thread and is given up is not started when the thread is free."""
    held = Hold(Say("one"))
    async with scripted_agent(held, Say("two"), Say("three")) as agent:
        first = asyncio.create_task(ask(agent, "A", thread="t"))
        await agent.model.received()
        second = asyncio.create_task(ask(agent, "B", thread="t"))
        # A third that is answered shows that the second has arrived.
        await ask(agent, "elsewhere")
        second.cancel()
        await asyncio.wait([second])
        held.release.set()
        await first
        await ask(agent, "C", thread="t")

    texts = [text for role, text in agent.model.calls[-1].messages if role == "user"]
    assert texts == ["A", "C"]
    assert len(agent.model.calls) == 3


async def test_a_run_that_takes_too_long_is_ended(ask: Ask) -> None:
    """At the timeout the client is told, the model call is closed, and the thread goes on."""
    async with scripted_agent(Hold(Say("late")), Say("two"), agents=SHORT) as agent:
        response = await ask(agent, "A", thread="t")
        await agent.model.aborted()
        await ask(agent, "B", thread="t")

    assert (response.status_code, response.json()["error"]["code"]) == (504, "run_timeout")
    assert [text for role, text in agent.model.calls[-1].messages if role == "user"] == ["A", "B"]


async def test_a_stream_that_takes_too_long_is_ended(ask: Ask) -> None:
    """After the first word the timeout is an event, and no finish reason is made up."""
    async with scripted_agent(Hold(Say("late"), said="It is"), agents=SHORT) as agent:
        response = await ask(agent, "A", stream=True)
        await agent.model.aborted()

    assert response.status_code == 200
    assert '"code":"run_timeout"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' not in response.text


async def test_a_client_that_may_return_has_a_moment(ask: Ask) -> None:
    """With an idempotency key a run outlives its first client, and its second gets the whole answer."""
    key = {"idempotency-key": "k"}
    held = Hold(Say("."), said="It is 161")
    async with scripted_agent(held, disconnect_grace_s=30) as agent:
        client = asyncio.create_task(ask(agent, "?", headers=key, stream=True))
        await agent.model.received()
        client.cancel()
        await asyncio.wait([client])
        second = asyncio.create_task(ask(agent, "?", headers=key))
        held.release.set()
        answer = await second

    assert answer.json()["choices"][0]["message"]["content"] == "It is 161."
    assert len(agent.model.calls) == 1


async def test_a_client_that_does_not_return(ask: Ask) -> None:
    """With an idempotency key, too, a run that nobody listens to is ended after the moment."""
    async with scripted_agent(Hold(Say("late")), disconnect_grace_s=0) as agent:
        client = asyncio.create_task(ask(agent, "?", headers={"idempotency-key": "k"}))
        await agent.model.received()
        client.cancel()
        await agent.model.aborted()

    assert client.cancelled()
