"""Responses, with the client that users have."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from muster_agent.testing import (
    CallTools,
    Hold,
    ModelCall,
    Refuse,
    Say,
    ScriptedAgent,
    Tokens,
    scripted_agent,
)

Sdk = Callable[[ScriptedAgent], openai.AsyncOpenAI]

MODEL = "muster-agent"
MULTIPLY = CallTools([("calculator", {"expression": "23*7"})], text="Let me see.", tokens=Tokens(30, 12))
ANSWER = Say("It is 161.", tokens=Tokens(50, 6))
TOLD = "calculator(expression='23*7') → 161\n"


def _seen(call: ModelCall) -> list[tuple[str, str]]:
    return [message for message in call.messages if message[0] != "system"]


async def test_a_whole_response(sdk: Sdk) -> None:
    """Its text is the answer alone; tools are told as reasoning; usage is the sum of the model calls."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        response = await client.responses.create(model=MODEL, input="What is 23 times 7?")

    assert (response.object, response.status, response.model) == ("response", "completed", MODEL)
    assert response.output_text == "It is 161."
    assert [item.type for item in response.output] == ["reasoning", "reasoning", "message"]
    assert response.output[1].model_dump()["summary"][0]["text"] == TOLD
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (
        80,
        18,
        98,
    )
    assert response.usage.input_tokens_details.cache_write_tokens == 0


async def test_the_events_of_a_stream(sdk: Sdk) -> None:
    """They come in OpenAI's order, numbered from 0 without gaps, and the last has the whole response."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        stream = await client.responses.create(model=MODEL, input="?", stream=True)
        events = [event async for event in stream]
        stored = await client.responses.retrieve(events[-1].response.id)  # type: ignore[union-attr]

    message = ["output_item.added", "content_part.added", *["output_text.delta"] * 3]
    message += ["output_text.done", "content_part.done", "output_item.done"]
    reasoning = ["output_item.added", "reasoning_summary_part.added", "reasoning_summary_text.delta"]
    reasoning += ["reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"]
    names = ["created", "in_progress", *message, *reasoning, *message, "completed"]
    assert [event.type for event in events] == [f"response.{name}" for name in names]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last: Any = events[-1]
    assert last.response == stored
    assert stored.output_text == "Let me see.\n\nIt is 161."


async def test_the_sdks_stream_helper(sdk: Sdk) -> None:
    """The helper puts the pieces together to the text that the response has in the end."""
    async with (
        scripted_agent(MULTIPLY, ANSWER) as agent,
        sdk(agent) as client,
        client.responses.stream(model=MODEL, input="?") as stream,
    ):
        pieces = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()

    assert "".join(pieces) == final.output_text == "Let me see.\n\nIt is 161."


async def test_tools_as_items_for_programs(sdk: Sdk) -> None:
    """Where it is asked for, a tool call is an item with its arguments and its result."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        include: Any = ["agent.tool_calls"]
        response = await client.responses.create(model=MODEL, input="?", include=include)

    item = response.output[1].model_dump(exclude_none=True)
    assert item["type"] == "agent_tool_call"
    assert (item["name"], item["arguments"], item["output"]) == ("calculator", {"expression": "23*7"}, "161")
    assert response.output_text == "It is 161."


async def test_a_response_goes_on_with_another(sdk: Sdk) -> None:
    """It knows what came before; two that go on with the same one do not see each other."""
    async with (
        scripted_agent(Say("one"), Say("two"), Say("three"), Say("four")) as agent,
        sdk(agent) as client,
    ):
        first = await client.responses.create(model=MODEL, input="A")
        second = await client.responses.create(model=MODEL, input="B", previous_response_id=first.id)
        await client.responses.create(model=MODEL, input="C", previous_response_id=first.id)
        await client.responses.create(model=MODEL, input="D", previous_response_id=second.id)

    seen = [[text for _, text in _seen(call)] for call in agent.model.calls]
    assert seen == [["A"], ["A", "one", "B"], ["A", "one", "C"], ["A", "one", "B", "two", "D"]]


