"""Assistants: the declared agents as LangGraph's clients find them."""

from typing import Any

import httpx
import pytest
from langgraph.pregel.remote import RemoteGraph  # pyright: ignore[reportMissingTypeStubs] - typed inline
from langgraph_sdk.errors import APIStatusError

from tests.agent.langgraph_api.asking import MISSING, Caller, asks, improvise, keys
from tests.agent.runs.conftest import Start

ASSISTANT = {
    "assistant_id",
    "graph_id",
    "config",
    "context",
    "metadata",
    "name",
    "created_at",
    "updated_at",
    "version",
    "description",
}
AGENTS: dict[str, Any] = {
    "agent": {"description": "Calculates."},
    "nested": {"graph": "tests.agent.runs.graphs:nested"},
}
# LangGraph's server derives it from the graph's name; clients keep it.
AGENT_ID = "fe096781-5601-53d2-b2f6-0d3403f7e9ca"


@pytest.fixture
def database_url(tmp_path: Any) -> str:
    """Assistants are in no database: SQLite will do."""
    return f"sqlite:///{tmp_path}/agent.db"


async def test_searching(start: Start, http: httpx.AsyncClient) -> None:
    """Assistants are found by name, graph and metadata, sorted and page by page, with the count told."""
    async with start(agents=AGENTS) as (agent, client):
        caller = Caller(http, agent)
        both = await client.assistants.search(sort_by="name", sort_order="asc")
        assert keys(both) == [ASSISTANT, ASSISTANT]
        assert [each["name"] for each in both] == ["agent", "nested"]
        assert (both[0]["assistant_id"], both[0]["graph_id"]) == (AGENT_ID, "agent")
        assert (both[0]["description"], both[0]["version"]) == ("Calculates.", 1)
        assert both[0]["metadata"] == {"created_by": "system"}
        assert await client.assistants.search(graph_id="nested") == [both[1]]
        assert await client.assistants.search(name="NEST") == [both[1]]
        assert await client.assistants.search(metadata={"created_by": "ada"}) == []
        page: Any = await client.assistants.search(limit=1, response_format="object")
        assert page["next"] == "1"
        answer = await caller.send(
            "POST", "/assistants/search", {"limit": 1, "offset": 1, "select": ["name"]}
        )
        assert answer.headers["x-pagination-total"] == "2"
        assert "x-pagination-next" not in answer.headers
        assert keys(answer.json()) == [{"assistant_id", "name"}]
        assert await caller.post("/assistants/count", {}) == 2
        assert await client.assistants.count(name="agent") == 1


async def test_getting(start: Start, http: httpx.AsyncClient) -> None:
    """An assistant is got by its UUID; another one is a 404, and what is none a 422."""
    async with start(agents=AGENTS) as (agent, client):
        caller = Caller(http, agent)
        assert (await client.assistants.get(AGENT_ID))["graph_id"] == "agent"
        answer = await caller.send("GET", f"/assistants/{MISSING}")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
        answer = await caller.send("GET", "/assistants/agent")
        assert (answer.status_code, answer.json()) == (
            422,
            {"detail": "Invalid assistant ID: must be a UUID"},
        )


async def test_drawing(start: Start) -> None:
    """A graph is drawn as nodes and edges, without the names of our modules, and with what is inside on request."""
    async with start(agents=AGENTS) as (_agent, client):
        drawn: Any = await client.assistants.get_graph(AGENT_ID)
        assert set(drawn) == {"nodes", "edges"}
        nodes = {node["id"]: node for node in drawn["nodes"]}
        assert {"__start__", "__end__", "model", "tools"} <= set(nodes)
        assert nodes["model"] == {"id": "model", "type": "runnable", "data": {"name": "model"}}
        assert nodes["tools"]["metadata"] == {"__tools": ["calculator", "current_time"]}
        assert {"source": "__start__", "target": "model"} in drawn["edges"]
        (_, other) = await client.assistants.search(sort_by="name", sort_order="asc")
        outside: Any = await client.assistants.get_graph(other["assistant_id"])
        inside: Any = await client.assistants.get_graph(other["assistant_id"], xray=True)
        assert "inner:deep" not in {node["id"] for node in outside["nodes"]}
        assert "inner:deep" in {node["id"] for node in inside["nodes"]}


async def test_schemas(start: Start) -> None:
    """What a graph takes and gives is told as JSON schemas."""
    async with start(agents=AGENTS) as (_agent, client):
        told = await client.assistants.get_schemas(AGENT_ID)
        assert set(told) == {
            "graph_id",
            "input_schema",
            "output_schema",
            "state_schema",
            "config_schema",
            "context_schema",
        }
        assert told["graph_id"] == "agent"
        for name in ("input_schema", "output_schema", "state_schema"):
            assert "messages" in told[name]["properties"]  # pyright: ignore[reportTypedDictNotRequiredAccess, reportOptionalSubscript] - looked at above


async def test_subgraphs(start: Start, http: httpx.AsyncClient) -> None:
    """Subgraphs are told by name, all or one of them."""
    async with start(agents=AGENTS) as (agent, client):
        (_, other) = await client.assistants.search(sort_by="name", sort_order="asc")
        name = other["assistant_id"]
        every: Any = await client.assistants.get_subgraphs(name, recurse=True)
        assert set(every) == {"inner"}
        assert "text" in every["inner"]["input_schema"]["properties"]
        assert await client.assistants.get_subgraphs(name, namespace="inner") == every
        assert await Caller(http, agent).get(f"/assistants/{name}/subgraphs/nobody") == {}
        assert await client.assistants.get_subgraphs(AGENT_ID) == {}


async def test_assistants_are_declared(start: Start, http: httpx.AsyncClient) -> None:
    """What would make, change or delete one is a 405 that says where they come from, and changes nothing."""
    async with start(agents=AGENTS) as (agent, client):
        before = await client.assistants.search()
        for asked in (
            client.assistants.create("agent", name="mine"),
            client.assistants.update(AGENT_ID, name="mine"),
            client.assistants.delete(AGENT_ID),
            client.assistants.get_versions(AGENT_ID),
            client.assistants.set_latest(AGENT_ID, 2),
        ):
            with pytest.raises(APIStatusError, match="declared in the service's agents file") as refused:
                await asked
            assert refused.value.status_code == 405
        assert await client.assistants.search() == before
        answer = await Caller(http, agent).send("PATCH", f"/assistants/{AGENT_ID}", {})
        assert answer.headers["allow"] == "GET"


async def test_a_remote_graph(start: Start) -> None:
    """LangGraph's own RemoteGraph takes an assistant for a graph: it is drawn, run and asked for its state."""
    async with start(agents=AGENTS, improvise=improvise) as (_agent, client):
        graph = RemoteGraph("agent", client=client)
        drawn = await graph.aget_graph()
        assert {"model", "tools"} <= set(drawn.nodes)
        thread = (await client.threads.create())["thread_id"]
        config: Any = {"configurable": {"thread_id": thread}}
        values: Any = await graph.ainvoke(asks("calc"), config)
        assert values["messages"][-1]["content"] == "The answer is 4."
        state = await graph.aget_state(config)
        assert state.values == values
        history = [each async for each in graph.aget_state_history(config)]
        assert history[0].values == values
        made: Any = await graph.aupdate_state(config, asks("more"), as_node="__start__")
        newest: Any = (await graph.aget_state(config)).config
        assert newest["configurable"]["checkpoint_id"] == made["configurable"]["checkpoint_id"]
