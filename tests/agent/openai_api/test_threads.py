"""What a thread remembers of chats, over HTTP."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from muster_agent.testing import CallTools, Hold, ModelCall, Refuse, Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

MULTIPLY = CallTools([("calculator", {"expression": "23*7"})])
UUID = "0b0e7c7e-3a55-4a4e-8a43-5a4f6f5a9a11"


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


async def test_a_history_that_differs_replaces_the_conversation(ask: Ask, http: httpx.AsyncClient) -> None:
    """What a client has made up is kept from then on; what was there before is in the thread's history."""
    async with scripted_agent(Say("one"), Say("two"), Say("three")) as agent:
        await ask(agent, "A", thread="t")
        thread = (await ask(agent, "B", ("assistant", "uno"), "C", thread="t")).headers["x-agent-thread-id"]
        await ask(agent, "D", thread="t")
        history = (await http.get(f"{agent.url}/threads/{thread}/history?limit=50")).json()

    edited = [("user", "B"), ("assistant", "uno"), ("user", "C")]
    assert _seen(agent.model.calls[1]) == edited
    assert _seen(agent.model.calls[2]) == [*edited, ("assistant", "two"), ("user", "D")]
    texts = [[message["content"] for message in state["values"].get("messages", [])] for state in history]
    assert ["A", "one"] in texts


async def test_an_edit_forks_the_thread(ask: Ask, http: httpx.AsyncClient) -> None:
    """A changed message goes on from the state before it, tool results included; the other branch stays."""
    async with scripted_agent(MULTIPLY, Say("161"), Say("b"), Say("c"), Say("d")) as agent:
        await ask(agent, "A", thread="t")
        await ask(agent, "A", ("assistant", "161"), "B", thread="t")
        await ask(agent, "A", ("assistant", "161"), "C", thread="t")
        answered = [("assistant", "161"), "C", ("assistant", "c"), "D"]
        last = await ask(agent, "A", *answered, thread="t")
        thread = last.headers["x-agent-thread-id"]
        history = (await http.get(f"{agent.url}/threads/{thread}/history?limit=50")).json()

    before = [("user", "A"), ("assistant", ""), ("tool", "161"), ("assistant", "161")]
    assert _seen(agent.model.calls[3]) == [*before, ("user", "C")]
    assert _seen(agent.model.calls[4]) == [*before, ("user", "C"), ("assistant", "c"), ("user", "D")]
    texts = [[message["content"] for message in state["values"].get("messages", [])] for state in history]
    assert ["A", "", "161", "161", "B", "b"] in texts


async def test_a_regenerated_answer_forks_the_thread(ask: Ask) -> None:
    """The same history again is answered again, from the state before the answer."""
    sent = ["A", ("assistant", "one"), "B"]
    async with scripted_agent(Say("one"), Say("two"), Say("2"), Say("three")) as agent:
        await ask(agent, "A", thread="t")
        for _ in range(2):
            await ask(agent, *sent, thread="t")
        await ask(agent, *sent, ("assistant", "2"), "C", thread="t")

    seen = [_seen(call) for call in agent.model.calls]
    assert seen[1] == seen[2]
    texts = [text for _, text in seen[3]]
    assert texts == ["A", "one", "B", "2", "C"]


@pytest.mark.parametrize("header", ["x-openwebui-chat-id", "x-conversation-id"])
async def test_front_ends_send_everything(ask: Ask, header: str) -> None:
    """A chat that a front end names is what it sends: one message alone is the whole conversation, asked again."""
    async with scripted_agent(Say("one"), Say("uno")) as agent:
        for _ in range(2):
            await ask(agent, "A", headers={header: "chat"})

    assert [_seen(call) for call in agent.model.calls] == [[("user", "A")]] * 2


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


async def test_threads_do_not_see_each_other(ask: Ask) -> None:
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


async def test_a_failed_request_made_again_is_not_there_twice(ask: Ask) -> None:
    """What a failed run has done stays in the thread; the same message again is answered once."""
    overloaded = Refuse(503, {"message": "full", "type": "server_error", "code": "overloaded"})
    async with scripted_agent(Say("one"), overloaded, Say("two")) as agent:
        await ask(agent, "A", thread="t")
        failed = await ask(agent, "B", thread="t")
        await ask(agent, "B", thread="t")

    assert failed.status_code == 503
    assert _seen(agent.model.calls[-1]) == [("user", "A"), ("assistant", "one"), ("user", "B")]


async def test_tool_calls_of_a_failed_run_are_remembered(ask: Ask) -> None:
    """The model is shown what an earlier run did before it failed: it may have changed the world."""
    overloaded = Refuse(503, {"message": "full", "type": "server_error", "code": "overloaded"})
    async with scripted_agent(MULTIPLY, overloaded, Say("two")) as agent:
        await ask(agent, "A", thread="t")
        await ask(agent, "B", thread="t")

    roles = [role for role, _ in _seen(agent.model.calls[-1])]
    assert roles == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("header", ["x-openwebui-chat-id", "x-session-id"])
