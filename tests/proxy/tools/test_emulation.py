"""Tool calls for a model that cannot, as an OpenAI client sees them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.conftest import Proxied

ADD: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
USER: dict[str, Any] = {"role": "user", "content": "What is 1+2?"}
CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
TWO_CALLS = f'[{CALL}, {{"name": "now", "arguments": {{}}}}]'
ANSWER = '{"name": "answer", "arguments": {"text": "It is 3."}}'


@pytest.fixture
async def client(engine: FakeVllm, proxied: Proxied) -> AsyncIterator[openai.AsyncOpenAI]:
    """The openai package, pointed at a proxy whose engine cannot call tools."""
    async with (
        proxied(engine.url, tool_mode="emulated") as proxy,
        openai.AsyncOpenAI(base_url=f"{proxy.base_url}/v1", api_key="-", max_retries=0) as sdk,
    ):
        yield sdk


async def ask(client: openai.AsyncOpenAI, **fields: Any) -> ChatCompletion:
    """Ask with both tools, unless told otherwise."""
    given: dict[str, Any] = {"model": "fake-model", "messages": [USER], "tools": [ADD, NOW], **fields}
    completion: ChatCompletion = await client.chat.completions.create(**given)
    return completion


def sent(engine: FakeVllm) -> dict[str, Any]:
    """What the engine got last."""
    return engine.requests[-1].body


def schema(engine: FakeVllm) -> dict[str, Any]:
    """The schema that the engine was to hold the model to."""
    form: dict[str, Any] = sent(engine)["response_format"]
    assert form["type"] == "json_schema"
    return form["json_schema"]["schema"]


def names(schema: dict[str, Any]) -> list[str]:
    """The functions that a reply under the schema may be; several at once as one list's name."""
    forms = schema.get("anyOf", [schema])
    return ["[]" if form.get("type") == "array" else form["properties"]["name"]["const"] for form in forms]


async def test_a_call_comes_back_as_a_tool_call(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """With an id, arguments as JSON text, no content, and the right finish_reason."""
    engine.script(Reply(CALL))
    choice = (await ask(client)).choices[0]

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 1, "b": 2}