async def test_a_history_in_the_input(sdk: Sdk) -> None:
    """Messages of every role are taken, as texts and in parts; instructions are for this response only."""
    given: Any = [
        {"role": "developer", "content": "Speak Latin."},
        {"role": "user", "content": [{"type": "input_text", "text": "A"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "a", "annotations": []}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": "B"},
    ]
    async with scripted_agent(Say("b"), Say("c"), system_prompt="Be right.") as agent, sdk(agent) as client:
        first = await client.responses.create(model=MODEL, input=given, instructions="Be brief.")
        await client.responses.create(model=MODEL, input="C", previous_response_id=first.id)
        items = await client.responses.input_items.list(first.id, order="asc")

    assert agent.model.calls[0].messages[0] == ("system", "Be right.\n\nBe brief.\n\nSpeak Latin.")
    assert _seen(agent.model.calls[0]) == [("user", "A"), ("assistant", "a"), ("user", "B")]
    assert agent.model.calls[1].messages[0] == ("system", "Be right.")
    roles = [item.model_dump()["role"] for item in items.data]
    assert roles == ["developer", "user", "assistant", "user"]


async def test_settings_reach_the_model(sdk: Sdk) -> None:
    """Sampling, the limit and the form go with each model call, by the names that engines know."""
    form: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    async with scripted_agent(ANSWER) as agent, sdk(agent) as client:
        await client.responses.create(
            model=MODEL,
            input="?",
            temperature=0.5,
            top_p=0.9,
            max_output_tokens=40,
            text=form,
            tool_choice="none",
        )

    body = agent.model.calls[0].body
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 40)
    schema = {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": schema}


async def test_a_response_that_is_not_stored(sdk: Sdk, http: httpx.AsyncClient) -> None:
    """It is answered, and nothing of it can be found afterwards."""
    async with scripted_agent(ANSWER) as agent, sdk(agent) as client:
        response = await client.responses.create(model=MODEL, input="?", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(response.id)
        threads = (await http.post(f"{agent.url}/threads/search", json={})).json()

    assert (response.output_text, response.model_dump()["store"], threads) == ("It is 161.", False, [])


@pytest.mark.parametrize(
    ("reply", "limits", "reason"),
    [
        (Say("It is", finish_reason="length"), {}, "max_output_tokens"),
        (MULTIPLY, {"limits": {"model_calls": 1}}, "max_steps"),
    ],
)
async def test_an_incomplete_response(sdk: Sdk, reply: Any, limits: Any, reason: str) -> None:
    """An answer that was cut, and a run that was given up, say so and why."""
    agents = {"agent": {"openai_model": MODEL, **limits}}
    async with scripted_agent(reply, reply, agents=agents) as agent, sdk(agent) as client:
        response = await client.responses.create(model=MODEL, input="?")
        stream = await client.responses.create(model=MODEL, input="?", stream=True)
        names = [event.type async for event in stream]

    assert response.status == "incomplete"
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == reason
    assert names[-1] == "response.incomplete"


async def test_failures(sdk: Sdk) -> None:
    """A failure before the first word has its own status; one behind it is the stream's last event."""
    refused = Refuse(429, {"message": "too many", "type": "rate_limit_error", "code": "queue_full"})
    broken = Say("It is", finish_reason=None)
    async with scripted_agent(refused, refused, broken) as agent, sdk(agent) as client:
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model=MODEL, input="?")
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model=MODEL, input="?", stream=True)
        stream = await client.responses.create(model=MODEL, input="?", stream=True)
        events: list[Any] = [event async for event in stream]
        stored = await client.responses.retrieve(events[-1].response.id)

    assert events[-1].type == "response.failed"
    assert events[-1].response.error.code == "server_error"
    assert events[-1].response.error.message.endswith("(proxy_protocol_error)")
    assert stored.status == "failed"


async def test_a_response_in_the_background(sdk: Sdk) -> None:
    """It is known at once, goes on without its client, and has its answer when it is asked for."""
    held = Hold(ANSWER)
    async with scripted_agent(held) as agent, sdk(agent) as client:
        begun = await client.responses.create(model=MODEL, input="?", background=True)
        await agent.model.received()
        going_on = await client.responses.retrieve(begun.id)
        stream = await client.responses.retrieve(begun.id, stream=True)
        held.release.set()
        events: list[Any] = [event async for event in stream]
        ended = await client.responses.retrieve(begun.id)

    assert (begun.status, going_on.status) == ("queued", "in_progress")
    assert [event.type for event in events][:2] == ["response.created", "response.queued"]
    assert (ended.status, ended.output_text) == ("completed", "It is 161.")
    assert events[-1].response == ended


async def test_a_response_is_cancelled(sdk: Sdk) -> None:
    """The model call is closed, and the response says so; its stream ends."""
    async with scripted_agent(Hold(ANSWER, said="It")) as agent, sdk(agent) as client:
        begun = await client.responses.create(model=MODEL, input="?", background=True)
        await agent.model.received()
        stream = await client.responses.retrieve(begun.id, stream=True)
        cancelled = await client.responses.cancel(begun.id)
        await agent.model.aborted()
        events = [event async for event in stream]
        again = await client.responses.cancel(begun.id)

    assert (cancelled.status, again.status) == ("cancelled", "cancelled")
    assert events[-1].type == "response.failed"


async def test_a_response_that_never_began_is_streamed(sdk: Sdk) -> None:
    """One that was cancelled while it waited for its turn has a stream that says so."""
    held = Hold(ANSWER)
    async with scripted_agent(held) as agent, sdk(agent) as client:
        where = (await client.conversations.create()).id
        await client.responses.create(model=MODEL, input="A", conversation=where, background=True)
        await agent.model.received()
        waiting = await client.responses.create(model=MODEL, input="B", conversation=where, background=True)
        await client.responses.cancel(waiting.id)
        stream = await client.responses.retrieve(waiting.id, stream=True)
        events: list[Any] = [event async for event in stream]

    names = ["created", "queued", "in_progress", "failed"]
    assert [event.type for event in events] == [f"response.{name}" for name in names]
    assert events[-1].response.status == "cancelled"


async def test_the_background_is_patient(sdk: Sdk) -> None:
    """A response that nobody waits for asks the proxy again when it is turned away, also with its first call."""
    full = Refuse(
        429, {"message": "full", "type": "rate_limit_error", "code": "queue_full"}, {"retry-after": "0"}
    )
    async with scripted_agent(full, full, ANSWER, full) as agent, sdk(agent) as client:
        begun = await client.responses.create(model=MODEL, input="?", background=True)
        stream = await client.responses.retrieve(begun.id, stream=True)
        events: list[Any] = [event async for event in stream]
        with pytest.raises(openai.RateLimitError):
            await client.responses.create(model=MODEL, input="?")

    assert events[-1].response.output_text == "It is 161."


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_leaves(sdk: Sdk, *, streamed: bool) -> None:
    """A response that is not in the background ends with its client, and its model call is closed."""
    async with scripted_agent(Hold(ANSWER)) as agent, sdk(agent) as client:
        asking = asyncio.create_task(_read(client, streamed=streamed))
        await agent.model.received()
        asking.cancel()
        await agent.model.aborted()

    assert asking.cancelled()


async def _read(client: openai.AsyncOpenAI, *, streamed: bool) -> None:
    told: Any = await client.responses.create(model=MODEL, input="?", stream=streamed)
    async for _ in told:
        pass


async def test_a_stream_goes_on_where_it_was_left(sdk: Sdk) -> None:
    """Behind any of its events a stream continues with the very events that come after it."""
    async with scripted_agent(MULTIPLY, ANSWER) as agent, sdk(agent) as client:
        stream = await client.responses.create(model=MODEL, input="?", stream=True)
        events: list[Any] = [event async for event in stream]
        for after in (0, 5, 11, len(events) - 2):
            rest = await client.responses.retrieve(events[0].response.id, stream=True, starting_after=after)
            assert [event async for event in rest] == events[after + 1 :]


async def test_a_background_stream_that_is_left(sdk: Sdk) -> None:
    """A client that streams in the background may leave and come back for the rest."""
    held = Hold(Say("161."), said="It is ")
    async with scripted_agent(held) as agent, sdk(agent) as client:
        stream = await client.responses.create(model=MODEL, input="?", background=True, stream=True)
        seen: list[Any] = []
        async for event in stream:
            seen.append(event)
            if event.type == "response.output_text.delta":
                break
        await stream.close()
        rest = await client.responses.retrieve(
            seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number
        )
        held.release.set()
        later: list[Any] = [event async for event in rest]

    numbers = [event.sequence_number for event in (*seen, *later)]
    assert numbers == list(range(len(numbers)))
    assert later[-1].response.output_text == "It is 161."


async def test_a_response_is_deleted(sdk: Sdk, http: httpx.AsyncClient) -> None:
    """It is gone, and the thread that was made for it goes with the last response on it."""
    async with scripted_agent(Say("one"), Say("two")) as agent, sdk(agent) as client:
        first = await client.responses.create(model=MODEL, input="A")
        second = await client.responses.create(model=MODEL, input="B", previous_response_id=first.id)
        await client.responses.delete(first.id)
        left = (await http.post(f"{agent.url}/threads/search", json={})).json()
        await client.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)
        gone = (await http.post(f"{agent.url}/threads/search", json={})).json()

    assert (len(left), gone) == (1, [])


