"""Listening to threads as a client without opinions does."""

import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx

from muster_agent.testing import ScriptedAgent

ALL = ["values", "updates", "messages", "tools", "lifecycle", "input", "checkpoints", "tasks", "custom"]

Event = dict[str, Any]


def new_thread() -> str:
    """An identifier for a thread that does not exist yet."""
    return str(uuid.uuid4())


def ask(text: str, assistant: str = "agent", **params: Any) -> dict[str, Any]:
    """The parameters of a `run.start`."""
    return {"assistant_id": assistant, "input": {"messages": [{"role": "user", "content": text}]}, **params}


async def command(
    http: httpx.AsyncClient, agent: ScriptedAgent, thread: str, method: str, params: Any
) -> Event:
    """The answer to a command."""
    body = {"id": 7, "method": method, "params": params}
    answer = await http.post(f"{agent.url}/threads/{thread}/commands", json=body)
    assert answer.status_code == 200, answer.text
    told: Event = answer.json()
    return told


async def start_run(
    http: httpx.AsyncClient, agent: ScriptedAgent, thread: str, params: dict[str, Any]
) -> str:
    """Start a run; returns its identifier."""
    told = await command(http, agent, thread, "run.start", params)
    assert told["type"] == "success", told
    run_id: str = told["result"]["run_id"]
    return run_id


@asynccontextmanager
async def frames(
    http: httpx.AsyncClient, method: str, url: str, **request: Any
) -> AsyncGenerator[AsyncGenerator[dict[str, str]]]:
    """The server-sent events of a stream, field by field."""

    async def read() -> AsyncGenerator[dict[str, str]]:
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                yield fields
                fields = {}

    async with http.stream(method, url, **request) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield read()


@asynccontextmanager
async def listening(
    http: httpx.AsyncClient, agent: ScriptedAgent, thread: str, channels: Sequence[str] = ALL, **more: Any
) -> AsyncGenerator[AsyncGenerator[Event]]:
    """The events of a thread."""

    async def read(heard: AsyncGenerator[dict[str, str]]) -> AsyncGenerator[Event]:
        async for fields in heard:
            event: Event = json.loads(fields["data"])
            assert (fields["event"], fields["id"]) == (event["method"], str(event["seq"]))
            yield event

    url = f"{agent.url}/threads/{thread}/stream/events"
    async with frames(http, "POST", url, json={"channels": list(channels), **more}) as heard:
        yield read(heard)


def is_end(event: Event) -> bool:
    """Whether a run has ended with an event."""
    params = event["params"]
    ends = {"completed", "failed", "interrupted"}
    return event["method"] == "lifecycle" and params["namespace"] == [] and params["data"]["event"] in ends


async def to_the_end(events: AsyncGenerator[Event]) -> list[Event]:
    """The events until a run has ended, its end included."""
    heard: list[Event] = []
    async for event in events:
        heard.append(event)
        if is_end(event):
            break
    return heard


def brief(events: Sequence[Event]) -> list[tuple[Any, ...]]:
    """Method, namespace and what the event is about, of each."""
    return [
        (event["method"], *event["params"]["namespace"], event["params"]["data"].get("event"))
        for event in events
    ]


def lifecycle(events: Sequence[Event]) -> list[str]:
    """How the thread's runs have begun and ended."""
    return [
        event["params"]["data"]["event"]
        for event in events
        if event["method"] == "lifecycle" and event["params"]["namespace"] == []
    ]