async def test_an_answer_comes_back_as_content(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """Without its frame, and without tool calls."""
    engine.script(Reply(ANSWER))
    choice = (await ask(client)).choices[0]

    assert (choice.finish_reason, choice.message.content, choice.message.tool_calls) == (
        "stop",
        "It is 3.",
        None,
    )


async def test_several_calls_come_back_in_one_answer(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """Each with an id of its own."""
    engine.script(Reply(TWO_CALLS))
    calls = (await ask(client)).choices[0].message.tool_calls or []

    assert [call.function.name for call in calls if call.type == "function"] == ["add", "now"]
    assert len({call.id for call in calls}) == 2


@pytest.mark.parametrize(
    ("reply", "text", "calls", "reason"),
    [
        (CALL, "", [("add", {"a": 1, "b": 2})], "tool_calls"),
        (TWO_CALLS, "", [("add", {"a": 1, "b": 2}), ("now", {})], "tool_calls"),
        (ANSWER, "It is 3.", [], "stop"),
        ("no frame at all", "no frame at all", [], "stop"),
    ],
)
async def test_a_stream_adds_up_to_the_unary_answer(
    engine: FakeVllm,
    client: openai.AsyncOpenAI,
    reply: str,
    text: str,
    calls: list[tuple[str, dict[str, Any]]],
    reason: str,
) -> None:
    """The SDK's own accumulator makes the same message of the stream, and usage comes when asked for."""
    engine.script(Reply(reply))
    given: dict[str, Any] = {"model": "fake-model", "messages": [USER], "tools": [ADD, NOW]}
    async with client.chat.completions.stream(**given, stream_options={"include_usage": True}) as stream:
        final = await stream.get_final_completion()

    [choice] = final.choices
    assert choice.finish_reason == reason
    assert (choice.message.content or "") == text
    got = [
        (call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls or []
    ]
    assert got == calls
    assert final.usage is not None
    assert final.usage.completion_tokens > 0


async def test_a_stream_gives_arguments_as_they_are_written(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """One call begins once, with its id; its arguments come in several deltas with the same index."""
    engine.script(Reply(CALL))
    given: dict[str, Any] = {"model": "fake-model", "messages": [USER], "tools": [ADD], "stream": True}
    deltas = [chunk.choices[0].delta async for chunk in await client.chat.completions.create(**given)]

    assert deltas[0].role == "assistant"
    begun = [call for delta in deltas for call in delta.tool_calls or [] if call.id]
    more = [call for delta in deltas for call in delta.tool_calls or [] if not call.id]
    assert len(begun) == 1
    assert len(more) > 1
    assert {call.index for call in more} == {0}


@pytest.mark.parametrize(
    ("choice", "parallel", "allowed"),
    [
        (None, None, ["answer", "add", "now", "[]"]),
        ("auto", True, ["answer", "add", "now", "[]"]),
        ("auto", False, ["answer", "add", "now"]),
        ("required", None, ["add", "now", "[]"]),
        ("required", False, ["add", "now"]),
        ({"type": "function", "function": {"name": "now"}}, None, ["now"]),
        ("none", None, ["answer"]),
    ],
)
async def test_the_choice_is_what_the_model_is_held_to(
    engine: FakeVllm,
    client: openai.AsyncOpenAI,
    choice: Any,
    parallel: bool | None,
    allowed: list[str],
) -> None:
    """The schema allows what `tool_choice` and `parallel_tool_calls` allow, and the engine sees no tools."""
    fields: dict[str, Any] = {"tool_choice": choice, "parallel_tool_calls": parallel}
    await ask(client, **{name: value for name, value in fields.items() if value is not None})

    assert names(schema(engine)) == allowed
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(sent(engine))


async def test_a_named_call_ends_with_stop(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """As OpenAI ends it: the model had no choice to call."""
    engine.script(Reply(CALL))
    choice = (await ask(client, tool_choice={"type": "function", "function": {"name": "add"}})).choices[0]

    assert choice.finish_reason == "stop"
    assert choice.message.tool_calls


async def test_calls_and_results_are_told_to_the_model_in_words(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """The engine gets turns of system, user and assistant alone, users never two in a row."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        {"role": "user", "content": "Thanks. And now?"},
        {"role": "assistant", "content": "It is 3."},
        {"role": "user", "content": "Good."},
    ]
    await ask(client, messages=history)
    turns = sent(engine)["messages"]

    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[0]["content"].startswith("Be brief.\n\nBe kind.\n\n")
    assert '"description":"Add two numbers."' in turns[0]["content"]
    assert json.loads(turns[2]["content"]) == {"name": "add", "arguments": {"a": 1, "b": 2}}
    assert turns[3]["content"] == "Result of add: 3\n\nThanks. And now?"
    assert json.loads(turns[4]["content"]) == {"name": "answer", "arguments": {"text": "It is 3."}}


async def test_a_history_of_calls_without_tools_is_told_too(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """A client that asks for the last word sends no tools any more; the model can then only answer."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    history = [
        USER,
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    engine.script(Reply(ANSWER))
    completion = await ask(client, messages=history, tools=openai.NOT_GIVEN)

    assert completion.choices[0].message.content == "It is 3."
    assert names(schema(engine)) == ["answer"]


async def test_a_request_without_tools_passes_untouched(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """Emulation costs those who use it alone."""
    await ask(client, tools=openai.NOT_GIVEN)

    assert sent(engine) == {"model": "fake-model", "messages": [USER]}


async def test_a_tool_named_as_the_frame_is_no_trouble(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """A client's own `answer` is a tool like any other."""
    tool = {"type": "function", "function": {"name": "answer"}}
    engine.script(Reply('{"name": "answer", "arguments": {}}'))
    choice = (await ask(client, tools=[tool])).choices[0]

    assert choice.finish_reason == "tool_calls"
    assert names(schema(engine))[:2] == ["final_answer", "answer"]


async def test_an_answer_in_the_clients_form_is_held_to_it(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """`response_format` goes for the answer, beside the tools."""
    wanted = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}
    engine.script(Reply('{"name": "answer", "arguments": {"text": {"sum": 3}}}'))
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": wanted}}
    completion = await ask(client, response_format=form)

    assert json.loads(completion.choices[0].message.content or "") == {"sum": 3}
    assert schema(engine)["anyOf"][0]["properties"]["arguments"]["properties"]["text"] == wanted


async def test_a_reply_cut_by_its_limit_says_so(engine: FakeVllm, client: openai.AsyncOpenAI) -> None:
    """What there is of the answer, with `length`; half a frame is not content."""
    engine.script(Reply(ANSWER[:-6], finish_reason="length"), Reply(ANSWER[:20], finish_reason="length"))
    first, second = (await ask(client)).choices[0], (await ask(client)).choices[0]

    assert (first.finish_reason, first.message.content) == ("length", "It is")
    assert (second.finish_reason, second.message.content) == ("length", "")


async def test_stop_strings_end_the_answer_and_not_its_frame(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """The engine would stop inside the frame; here the text alone is searched."""
    engine.script(Reply(ANSWER))
    completion = await ask(client, stop=["is", '"'])

    assert completion.choices[0].message.content == "It "
    assert "stop" not in sent(engine)


async def test_each_of_several_choices_is_read_on_its_own(
    engine: FakeVllm, client: openai.AsyncOpenAI
) -> None:
    """`n` answers, streamed or not."""
    engine.script(Reply(CALL), Reply(CALL))
    completion = await ask(client, n=2)
    given: dict[str, Any] = {
        "model": "fake-model",
        "messages": [USER],
        "tools": [ADD],
        "n": 2,
        "stream": True,
    }
    reasons = [
        (choice.index, choice.finish_reason)
        async for chunk in await client.chat.completions.create(**given)
        for choice in chunk.choices
        if choice.finish_reason
    ]

    assert [len(choice.message.tool_calls or []) for choice in completion.choices] == [1, 1]
    assert sorted(reasons) == [(0, "tool_calls"), (1, "tool_calls")]


async def test_legacy_functions_are_refused_with_the_way_out(client: openai.AsyncOpenAI) -> None:
    """Silently ignoring them would be worse."""
    with pytest.raises(openai.BadRequestError, match="Use tools") as refused:
        await ask(client, tools=openai.NOT_GIVEN, functions=[{"name": "f", "parameters": {}}])

    assert refused.value.param == "functions"


async def test_tools_on_a_model_without_tools_are_a_400(engine: FakeVllm, proxied: Proxied) -> None:
    """`tool_mode: none` says so instead of dropping them."""
    async with proxied(engine.url, tool_mode="none") as proxy:
        body = {"model": "fake-model", "messages": [USER], "tools": [ADD]}
        answer = await proxy.post("/v1/chat/completions", json=body)

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
