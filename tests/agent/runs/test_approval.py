"""Tools that change the world ask a person first, and one answer counts once."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from muster_agent.testing import CallTools, Say
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_runs import asks
from tests.agent.runs.tools import EFFECTS, effects

MAIL = "tests.agent.runs.tools:send_mail"
AGENTS: dict[str, Any] = {"agent": {"tools": {"own": [MAIL]}}}


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tool writes what it does."""
    path = tmp_path / "effects"
    monkeypatch.setenv(EFFECTS, str(path))
    return path


def mail(*to: str) -> CallTools:
    """The model wants to send mails."""
    return CallTools([("send_mail", {"to": each}) for each in to])


def answered(*kinds: str) -> dict[str, Any]:
    """What agent-chat-ui sends to go on."""
    return {"resume": {"decisions": [{"type": kind} for kind in kinds]}}


def results(values: dict[str, Any]) -> Sequence[str]:
    """What tools have said."""
    return [message["content"] for message in values["messages"] if message["type"] == "tool"]


async def test_nothing_happens_before_an_answer(start: Start, done: Path) -> None:
    """The run waits, and its thread says what for."""
    async with start(mail("ada"), Say("Sent."), agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        values: Any = await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        (question,) = values["__interrupt__"]
        assert question["value"]["action_requests"][0]["args"] == {"to": "ada"}
        shown = await client.threads.get(thread)
        assert shown["status"] == "interrupted"
        assert [each["id"] for task in shown["interrupts"].values() for each in task] == [question["id"]]
        state = await client.threads.get_state(thread)
        assert [each["id"] for task in state["tasks"] for each in task["interrupts"]] == [question["id"]]
        assert not effects(done)
        values = await client.runs.wait(thread, "agent", input={}, command=answered("approve"))
        assert effects(done) == ["ada"]
        assert results(values) == ["sent to ada"]
        assert (await client.threads.get(thread))["status"] == "idle"


async def test_a_refusal_is_told_to_the_model(start: Start, done: Path) -> None:
    """Nothing is sent, and the model goes on."""
    async with start(mail("ada"), Say("Then not."), agents=AGENTS) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        await client.runs.wait(thread, "agent", command=answered("reject"))
        assert not effects(done)
        assert "rejected" in agent.model.calls[-1].messages[-1][1]


async def test_nobody_answers(start: Start, done: Path) -> None:
    """After its time the answer is no, and the model is told."""
    agents = {"agent": {**AGENTS["agent"], "approval": {"timeout_s": 0.2}}}
    async with start(mail("ada"), Say("Then not."), agents=agents, keys={"k1": "ada"}, key="k1") as (
        agent,
        client,
    ):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        for _ in range(2):
            await agent.model.received()
        _, _ = await client.runs.list(thread)  # the denial is a run of its own
        (denial, _) = await client.runs.list(thread)
        values: Any = await client.runs.join(thread, denial["run_id"])
        assert "Nobody approved" in results(values)[0]
        assert not effects(done)
        assert agent.model.calls[-1].headers["authorization"] == "Bearer k1"
        late: Any = await client.runs.wait(thread, "agent", command=answered("approve"))
        assert results(late) == results(values)
        assert not effects(done)


async def test_two_answers_at_once(start: Start, done: Path) -> None:
    """One counts; the other is not taken for the answer to the next question."""
    async with start(mail("ada"), mail("bob"), Say("Done."), agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to both."))
        tasks = [
            asyncio.create_task(client.runs.wait(thread, "agent", command=answered("approve")))
            for _ in range(3)
        ]
        await asyncio.wait(tasks)
        assert effects(done) == ["ada"]
        state = await client.threads.get_state(thread)
        asked = [
            each["value"]["action_requests"][0]["args"]
            for task in state["tasks"]
            for each in task["interrupts"]
        ]
        assert asked == [{"to": "bob"}]


async def test_one_question_at_a_time(start: Start, done: Path) -> None:
    """A model that wants two things at once is asked about one: clients send one decision."""
    async with start(mail("ada", "bob"), Say("One."), agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        values: Any = await client.runs.wait(thread, "agent", input=asks("Write to both."))
        assert len(values["__interrupt__"][0]["value"]["action_requests"]) == 1
        await client.runs.wait(thread, "agent", command=answered("approve"))
        assert effects(done) == ["ada"]


async def test_the_user_goes_on_without_answering(start: Start, done: Path) -> None:
    """What waited is not carried out, and the model is told that it was not."""
    async with start(mail("ada"), Say("Fine."), agents=AGENTS) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        await client.runs.wait(thread, "agent", input=asks("Forget it."))
        roles = [message["role"] for message in agent.model.calls[-1].body["messages"]]
        assert roles == ["system", "user", "assistant", "tool", "user"]
        assert not effects(done)


async def test_content_from_outside_obeyed(start: Start, done: Path) -> None:
    """Where approval is off, a change that follows what was read outside asks all the same."""
    tools = {"own": [MAIL, "tests.agent.runs.tools:read_page"]}
    agents = {"agent": {"tools": tools, "approval": {"tools": "none"}}}
    page = CallTools([("read_page", {})])
    async with start(mail("ada"), Say("Sent."), page, mail("eve"), Say("?"), agents=agents) as (
        _agent,
        client,
    ):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        assert effects(done) == ["ada"]
        values: Any = await client.runs.wait(thread, "agent", input=asks("What is on the page?"))
        assert values["__interrupt__"][0]["value"]["action_requests"][0]["args"] == {"to": "eve"}
        assert effects(done) == ["ada"]
