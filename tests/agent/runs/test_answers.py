"""Answers to questions count once, in time, and only where they led somewhere."""

from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import Say
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_approval import AGENTS, answered, done, mail
from tests.agent.runs.test_runs import asks
from tests.agent.runs.tools import effects

__all__ = ["done"]

GRAPHS = {name: {"graph": f"tests.agent.runs.graphs:{name}"} for name in ("asking_once", "asking_twice")}


def quickly(timeout_s: float) -> dict[str, Any]:
    """Agents whose questions have so much time."""
    return {"agent": {**AGENTS["agent"], "approval": {"timeout_s": timeout_s}}}


async def asked(client: LangGraphClient, thread_id: str) -> dict[str, str]:
    """What waits for an answer: identifiers by their questions."""
    state: Any = await client.threads.get_state(thread_id)
    return {each["value"]: each["id"] for task in state["tasks"] for each in task["interrupts"]}


async def at_rest(client: LangGraphClient, thread_id: str) -> None:
    """Wait until nothing is asked on a thread any more."""
    while (await client.threads.get(thread_id))["status"] != "idle":
        pass


async def test_a_rolled_back_answer_is_asked_for_again(start: Start) -> None:
    """What a task had made of it is taken back too, though the task's checkpoint is another run's."""
    async with start(agents=GRAPHS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "asking_twice", input={"log": []})
        ids = await asked(client, thread)
        run = await client.runs.create(
            thread, "asking_twice", command={"resume": {ids["a?"]: "yes", ids["b?"]: "never"}}
        )
        while "a?" in await asked(client, thread):  # until its answer is taken
            pass
        await client.runs.cancel(thread, run["run_id"], wait=True, action="rollback")
        assert await asked(client, thread) == ids
        answers = {ids["a?"]: "no", ids["b?"]: "no"}
        values: Any = await client.runs.wait(thread, "asking_twice", command={"resume": answers})
        assert sorted(values["log"]) == ["a=no", "b=no"]


async def test_a_rolled_back_update_is_gone(start: Start) -> None:
    """What came with the answer is neither shown nor found by the next run."""
    async with start(agents=GRAPHS) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "asking_once", input={"log": []})
        command: Any = {"resume": "never", "update": {"log": ["taken back"]}}
        run = await client.runs.create(thread, "asking_once", command=command)
        while not (await client.threads.get_state(thread))["values"].get("log"):  # until it has been stored
            pass
        await client.runs.cancel(thread, run["run_id"], wait=True, action="rollback")
        assert not (await client.threads.get_state(thread))["values"].get("log")
        values: Any = await client.runs.wait(thread, "asking_once", command={"resume": "yes"})
        assert values["log"] == ["b=yes"]
        assert not agent.model.calls


@pytest.mark.parametrize("ending", ["fail", "never"])
async def test_an_answer_that_leads_nowhere(start: Start, ending: str) -> None:
    """A graph that fails with it, or is stopped, asks again, and the next answer counts alone."""
    async with start(agents=GRAPHS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "asking_once", input={"log": []})
        ids = await asked(client, thread)
        run = await client.runs.create(thread, "asking_once", command={"resume": ending})
        if ending == "never":
            await client.runs.cancel(thread, run["run_id"], wait=True)
        await client.runs.join(thread, run["run_id"])
        assert await asked(client, thread) == ids
        values: Any = await client.runs.wait(thread, "asking_once", command={"resume": "yes"})
        assert values["log"] == ["b=yes"]


async def test_a_late_answer_is_no(start: Start, done: Path) -> None:
    """Also when nobody has written the refusal down yet."""
    async with start(mail("ada"), Say("Then not."), agents=quickly(0.001)) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        await client.runs.wait(thread, "agent", command=answered("approve"))
        await at_rest(client, thread)
        assert not effects(done)


async def test_a_question_whose_run_is_deleted_is_denied(start: Start, done: Path) -> None:
    """Nobody can answer it after its time."""
    async with start(mail("ada"), Say("Then not."), agents=quickly(0.1)) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        run = await client.runs.create(thread, "agent", input=asks("Write to Ada."))
        await client.runs.join(thread, run["run_id"])
        await client.runs.delete(thread, run["run_id"])
        await at_rest(client, thread)
        await client.runs.wait(thread, "agent", command=answered("approve"))
        assert not effects(done)


async def test_a_run_that_never_began_takes_no_questions_time(start: Start, done: Path) -> None:
    """One that is ordered for later and cancelled changes nothing."""
    async with start(mail("ada"), Say("Then not."), agents=quickly(0.5)) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        later = await client.runs.create(thread, "agent", command=answered("approve"), after_seconds=600)
        await client.runs.cancel(thread, later["run_id"])
        await at_rest(client, thread)
        assert not effects(done)


async def test_a_copied_question_has_its_time(start: Start, done: Path) -> None:
    """A copy of a thread is no way to have it wait for ever."""
    async with start(mail("ada"), Say("No."), Say("No."), agents=quickly(0.5)) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.wait(thread, "agent", input=asks("Write to Ada."))
        await client.threads.copy(thread)
        (copied,) = [
            each["thread_id"] for each in await client.threads.search() if each["thread_id"] != thread
        ]
        await at_rest(client, copied)
        assert not effects(done)
