"""Graphs of LangGraph's functional API: their state is whatever they return, which need not have names in it."""

import httpx
import pytest

from tests.agent.langgraph_api.asking import Caller
from tests.agent.langgraph_api.listening import command, lifecycle, listening, start_run, to_the_end
from tests.agent.runs.conftest import Start

GRAPHS = {
    name: {"graph": f"tests.agent.langgraph_api.graphs:{name}"} for name in ("saying", "listing", "asking")
}


@pytest.mark.parametrize(("name", "state"), [("saying", "said x"), ("listing", ["x", "x"])])
async def test_a_state_without_names(
    start: Start, http: httpx.AsyncClient, name: str, state: str | list[str]
) -> None:
    """It is the run's result, the thread's values and an event of the second protocol, whoever asked for the run."""
    async with start(agents=GRAPHS) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        result = await caller.post(f"/threads/{thread}/runs/wait", {"assistant_id": name, "input": "x"})
        await start_run(http, agent, thread, {"assistant_id": name, "input": "x"})
        async with listening(http, agent, thread, ["values", "lifecycle"]) as events:
            heard = [*await to_the_end(events), *await to_the_end(events)]
        shown = await caller.get(f"/threads/{thread}")
        got = await command(http, agent, thread, "state.get", {})
        named = await command(http, agent, thread, "state.get", {"keys": ["a"]})

    assert (result, shown["values"], got["result"]["values"]) == (state, state, state)
    assert named["result"]["values"] == {}
    assert lifecycle(heard).count("completed") == 2
    assert [event["params"]["data"] for event in heard if event["method"] == "values"].count(state) == 2


async def test_a_question_before_any_state(start: Start, http: httpx.AsyncClient) -> None:
    """A run that asks is interrupted, its thread can be read, and an answer ends it."""
    async with start(agents=GRAPHS) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        asked = await caller.post(f"/threads/{thread}/runs/wait", {"assistant_id": "asking", "input": "x"})
        (first,) = await caller.get(f"/threads/{thread}/runs")
        shown = await caller.get(f"/threads/{thread}")
        got = await command(http, agent, thread, "state.get", {"keys": ["a"]})
        answer = {"assistant_id": "asking", "command": {"resume": "this"}}
        result = await caller.post(f"/threads/{thread}/runs/wait", answer)

    assert [each["value"] for each in asked["__interrupt__"]] == ["which?"]
    assert (first["status"], shown["status"]) == ("interrupted", "interrupted")
    assert got["result"]["values"] == {}
    assert result == ["x", "this"]


async def test_a_question_in_the_second_protocol(start: Start, http: httpx.AsyncClient) -> None:
    """It is told, and can be answered there."""
    async with start(agents=GRAPHS) as (agent, _client):
        thread = await Caller(http, agent).thread()
        async with listening(http, agent, thread, ["values", "input", "lifecycle"]) as events:
            await start_run(http, agent, thread, {"assistant_id": "asking", "input": "x"})
            first = await to_the_end(events)
            question = next(each["params"]["data"] for each in first if each["method"] == "input.requested")
            answer = {"interrupt_id": question["interrupt_id"], "response": "this"}
            assert (await command(http, agent, thread, "input.respond", answer))["type"] == "success"
            second = await to_the_end(events)

    assert (lifecycle(first), question["value"]) == (["running", "interrupted"], "which?")
    assert lifecycle(second) == ["running", "completed"]
    assert ["x", "this"] in [each["params"]["data"] for each in second if each["method"] == "values"]
