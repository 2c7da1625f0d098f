"""Conversations: threads by OpenAI's name."""

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from muster_agent.testing import CallTools, Say, ScriptedAgent, scripted_agent

Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

MODEL = "muster-agent"
MULTIPLY = CallTools([("calculator", {"expression": "23*7"})])


async def test_a_conversation_is_made_changed_and_deleted(sdk: Sdk) -> None:
    """Each call of the SDK does what it says."""
    async with scripted_agent() as agent, sdk(agent) as client:
        made = await client.conversations.create(metadata={"topic": "sums"})
        changed = await client.conversations.update(made.id, metadata={"topic": "products"})
        known = await client.conversations.retrieve(made.id)
        deleted = await client.conversations.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.conversations.retrieve(made.id)

    assert (made.object, made.metadata) == ("conversation", {"topic": "sums"})
    assert changed == known
    assert known.metadata == {"topic": "products"}
    assert (deleted.id, deleted.deleted, deleted.object) == (made.id, True, "conversation.deleted")


async def test_the_metadata_of_a_conversation(sdk: Sdk) -> None:
    """It is the client's whatever the names are, and a change replaces all of it."""
    told = {"source": "web", "graph_id": "g", "topic": "sums"}
    async with scripted_agent(Say("one")) as agent, sdk(agent) as client:
        made = await client.conversations.create(metadata=told)
        response = await client.responses.create(model=MODEL, input="A", conversation=made.id)
        changed = await client.conversations.update(made.id, metadata={"source": "responses"})
        await client.responses.delete(response.id)
        known = await client.conversations.retrieve(made.id)

    assert made.metadata == told
    assert changed == known
    assert known.metadata == {"source": "responses"}


async def test_responses_in_a_conversation(sdk: Sdk) -> None:
    """Each knows all before it, what the conversation was made with included; chats and threads are the same."""
    given: Any = [{"type": "message", "role": "user", "content": "I am Bob."}]
    async with scripted_agent(Say("one"), Say("two"), Say("three")) as agent, sdk(agent) as client:
        made = await client.conversations.create(items=given)
        named: Any = {"id": made.id}
        await client.responses.create(model=MODEL, input="A", conversation=made.id)
        second = await client.responses.create(model=MODEL, input="B", conversation=named)
        thread = {"x-thread-id": made.id.removeprefix("conv_")}
        said: Any = [{"role": "user", "content": "C"}]
        await client.chat.completions.create(model=MODEL, messages=said, extra_headers=thread)

    texts = [text for role, text in agent.model.calls[-1].messages if role != "system"]
    assert texts == ["I am Bob.", "A", "one", "B", "two", "C"]
    assert second.conversation is not None
    assert second.conversation.id == made.id


async def test_the_items_of_a_conversation(sdk: Sdk) -> None:
    """They are listed newest first or oldest first, page by page."""
    async with scripted_agent(MULTIPLY, Say("161")) as agent, sdk(agent) as client:
        made = await client.conversations.create()
        await client.responses.create(model=MODEL, input="23*7?", conversation=made.id)
        newest = await client.conversations.items.list(made.id)
        first = await client.conversations.items.list(made.id, order="asc", limit=2)
        rest = await client.conversations.items.list(made.id, order="asc", after=str(first.last_id))

    assert [item.type for item in newest.data] == ["message", "reasoning", "message"]
    assert (first.has_more, rest.has_more) == (True, False)
    assert [item.id for item in (*first.data, *rest.data)] == [item.id for item in newest.data][::-1]


async def test_others_conversations_do_not_exist(http: httpx.AsyncClient) -> None:
    """Another tenant is told the same, byte for byte, as of a conversation that never was."""
    keys = {"key-a": "a", "key-b": "b"}
    a, b = ({"authorization": f"Bearer {key}"} for key in keys)
    async with scripted_agent(keys=keys) as agent:
        url = f"{agent.url}/v1/conversations"
        name = (await http.post(url, headers=a)).json()["id"]
        never = f"conv_{'0' * 32}"
        for method, path, body in [
            ("GET", "", None),
            ("POST", "", {"metadata": {}}),
            ("DELETE", "", None),
            ("GET", "/items", None),
        ]:
            told = [
                await http.request(method, f"{url}/{which}{path}", json=body, headers=b)
                for which in (name, never)
            ]
            assert [answer.status_code for answer in told] == [404, 404]
            assert told[0].text == told[1].text.replace(never, name)
        still = await http.get(f"{url}/{name}", headers=a)

    assert still.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("", {"metadata": "x"}, "metadata"),
        ("", {"metadata": {"a": 1}}, "metadata.a"),
        ("", {"items": "x"}, "items"),
        ("", {"items": [{"role": "system", "content": "x"}]}, "items"),
        ("", {"items": [{"type": "item_reference"}]}, "input[0]"),
        ("/{id}", {}, "metadata"),
        ("/{id}/items?limit=0", None, "limit"),
        ("/{id}/items?limit=x", None, "limit"),
        ("/{id}/items?order=up", None, "order"),
        ("/{id}/items?after=x", None, "after"),
    ],
)
async def test_a_wrong_request(http: httpx.AsyncClient, path: str, body: Any, param: str) -> None:
    """Each wrong field is a 400 that names it."""
    async with scripted_agent() as agent:
        url = f"{agent.url}/v1/conversations"
        made = (await http.post(url)).json()["id"]
        method = "GET" if body is None else "POST"
        answer = await http.request(method, url + path.format(id=made), json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
