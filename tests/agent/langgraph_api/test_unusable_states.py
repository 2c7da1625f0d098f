"""What a graph cannot take: the run fails with it, and the thread can be read and goes on."""

from typing import Any

import httpx
import pytest

from tests.agent.langgraph_api.asking import Caller, asks, improvise, run
from tests.agent.langgraph_api.listening import command
from tests.agent.runs.conftest import Start

CANARY = "canary"
NO_CONTENT = {"messages": [{"role": "user", "text": CANARY}]}
NO_CALL = {"messages": [{"role": "tool", "content": CANARY}]}
WAITING = {"waiting": {"graph": "tests.agent.langgraph_api.graphs:waiting"}}


def _texts(values: Any) -> list[str]:
    return [message["content"] for message in values["messages"]]


@pytest.mark.parametrize(
    "asked",
    [
        {"input": NO_CONTENT},
        {"input": NO_CALL},
        {"input": {"messages": None}},
        {"input": None, "command": {"update": NO_CONTENT}},
        {"input": {}, "command": {"update": NO_CONTENT}},  # as agent-chat-ui sends commands
        {"input": None, "command": {"update": {"messages": None}, "goto": "model"}},
    ],
)
async def test_a_malformed_message(start: Start, http: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    """The thread shows the state before it, everywhere that states are shown, and the next run is as any."""
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        await caller.post(f"/threads/{thread}/runs/wait", run("first"))
        assert "__error__" in await caller.post(f"/threads/{thread}/runs/wait", run(**asked))

        shown = await caller.get(f"/threads/{thread}")
        assert shown["status"] == "error"
        assert _texts(shown["values"]) == ["first", "re: first"]
        state = await caller.get(f"/threads/{thread}/state?subgraphs=true")
        assert _texts(state["values"]) == ["first", "re: first"]
        got = await command(http, agent, thread, "state.get", {"keys": ["messages"]})
        assert _texts(got["result"]["values"]) == ["first", "re: first"]
        assert len(await caller.get(f"/threads/{thread}/history")) > 2

        values = await caller.post(f"/threads/{thread}/runs/wait", run("second"))
        assert _texts(values) == ["first", "re: first", "second", "re: second"]
        assert len(await caller.get(f"/threads/{thread}/history?limit=100")) > 4


async def test_a_chat_on_such_a_thread(start: Start, http: httpx.AsyncClient) -> None:
    """A chat goes on from the state before it."""
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        await caller.post(f"/threads/{thread}/runs/wait", run("first"))
        await caller.post(f"/threads/{thread}/runs/wait", run(input=NO_CONTENT))
        body = {"model": "muster-agent", **asks("second")}
        answer = await caller.send("POST", "/v1/chat/completions", body, {"x-thread-id": thread})
        values = (await caller.get(f"/threads/{thread}/state"))["values"]

    assert answer.status_code == 200, answer.text
    assert _texts(values) == ["first", "re: first", "second", "re: second"]


async def test_a_question_outlives_a_state_that_is_refused(start: Start, http: httpx.AsyncClient) -> None:
    """A state by hand that the graph does not take is a 422 that changes nothing: what waits can be answered."""
    async with start(agents=WAITING) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        asked = await caller.post(f"/threads/{thread}/runs/wait", run("hi", "waiting"))
        before = await caller.get(f"/threads/{thread}/state")
        refused = await caller.send(
            "POST", f"/threads/{thread}/state", {"values": NO_CONTENT, "as_node": "answer"}
        )
        after = await caller.get(f"/threads/{thread}/state")
        resumed = run(assistant="waiting", input=None, command={"resume": "yes"})
        values = await caller.post(f"/threads/{thread}/runs/wait", resumed)

    assert [each["value"] for each in asked["__interrupt__"]] == ["what then?"]
    assert refused.status_code == 422
    assert CANARY not in refused.text
    assert after == before
    assert _texts(values) == ["hi", "hi: yes"]
