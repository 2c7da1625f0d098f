"""Where tools and runs end, and what is kept of them."""

import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from muster_agent.testing import CallTools, Hold, Say
from tests.agent.agents.asking import asks, new_thread, run, told
from tests.agent.agents.conftest import Serve
from tests.agent.agents.tools import PAGE_CHARACTERS, TOOLS, Crowd, crowds


def notes(*texts: str) -> CallTools:
    """The model notes things down."""
    return CallTools([("note", {"text": text}) for text in texts])


NOTER: dict[str, Any] = {"tools": {"own": [f"{TOOLS}:note"]}}


async def test_tool_calls_beyond_the_limit_are_refused(serve: Serve) -> None:
    """Calls within `limits.tool_calls` are carried out; one more is refused, and the model must answer."""
    declared = {**NOTER, "limits": {"tool_calls": 3}}
    async with serve(declared, notes("a", "b"), notes("c"), notes("d"), Say("So."), Say("?")) as (
        agent,
        client,
    ):
        thread = await new_thread(client)
        values = await run(client, thread)
        await run(client, thread)

    refused = "Error: no more tool calls: 3 were made. Answer with what you know."
    assert told(values) == ["noted a", "noted b", "noted c", refused]
    choices = [call.body.get("tool_choice") for call in agent.model.calls]
    assert choices == [None, None, None, "none", None]


async def test_a_tool_that_takes_too_long(serve: Serve) -> None:
    """A call is given up after `limits.tool_timeout_s`; the model is told, and the run goes on."""
    declared = {"tools": {"own": [f"{TOOLS}:never"]}, "limits": {"tool_timeout_s": 0.05}}
    async with serve(declared, CallTools([("never", {})]), Say("So.")) as (_agent, client):
        values = await run(client, await new_thread(client))

    assert told(values) == ["Error: the tool never took too long and was stopped."]
    assert values["messages"][-1]["content"] == "So."


@pytest.mark.parametrize(("most", "left_out"), [(200, PAGE_CHARACTERS - 200), (PAGE_CHARACTERS, 0)])
async def test_a_result_that_is_too_long(serve: Serve, most: int, left_out: int) -> None:
    """A result is cut behind `limits.tool_output_characters`, and says how much is missing."""
    declared = {"tools": {"own": [f"{TOOLS}:read"]}, "limits": {"tool_output_characters": most}}
    async with serve(declared, CallTools([("read", {"number": 1})]), Say("So.")) as (agent, client):
        await run(client, await new_thread(client))

    result, _, cut = agent.model.calls[-1].messages[-1][1].partition("\n")
    assert (len(result), result[:7]) == (most, "page 1 ")
    assert cut == (f"[{left_out} more characters were cut off]" if left_out else "")


async def test_what_was_done_before_a_limit_stays(serve: Serve) -> None:
    """A run that ends at its limit of model calls keeps every step in its thread, and the thread goes on from there."""
    declared = {**NOTER, "limits": {"model_calls": 2}}
    async with serve(declared, notes("a"), notes("b"), Say("Go on.")) as (agent, client):
        thread = await new_thread(client)
        await run(client, thread)
        state: Any = await client.threads.get_state(thread)
        await run(client, thread, "And?")

    assert told(state["values"]) == ["noted a", "noted b"]
    kinds = [message["type"] for message in state["values"]["messages"]]
    assert kinds == ["human", "ai", "tool", "ai", "tool", "ai"]
    assert [text for role, text in agent.model.calls[-1].messages if role == "tool"] == ["noted a", "noted b"]


async def test_what_was_done_before_a_time_out_stays(serve: Serve) -> None:
    """A run whose time is over keeps the steps that it finished, and the thread goes on from there."""
    declared = {**NOTER, "limits": {"run_timeout_s": 4}}
    async with serve(declared, notes("a"), Hold(Say("never")), Say("Go on.")) as (agent, client):
        thread = await new_thread(client)
        held = await client.runs.create(thread, "agent", input=asks())
        await client.runs.join(thread, held["run_id"])
        (ended,) = await client.runs.list(thread)
        state: Any = await client.threads.get_state(thread)
        await run(client, thread, "And?")

    assert ended["status"] == "timeout"
    assert told(state["values"]) == ["noted a"]
    assert [text for _role, text in agent.model.calls[-1].messages[1:]] == ["hi", "", "noted a", "And?"]


@pytest.fixture
def crowd() -> Sequence[Any]:
    """A name for a place where tools meet, and who is there."""
    name = uuid.uuid4().hex
    crowds[name] = Crowd()
    return name, crowds[name]


async def test_a_thousand_calls_in_one_turn(serve: Serve, crowd: Sequence[Any]) -> None:
    """As many as the limit allows are carried out, eight at a time, and told in the order in which they were asked."""
    name, met = crowd
    most = 40

    calls = CallTools([("meet", {"where": name, "number": number}) for number in range(1000)])
    declared = {"tools": {"own": [f"{TOOLS}:meet"]}, "limits": {"tool_calls": most}}
    async with serve(declared, calls, Say("So.")) as (agent, client):
        values = await run(client, await new_thread(client))

    assert met.largest == 8
    assert told(values) == [f"met {number}" for number in range(most)]
    results = agent.model.calls[-1].body["messages"][-most:]
    assert [each["tool_call_id"] for each in results] == [f"call_{number}" for number in range(most)]