async def test_a_repeated_request_is_one_response(http: httpx.AsyncClient) -> None:
    """With one idempotency key all requests get the same response, and there is no thread beside its own."""
    async with scripted_agent(ANSWER, ANSWER) as agent:
        body = {"model": MODEL, "input": "?"}
        key = {"idempotency-key": "k"}
        answers = [await http.post(f"{agent.url}/v1/responses", json=body, headers=key) for _ in range(2)]

        other = {"idempotency-key": "other"}
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(http.post(f"{agent.url}/v1/responses", json=body, headers=other))
        threads = (await http.post(f"{agent.url}/threads/search", json={})).json()

    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["status"] == "completed"
    assert len(threads) == 2


async def test_others_responses_do_not_exist(http: httpx.AsyncClient) -> None:
    """Another tenant is told the same, byte for byte, as of a response that never was."""
    keys = {"key-a": "a", "key-b": "b"}
    a, b = ({"authorization": f"Bearer {key}"} for key in keys)
    async with scripted_agent(ANSWER, keys=keys) as agent:
        url = f"{agent.url}/v1/responses"
        body = {"model": MODEL, "input": "?"}
        name = (await http.post(url, json=body, headers=a)).json()["id"]
        never = f"resp_{'0' * 32}"
        for method, path in [
            ("GET", ""),
            ("GET", "?stream=true"),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
        ]:
            told = [await http.request(method, f"{url}/{which}{path}", headers=b) for which in (name, never)]
            assert [answer.status_code for answer in told] == [404, 404]
            assert told[0].text == told[1].text.replace(never, name)
        told = [
            await http.post(url, json={**body, "previous_response_id": which}, headers=b)
            for which in (name, never)
        ]

    assert [answer.status_code for answer in told] == [404, 404]
    assert told[0].text == told[1].text.replace(never, name)


