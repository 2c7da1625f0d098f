"""Cancelling: the model call closes, the run ends once, and its thread can be used again."""

import asyncio

import pytest
from langgraph_sdk.errors import NotFoundError

from muster_agent.testing import CallTools, Hold, ModelCall, Reply, Say
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_runs import CALCULATE, asks, said


@pytest.mark.parametrize("stream_mode", ["values", "messages-tuple", "events"])
async def test_a_cancelled_run_closes_its_model_call(start: Start, stream_mode: str) -> None:
    """Cancelling is answered when the run has ended, and the model hears that nobody listens any more."""
    async with start(Hold(Say("never"), said="I am")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "agent", input=asks("hi"), stream_mode=stream_mode)
        await agent.model.received()
        await client.runs.cancel(thread, run["run_id"], wait=True)
        await agent.model.aborted()
        assert (await client.runs.get(thread, run["run_id"]))["status"] == "interrupted"
        assert await said(client, thread) == [("human", "hi")]


async def test_a_cancelled_thread_goes_on(start: Start) -> None:
    """A run that was cancelled in the middle of its tools leaves calls without results; the model is told so."""
    asked = CallTools([("calculator", {"expression": "1+1"}), ("current_time", {"timezone": "UTC"})])
    async with start(asked, Hold(Say("never")), Say("Yes.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "agent", input=asks("hi"))
        await agent.model.received()
        await agent.model.received()
        await client.runs.cancel(thread, run["run_id"], wait=True)
        # As a process that died between a call and its result would have left it.
        await client.threads.update_state(
            thread,
            {
                "messages": [
                    {
                        "role": "ai",
                        "content": "",
                        "tool_calls": [{"name": "calculator", "args": {"expression": "2+2"}, "id": "lost"}],
                    }
                ]
            },
            as_node="model",
        )
        await client.runs.wait(thread, "agent", input=asks("still there?"))
        sent = agent.model.calls[-1].body["messages"]
        asked_for = [call["id"] for message in sent for call in message.get("tool_calls") or ()]
        answered = [message["tool_call_id"] for message in sent if message["role"] == "tool"]
        assert asked_for == answered
        assert "lost" in answered


async def test_a_rolled_back_run_is_gone(start: Start) -> None:
    """Nothing of it is left: no run, no message, no checkpoint."""
    async with start(Say("One."), CALCULATE, Hold(Say("never"))) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("first"))
        before = await client.threads.get_history(thread, limit=100)
        run = await client.runs.create(thread, "agent", input=asks("second"))
        for _ in range(3):
            await agent.model.received()
        await client.runs.cancel(thread, run["run_id"], wait=True, action="rollback")
        assert await client.threads.get_history(thread, limit=100) == before
        with pytest.raises(NotFoundError):
            await client.runs.get(thread, run["run_id"])


async def test_a_waiting_run_is_cancelled_without_beginning(start: Start) -> None:
    """It ends at once, and the one before it is not disturbed."""
    async with start(Hold(held := Say("One."))) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        first = await client.runs.create(thread, "agent", input=asks("first"))
        await agent.model.received()
        second = await client.runs.create(thread, "agent", input=asks("second"))
        await client.runs.cancel(thread, second["run_id"], wait=True)
        assert (await client.runs.get(thread, second["run_id"]))["status"] == "interrupted"
        assert (await client.runs.get(thread, first["run_id"]))["status"] == "running"
        assert held.text == "One."


async def test_a_finished_run_cannot_be_cancelled(start: Start) -> None:
    """It is a 404, and the run stays what it was."""
    async with start(Say("One.")) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("first"))
        (run,) = await client.runs.list(thread)
        with pytest.raises(NotFoundError):
            await client.runs.cancel(thread, run["run_id"])
        assert (await client.runs.get(thread, run["run_id"]))["status"] == "success"


def never(_call: ModelCall) -> Reply:
    """The model does not answer."""
    return Hold(Say("never"))


