"""Calls that need a person's approval, through chats and responses."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from muster_agent.testing import CallTools, Say, ScriptedAgent, scripted_agent
from tests.agent.runs.tools import EFFECTS, effects

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]
Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

AGENTS: dict[str, Any] = {
    "agent": {"openai_model": "muster-agent", "tools": {"own": ["tests.agent.runs.tools:send_mail"]}}
}
THREAD = "0b0e7c7e-3a55-4a4e-8a43-5a4f6f5a9a12"
MAIL = CallTools([("send_mail", {"to": "ada"})], text="I shall write.")
ASKED = """\
This needs your approval, and nothing has been carried out yet:
- send_mail(to='ada')
It cannot be approved in this chat. The next message here withdraws it."""


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tool writes what it does."""
    path = tmp_path / "effects"
    monkeypatch.setenv(EFFECTS, str(path))
    return path


async def test_a_chat_tells_what_it_asks(ask: Ask, done: Path) -> None:
    """The answer names the call and the interrupt, in both modes, and nothing is carried out."""
    async with scripted_agent(MAIL, MAIL, agents=AGENTS) as agent:
        whole = await ask(agent, "Write to Ada.")
        streamed = await ask(agent, "Write to Ada.", stream=True)

    message = whole.json()["choices"][0]["message"]
    assert message["content"] == f"I shall write.\n\n{ASKED}"
    assert message["agent_interrupt"]["id"] == whole.headers["x-agent-interrupt-id"]
    assert whole.json()["choices"][0]["finish_reason"] == "stop"
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line][:-1]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines]
    assert "".join(delta.get("content", "") for delta in deltas) == message["content"]
    assert deltas[-1]["agent_interrupt"]["value"]["action_requests"][0]["args"] == {"to": "ada"}
    assert not effects(done)


@pytest.mark.parametrize("carries", [False, True])
async def test_yes_in_a_chat_is_no_approval(ask: Ask, done: Path, *, carries: bool) -> None:
    """The next message withdraws the question: the model is told that the call was not carried out."""
    history: list[Any] = ["Write.", ("assistant", f"I shall write.\n\n{ASKED}")] if carries else []
    async with scripted_agent(MAIL, Say("Not sent."), agents=AGENTS) as agent:
        await ask(agent, "Write.", thread="t")
        answer = await ask(agent, *history, "yes", thread="t")

    assert answer.json()["choices"][0]["message"]["content"] == "Not sent."
    seen = [message for message in agent.model.calls[1].messages if message[0] != "system"]
    assert [seen[0], seen[1], seen[3]] == [
        ("user", "Write."),
        ("assistant", "I shall write."),
        ("user", "yes"),
    ]
    assert (seen[2][0], "not carried out" in seen[2][1], len(seen)) == ("tool", True, 4)
    assert not effects(done)


def _call(response: Any) -> Any:
    """The one call that a response ends with."""
    *_, call = response.output
    assert (call.type, call.name) == ("function_call", "approve_tool_call")
    return call


def _output(call: Any, output: str) -> Any:
    return [{"type": "function_call_output", "call_id": call.call_id, "output": output}]


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        ("approve", ["ada"]),
        ('{"decisions": [{"type": "approve"}]}', ["ada"]),
        ("reject", []),
        ('{"type": "reject", "message": "No."}', []),
        (
            '{"decisions": [{"type": "edit", "edited_action": {"name": "send_mail", "args": {"to": "bob"}}}]}',
            ["bob"],
        ),
    ],
)
async def test_a_response_is_approved(sdk: Sdk, done: Path, answer: str, sent: list[str]) -> None:
    """The response asks by a function call, and the next one brings the answer, which counts."""
    async with scripted_agent(MAIL, Say("Done."), agents=AGENTS) as agent, sdk(agent) as client:
        asking = await client.responses.create(model="muster-agent", input="Write.", instructions="Be brief.")
        call = _call(asking)
        assert json.loads(call.arguments)["calls"][0]["args"] == {"to": "ada"}
        assert (asking.status, effects(done)) == ("completed", [])
        response = await client.responses.create(
            model="muster-agent", previous_response_id=asking.id, input=_output(call, answer)
        )

    assert response.output_text == "Done."
    assert effects(done) == sent
    assert agent.model.calls[1].messages[0][1].endswith("Be brief.")


async def test_an_answer_counts_once(sdk: Sdk, done: Path) -> None:
    """A second answer, at the same time or later, does nothing."""
    async with scripted_agent(MAIL, Say("Done."), agents=AGENTS) as agent, sdk(agent) as client:
        conversation = await client.conversations.create()
        asking = await client.responses.create(
            model="muster-agent", input="Write.", conversation=conversation.id
        )

        async def approve() -> Any:
            given = _output(_call(asking), "approve")
            return await client.responses.create(
                model="muster-agent", conversation=conversation.id, input=given
            )

        async with asyncio.TaskGroup() as group:
            tries = [group.create_task(_or_refused(approve())) for _ in range(2)]
        later = await _or_refused(approve())

    assert effects(done) == ["ada"]
    assert "Done." in [task.result() for task in tries]
    assert later == "400 input[0].call_id"


async def _or_refused(asked: Coroutine[Any, Any, Any]) -> str:
    try:
        return (await asked).output_text
    except openai.BadRequestError as error:
        return f"{error.status_code} {error.param}"


def _edit(action: Any) -> str:
    return json.dumps({"type": "edit", "edited_action": action})


