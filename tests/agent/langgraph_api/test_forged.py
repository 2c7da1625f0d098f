"""What clients and databases hold is data: nothing in it names code that is run, and no checkpoint is another's."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import ormsgpack
import psycopg
import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from tests.agent.langgraph_api.asking import Caller, improvise, run
from tests.agent.runs.conftest import Start


def _constructor(touched: Path) -> dict[str, Any]:
    """What LangChain's own serialisation writes for an object; here one that would run a command."""
    return {"lc": 1, "type": "constructor", "id": ["os", "system"], "kwargs": {"command": f"touch {touched}"}}


MESSAGE = {
    "lc": 1,
    "type": "constructor",
    "id": ["langchain_core", "messages", "HumanMessage"],
    "kwargs": {"content": "revived"},
}


async def test_constructors_stay_data(start: Start, http: httpx.AsyncClient, tmp_path: Path) -> None:
    """A client's `lc` constructor is not carried out wherever it is sent, and comes back as it was."""
    touched = tmp_path / "touched"
    evil = {"os": _constructor(touched), "message": MESSAGE}
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread(metadata=evil)
        text = {"type": "text", "text": "hi", "extra": evil}
        message = {"role": "user", "content": [text], "additional_kwargs": evil}
        body = run(input={"messages": [message]}, metadata=evil, context=evil, config={"configurable": evil})
        await caller.post(f"/threads/{thread}/runs/wait", body)
        state, shown = await caller.get(f"/threads/{thread}/state"), await caller.get(f"/threads/{thread}")
        assert state["values"]["messages"][0]["additional_kwargs"] == evil
        assert shown["values"] == state["values"]
        assert {name: shown["metadata"][name] for name in evil} == evil
        (made,) = await caller.get(f"/threads/{thread}/runs")
        assert made["kwargs"]["context"] == evil
        await caller.send("PUT", "/store/items", {"namespace": ["a"], "key": "k", "value": evil})
        assert (await caller.get("/store/items?namespace=a&key=k"))["value"] == evil
        # LangChain's clients may write a message itself in this shape: its class is looked up among those of messages.
        told = await caller.post(
            f"/threads/{thread}/runs/wait", run(input={"messages": [_constructor(touched)]})
        )
        assert set(told) == {"__error__"}
        assert not touched.exists()


def _extension(touched: Path) -> bytes:
    """MessagePack as LangGraph's serialisation writes a call of a function by its module's and its own name."""
    # Extension 0 is "call this with one argument".
    return ormsgpack.packb(ormsgpack.Ext(0, ormsgpack.packb(("os", "system", f"touch {touched}"))))


def _json(touched: Path) -> bytes:
    """The same in LangGraph's older serialisation."""
    named = {"lc": 2, "type": "constructor", "id": ["os", "system"]}
    return orjson.dumps({**named, "args": [f"touch {touched}"], "kwargs": {}})


FORGERIES: dict[str, Callable[[Path], bytes]] = {"msgpack": _extension, "json": _json}


def _forge(database_url: str, kind: str, forged: bytes) -> None:
    """Put `forged` where the newest state of the only thread is, as somebody who can write the database would."""
    if database_url.startswith("sqlite"):
        path = Path(database_url.removeprefix("sqlite:///"))
        with sqlite3.connect(path.with_name("agent-checkpoints.db")) as connection:
            connection.execute("UPDATE checkpoints SET type = ?, checkpoint = ?", (kind, forged))
        connection.close()
        return
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE checkpoint_blobs SET type = %s, blob = %s", (kind, forged))


@pytest.mark.parametrize("kind", FORGERIES)
async def test_forged_checkpoints(
    start: Start, http: httpx.AsyncClient, database_url: str, tmp_path: Path, kind: str
) -> None:
    """Whoever can write the database cannot have code run with it: a checkpoint that names code is not carried out."""
    touched = tmp_path / "touched"
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread = await caller.thread()
        await caller.post(f"/threads/{thread}/runs/wait", run())
    await asyncio.to_thread(_forge, database_url, kind, FORGERIES[kind](touched))
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        await caller.send("GET", f"/threads/{thread}/state")
        await caller.send("POST", f"/threads/{thread}/runs/wait", run())
        assert (await caller.get("/ok"))["ok"]
    assert not touched.exists()


@pytest.mark.parametrize("kind", FORGERIES)
def test_the_forgery_would_work(tmp_path: Path, kind: str) -> None:
    """Without the strictness that this package asks for, the forged bytes of the test before call what they name."""
    touched = tmp_path / "touched"
    lax = JsonPlusSerializer(allowed_msgpack_modules=True, allowed_json_modules=True)
    lax.loads_typed((kind, FORGERIES[kind](touched)))
    assert touched.exists()


def test_strictness_is_set_before_langgraph_is_imported() -> None:
    """Importing any part of the package makes LangGraph strict, and keeps tracing off, unless an operator decides."""
    script = (
        "import muster_agent.identity, sys; assert 'langgraph' not in sys.modules; "
        "from langgraph.checkpoint.serde import jsonplus; import os; "
        "print(os.environ['LANGGRAPH_STRICT_MSGPACK'], os.environ['LANGSMITH_TRACING'])"
    )
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("LANGGRAPH", "LANGSMITH"))
    }
    told = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["true", "false"]


@pytest.mark.parametrize("checkpoint_ns", ["", "inner:x", "model:y|z"])
async def test_checkpoints_of_another_thread(
    start: Start, http: httpx.AsyncClient, checkpoint_ns: str
) -> None:
    """A checkpoint belongs to its thread: named on another one, in whatever namespace, it is not there."""
    async with start(improvise=improvise) as (agent, _client):
        caller = Caller(http, agent)
        thread, other = await caller.thread(), await caller.thread(graph_id="agent")
        await caller.post(f"/threads/{thread}/runs/wait", run("secret"))
        place = (await caller.get(f"/threads/{thread}/state"))["checkpoint"]
        named = {**place, "checkpoint_ns": checkpoint_ns, "checkpoint_map": {"": place["checkpoint_id"]}}
        state = await caller.post(f"/threads/{other}/state/checkpoint", {"checkpoint": named})
        assert state["values"] == {}
        assert await caller.post(f"/threads/{other}/history", {"checkpoint": named}) == []
        assert await caller.post(f"/threads/{other}/history", {"before": named}) == []
        answer = await caller.send("POST", f"/threads/{other}/runs/wait", run(checkpoint=named))
        assert answer.status_code == 404
        configured = run(config={"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
        values = await caller.post(f"/threads/{other}/runs/wait", configured)
        assert "secret" not in str(values)
