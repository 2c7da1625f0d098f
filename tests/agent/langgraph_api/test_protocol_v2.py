"""LangGraph's second protocol: a thread's events as a recorded LangGraph server writes them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from muster_agent.testing import CallTools, Hold, Refuse, Say
from tests.agent.langgraph_api.listening import (
    Event,
    ask,
    brief,
    command,
    lifecycle,
    listening,
    new_thread,
    start_run,
    to_the_end,
)
from tests.agent.runs.conftest import Start

CALCULATE = CallTools([("calculator", {"expression": "2+2"})])
NESTED: dict[str, Any] = {"nested": {"graph": "tests.agent.runs.graphs:nested"}}
FAILING: dict[str, Any] = {"failing": {"graph": "tests.agent.runs.graphs:failing"}}


async def test_the_wire(start: Start, http: httpx.AsyncClient) -> None:
    """A run with a tool call is told event by event as in the recording: names, order, and what is in each."""
    async with start(CALCULATE, Say("The answer is 4.")) as (agent, _client):
        thread = new_thread()
        run = await start_run(http, agent, thread, ask("calc 1"))
        channels = ["values", "messages", "tools", "lifecycle", "input"]
        async with listening(http, agent, thread, channels) as events:
            heard = await to_the_end(events)

    call: list[tuple[Any, ...]] = [
        ("messages", "message-start"),
        ("messages", "content-block-start"),
        ("messages", "content-block-delta"),
        ("messages", "content-block-finish"),
        ("messages", "message-finish"),
    ]
    said = [call[0], call[1], *[call[2]] * 4, call[3], call[4]]
    told: list[tuple[Any, ...]] = [("messages", "tools:call_0", name) for _, name in call]
    tools = [("tools", "tool-started"), ("tools", "tool-finished")]
    middle = [
        ("values", None),
        *call,
        ("values", None),
        *tools,
        *told,
        ("values", None),
        *said,
        ("values", None),
    ]
    assert brief(heard) == [("lifecycle", "running"), *middle, ("lifecycle", "completed")]
    _check_frames(heard, run)
    _check_contents(heard)


def _check_frames(heard: Sequence[Event], run: str) -> None:
    assert heard[0]["event_id"] == f"synth:{run}:lc||running"
    assert heard[-1]["event_id"] == f"synth:{run}:lc||completed"
    assert heard[0]["params"]["data"] == {"event": "running", "graph_name": "agent"}
    for event in heard:
        assert set(event) == {"type", "event_id", "seq", "method", "params"}
        assert set(event["params"]) == {"namespace", "timestamp", "data"}
    numbers = [event["seq"] for event in heard]
    assert numbers == sorted(set(numbers))
    assert len({event["event_id"] for event in heard}) == len(heard)


def _check_contents(heard: Sequence[Event]) -> None:
    data = [event["params"]["data"] for event in heard]
    human, asking, result, answer = data[-2]["messages"]
    assert human == {"type": "human", "content": "calc 1", "id": human["id"]}
    tool_call = {"type": "tool_call", "name": "calculator", "args": {"expression": "2+2"}, "id": "call_0"}
    assert (asking["type"], asking["tool_calls"]) == ("ai", [tool_call])
    assert result == {
        "type": "tool",
        "content": "4",
        "id": result["id"],
        "name": "calculator",
        "tool_call_id": "call_0",
        "status": "success",
        "artifact": None,
    }
    assert [(block["type"], block["text"]) for block in answer["content"]] == [("text", "The answer is 4.")]
    started = [each for each in data if each.get("event") == "message-start"]
    assert [(each["role"], each["id"]) for each in started] == [
        ("ai", asking["id"]),
        ("tool", result["id"]),
        ("ai", answer["id"]),
    ]
    deltas = [each["delta"] for each in data if each.get("event") == "content-block-delta"]
    assert [delta["text"] for delta in deltas if delta["type"] == "text-delta"] == [
        "4",
        "The",
        " answer",
        " is",
        " 4.",
    ]
    output = next(each["output"] for each in data if each.get("event") == "tool-finished")
    assert (output["type"], output["content"], output["status"]) == ("tool", "4", "success")
    assert data[-3]["usage"] == {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15}


async def test_a_stream_goes_on_across_runs(start: Start, http: httpx.AsyncClient) -> None:
    """A listener who was there before the thread hears every run of it, with numbers that rise."""
    async with start(Say("One."), Say("Two.")) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread) as events:
            await start_run(http, agent, thread, ask("first"))
            first = await to_the_end(events)
            await start_run(http, agent, thread, ask("second"))
            second = await to_the_end(events)
        async with listening(http, agent, thread) as events:
            again = [*await to_the_end(events), *await to_the_end(events)]

    assert lifecycle(first) == lifecycle(second) == ["running", "completed"]
    assert [event["seq"] for event in again] == [event["seq"] for event in (*first, *second)]
    assert [event["event_id"] for event in again] == [event["event_id"] for event in (*first, *second)]
    assert first[-1]["seq"] < second[0]["seq"]


@pytest.mark.parametrize("seen", range(0, 21, 4))
async def test_a_listener_comes_back(start: Start, http: httpx.AsyncClient, seen: int) -> None:
    """Whoever names the last event that he has gets exactly the rest, of that run and the next."""
    async with start(CALCULATE, Say("It is 4."), Say("Yes.")) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread) as events:
            await start_run(http, agent, thread, ask("calc"))
            heard = await to_the_end(events)
            await start_run(http, agent, thread, ask("sure?"))
            heard += await to_the_end(events)
        since = heard[seen]["seq"]
        async with listening(http, agent, thread, since=since) as events:
            rest: list[Event] = []
            while not rest or rest[-1]["seq"] != heard[-1]["seq"]:
                rest += await to_the_end(events)

    assert rest == heard[seen + 1 :]


async def test_what_is_asked_for_is_sent(start: Start, http: httpx.AsyncClient) -> None:
    """Channels, namespaces and depth choose among a thread's events, custom events by their name too."""
    async with start(agents=NESTED) as (agent, _client):
        thread = new_thread()
        params = {"assistant_id": "nested", "input": {"text": "a"}}
        await start_run(http, agent, thread, params)
        async with listening(http, agent, thread) as events:
            heard = await to_the_end(events)
        async with listening(
            http, agent, thread, ["values", "lifecycle"], namespaces=[[]], depth=0
        ) as events:
            at_the_root = await to_the_end(events)
        async with listening(http, agent, thread, ["values", "lifecycle"], namespaces=[["inner"]]) as events:
            inside = [await anext(events) for _ in range(4)]

    (inner,) = {tuple(event["params"]["namespace"]) for event in heard if event["params"]["namespace"]}
    assert inner[0].startswith("inner:")
    custom = [event["params"]["data"] for event in heard if event["method"] == "custom"]
    assert custom == [{"step": "outer"}]
    values = [event["params"]["data"] for event in heard if event["method"] == "values"]
    assert values == [{"text": "a"}, {"text": "a"}, {"text": "a"}, {"text": "ab"}, {"text": "ab"}]
    assert brief(at_the_root) == [
        ("lifecycle", "running"),
        *[("values", None)] * 3,
        ("lifecycle", "completed"),
    ]
    assert [(event["method"], event["params"]["data"].get("event")) for event in inside] == [
        ("values", None),
        ("lifecycle", "started"),
        ("values", None),
        ("lifecycle", "completed"),
    ]