USER = {"role": "user", "content": "?"}

DEEP: Any = {"not": json.loads("[" * 250 + "]" * 250)}

# fields, param
WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"model": None}, "model"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": 1}, "input"),
    ({"input": ["?"]}, "input[0]"),
    ({"input": [{"role": "robot", "content": "?"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content",
    ),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
    ({"input": [{"type": "function_call", "name": "f", "call_id": "c", "arguments": "{}"}]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "call_id": "c", "output": "approve"}]}, "input[0].output"),
    ({"input": [{"type": "function_call_output", "output": "approve"}]}, "input[0].call_id"),
    ({"input": [{"role": "developer", "content": "x"}]}, "input"),
    ({"input": [USER, {"role": "assistant", "content": "x"}]}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": {}}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"store": 1}, "store"),
    ({"background": True, "store": False}, "store"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"include": "x"}, "include"),
    ({"text": {"format": {"type": "poem"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": DEEP}}}, None),
    ({"conversation": 1}, "conversation"),
    ({"conversation": {}}, "conversation.id"),
    ({"conversation": "conv_x", "previous_response_id": "resp_x"}, "previous_response_id"),
    ({"previous_response_id": 1}, "previous_response_id"),
    ({"instructions": ["x"]}, "instructions"),
]


async def test_a_wrong_request_is_the_callers_to_mend(http: httpx.AsyncClient) -> None:
    """Each wrong field is a 400 that names it, and no model is called."""
    async with scripted_agent() as agent:
        url = f"{agent.url}/v1/responses"
        answers = [await http.post(url, json={"model": MODEL, "input": "?", **fields}) for fields, _ in WRONG]
        unknown = await http.post(url, json={"model": "gpt-x", "input": "?"})
        missing = [
            await http.post(url, json={"model": MODEL, "input": "?", **fields})
            for fields in ({"conversation": "conv_x"}, {"previous_response_id": "resp_x"})
        ]

    got = [(answer.status_code, answer.json()["error"]["param"]) for answer in answers]
    assert got == [(400, param) for _, param in WRONG]
    assert [answer.status_code for answer in (unknown, *missing)] == [404, 404, 404]
    assert agent.model.calls == []
