"""Two runs on one thread at the same instant: whatever was asked for, its history is a line and nothing is lost."""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

import httpx
import pytest
from langgraph_sdk.client import LangGraphClient
from langgraph_sdk.errors import ConflictError

from muster_agent.testing import ModelCall, Reply, Say
from tests.agent.runs.conftest import Start
from tests.agent.runs.test_runs import asks

ROUNDS = int(os.environ.get("MUSTER_TEST_ROUNDS", "10"))
"""How often each strategy is tried; more of them by hand: MUSTER_TEST_ROUNDS=200."""


def echo(call: ModelCall) -> Reply:
    """The model repeats what it was asked last."""
    return Say(f"re: {call.messages[-1][1]}")


def parents(history: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How many checkpoints continue each one."""
    found = [state["parent_checkpoint"] for state in history]
    return Counter(parent["checkpoint_id"] for parent in found if parent is not None)


async def finished(client: LangGraphClient, thread_id: str, run: object) -> Mapping[str, Any] | None:
    """A run at its end, or None if it is gone or was refused."""
    if isinstance(run, BaseException):
        assert isinstance(run, ConflictError)
        return None
    made = cast("Mapping[str, Any]", run)
    with contextlib.suppress(httpx.HTTPStatusError):  # it was rolled back
        await client.runs.join(thread_id, made["run_id"])
    known = {each["run_id"]: each for each in await client.runs.list(thread_id, limit=100)}
    return cast("Mapping[str, Any] | None", known.get(made["run_id"]))


async def both(client: LangGraphClient, thread_id: str, strategy: str) -> list[object]:
    """Two runs, asked for at the same instant."""
    tasks = [
        asyncio.create_task(
            client.runs.create(thread_id, "agent", input=asks(text), multitask_strategy=cast("Any", strategy))
        )
        for text in ("left", "right")
    ]
    await asyncio.wait(tasks)
    return [task.exception() or task.result() for task in tasks]


@pytest.mark.parametrize("strategy", ["reject", "enqueue", "interrupt", "rollback"])
async def test_history_stays_a_line(start: Start, strategy: str) -> None:
    """Every run that was accepted has one end, and what it said is in the thread as its end says."""
    async with start(improvise=echo) as (_agent, client):
        for _ in range(ROUNDS):
            await _round(client, strategy)


async def _round(client: LangGraphClient, strategy: str) -> None:
    thread_id = (await client.threads.create())["thread_id"]
    await client.runs.wait(thread_id, "agent", input=asks("before"))
    runs = await both(client, thread_id, strategy)
    ends = [await finished(client, thread_id, run) for run in runs]
    state: Any = await client.threads.get_state(thread_id)
    said = [message["content"] for message in state["values"]["messages"][2:]]
    _check(strategy, dict(zip(("left", "right"), ends, strict=True)), said)
    assert max(parents(await client.threads.get_history(thread_id, limit=100)).values()) == 1
    assert (await client.threads.get(thread_id))["status"] in {"idle", "interrupted"}


def _check(strategy: str, ends: Mapping[str, Mapping[str, Any] | None], said: Sequence[str]) -> None:
    """What a pair of runs has left in its thread."""
    succeeded = [text for text, end in ends.items() if end is not None and end["status"] == "success"]
    interrupted = [text for text, end in ends.items() if end is not None and end["status"] == "interrupted"]
    assert len(succeeded) + len(interrupted) == sum(end is not None for end in ends.values())
    for text in succeeded:
        assert said.count(text) == 1
        assert said[said.index(text) + 1] == f"re: {text}" or strategy == "interrupt"
    for text in interrupted:  # nobody answered, and what the user wrote is still there
        assert said.count(text) == 1
    match strategy:
        case "enqueue":
            assert len(succeeded) == 2
        case "interrupt":
            assert len(succeeded) + len(interrupted) == 2
        case _:  # refused, or taken back: not a word of it
            assert set(said) == {word for text in succeeded for word in (text, f"re: {text}")}
            assert 1 <= len(succeeded) <= 2
