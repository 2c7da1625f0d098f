"""Histories are shortened: the past goes, and nothing of the present."""

from typing import Any

import pytest
from langgraph_sdk.client import LangGraphClient

from muster_agent.checkpoints.shortening import Known, superfluous
from tests.agent.runs.conftest import Start

AGENTS = {
    name: {"graph": f"tests.agent.runs.graphs:{name}"} for name in ("nested", "remembering", "in_pieces")
}


async def run(client: LangGraphClient, thread_id: str, graph: str, **values: Any) -> Any:
    """The values of a thread after one more run."""
    return await client.runs.wait(thread_id, graph, input=values)


async def shorten(client: LangGraphClient, thread_id: str) -> int:
    """Leave a thread its newest state alone. Returns how many it still has, at most 100."""
    told: Any = await client.threads.prune([thread_id], strategy="keep_latest")
    assert told["pruned_count"] == 1
    return len(await client.threads.get_history(thread_id, limit=100))


@pytest.mark.parametrize("graph", ["nested", "remembering"])
async def test_the_past_goes(start: Start, graph: str) -> None:
    """One state is left, as it was."""
    async with start(agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        values = [await run(client, thread, graph, text="a") for _ in range(3)][-1]
        assert await shorten(client, thread) == 1
        assert (await client.threads.get_state(thread))["values"] == values


async def test_a_subgraph_remembers(start: Start) -> None:
    """What a subgraph keeps between its calls is kept, however old it is by then."""
    async with start(agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        assert await run(client, thread, "remembering", text="") == {"text": "1"}
        assert await run(client, thread, "remembering", text="") == {"text": "2"}
        await shorten(client, thread)
        assert await run(client, thread, "remembering", text="") == {"text": "3"}


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
async def test_a_state_that_is_stored_in_pieces(start: Start, runs: int) -> None:
    """Of a channel that is whole only now and then, all pieces since then are kept."""
    async with start(agents=AGENTS) as (_agent, client):
        thread = (await client.threads.create())["thread_id"]
        values = [await run(client, thread, "in_pieces", items=["given"]) for _ in range(runs)][-1]
        assert values == {"items": ["given", "added"] * runs}
        await shorten(client, thread)
        assert (await client.threads.get_state(thread))["values"] == values
        after = await run(client, thread, "in_pieces", items=["given"])
        assert after == {"items": ["given", "added"] * (runs + 1)}


def test_as_many_are_kept_as_asked_for() -> None:
    """The newest states stay, with their calls of subgraphs; older calls of subgraphs go."""
    graph = [Known("", str(number), str(number - 1), None) for number in range(1, 9, 2)]
    calls = [Known(f"calls:{number}", str(number), None, None) for number in range(2, 10, 2)]
    gone = superfluous([*graph, *calls], keep=2)
    assert sorted(gone) == [("", "1"), ("", "3"), ("calls:2", "2"), ("calls:4", "4")]
    assert superfluous([*graph, *calls], keep=4) == []


def test_both_branches_of_a_fork_keep_their_pieces() -> None:
    """Pieces are looked for from child to parent, not by age."""
    trunk = [Known("", "1", None, {}), Known("", "2", "1", {"items": (1, 1)})]
    left = Known("", "3", "2", {"items": (2, 2)})
    right = [Known("", "4", "1", {"items": (1, 1)}), Known("", "5", "4", {"items": (2, 2)})]
    assert superfluous([*trunk, left, *right], keep=1) == [("", "2"), ("", "3")]
