"""Clients that leave: the model call is closed at once, and nothing of the run remains."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import CallTools, Hold, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

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
async def test_a_cancelled_run_leaves_its_thread_as_it_was(ask: Ask, *, streamed: bool) -> None:
    """A run given up between a tool call and the answer is not in the thread."""
    async with scripted_agent(Say("one"), MULTIPLY, Hold(Say("late")), Say("two")) as agent:
        await ask(agent, "A", thread="t")
        client = asyncio.create_task(ask(agent, "B", thread="t", stream=streamed))
        for _ in range(3):
            await agent.model.received()
        client.cancel()
        await agent.model.aborted()
        await ask(agent, "C", thread="t")

    seen = [message for message in agent.model.calls[-1].messages if message[0] != "system"]
    assert seen == [("user", "A"), ("assistant", "one"), ("user", "C")]


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
    """At the timeout the client is told, the model call is closed, and the thread is as it was."""
    async with scripted_agent(Hold(Say("late")), Say("two"), run_timeout_s=0.2) as agent:
        response = await ask(agent, "A", thread="t")
        await agent.model.aborted()
        await ask(agent, "B", thread="t")

    assert (response.status_code, response.json()["error"]["code"]) == (504, "run_timeout")
    assert [text for role, text in agent.model.calls[-1].messages if role == "user"] == ["B"]


async def test_a_stream_that_takes_too_long_is_ended(ask: Ask) -> None:
    """After the first word the timeout is an event, and no finish reason is made up."""
    async with scripted_agent(Hold(Say("late"), said="It is"), run_timeout_s=0.2) as agent:
        response = await ask(agent, "A", stream=True)
        await agent.model.aborted()

    assert response.status_code == 200
    assert '"code":"run_timeout"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert '"finish_reason":"stop"' not in response.text
