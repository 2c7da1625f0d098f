"""How a model's answer is read: calls that were cut off, and calls without a name of their own."""

from pathlib import Path
from typing import Any

import pytest
from langgraph_sdk.client import LangGraphClient

from muster_agent.testing import CallTools, Say
from tests.agent.agents.asking import asks, new_thread, run, told
from tests.agent.agents.conftest import Serve
from tests.agent.agents.tools import TOOLS
from tests.agent.runs.tools import effects

MAILS = "tests.agent.runs.tools"
MAILER: dict[str, Any] = {
    "tools": {"own": [f"{TOOLS}:note", f"{MAILS}:send_mail", f"{MAILS}:send_news"]},
    "approval": {"tools": "none"},
}
MANNERS = ["values", "messages-tuple", "events", "v2"]
"""Ways to hear a run: unstreamed, and three of which each reads the model's stream in its own way."""


async def heard(client: LangGraphClient, manner: str) -> Any:
    """Run the agent in front of a client that listens in this manner; the thread's values at the end."""
    if manner == "v2":
        async with client.threads.stream(assistant_id="agent") as stream:
            await stream.run.start(input=asks())
            return await stream.output
    thread = await new_thread(client)
    mode: Any = manner
    async for _ in client.runs.stream(thread, "agent", input=asks(), stream_mode=mode):
        pass
    state: Any = await client.threads.get_state(thread)
    return state["values"]


CUT = [
    '{"to": "ada, but only if sh',
    '{"to": "ada"',
    '{"to": ',
    "{",
    "",
]


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("arguments", CUT)
async def test_a_call_that_was_cut_off_is_not_carried_out(
    serve: Serve, done: Path, manner: str, arguments: str
) -> None:
    """Where the limit of tokens fell into a call, streamed or not, the run ends as cut with what was whole before."""
    cut = CallTools([("note", {"text": "a"}), ("send_mail", arguments)], finish_reason="length")
    alone = CallTools(cut.calls[1:], text="I shall wri", finish_reason="length")
    async with serve(MAILER, cut, Say("Done."), alone) as (agent, client):
        values = await heard(client, manner)
        last = (await heard(client, manner))["messages"][-1]

    assert told(values) == ["noted a"]
    assert [len(agent.model.calls), agent.model.overran] == [3, False]
    assert (last["type"], last["tool_calls"], last["invalid_tool_calls"]) == ("ai", [], [])
    assert last["response_metadata"]["finish_reason"] == "length"
    assert "muster" not in str(values)
    assert not effects(done)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("arguments", [*CUT[:-1], "[1]", '"ada"', "null", "{'to': 'ada'}"])
async def test_arguments_that_are_no_object_are_told_to_the_model(
    serve: Serve, done: Path, manner: str, arguments: str
) -> None:
    """What is no JSON object is not mended, streamed or not: nothing is done without it, and the run goes on."""
    broken = CallTools([("send_mail", arguments), ("send_news", arguments), ("note", {"text": "a"})])
    async with serve(MAILER, broken, Say("Done.")) as (agent, client):
        values = await heard(client, manner)

    assert values["messages"][-1]["content"] in ("Done.", [{"type": "text", "text": "Done.", "index": 0}])
    assert sorted("no JSON object" in text for text in told(values)) == [False, True, True]
    assert "noted a" in told(values)
    assert len(agent.model.calls) == 2
    assert not effects(done)


@pytest.mark.parametrize("manner", MANNERS)
async def test_control_characters_in_arguments(serve: Serve, manner: str) -> None:
    """A line break as it is, which small models write into texts, is read in the same way, streamed or not."""
    lines = CallTools([("note", '{"text": "a\nb"}')])
    async with serve(MAILER, lines, Say("Done.")) as (_agent, client):
        assert told(await heard(client, manner)) == ["noted a\nb"]


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize("ids", [("", "", ""), (None, None, None), ("a", "a", "a"), ("a", "", "a")])
async def test_calls_without_a_name_of_their_own(
    serve: Serve, done: Path, manner: str, ids: tuple[str | None, ...]
) -> None:
    """Each call of a message has an identifier to itself: each is carried out, and its result is told as its own."""
    calls = CallTools([("send_mail", {"to": each}) for each in ("ada", "bob", "cy")], ids=ids)
    async with serve(MAILER, calls, Say("Done.")) as (agent, client):
        await heard(client, manner)

    assert sorted(effects(done)) == ["ada", "bob", "cy"]
    asking, *results = agent.model.calls[-1].body["messages"][2:]
    identifiers = [call["id"] for call in asking["tool_calls"]]
    assert len(set(identifiers)) == 3
    assert all(identifiers)
    assert [(each["tool_call_id"], each["content"]) for each in results] == list(
        zip(identifiers, ["sent to ada", "sent to bob", "sent to cy"], strict=True)
    )


async def test_identifiers_of_their_own_are_kept(serve: Serve) -> None:
    """What the model called its calls is what it is told their results by."""
    calls = CallTools([("note", {}), ("note", {"text": "a"})], ids=("x", "y"))
    async with serve(MAILER, calls, Say("Done.")) as (agent, client):
        await run(client, await new_thread(client))

    assert [each["tool_call_id"] for each in agent.model.calls[-1].body["messages"][-2:]] == ["x", "y"]


async def test_the_same_identifier_in_two_messages(serve: Serve, done: Path) -> None:
    """Two changes that two messages of one thread ask for by one identifier are both carried out, each once."""
    first, second = [CallTools([("send_mail", {"to": each})], ids=["call_0"]) for each in ("ada", "bob")]
    async with serve(MAILER, first, second, Say("Done.")) as (_agent, client):
        values = await run(client, await new_thread(client))

    assert effects(done) == ["ada", "bob"]
    assert told(values) == ["sent to ada", "sent to bob"]
