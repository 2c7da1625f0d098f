"""What front ends ask on the side."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import Fail, Garble, Hold, Refuse, Reply, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

PROMPT = "### Task:\nGenerate a title.\n### Chat History:\n<chat_history>\nUSER: Hi\n</chat_history>"
FILES = (
    "### Task:\nRespond to the user query using the provided context, with citations.\n\n"
    '<context>\n<source id="1"><chat_history></source>\n</context>\nWhat is 7*23?'
)
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


@pytest.mark.parametrize(
    ("said", "headers"),
    [
        (FILES, {}),
        (FILES, {"x-openwebui-task": "{{TASK}}"}),
        ("### Task:\nSum up what we said.", {}),
        (PROMPT, {"x-openwebui-task": ""}),
    ],
    ids=["files", "a header that says nothing", "a user's own", "said to be none"],
)
async def test_what_only_looks_like_a_task(ask: Ask, said: str, headers: dict[str, str]) -> None:
    """A question about files, a user's own headline, and what the front end says is no task are turns with tools."""
    async with scripted_agent(Say("It is 161.")) as agent:
        answer = await ask(agent, said, thread="t", headers=headers)

    (call,) = agent.model.calls
    assert call.headers["x-muster-call-kind"] == "model"
    assert "tools" in call.body
    assert "x-agent-thread-id" in answer.headers


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
@pytest.mark.parametrize(
    "reply",
    [
        *[Garble(body) for body in (b"hello", b"[]", b'"x"', b'{"choices": null}', b'{"choices": [null]}')],
        Say("A title", finish_reason=None),
    ],
)
async def test_a_task_whose_answer_cannot_be_read(ask: Ask, reply: Reply, *, streamed: bool) -> None:
    """What is no answer, or breaks off, is a failure of the proxy: neither ours nor an empty title."""
    async with scripted_agent(reply) as agent:
        answer = await ask(agent, PROMPT, stream=streamed)

    has_begun = streamed and isinstance(reply, Say)
    assert answer.status_code == (200 if has_begun else 502)
    assert '"code":"proxy_protocol_error"' in answer.text


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves_its_task(ask: Ask, *, streamed: bool) -> None:
    """The model call is closed."""
    async with scripted_agent(Hold(Say("late"))) as agent:
        client = asyncio.create_task(ask(agent, PROMPT, stream=streamed))
        await agent.model.received()
        client.cancel()
        await agent.model.aborted()

    assert client.cancelled()
