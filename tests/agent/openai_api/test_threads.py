"""What a thread remembers, over HTTP."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import CallTools, Hold, ModelCall, Refuse, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

MULTIPLY = CallTools([("calculator", {"expression": "23*7"})])


def _seen(call: ModelCall) -> list[tuple[str, str]]:
    """The conversation that the model saw, without the agent's instructions."""
    return [message for message in call.messages if message[0] != "system"]


async def test_new_input_is_put_behind_what_the_thread_holds(ask: Ask) -> None:
    """A client that sends only what is new is answered with the whole conversation in mind, tools included."""
    async with scripted_agent(MULTIPLY, Say("161"), Say("322")) as agent:
        await ask(agent, "23 times 7?", thread="t")
        await ask(agent, "Twice that?", thread="t")

    assert _seen(agent.model.calls[-1]) == [
        ("user", "23 times 7?"),
        ("assistant", ""),
        ("tool", "161"),
        ("assistant", "161"),
        ("user", "Twice that?"),
    ]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_history_that_matches_adds_its_tail(ask: Ask, *, streamed: bool) -> None:
    """A client that resends the conversation it was shown adds its last message, and tool results are kept."""
    thinking = CallTools(MULTIPLY.calls, text="Let me see.")
    shown = "Let me see.\n\n161" if streamed else "161"
    async with scripted_agent(thinking, Say("161"), Say("322")) as agent:
        await ask(agent, "23 times 7?", thread="t", stream=streamed)
        await ask(agent, "23 times 7?", ("assistant", shown), "Twice that?", thread="t")

    assert _seen(agent.model.calls[-1]) == [
        ("user", "23 times 7?"),
        ("assistant", "Let me see."),
        ("tool", "161"),
        ("assistant", "161"),
        ("user", "Twice that?"),
    ]


async def test_a_history_that_differs_replaces_the_thread(ask: Ask) -> None:
    """A client that has edited the conversation has its version kept from then on."""
    async with scripted_agent(Say("one"), Say("two"), Say("three")) as agent:
        await ask(agent, "A", thread="t")
        await ask(agent, "B", ("assistant", "uno"), "C", thread="t")
        await ask(agent, "D", thread="t")

    edited = [("user", "B"), ("assistant", "uno"), ("user", "C")]
    assert _seen(agent.model.calls[1]) == edited
    assert _seen(agent.model.calls[2]) == [*edited, ("assistant", "two"), ("user", "D")]


async def test_instructions_are_not_remembered(ask: Ask) -> None:
    """A system message counts for its own run only."""
    async with scripted_agent(Say("Salve."), Say("Hello."), system_prompt="Be right.") as agent:
        await ask(agent, ("system", "Speak Latin."), "Hi", thread="t")
        await ask(agent, "Hi again", thread="t")

    assert agent.model.calls[1].messages == [
        ("system", "Be right."),
        ("user", "Hi"),
        ("assistant", "Salve."),
        ("user", "Hi again"),
    ]


async def test_threads_know_nothing_of_each_other(ask: Ask) -> None:
    """Another thread, and a request without one, see their own messages only."""
    async with scripted_agent(Say("1"), Say("2"), Say("3")) as agent:
        await ask(agent, "A", thread="t")
        await ask(agent, "B", thread="u")
        await ask(agent, "C")

    assert [_seen(call) for call in agent.model.calls] == [[("user", "A")], [("user", "B")], [("user", "C")]]


async def test_runs_on_one_thread_take_turns(ask: Ask) -> None:
    """A second run waits for the first and then sees its answer; neither is lost."""
    held = Hold(Say("one"))
    async with scripted_agent(held, Say("two"), Say("three"), Say("four")) as agent:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask(agent, "A", thread="t"))
            await agent.model.received()
            waiting = group.create_task(ask(agent, "B", thread="t"))
            await ask(agent, "elsewhere", thread="u")
            assert not waiting.done()
            held.release.set()
        await ask(agent, "C", thread="t")

    assert _seen(agent.model.calls[-1]) == [
        ("user", "A"),
        ("assistant", "one"),
        ("user", "B"),
        ("assistant", "three"),
        ("user", "C"),
    ]


async def test_a_failed_run_leaves_the_thread_as_it_was(ask: Ask) -> None:
    """A run that failed after a tool call has left nothing behind."""
    overloaded = Refuse(503, {"message": "full", "type": "server_error", "code": "overloaded"})
    async with scripted_agent(Say("one"), MULTIPLY, overloaded, Say("two")) as agent:
        await ask(agent, "A", thread="t")
        failed = await ask(agent, "B", thread="t")
        await ask(agent, "C", thread="t")

    assert failed.status_code == 503
    assert _seen(agent.model.calls[-1]) == [("user", "A"), ("assistant", "one"), ("user", "C")]


async def test_a_run_stopped_at_its_limit_is_remembered_whole(ask: Ask) -> None:
    """The thread holds each tool call with its result, and the sentence that ended the run."""
    async with scripted_agent(MULTIPLY, Say("two"), max_steps=1) as agent:
        await ask(agent, "A", thread="t")
        await ask(agent, "B", thread="t")

    assert [role for role, _ in _seen(agent.model.calls[-1])] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]


async def test_the_least_recently_used_thread_is_dropped(ask: Ask) -> None:
    """Beyond the bound the thread that was used longest ago begins anew; the others remember."""
    async with scripted_agent(*[Say(str(number)) for number in range(6)], max_threads=2) as agent:
        for text, thread in [("A", "t"), ("B", "u"), ("C", "t"), ("D", "v"), ("E", "t"), ("F", "u")]:
            await ask(agent, text, thread=thread)

    texts = [[text for role, text in _seen(call) if role == "user"] for call in agent.model.calls]
    assert texts == [["A"], ["B"], ["A", "C"], ["D"], ["A", "C", "E"], ["F"]]


@pytest.mark.parametrize("name", ["", "a b", "x" * 129, "a/b"])
async def test_a_thread_has_a_well_formed_name(ask: Ask, name: str) -> None:
    """Another name than 128 letters, digits, dots, hyphens and underscores is refused by its header's name."""
    async with scripted_agent() as agent:
        response = await ask(agent, "?", thread=name)

    assert (response.status_code, response.json()["error"]["param"]) == (400, "x-session-id")