async def test_checkpoints_name_what_can_be_continued(start: Start, http: httpx.AsyncClient) -> None:
    """Each step's checkpoint is named before its values, and a run that is started from one forgets what came later."""
    async with start(Say("One."), Say("Two."), Say("Three.")) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["checkpoints", "lifecycle"]) as events:
            await start_run(http, agent, thread, ask("first"))
            first = await to_the_end(events)
            await start_run(http, agent, thread, ask("second"))
            await to_the_end(events)
            points = [event["params"]["data"] for event in first if event["method"] == "checkpoints"]
            config = {"configurable": {"checkpoint_id": points[-1]["id"]}}
            await start_run(http, agent, thread, ask("instead", config=config))
            await to_the_end(events)
        values: Any = (await client.threads.get_state(thread))["values"]

    assert [(point["step"], point["source"]) for point in points] == [(-1, "input"), (0, "loop"), (1, "loop")]
    assert [point.get("parent_id") for point in points] == [None, points[0]["id"], points[1]["id"]]
    assert [message["content"] for message in values["messages"] if message["type"] == "human"] == [
        "first",
        "instead",
    ]


async def test_a_run_that_fails_says_so(start: Start, http: httpx.AsyncClient) -> None:
    """Its end has its error's words, and the thread can be used again."""
    async with start(agents=FAILING) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread) as events:
            await start_run(http, agent, thread, {"assistant_id": "failing", "input": {"text": "a"}})
            heard = await to_the_end(events)
        assert (await client.threads.get(thread))["status"] == "error"

    assert heard[-1]["params"]["data"] == {"event": "failed", "graph_name": "failing", "error": "boom!"}


