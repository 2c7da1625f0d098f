"""Commands of LangGraph's second protocol: what a thread is told to do, and what is refused."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from muster_agent.testing import Hold, Say
from tests.agent.langgraph_api.listening import (
    ALL,
    ask,
    brief,
    command,
    lifecycle,
    listening,
    new_thread,
    start_run,
    to_the_end,
)
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_approval import AGENTS, done, mail
from tests.agent.runs.tools import effects

__all__ = ["done"]

KEYS = {"sk-ada": "ada", "sk-bob": "bob"}
ADA = {"authorization": "Bearer sk-ada"}
BOB = {"x-api-key": "sk-bob"}
APPROVE = {"decisions": [{"type": "approve"}]}
STEP: dict[str, Any] = {"step": {"graph": "tests.agent.langgraph_api.graphs:two_questions"}}


async def test_a_question_is_asked_and_answered(start: Start, http: httpx.AsyncClient, done: Path) -> None:
    """A run says what it waits for when it can be answered, and the answer goes on with it."""
    async with start(mail("ada"), Say("Sent."), agents=AGENTS) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle", "input", "tools"]) as events:
            await start_run(http, agent, thread, ask("Write to Ada."))
            asked = await to_the_end(events)
            shown: Any = await client.threads.get(thread)
            question = asked[1]["params"]["data"]
            answer = {"namespace": [], "interrupt_id": question["interrupt_id"], "response": APPROVE}
            told = await command(http, agent, thread, "input.respond", answer)
            answered = await to_the_end(events)

    assert brief(asked) == [("lifecycle", "running"), ("input.requested", None), ("lifecycle", "interrupted")]
    assert [each["id"] for task in shown["interrupts"].values() for each in task] == [
        question["interrupt_id"]
    ]
    assert question["value"] == question["payload"]
    assert question["value"]["action_requests"][0]["args"] == {"to": "ada"}
    assert (told["type"], told["id"], told["meta"]) == ("success", 7, {"applied_through_seq": 0})
    assert lifecycle(answered) == ["running", "completed"]
    assert effects(done) == ["ada"]


async def test_an_input_answers_what_waits(start: Start, http: httpx.AsyncClient, done: Path) -> None:
    """On a thread that waits, a new run's input is the answer: LangGraph's remote graphs resume like that."""
    async with start(mail("ada"), Say("Sent."), agents=AGENTS) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle"]) as events:
            await start_run(http, agent, thread, ask("Write to Ada."))
            await to_the_end(events)
            await start_run(http, agent, thread, {"assistant_id": "agent", "input": APPROVE})
            assert lifecycle(await to_the_end(events)) == ["running", "completed"]

    assert effects(done) == ["ada"]


async def test_several_answers_at_once(start: Start, http: httpx.AsyncClient) -> None:
    """Questions of one step are answered together, with a change of the state beside them."""
    async with start(agents=STEP) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle", "input"]) as events:
            await start_run(http, agent, thread, {"assistant_id": "step", "input": {"text": ""}})
            asked = [
                event["params"]["data"]
                for event in await to_the_end(events)
                if event["method"] != "lifecycle"
            ]
            responses = [
                {"namespace": [], "interrupt_id": each["interrupt_id"], "response": each["value"].upper()}
                for each in asked
            ]
            more = {"update": {"text": "first "}, "metadata": {"why": "test"}}
            await command(http, agent, thread, "input.respond", {"responses": responses, **more})
            assert lifecycle(await to_the_end(events)) == ["running", "completed"]
        values: Any = (await client.threads.get_state(thread))["values"]
        run, _ = await client.runs.list(thread)

    assert sorted(each["value"] for each in asked) == ["a", "b"]
    assert sorted(values["text"].split()) == ["A", "B", "first"]
    assert run["metadata"]["why"] == "test"  # type: ignore[index]


async def test_what_a_resume_jumps_to(start: Start, http: httpx.AsyncClient) -> None:
    """An answer may send a node something of its own, as `Send` does."""
    async with start(agents=STEP) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle", "input"]) as events:
            await start_run(http, agent, thread, {"assistant_id": "step", "input": {"text": ""}})
            asked = [
                event["params"]["data"]
                for event in await to_the_end(events)
                if event["method"] != "lifecycle"
            ]
            responses = [{"interrupt_id": each["interrupt_id"], "response": ""} for each in asked]
            goto = [{"node": "echo", "input": {"text": "sent "}}]
            await command(http, agent, thread, "input.respond", {"responses": responses, "goto": goto})
            await to_the_end(events)
        values: Any = (await client.threads.get_state(thread))["values"]

    assert "echo sent" in values["text"]


async def test_the_state_is_read(start: Start, http: httpx.AsyncClient) -> None:
    """The values, or those that are asked for, and the checkpoint that they are of."""
    async with start(Say("One.")) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle"]) as events:
            before = await command(http, agent, thread, "state.get", {"namespace": []})
            await start_run(http, agent, thread, ask("first"))
            await to_the_end(events)
        told = await command(http, agent, thread, "state.get", {"namespace": []})
        some = await command(http, agent, thread, "state.get", {"keys": ["nothing"]})
        state: Any = await client.threads.get_state(thread)

    assert before["result"] == {"values": {}}
    assert [message["type"] for message in told["result"]["values"]["messages"]] == ["human", "ai"]
    assert told["result"]["checkpoint"] == {"id": state["checkpoint"]["checkpoint_id"], "ns": ""}
    assert some["result"]["values"] == {}


# method, parameters, error
REFUSED: dict[str, tuple[str, Any, str]] = {
    "unknown command": ("nope", {}, "unknown_command"),
    "no assistant": ("run.start", {"input": {}}, "invalid_argument"),
    "unknown assistant": ("run.start", {"assistant_id": "nobody", "input": {}}, "invalid_argument"),
    "configuration": ("run.start", {"assistant_id": "agent", "config": 7}, "invalid_argument"),
    "steps": ("run.start", {"assistant_id": "agent", "config": {"recursion_limit": 0}}, "invalid_argument"),
    "no checkpoint": (
        "run.start",
        {
            "assistant_id": "agent",
            "config": {"configurable": {"checkpoint_id": "1f1e6631-b293-6d1d-8006-0132d0230224"}},
        },
        "no_such_checkpoint",
    ),
    "nothing has run": ("input.respond", {"interrupt_id": "x", "response": 1}, "no_such_run"),
    "no question": ("input.respond", {"response": 1}, "invalid_argument"),
    "no answers": ("input.respond", {"responses": []}, "invalid_argument"),
    "an answer to nothing": ("input.respond", {"responses": [{"response": 1}]}, "invalid_argument"),
    "keys": ("state.get", {"keys": [1]}, "invalid_argument"),
    "a subscription": ("subscription.subscribe", {"channels": ["values"]}, "not_supported"),
}


@pytest.mark.parametrize("case", list(REFUSED))
async def test_what_is_refused(start: Start, http: httpx.AsyncClient, case: str) -> None:
    """A command that cannot be obeyed is answered with the protocol's word for why, and nothing is made."""
    method, params, error = REFUSED[case]
    async with start() as (agent, client):
        told = await command(http, agent, new_thread(), method, params)
        assert await client.threads.count() == 0

    assert (told["type"], told["id"], told["error"]) == ("error", 7, error)
    assert told["message"]


