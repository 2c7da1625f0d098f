"""Assistants as models."""

import httpx

from muster_agent.testing import scripted_agent

AGENTS = {"one": {"openai_model": "org/one", "description": "The first."}, "two": {}}


async def test_each_assistant_is_a_model(http: httpx.AsyncClient) -> None:
    """They are listed by their names for OpenAI's clients, without asking the proxy for its models."""
    async with scripted_agent(agents=AGENTS) as agent:
        listed = (await http.get(f"{agent.url}/v1/models")).json()
        alone = [
            await http.get(f"{agent.url}/v1/models/{name}") for name in ("org/one", "one", "two", "three")
        ]

    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["org/one", "two"])
    assert [answer.status_code for answer in alone] == [200, 200, 200, 404]
    assert [answer.json()["id"] for answer in alone[:3]] == ["org/one", "one", "two"]
    assert alone[3].json()["error"]["code"] == "model_not_found"
    assert agent.model.listings == 0
