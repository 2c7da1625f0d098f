"""Runs through LangGraph's own client: what they do to their thread, on both databases."""

from typing import Any

from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import CallTools, Say
from tests.agent.runs.conftest import Start

CALCULATE = CallTools([("calculator", {"expression": "23*7"})])


def asks(text: str) -> dict[str, Any]:
    """A run's input."""
    return {"messages": [{"role": "user", "content": text}]}


async def said(client: LangGraphClient, thread_id: str) -> list[tuple[str, str]]:
    """Who said what on a thread."""
    state: Any = await client.threads.get_state(thread_id)
    return [(message["type"], message["content"]) for message in state["values"]["messages"]]


async def test_a_run_calls_tools_and_answers(start: Start) -> None:
    """A run's messages are in its thread, in order, and its thread is idle again."""
    async with start(CALCULATE, Say("It is 161.")) as (_agent, client):
        thread = await client.threads.create()
        values = await client.runs.wait(thread["thread_id"], "agent", input=asks("What is 23 * 7?"))
        assert [message["type"] for message in values["messages"]] == ["human", "ai", "tool", "ai"]
        assert values["messages"][-1]["content"] == "It is 161."
        assert (await client.threads.get(thread["thread_id"]))["status"] == "idle"


async def test_a_thread_goes_on(start: Start) -> None:
    """The next run sees what the earlier ones have said."""
    async with start(Say("One."), Say("Two.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("first"))
        await client.runs.wait(thread, "agent", input=asks("second"))
        assert [text for role, text in agent.model.calls[1].messages if role != "system"] == [
            "first",
            "One.",
            "second",
        ]


async def test_runs_survive_a_restart_of_the_service(start: Start) -> None:
    """What was said before a restart is there after it."""
    async with start(Say("One.")) as (_agent, client):
        thread = (await client.threads.create(metadata={"kind": "test"}))["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("first"))
    async with start(Say("Two.")) as (_agent, client):
        assert await said(client, thread) == [("human", "first"), ("ai", "One.")]
        await client.runs.wait(thread, "agent", input=asks("second"))
        assert len(await said(client, thread)) == 4
        found = await client.threads.search(metadata={"kind": "test"})
        assert [row["thread_id"] for row in found] == [thread]