async def test_a_failed_request_is_made_again(ask: Ask, header: str) -> None:
    """It goes on behind what was done for it: nothing is lost, and nothing is said or done twice."""
    failed = Refuse(500, {"message": "?", "type": "server_error"})
    async with scripted_agent(MULTIPLY, failed, Say("161"), Say("322")) as agent:
        first, second = [await ask(agent, "A", headers={header: "t"}) for _ in range(2)]
        await ask(agent, "A", ("assistant", "161"), "B", headers={header: "t"})

    done = [("user", "A"), ("assistant", ""), ("tool", "161")]
    assert (first.status_code, second.status_code) == (502, 200)
    assert _seen(agent.model.calls[2]) == done
    assert _seen(agent.model.calls[3]) == [*done, ("assistant", "161"), ("user", "B")]


async def test_a_summarised_thread_still_matches(ask: Ask) -> None:
    """A client that resends all of a long conversation adds its tail to the summary, also the next time."""
    summaries = {"share": 0.5, "context_tokens": 256, "keep_messages": 2}
    agents = {"agent": {"openai_model": "muster-agent", "summaries": summaries}}
    sent: list[Any] = []

    def improvise(call: ModelCall) -> Say:
        is_summary = call.headers["x-muster-call-kind"] == "summary"
        return Say("SUMMARY") if is_summary else Say(f"{len(sent)}: " + "word " * 40)

    async with scripted_agent(improvise=improvise, agents=agents) as agent:
        for number in range(6):
            sent.append(f"question {number}")
            answer = await ask(agent, *sent, thread="t")
            sent.append(("assistant", answer.json()["choices"][0]["message"]["content"]))

    last = _seen([call for call in agent.model.calls if call.headers["x-muster-call-kind"] == "model"][-1])
    assert "SUMMARY" in last[0][1]
    assert last[-1] == ("user", "question 5")
    assert len(last) < len(sent) - 2
    assert len({text for _, text in last}) == len(last)


@pytest.mark.parametrize(
    "named",
    [
        {"headers": {"x-thread-id": "t"}},
        {"metadata": {"thread_id": "t"}},
        {"headers": {"x-thread-id": "{{CHAT_ID}}", "x-session-id": "t"}},
        {"headers": {"x-conversation-id": "new", "x-session-id": "t"}},
        {"headers": {"x-session-id": "t"}, "prompt_cache_key": "other"},
        {"headers": {"x-thread-id": ""}, "prompt_cache_key": "t"},
    ],
)
async def test_the_ways_to_name_a_thread(ask: Ask, named: dict[str, Any]) -> None:
    """Each way names the same thread; what stands for no name yet is passed over."""
    async with scripted_agent(Say("one"), Say("two")) as agent:
        first = await ask(agent, "A", thread="t")
        second = await ask(agent, "A", ("assistant", "one"), "B", **named)

    assert first.headers["x-agent-thread-id"] == second.headers["x-agent-thread-id"]
    assert _seen(agent.model.calls[-1]) == [("user", "A"), ("assistant", "one"), ("user", "B")]


async def test_a_uuid_names_a_thread_of_langgraphs_api(ask: Ask, http: httpx.AsyncClient) -> None:
    """In `x-thread-id` and `metadata.thread_id` it is the thread itself; elsewhere it is a name like any other."""
    async with scripted_agent(Say("one"), Say("two"), Say("three")) as agent:
        await http.post(f"{agent.url}/threads", json={"thread_id": UUID})
        answers = [
            await ask(agent, "A", headers={"x-thread-id": UUID}),
            await ask(agent, "B", metadata={"thread_id": UUID.upper()}),
            await ask(agent, "C", headers={"x-session-id": UUID}),
        ]

    threads = [answer.headers["x-agent-thread-id"] for answer in answers]
    assert threads[:2] == [UUID, UUID]
    assert threads[2] != UUID


async def test_tenants_do_not_reach_each_others_threads(ask: Ask) -> None:
    """The same name is another thread for each tenant, and another's UUID is a thread that does not exist."""
    keys = {"key-a": "a", "key-b": "b"}
    a, b = ({"authorization": f"Bearer {key}"} for key in keys)
    async with scripted_agent(Say("1"), Say("2"), keys=keys) as agent:
        mine = await ask(agent, "A", thread="t", headers=a)
        theirs = await ask(agent, "B", thread="t", headers=b)
        stolen = mine.headers["x-agent-thread-id"]
        refused = await ask(agent, "C", headers={**b, "x-thread-id": stolen})
        nobody = await ask(agent, "D", headers={"authorization": "Bearer wrong"})

    assert mine.headers["x-agent-thread-id"] != theirs.headers["x-agent-thread-id"]
    assert [_seen(call) for call in agent.model.calls] == [[("user", "A")], [("user", "B")]]
    assert (refused.status_code, refused.json()["error"]["message"]) == (
        404,
        f"Thread with ID {stolen} not found",
    )
    assert (nobody.status_code, nobody.json()["error"]["code"]) == (401, "invalid_api_key")


async def test_a_thread_has_a_short_name(ask: Ask) -> None:
    """A name of more than 512 characters is refused by the field that has it."""
    async with scripted_agent(Say("one")) as agent:
        long = await ask(agent, "?", thread="x" * 513)
        short = await ask(agent, "?", thread="x" * 512)

    assert (long.status_code, long.json()["error"]["param"]) == (400, "x-session-id")
    assert short.status_code == 200