async def test_answers_must_be_to_what_waits(start: Start, http: httpx.AsyncClient, done: Path) -> None:
    """An answer to another question is refused, and so is a second one to the same."""
    async with start(mail("ada"), Say("Sent."), agents=AGENTS) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle", "input"]) as events:
            await start_run(http, agent, thread, ask("Write to Ada."))
            asked = await to_the_end(events)
            answer = {"interrupt_id": asked[1]["params"]["data"]["interrupt_id"], "response": APPROVE}
            other = await command(http, agent, thread, "input.respond", {**answer, "interrupt_id": "0" * 32})
            await command(http, agent, thread, "input.respond", answer)
            await to_the_end(events)
            again = await command(http, agent, thread, "input.respond", answer)

    assert (other["error"], again["error"]) == ("no_such_interrupt", "invalid_argument")
    assert effects(done) == ["ada"]


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"id": -1, "method": "x"}', b'{"id": 1}', b'{"id": 1, "method": 2}']
)
async def test_what_is_no_command(start: Start, http: httpx.AsyncClient, body: bytes) -> None:
    """It is refused before anything is looked at."""
    async with start() as (agent, _client):
        answer = await http.post(f"{agent.url}/threads/{new_thread()}/commands", content=body)

    assert answer.status_code in {400, 422}


@pytest.mark.parametrize(
    "body", [{}, {"channels": []}, {"channels": ["values"], "since": -1}, {"channels": "values"}]
)
async def test_what_is_no_subscription(start: Start, http: httpx.AsyncClient, body: Any) -> None:
    """It is refused with the name of what is wrong."""
    async with start() as (agent, _client):
        answer = await http.post(f"{agent.url}/threads/{new_thread()}/stream/events", json=body)

    assert answer.status_code == 422
    assert {"channels", "since"} & set(answer.json()["detail"].partition(":")[0].split("."))


async def test_threads_of_others_are_not_there(start: Start, http: httpx.AsyncClient) -> None:
    """A tenant neither commands another's thread nor hears it; nor is a run put on it."""
    held = Hold(Say("One."))
    async with start(held, keys=KEYS) as (agent, _client):
        thread = new_thread()
        here = f"{agent.url}/threads/{thread}"
        start_command = {"id": 1, "method": "run.start", "params": ask("mine")}
        await http.post(f"{here}/commands", json=start_command, headers=ADA)
        await agent.model.received()
        refused = [
            await http.post(f"{here}/commands", json=start_command, headers=BOB),
            await http.post(f"{here}/stream/events", json={"channels": ALL}, headers=BOB),
            await http.get(f"{here}/stream", headers=BOB),
            await http.post(f"{here}/commands", json=start_command),
        ]
        runs = await http.get(f"{here}/runs", headers=ADA)
        held.release.set()

    assert [answer.status_code for answer in refused] == [404, 404, 404, 401]
    assert len(runs.json()) == 1


@pytest.mark.parametrize("wrong", [[], {}, ["enqueue"], {"a": 1}, 7, True])
@pytest.mark.parametrize("name", ["multitaskStrategy", "multitask_strategy"])
async def test_a_strategy_that_is_no_word(
    start: Start, http: httpx.AsyncClient, name: str, wrong: Any
) -> None:
    """It is refused by its name; a word of a later release is as if nothing were said."""
    async with start(Say("Fine.")) as (agent, _client):
        thread = new_thread()
        told = await command(http, agent, thread, "run.start", ask("hi", **{name: wrong}))
        unknown: dict[str, Any] = {name: "later"}
        later = await command(http, agent, thread, "run.start", ask("hi", **unknown))

    assert (told["type"], told["error"]) == ("error", "invalid_argument")
    assert "multitask_strategy" in told["message"]
    assert later["type"] == "success"