DEEP: Any = json.loads("[" * 300 + "]" * 300)
MALFORMED = [
    *[
        "yes",
        "",
        "approved",
        "{}",
        '{"decisions": []}',
        '{"decisions": [{"type": "ok"}]}',
        "[1]",
        "null",
        "1",
    ],
    *["edit", "respond", '{"decisions": ["approve"]}', '{"decisions": [{"type": ["approve"]}]}'],
    *['{"decisions": [{"type": "edit"}]}', '{"decisions": [{"type": "respond", "message": "Sent."}]}'],
    '{"decisions": [{"type": "approve"}, {"type": "approve"}]}',
    '{"type": "reject", "message": 5}',
    *[_edit("send_mail"), _edit({"name": "send_mail"}), _edit({"name": "send_mail", "args": 5})],
    *[_edit({"name": 5, "args": {}}), _edit({"name": "other", "args": {}})],
    pytest.param(_edit({"name": "send_mail", "args": {"to": DEEP}}), id="deep"),
]


@pytest.mark.parametrize("output", MALFORMED)
async def test_what_is_not_understood_is_no_approval(sdk: Sdk, done: Path, output: str) -> None:
    """Anything but a clear answer is refused, and the question goes on waiting."""
    async with scripted_agent(MAIL, Say("Done."), agents=AGENTS) as agent, sdk(agent) as client:
        asking = await client.responses.create(model="muster-agent", input="Write.")
        call = _call(asking)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(
                model="muster-agent", previous_response_id=asking.id, input=_output(call, output)
            )
        assert not effects(done)
        await client.responses.create(
            model="muster-agent", previous_response_id=asking.id, input=_output(call, "approve")
        )

    assert caught.value.param == "input[0].output"
    assert effects(done) == ["ada"]


@pytest.mark.parametrize(
    "resume",
    [
        {},
        "approve",
        {"decisions": [{"type": "edit"}]},
        {"decisions": [{"type": "respond", "message": "Sent."}]},
        {"decisions": []},
        {"messages": [{"role": "user", "content": "yes"}]},
    ],
)
async def test_a_wrong_answer_in_langgraphs_api(
    http: httpx.AsyncClient, done: Path, resume: dict[str, Any] | str
) -> None:
    """It is refused whichever way it comes, and the question goes on waiting for a right one."""
    async with scripted_agent(MAIL, Say("Done."), agents=AGENTS) as agent:
        url, asked = f"{agent.url}/threads/{THREAD}", {"messages": [{"role": "user", "content": "Write."}]}
        ask = {"assistant_id": "agent", "if_not_exists": "create"}
        waits = (await http.post(f"{url}/runs/wait", json={**ask, "input": asked})).json()
        (question,) = waits["__interrupt__"]
        plain = await http.post(f"{url}/runs/wait", json={**ask, "command": {"resume": resume}})
        by_id = {question["id"]: resume}
        named = await http.post(f"{url}/runs", json={**ask, "command": {"resume": by_id}})
        told = [
            (await http.post(f"{url}/commands", json={"id": 1, "method": method, "params": params})).json()
            for method, params in [
                ("input.respond", {"interrupt_id": question["id"], "response": resume}),
                ("run.start", {"assistant_id": "agent", "input": resume}),
            ]
        ]
        assert not effects(done)
        right = {"resume": {question["id"]: {"decisions": [{"type": "approve"}]}}}
        await http.post(f"{url}/runs/wait", json={**ask, "command": right})

    assert [answer.status_code for answer in (plain, named)] == [422, 422]
    assert [each["error"] for each in told] == ["invalid_argument"] * 2
    assert effects(done) == ["ada"]


async def test_an_approval_that_is_sent_again(http: httpx.AsyncClient, done: Path) -> None:
    """With its key it is the same response, though the question does not wait any more; without, it is refused."""
    async with scripted_agent(MAIL, Say("Done."), agents=AGENTS) as agent:
        url = f"{agent.url}/v1/responses"
        asking = (await http.post(url, json={"model": "muster-agent", "input": "Write."})).json()
        given = [{**_as_output(asking["output"][-1]), "output": "approve"}]
        body = {"model": "muster-agent", "previous_response_id": asking["id"], "input": given}
        answers = [await http.post(url, json=body, headers={"idempotency-key": "k"}) for _ in range(2)]
        other = await http.post(url, json=body, headers={"idempotency-key": "other"})

    assert answers[0].json() == answers[1].json()
    assert (answers[1].status_code, answers[1].json()["status"]) == (200, "completed")
    assert other.status_code == 400
    assert effects(done) == ["ada"]


async def test_another_tenant_cannot_approve(http: httpx.AsyncClient, done: Path) -> None:
    """For somebody else the response that asks does not exist."""
    keys = {"key-a": "a", "key-b": "b"}
    a, b = ({"authorization": f"Bearer {key}"} for key in keys)
    async with scripted_agent(MAIL, agents=AGENTS, keys=keys) as agent:
        url = f"{agent.url}/v1/responses"
        asking = (await http.post(url, json={"model": "muster-agent", "input": "Write."}, headers=a)).json()
        given = [{**_as_output(asking["output"][-1]), "output": "approve"}]
        body = {"model": "muster-agent", "previous_response_id": asking["id"], "input": given}
        refused = await http.post(url, json=body, headers=b)

    assert refused.status_code == 404
    assert not effects(done)


def _as_output(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call["call_id"]}
