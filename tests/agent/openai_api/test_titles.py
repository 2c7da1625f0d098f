"""What front ends ask on the side."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import Fail, Hold, Refuse, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

PROMPT = "### Task:\nGenerate a title."
BUSY = Refuse(
    429, {"message": "too many", "type": "rate_limit_error", "code": "queue_full"}, {"retry-after": "7"}
)


async def test_a_task_goes_straight_to_the_model(ask: Ask, http: httpx.AsyncClient) -> None:
    """By header or by prompt it is one call without tools, of low priority, and makes no thread and no run."""
    async with scripted_agent(Say("A title"), Say("A title")) as agent:
        by_header = await ask(
            agent, "Name this.", thread="t", headers={"x-openwebui-task": "title_generation"}
        )
        by_prompt = await ask(agent, ("system", "Be brief."), PROMPT, thread="t", max_tokens=9)
        threads = (await http.post(f"{agent.url}/threads/search", json={})).json()

    for answer in (by_header, by_prompt):
        assert answer.json()["choices"][0]["message"]["content"] == "A title"
        assert answer.json()["model"] == "muster-agent"
    call = agent.model.calls[1]
    assert call.messages == [("system", "Be brief."), ("user", PROMPT)]
    assert (call.body["service_tier"], call.body["max_tokens"], "tools" in call.body) == ("flex", 9, False)
    assert call.headers["x-muster-call-kind"] == "title"
    assert threads == []


@pytest.mark.parametrize("header", ["", "{{TASK}}"])
async def test_a_header_that_says_nothing(ask: Ask, header: str) -> None:
    """An empty header, and one that the front end has not filled in, make no task of a message."""
    async with scripted_agent(Say("Hello.")) as agent:
        await ask(agent, "Hi", headers={"x-openwebui-task": header})

    assert agent.model.calls[0].headers["x-muster-call-kind"] == "model"


async def test_a_task_is_streamed(ask: Ask) -> None:
    """The model's chunks are passed on as they are, in the agent's name; usage only where it was asked for."""
    async with scripted_agent(Say("A title"), Say("A title")) as agent:
        bodies = [
            (await ask(agent, PROMPT, stream=True, stream_options={"include_usage": asked})).text
            for asked in (False, True)
        ]

    events = [[line.removeprefix("data: ") for line in body.splitlines() if line] for body in bodies]
    assert [lines[-1] for lines in events] == ["[DONE]", "[DONE]"]
    chunks = [[json.loads(line) for line in lines[:-1]] for lines in events]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[0]]
    assert "".join(texts) == "A title"
    assert {chunk["model"] for chunk in chunks[0]} == {"muster-agent"}
    assert ["usage" in chunk for chunk in (chunks[0][-1], chunks[1][-1])] == [False, True]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_task_that_fails(ask: Ask, *, streamed: bool) -> None:
    """It has the failure's status, before the first chunk also streamed; a break after it is an error event."""
    async with scripted_agent(BUSY, Fail("It", {"message": "gone", "code": "engine_gone"})) as agent:
        refused = await ask(agent, PROMPT, stream=streamed)
        broken = await ask(agent, PROMPT, stream=True)

    assert (refused.status_code, refused.headers["retry-after"]) == (429, "7")
    assert broken.text.endswith('"code":"engine_gone"}}\n\ndata: [DONE]\n\n')


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_its_task(ask: Ask, *, streamed: bool) -> None:
    """The model call is closed."""
    async with scripted_agent(Hold(Say("late"))) as agent:
        client = asyncio.create_task(ask(agent, PROMPT, stream=streamed))
        await agent.model.received()
        client.cancel()
        await agent.model.aborted()

    assert client.cancelled()