async def test_a_model_that_fails_is_told_without_its_address(start: Start, http: httpx.AsyncClient) -> None:
    """What the proxy says of its upstreams is not what a client reads."""
    refused = Refuse(500, {"message": "upstream 10.0.0.7:8000 died", "type": "server_error"})
    async with start(refused) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle"]) as events:
            await start_run(http, agent, thread, ask("hi"))
            heard = await to_the_end(events)

    assert heard[-1]["params"]["data"]["event"] == "failed"
    assert "10.0.0.7" not in str(heard)


@pytest.mark.parametrize("action", ["interrupt", "rollback"])
async def test_a_cancelled_run_ends(start: Start, http: httpx.AsyncClient, action: Any) -> None:
    """Its listeners hear an end that they wait for, also where the run itself is gone."""
    async with start(Hold(Say("never"), said="So"), Say("Yes.")) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread) as events:
            run = await start_run(http, agent, thread, ask("hi"))
            await agent.model.received()
            await client.runs.cancel(thread, run, action=action, wait=True)
            heard = await to_the_end(events)
            await start_run(http, agent, thread, ask("still there?"))
            later = await to_the_end(events)

    assert lifecycle(heard) == ["running", "failed"]
    assert heard[-1]["params"]["data"]["error"] == "The run was cancelled."
    assert lifecycle(later) == ["running", "completed"]
    assert heard[-1]["seq"] < later[0]["seq"]


async def test_a_thread_is_deleted(start: Start, http: httpx.AsyncClient) -> None:
    """Whoever listens to a run on it hears that the run is gone, in either protocol."""
    async with start(Hold(Say("never"))) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread) as events:
            run = await start_run(http, agent, thread, ask("hi"))
            await agent.model.received()
            joined = client.runs.join_stream(thread, run, last_event_id="-1")
            assert (await anext(aiter(joined))).event == "metadata"
            await client.threads.delete(thread)
            heard = await to_the_end(events)
            rest = [part.event async for part in joined]

    assert lifecycle(heard) == ["running", "failed"]
    assert rest == []


