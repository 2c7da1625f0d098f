"""`/v1/chat/completions/batch`: each conversation is a request of its own."""

import asyncio
from typing import Any

import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import metric
from tests.proxy.conftest import Proxied

PATH = "/v1/chat/completions/batch"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def conversations(*texts: str, **fields: Any) -> dict[str, Any]:
    """A batch of conversations of one message each."""
    messages = [[{"role": "user", "content": text}] for text in texts]
    return {"model": "fake-model", "messages": messages, **fields}


async def test_each_conversation_has_its_choice_in_their_order(engine: FakeVllm, proxied: Proxied) -> None:
    """However the engine's answers come; usage is summed."""
    first = asyncio.Event()
    engine.script(Reply("one", release=first), Reply("two"))
    async with proxied(engine.url) as client, asyncio.TaskGroup() as group:
        asked = group.create_task(client.post(PATH, json=conversations("a", "b", temperature=0)))
        await engine.arrived.acquire()
        await engine.arrived.acquire()
        first.set()
    answer = asked.result().json()

    sent = {request.body["messages"][0]["content"]: request for request in engine.requests}
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"one", "two"}
    assert set(sent) == {"a", "b"}
    assert all(request.path == "/v1/chat/completions" for request in engine.requests)
    assert all(request.body["temperature"] == 0 for request in engine.requests)
    assert answer["object"] == "chat.completion"
    assert answer["usage"]["total_tokens"] == sum(
        answer["usage"][name] for name in ("prompt_tokens", "completion_tokens")
    )


async def test_each_conversation_is_scheduled_on_its_own(engine: FakeVllm, proxied: Proxied) -> None:
    """A batch of six takes no more slots at once than there are."""
    async with proxied(engine.url, limit=2) as client:
        answer = (await client.post(PATH, json=conversations(*"abcdef"))).json()

    assert len(answer["choices"]) == 6
    assert engine.peak == 2


async def test_one_failure_fails_no_other(engine: FakeVllm, proxied: Proxied) -> None:
    """Its choice has the error; only where all fail does the call."""
    refused = {"error": {"message": "too long", "param": "messages"}}
    async with proxied(engine.url, limit=1) as client:
        engine.script(Reply("one"), Reply(status=400, error=refused), Reply("three"))
        some = await client.post(PATH, json=conversations("a", "b", "c"))
        engine.script(Reply(status=400, error=refused), Reply(status=400, error=refused))
        none = await client.post(PATH, json=conversations("a", "b"))

    choices = some.json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["stop", "error", "stop"]
    assert choices[1]["error"]["code"] == "request_rejected"
    assert choices[1]["message"] == {"role": "assistant", "content": None}
    assert (none.status_code, none.json()["error"]["message"]) == (400, "too long")


async def test_tools_are_honoured(engine: FakeVllm, proxied: Proxied) -> None:
    """They reach the engine with each conversation."""
    async with proxied(engine.url) as client:
        answer = await client.post(PATH, json=conversations("a", "b", tools=[TOOL]))

    assert answer.status_code == 200
    assert [request.body["tools"] for request in engine.requests] == [[TOOL], [TOOL]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": True}, "stream"),
        ({"n": 2}, "n"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"messages": []}, "messages"),
        ({"messages": [[]]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages[0]"),
    ],
)
async def test_what_a_batch_has_not_is_refused(
    engine: FakeVllm, proxied: Proxied, fields: dict[str, Any], param: str
) -> None:
    """Before anything of it is sent."""
    async with proxied(engine.url) as client:
        answer = await client.post(PATH, json={**conversations("a", "b"), **fields})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert not engine.requests


async def test_a_client_that_leaves_takes_all_of_its_conversations_along(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """Those in an engine and those that wait."""
    engine.script(Reply(release=asyncio.Event()), Reply(release=asyncio.Event()))
    async with proxied(engine.url, limit=2) as client:
        asked = asyncio.ensure_future(client.post(PATH, json=conversations("a", "b", "c")))
        await engine.arrived.acquire()
        await engine.arrived.acquire()
        asked.cancel()
        await engine.aborted.acquire()
        await engine.aborted.acquire()
        while await metric(client, "muster_in_flight") or await metric(
            client, 'muster_waiting{class="standard"}'
        ):
            await asyncio.sleep(0)
    assert len(engine.requests) == 2
