"""LangGraph's own client on the second protocol: what its user gets."""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Literal

import pytest

from muster_agent.testing import CallTools, Hold, Say
from tests.agent.langgraph_api.listening import ask
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_approval import AGENTS, done, mail
from tests.agent.runs.tools import effects

__all__ = ["done"]

TRANSPORTS: list[Literal["sse", "websocket"]] = ["sse", "websocket"]
CALCULATE = CallTools([("calculator", {"expression": "23*7"})])


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_projections(start: Start, transport: Any) -> None:
    """Messages come word by word, tool calls with their results, and the output at the end."""
    async with (
        start(CALCULATE, Say("It is 161 ."), CALCULATE, Say("Still 161 .")) as (_agent, client),
        client.threads.stream(assistant_id="agent", transport=transport) as thread,
    ):
        await thread.run.start(input=ask("23 * 7?")["input"])
        streams: list[Any] = [stream async for stream in thread.messages]
        texts = ["".join([piece async for piece in stream.text]) for stream in streams]
        output: Any = await thread.output
        tools = [handle async for handle in _of_a_second_run(thread)]
        results: list[Any] = [await handle.output for handle in tools]

    assert texts == ["", "It is 161 ."]
    assert [message["type"] for message in output["messages"]] == ["human", "ai", "tool", "ai"]
    assert [(handle.name, result["content"]) for handle, result in zip(tools, results, strict=True)][-1] == (
        "calculator",
        "161",
    )


async def _of_a_second_run(thread: Any) -> AsyncGenerator[Any]:
    await thread.run.start(input=ask("Sure?")["input"])
    async for handle in thread.tool_calls:
        yield handle


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_person_is_asked(start: Start, transport: Any, done: Path) -> None:
    """The client knows what waits, and one answer goes on with it."""
    async with (
        start(mail("ada"), Say("Sent."), agents=AGENTS) as (_agent, client),
        client.threads.stream(assistant_id="agent", transport=transport) as thread,
    ):
        await thread.run.start(input=ask("Write to Ada.")["input"])
        seen = [snapshot async for snapshot in thread.values]
        (question,) = thread.interrupts
        await thread.run.respond({"decisions": [{"type": "approve"}]})
        output: Any = await thread.output

    assert seen
    assert question["value"]["action_requests"][0]["name"] == "send_mail"
    assert output["messages"][-1]["content"][0]["text"] == "Sent."
    assert effects(done) == ["ada"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_cancelled_run_ends_its_iterators(start: Start, transport: Any) -> None:
    """Nobody waits for a run that another has cancelled; its output is an error that says so."""
    async with (
        start(Hold(Say("never"), said="So")) as (agent, client),
        client.threads.stream(assistant_id="agent", transport=transport) as thread,
    ):
        run: Any = await thread.run.start(input=ask("hi")["input"])
        await agent.model.received()
        values = aiter(thread.values)
        await anext(values)
        await client.runs.cancel(thread.thread_id, run["run_id"], wait=True)
        rest = [snapshot async for snapshot in values]
        with pytest.raises(RuntimeError, match="cancelled"):
            await thread.output

    assert all(snapshot["messages"][0]["content"] == "hi" for snapshot in rest)


async def test_the_thread_goes_on_in_another_client(start: Start) -> None:
    """A client that comes to a thread later has its output at once."""
    async with start(Say("One.")) as (_agent, client):
        async with client.threads.stream(assistant_id="agent") as thread:
            await thread.run.start(input=ask("first")["input"])
            first: Any = await thread.output
        async with client.threads.stream(thread.thread_id, assistant_id="agent") as again:
            assert await again.output == first
