"""The service's edge: paths, identifiers and metrics."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import httpx

from muster_agent.testing import CallTools, Hold, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

USER = {"role": "user", "content": "?"}


async def test_unknown_paths_and_methods(http: httpx.AsyncClient) -> None:
    """They are 404 and 405, in OpenAI's shape under /v1 and in LangGraph's elsewhere; a 405 says what is allowed."""
    async with scripted_agent() as agent:
        missing = [await http.get(f"{agent.url}{path}") for path in ("/v1", "/v1/nothing", "/v1/models/none")]
        elsewhere = await http.get(f"{agent.url}/nothing")
        wrong = await http.request("TRACE", f"{agent.url}/v1/chat/completions")

    assert [(response.status_code, response.json()["error"]["type"]) for response in missing] == [
        (404, "invalid_request_error")
    ] * 3
    assert (elsewhere.status_code, elsewhere.json()) == (404, {"detail": "Not Found: GET /nothing"})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "Method Not Allowed: TRACE /v1/chat/completions"


async def test_every_response_has_a_request_id(http: httpx.AsyncClient) -> None:
    """A well-formed one is the client's own; otherwise one is made."""
    async with scripted_agent() as agent:
        own = await http.get(f"{agent.url}/ok", headers={"x-request-id": "a.B-1_" + "x" * 122})
        made = [
            await http.get(f"{agent.url}{path}", headers={"x-request-id": given})
            for path, given in [("/ok", ""), ("/ok", "a b"), ("/nowhere", "x" * 129)]
        ]
        refused = await http.post(f"{agent.url}/v1/chat/completions", content=b"{")

    assert own.headers["x-request-id"] == "a.B-1_" + "x" * 122
    for response in (*made, refused):
        assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])


async def test_model_calls_carry_their_run(http: httpx.AsyncClient) -> None:
    """Each call has the thread, the run, the step, and the request's id with the call's number."""
    multiply = CallTools([("calculator", {"expression": "1"})])
    body = {"model": "muster-agent", "messages": [USER]}
    async with scripted_agent(multiply, Say("1"), multiply, Say("1"), Say("1")) as agent:
        url = f"{agent.url}/v1/chat/completions"
        first = await http.post(url, json=body, headers={"x-session-id": "t.1", "x-request-id": "r-1"})
        await http.post(url, json={**body, "stream": True}, headers={"x-request-id": "x" * 128})
        await http.post(url, json=body)

    sessions = [call.headers["x-session-id"] for call in agent.model.calls]
    requests = [call.headers["x-request-id"] for call in agent.model.calls]
    assert sessions[0] == sessions[1] == first.headers["x-agent-thread-id"]
    assert sessions[2] == sessions[3] != sessions[4]
    assert agent.model.calls[0].headers["x-muster-run-id"] == first.headers["x-agent-run-id"]
    assert [call.headers["x-muster-step"] for call in agent.model.calls] == ["1", "2", "1", "2", "1"]
    assert {call.headers["x-muster-call-kind"] for call in agent.model.calls} == {"model"}
    assert requests[:4] == ["r-1-1", "r-1-2", "x" * 120 + "-1", "x" * 120 + "-2"]


async def test_runs_side_by_side_keep_their_identities(http: httpx.AsyncClient) -> None:
    """A model call of one run never carries the identity of another that goes on at the same time."""
    held = [Hold(Say("1")), Hold(Say("2"))]
    tasks: dict[str, asyncio.Task[httpx.Response]] = {}
    async with scripted_agent(*held) as agent, asyncio.TaskGroup() as group:
        for name in ("a", "b"):
            body = {"model": "muster-agent", "messages": [{"role": "user", "content": name}]}
            url = f"{agent.url}/v1/chat/completions"
            headers = {"x-session-id": name, "x-request-id": name}
            tasks[name] = group.create_task(http.post(url, json=body, headers=headers))
        for _ in held:
            await agent.model.received()
        for reply in held:
            reply.release.set()

    for call in agent.model.calls:
        said = call.messages[-1][1]
        threads = {name: task.result().headers["x-agent-thread-id"] for name, task in tasks.items()}
        assert (call.headers["x-session-id"], call.headers["x-request-id"]) == (threads[said], f"{said}-1")


async def test_metrics_count_runs_and_tools(ask: Ask, http: httpx.AsyncClient) -> None:
    """Runs count by outcome, tool calls by known tool; a name that the model made up is `unknown`."""
    tools = CallTools([("calculator", {"expression": "1/0"}), ("rocket", {}), ("current_time", {})])
    async with scripted_agent(tools, Say("1"), Say("2")) as agent:
        await ask(agent, "?")
        await ask(agent, "?", stream=True)
        text = (await http.get(f"{agent.url}/metrics")).text

    shown = {line for line in text.splitlines() if line.startswith("muster_agent_") and "bucket" not in line}
    assert 'muster_agent_runs_total{agent="agent",outcome="success"} 2.0' in shown
    assert 'muster_agent_tool_calls_total{outcome="error",tool="calculator"} 1.0' in shown
    assert 'muster_agent_tool_calls_total{outcome="error",tool="unknown"} 1.0' in shown
    assert 'muster_agent_tool_calls_total{outcome="ok",tool="current_time"} 1.0' in shown
    assert "muster_agent_runs_in_flight 0.0" in shown
    assert "muster_agent_run_seconds_count 2.0" in shown
