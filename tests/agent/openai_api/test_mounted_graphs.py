"""Graphs that users bring, as OpenAI models."""

from collections.abc import Callable

import httpx
import openai

from muster_agent.testing import ScriptedAgent, scripted_agent

Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

AGENTS = {"mine": {"graph": "tests.agent.openai_api.chat_graphs:builder"}}


async def test_a_conversation_that_no_graph_takes(http: httpx.AsyncClient) -> None:
    """Where it is not known that any agent has messages, a conversation with items is refused, and none is made."""
    async with scripted_agent(agents=AGENTS) as agent:
        items = [{"role": "user", "content": "?"}]
        refused = await http.post(f"{agent.url}/v1/conversations", json={"items": items})
        made = await http.post(f"{agent.url}/v1/conversations", json={})
        threads = (await http.post(f"{agent.url}/threads/search", json={})).json()

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "items")
    assert (made.status_code, len(threads)) == (200, 1)


async def test_a_mounted_graph_answers(sdk: Sdk) -> None:
    """Its messages are the answer, in chats and responses; instructions and sampling are in its configuration."""
    async with scripted_agent(agents=AGENTS) as agent, sdk(agent) as client:
        chat = await client.chat.completions.create(
            model="mine",
            messages=[{"role": "system", "content": "brief"}, {"role": "user", "content": "?"}],
            temperature=0.5,
        )
        stream = await client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": "?"}], stream=True
        )
        streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
        first = await client.responses.create(model="mine", input="?", instructions="short")
        second = await client.responses.create(model="mine", input="?", previous_response_id=first.id)

    assert chat.choices[0].message.content == "1 brief 0.5"
    assert "".join(streamed).strip() == "1  None"
    assert first.output_text == "1 short None"
    assert second.output_text.strip() == "3  None"