async def test_a_run_that_never_began_ends_too(start: Start, http: httpx.AsyncClient) -> None:
    """A run that is cancelled while it waits is told of in its turn."""
    held = Hold(Say("One."))
    async with start(held) as (agent, client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle"]) as events:
            first = await start_run(http, agent, thread, ask("first"))
            await agent.model.received()
            second = await start_run(http, agent, thread, ask("second"))
            await client.runs.cancel(thread, second, wait=True)
            held.release.set()
            heard = [*await to_the_end(events), *await to_the_end(events)]

    assert [event["event_id"] for event in heard] == [
        f"synth:{first}:lc||running",
        f"synth:{first}:lc||completed",
        f"synth:{second}:lc||failed",
    ]


@pytest.mark.parametrize(
    ("strategy", "first"), [("interrupt", "failed"), ("rollback", "failed"), ("enqueue", "completed")]
)
async def test_a_second_run(start: Start, http: httpx.AsyncClient, strategy: str, first: str) -> None:
    """What becomes of the run that is there is told to whoever listens."""
    held = Hold(Say("One."))
    async with start(held, Say("Two.")) as (agent, _client):
        thread = new_thread()
        async with listening(http, agent, thread, ["lifecycle"]) as events:
            await start_run(http, agent, thread, ask("first"))
            await agent.model.received()
            await start_run(http, agent, thread, ask("second", multitaskStrategy=strategy))
            held.release.set()
            heard = [*await to_the_end(events), *await to_the_end(events)]

    assert lifecycle(heard) == ["running", first, "running", "completed"]


async def test_a_second_run_is_kept_out(start: Start, http: httpx.AsyncClient) -> None:
    """With `reject`, the command is refused in the protocol's words."""
    held = Hold(Say("One."))
    async with start(held) as (agent, _client):
        thread = new_thread()
        await start_run(http, agent, thread, ask("first"))
        await agent.model.received()
        told = await command(http, agent, thread, "run.start", ask("second", multitaskStrategy="reject"))
        held.release.set()

    assert (told["type"], told["id"], told["error"]) == ("error", 7, "invalid_argument")
    assert told["message"].startswith("Thread is already running a task.")


async def test_runs_of_the_first_protocol_are_heard(start: Start, http: httpx.AsyncClient) -> None:
    """A thread is one thread: its listeners hear of runs that others have asked for in the other way."""
    async with start(Say("One."), Say("Two.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        async with listening(http, agent, thread) as events:
            values = await client.runs.wait(thread, "agent", input=ask("first")["input"])
            heard = await to_the_end(events)
            await start_run(http, agent, thread, ask("second"))
            assert lifecycle(await to_the_end(events)) == ["running", "completed"]

    assert brief(heard) == [("lifecycle", "running"), ("values", None), ("lifecycle", "completed")]
    assert heard[1]["params"]["data"] == values


async def test_delayed_runs_do_not_hold_up_others(start: Start, http: httpx.AsyncClient) -> None:
    """A run that is to begin later is not waited for."""
    async with start(Say("One.")) as (agent, client):
        thread = (await client.threads.create())["thread_id"]
        await client.runs.create(thread, "agent", input=ask("tomorrow")["input"], after_seconds=86400)
        async with listening(http, agent, thread) as events:
            await start_run(http, agent, thread, ask("now"))
            assert lifecycle(await to_the_end(events)) == ["running", "completed"]


async def test_a_run_goes_on_in_another_process(start: Start, http: httpx.AsyncClient) -> None:
    """A listener of a run that a restart has interrupted gets the rest, its beginning told once."""
    thread = new_thread()
    async with start(CALCULATE, Hold(Say("never"))) as (agent, _client):
        await start_run(http, agent, thread, ask("calc"))
        async with listening(http, agent, thread) as events:
            heard = [await anext(events)]
            while heard[-1]["method"] != "tools" or heard[-1]["params"]["data"]["event"] != "tool-finished":
                heard.append(await anext(events))
    async with (
        start(Say("It is 4.")) as (agent, _client),
        listening(http, agent, thread, since=heard[-1]["seq"]) as events,
    ):
        rest = await to_the_end(events)

    assert lifecycle([*heard, *rest]) == ["running", "completed"]
    numbers = [event["seq"] for event in (*heard, *rest)]
    assert numbers == sorted(set(numbers))
    values = [event["params"]["data"] for event in rest if event["method"] == "values"]
    assert values[-1]["messages"][-1]["content"][0]["text"] == "It is 4."


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_another_replica_hears_it(start: Start, http: httpx.AsyncClient) -> None:
    """Whoever listens at one replica hears a run that another one was asked for."""
    thread = new_thread()
    script = (Say("Two."), Say("One."))
    async with (
        start(*script) as (one, _),
        start(*script) as (two, _),
        asyncio.TaskGroup() as group,
        listening(http, one, thread) as here,
        listening(http, two, thread) as there,
    ):
        ends = [group.create_task(to_the_end(events)) for events in (here, there)]
        await start_run(http, one, thread, ask("hi"))
        await asyncio.wait(ends)

    assert ends[0].result() == ends[1].result()
    assert lifecycle(ends[0].result()) == ["running", "completed"]