async def test_many_runs_are_cancelled_at_once(start: Start) -> None:
    """All of a tenant's runs end."""
    async with start(improvise=never) as (agent, client):
        threads = [(await client.threads.create())["thread_id"] for _ in range(3)]
        runs = [await client.runs.create(thread, "agent", input=asks("hi")) for thread in threads]
        for _ in threads:
            await agent.model.received()
        await client.runs.cancel_many(status="all")
        for run in runs:
            await client.runs.join(run["thread_id"], run["run_id"])
        states = [await client.runs.get(run["thread_id"], run["run_id"]) for run in runs]
        assert [state["status"] for state in states] == ["interrupted"] * 3


@pytest.mark.parametrize("mode", ["cancel", "continue"])
async def test_a_client_that_leaves(start: Start, mode: str) -> None:
    """Its run ends or goes on, as it asked."""
    release = asyncio.Event()
    async with start(Hold(Say("One."), release=release)) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        streaming = client.runs.stream(
            thread, "agent", input=asks("hi"), on_disconnect=mode, stream_mode="messages"
        )
        await anext(streaming)
        await agent.model.received()
        await streaming.aclose()
        (run,) = await client.runs.list(thread)
        if mode == "cancel":
            await agent.model.aborted()
        release.set()
        await client.runs.join(thread, run["run_id"])
        ended = (await client.runs.get(thread, run["run_id"]))["status"]
        assert ended == {"cancel": "interrupted", "continue": "success"}[mode]


async def test_a_stop_button_that_only_hangs_up(start: Start) -> None:
    """An operator may have runs end with their client, whatever the client asks for."""
    async with start(Hold(Say("One.")), on_disconnect="cancel", disconnect_grace_s=0) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        streaming = client.runs.stream(
            thread, "agent", input=asks("hi"), on_disconnect="continue", stream_mode="values"
        )
        await anext(streaming)
        await agent.model.received()
        await streaming.aclose()
        await agent.model.aborted()


async def test_a_run_that_takes_too_long(start: Start) -> None:
    """It ends as `timeout`, and says so."""
    limits = {"agent": {"limits": {"run_timeout_s": 0.3}}}
    async with start(Hold(Say("never")), agents=limits) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        events = [
            part async for part in client.runs.stream(thread, "agent", input=asks("hi"), stream_mode="values")
        ]
        assert events[-2].event == "error"
        assert events[-2].data["error"] == "TimeoutError"
        assert events[-2].data["message"] == "the run took longer than 0.3 s"
        await agent.model.aborted()
        (run,) = await client.runs.list(thread)
        assert run["status"] == "timeout"
        assert (await client.threads.get(thread))["status"] == "error"


async def test_a_model_that_never_ends_calls_tools(start: Start) -> None:
    """The run ends after its limit with a sentence that says so, whatever the model wants."""
    count = iter(range(100))
    agents = {"agent": {"limits": {"model_calls": 4, "same_call": 100}}}

    def more(_call: object) -> CallTools:
        return CallTools([("calculator", {"expression": f"{next(count)}+1"})])

    async with start(improvise=more, agents=agents) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        values = await client.runs.wait(thread, "agent", input=asks("hi"))
        assert len(agent.model.calls) == 4
        assert values["messages"][-1]["content"] == "I stopped after 4 steps without finding an answer."


async def test_the_same_call_again_and_again(start: Start) -> None:
    """It gets the first result again, the tool is not called any more, and the model must answer."""
    agents = {"agent": {"limits": {"same_call": 2}}}
    async with start(CALCULATE, CALCULATE, CALCULATE, Say("161"), agents=agents) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        values = await client.runs.wait(thread, "agent", input=asks("hi"))
        assert [message["content"] for message in values["messages"] if message["type"] == "tool"] == [
            "161"
        ] * 3
        assert [call.body.get("tool_choice") for call in agent.model.calls] == [None, None, None, "none"]
