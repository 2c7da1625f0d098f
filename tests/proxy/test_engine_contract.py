"""What vLLM does, asked of its fake and of itself, each directly and through the proxy: shapes, and no words.

What passes here on the fake and on vLLM is what other tests may take for granted of the fake; what passes through
the proxy is what the proxy leaves as it was.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import httpx
import openai
import pytest

from muster_batching.testing import H200_8B
from muster_proxy.testing import FakeVllm
from tests.proxy.conftest import Proxied
from tests.proxy.contract import vllm
from tests.proxy.contract.target import (
    BATCH,
    CHAT,
    COMPLETIONS,
    GENERATING,
    MESSAGES,
    RESPONSES,
    ROUTES,
    Event,
    Target,
    keys,
)

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "The weather of a city."}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
# Strict, because vLLM lets a model write any JSON for arguments otherwise.
TOOLS = [{"type": "function", "function": {**WEATHER, "strict": True, "parameters": CITY}}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}
LONG = 3_000
"""Tokens of an answer that takes an engine many seconds."""

CHUNK = "id object created model choices"
CHUNK_MORE = "system_fingerprint prompt_token_ids prompt_text"
USAGE = "prompt_tokens total_tokens completion_tokens"
ITEM = "id content role status type phase"
CALL = "arguments call_id name type id async caller namespace status"


def _cases(*kinds: str) -> list[Any]:
    marks = {"vllm": [pytest.mark.vllm]}
    return [
        pytest.param((kind, is_proxied), id=kind + "-proxied" * is_proxied, marks=marks.get(kind, []))
        for kind in kinds
        for is_proxied in (False, True)
    ]


@pytest.fixture(scope="session")
def vllm_url() -> Iterator[str]:
    """Real vLLM; one for all tests."""
    with vllm.serving() as url:
        yield url


@pytest.fixture(params=_cases("fake", "modelled", "vllm"))
async def target(request: pytest.FixtureRequest, proxied: Proxied) -> AsyncIterator[Target]:
    """An engine, directly or through a proxy."""
    kind, is_proxied = request.param
    async with contextlib.AsyncExitStack() as held:
        if kind == "vllm":
            url: str = request.getfixturevalue("vllm_url")
        else:
            fake = FakeVllm(profile=H200_8B if kind == "modelled" else None)
            url = (await held.enter_async_context(fake)).url
        direct = httpx.AsyncClient(base_url=url, trust_env=False, timeout=100)
        engine = await held.enter_async_context(direct)
        client = await held.enter_async_context(proxied(url)) if is_proxied else engine
        client.timeout = httpx.Timeout(100)
        model = (await engine.get("/v1/models")).json()["data"][0]["id"]
        yield Target(kind, is_proxied, client, engine, model, kind != "vllm")


def adds_up(usage: dict[str, Any], most: int) -> None:
    """Check a usage of OpenAI's first API: numbers of tokens that make a sum."""
    assert all(type(usage[name]) is int for name in USAGE.split())
    assert usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["completion_tokens"] <= most


def fails(target: Target, answer: httpx.Response, status: int) -> dict[str, Any]:
    """Check an error's shape, Anthropic's on its route where the engine has it so; the error."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    error: dict[str, Any] = body["error"]
    assert isinstance(error["type"], str)
    assert isinstance(error["message"], str)
    if "type" in body:
        assert answer.request.url.path == MESSAGES
        keys(body, "type error", "request_id")
        assert body["type"] == "error"
        keys(error, "type message", "param code" if target.is_proxied else "")
        return {"param": None, **error}
    keys(body, "error")
    keys(error, "message type param code")
    if target.is_proxied:
        assert error["code"] is None or isinstance(error["code"], str)
    else:
        assert error["code"] == status
    return error


async def test_it_says_what_it_serves(target: Target) -> None:
    """A list of models, with at least OpenAI's fields; health without words."""
    listed = (await target.client.get("/v1/models")).json()
    health = await target.engine.get("/health")

    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == [target.model]
    assert {*listed["data"][0]} >= {"id", "object", "created", "owned_by"}
    assert (health.status_code, health.content) == (200, b"")


async def test_a_chat(target: Target) -> None:
    """A message, why it ended, the fields that are vLLM's own, and usage that adds up."""
    answer = await target.ask(CHAT)
    [choice] = answer["choices"]

    keys(
        answer,
        f"{CHUNK} service_tier system_fingerprint usage prompt_logprobs prompt_token_ids prompt_text "
        "kv_transfer_params ec_transfer_params metrics",
    )
    keys(choice, "index message logprobs finish_reason stop_reason token_ids routed_experts")
    keys(choice["message"], "role content refusal annotations audio function_call reasoning")
    keys(answer["usage"], f"{USAGE} prompt_tokens_details completion_tokens_details")
    assert answer["id"].startswith("chatcmpl-")
    assert answer["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
    adds_up(answer["usage"], 8)


@pytest.mark.parametrize("has_usage", [True, False])
async def test_a_chat_streamed(target: Target, *, has_usage: bool) -> None:
    """The role, the content, the reason with the last of it; usage alone at the end, and only if asked for."""
    options = {"stream_options": {"include_usage": True}} if has_usage else {}
    chunks = await target.chunks(CHAT, **options)
    told = chunks[:-1] if has_usage else chunks
    choices = [choice for chunk in told for choice in chunk["choices"]]

    for chunk in told:
        keys(chunk, CHUNK, CHUNK_MORE)
        [choice] = chunk["choices"]
        keys(choice, "index delta logprobs finish_reason", "token_ids stop_reason")
    assert len({(chunk["id"], chunk["object"], chunk["created"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all({*choice["delta"]} <= {"content"} for choice in choices[1:])
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["finish_reason"] in ("stop", "length")
    if has_usage:
        keys(chunks[-1], f"{CHUNK} usage", "system_fingerprint")
        keys(chunks[-1]["usage"], USAGE, "prompt_tokens_details")
        assert chunks[-1]["choices"] == []
        adds_up(chunks[-1]["usage"], 8)


async def test_choices(target: Target) -> None:
    """Two are numbered from 0, whole and streamed, each with its own role and reason; usage counts both."""
    fields: dict[str, Any] = {"n": 2, "temperature": 1, "max_tokens": 8}
    whole = await target.ask(CHAT, **fields)
    chunks = await target.chunks(CHAT, **fields, stream_options={"include_usage": True})
    choices = [choice for chunk in chunks for choice in chunk["choices"]]

    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    adds_up(whole["usage"], 16)
    adds_up(chunks[-1]["usage"], 16)
    for index in (0, 1):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert [bool(choice["finish_reason"]) for choice in own] == [False] * (len(own) - 1) + [True]


async def test_logprobs_of_a_chat(target: Target) -> None:
    """One entry for each token, with as many alternatives as asked for, whole and streamed."""
    fields: dict[str, Any] = {"logprobs": True, "top_logprobs": 2}
    whole = await target.ask(CHAT, **fields)
    chunks = await target.chunks(CHAT, **fields)
    [choice] = whole["choices"]
    streamed = [choice["logprobs"] for chunk in chunks[1:] for choice in chunk["choices"]]
    entries = [entry for logprobs in streamed if logprobs for entry in logprobs["content"]]

    assert len(choice["logprobs"]["content"]) == len(entries) == whole["usage"]["completion_tokens"]
    for entry in [*choice["logprobs"]["content"], *entries]:
        keys(entry, "token logprob bytes top_logprobs")
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        keys(entry["top_logprobs"][0], "token logprob bytes")


async def test_a_completion(target: Target) -> None:
    """A text and its usage, whose prompt is as many tokens as `/tokenize` counts."""
    answer = await target.ask(COMPLETIONS)
    counted = (await target.engine.post("/tokenize", json=target.body("/tokenize"))).json()["count"]
    [choice] = answer["choices"]

    keys(
        answer,
        f"{CHUNK} service_tier system_fingerprint usage kv_transfer_params ec_transfer_params metrics",
    )
    keys(
        choice,
        "index text logprobs finish_reason stop_reason token_ids prompt_logprobs prompt_token_ids routed_experts",
    )
    assert (answer["object"], answer["id"][:5]) == ("text_completion", "cmpl-")
    assert choice["text"]
    assert answer["usage"]["prompt_tokens"] == counted
    adds_up(answer["usage"], 8)


@pytest.mark.parametrize("has_usage", [True, False])
async def test_a_completion_streamed(target: Target, *, has_usage: bool) -> None:
    """Its texts make that of the whole answer; usage as a chat's."""
    options = {"stream_options": {"include_usage": True}} if has_usage else {}
    chunks = await target.chunks(COMPLETIONS, **options)
    told = chunks[:-1] if has_usage else chunks
    whole = await target.ask(COMPLETIONS)

    for chunk in told:
        keys(chunk, CHUNK, "system_fingerprint")
        [choice] = chunk["choices"]
        keys(choice, "index text logprobs finish_reason stop_reason prompt_token_ids token_ids")
    choices = [chunk["choices"][0] for chunk in told]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    assert [bool(choice["finish_reason"]) for choice in choices] == [False] * (len(choices) - 1) + [True]
    if has_usage:
        assert chunks[-1]["choices"] == []
        adds_up(chunks[-1]["usage"], 8)


async def test_a_completion_repeats_its_prompt_if_asked(target: Target) -> None:
    """With `echo` the text begins with it, and so does the first of a stream."""
    whole = await target.ask(COMPLETIONS, echo=True)
    chunks = await target.chunks(COMPLETIONS, echo=True)

    assert whole["choices"][0]["text"].startswith("Paris is")
    assert chunks[0]["choices"][0]["text"].startswith("Paris is")
    assert not any(chunk["choices"][0]["text"].startswith("Paris is") for chunk in chunks[1:])


async def test_several_prompts(target: Target) -> None:
    """Their choices are numbered on, prompt by prompt, and usage counts all prompts and all choices."""
    prompts = ["Paris is", "Rome is"]
    one = await target.ask(COMPLETIONS, prompt=prompts[0])
    two = await target.ask(COMPLETIONS, prompt=prompts, n=2, temperature=1)
    chunks = await target.chunks(COMPLETIONS, prompt=prompts, stream_options={"include_usage": True})

    assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3]
    assert two["usage"]["prompt_tokens"] == chunks[-1]["usage"]["prompt_tokens"]
    assert two["usage"]["prompt_tokens"] > one["usage"]["prompt_tokens"]
    adds_up(two["usage"], 32)
    assert {choice["index"] for chunk in chunks for choice in chunk["choices"]} == {0, 1}


async def test_tokens_are_a_prompt(target: Target) -> None:
    """Each counts as one."""
    answer = await target.ask(COMPLETIONS, prompt=[10, 20, 30])

    assert answer["usage"]["prompt_tokens"] == 3


async def test_logprobs_of_a_completion(target: Target) -> None:
    """Four lists of one length, with as many alternatives as asked for, whole and streamed."""
    whole = await target.ask(COMPLETIONS, logprobs=2)
    chunks = await target.chunks(COMPLETIONS, logprobs=2)
    [choice] = whole["choices"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    count = whole["usage"]["completion_tokens"]

    for logprobs in (choice["logprobs"], *(each for each in streamed if each)):
        keys(logprobs, "text_offset token_logprobs tokens top_logprobs")
        assert len({len(entries) for entries in logprobs.values()}) == 1
        assert all(len(top) >= 2 for top in logprobs["top_logprobs"])
    assert len(choice["logprobs"]["tokens"]) == count
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert sum(len(logprobs["tokens"]) for logprobs in streamed if logprobs) == count


async def test_a_response(target: Target) -> None:
    """One message as output; what was asked for repeated; usage by its other names."""
    answer = await target.ask(RESPONSES, instructions="Be kind.", metadata={"run": "1"})
    [item] = answer["output"]
    [content] = item["content"]

    keys(answer, _RESPONSE)
    keys(item, ITEM)
    keys(content, "annotations text type logprobs")
    assert (answer["object"], answer["id"][:5], item["id"][:4]) == ("response", "resp_", "msg_")
    assert (answer["instructions"], answer["metadata"]) == ("Be kind.", {"run": "1"})
    assert (answer["max_output_tokens"], answer["temperature"]) == (8, 0)
    assert (item["role"], item["type"], content["type"]) == ("assistant", "message", "output_text")
    is_cut = answer["status"] == "incomplete"
    assert answer["status"] in ("completed", "incomplete")
    assert answer["incomplete_details"] == ({"reason": "max_output_tokens"} if is_cut else None)
    responded(answer["usage"])


async def test_a_response_streamed(target: Target) -> None:
    """Its beginning twice, the item and its part open, deltas, both closed, and the whole; all numbered."""
    events = await target.events(RESPONSES)
    data = [event.data for event in events]
    names = [event.name for event in events]
    deltas = [each for each in data if each["type"] == "response.output_text.delta"]

    assert [each["type"] for each in data] == names
    assert [each["sequence_number"] for each in data] == list(range(len(data)))
    assert names[:4] == [*_BEGUN, "response.output_item.added", "response.content_part.added"]
    assert {*names[4:-4]} == {"response.output_text.delta"}
    assert names[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    for each in deltas:
        keys(each, "content_index delta item_id logprobs output_index sequence_number type")
    keys(data[2], "item output_index sequence_number type")
    keys(data[2]["item"], ITEM)
    keys(data[3], "content_index item_id output_index part sequence_number type")
    assert "".join(each["delta"] for each in deltas) == data[-4]["text"]
    whole_response_streamed(events, data[-2]["item"])


async def test_a_message(target: Target) -> None:
    """One block of text, why it stopped, and Anthropic's usage; null fields are left out."""
    answer = await target.ask(MESSAGES)
    [block] = answer["content"]

    keys(answer, "id type role content model stop_reason usage", "stop_sequence")
    keys(answer["usage"], "input_tokens output_tokens", "cache_read_input_tokens")
    keys(block, "type text")
    assert (answer["type"], answer["role"], block["type"]) == ("message", "assistant", "text")
    assert answer["stop_reason"] in ("end_turn", "max_tokens")
    assert answer["usage"]["input_tokens"] > 0
    assert 0 < answer["usage"]["output_tokens"] <= 8


async def test_a_message_streamed(target: Target) -> None:
    """Start, a block with its deltas, the reason with the usage, and stop; named, and without `[DONE]`."""
    events = await target.events(MESSAGES)
    data = [event.data for event in events]
    start, opened, *deltas, closed, ended, _ = data

    assert [each["type"] for each in data] == [event.name for event in events]
    assert {*(each["type"] for each in deltas)} == {"content_block_delta"}
    message_streamed(data)
    assert opened == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    assert all({*each["delta"]} == {"type", "text"} for each in deltas)
    assert closed == {"type": "content_block_stop", "index": 0}
    assert ended["delta"]["stop_reason"] in ("end_turn", "max_tokens")
    assert start["message"]["usage"]["output_tokens"] == 0


async def test_tokens_there_and_back(target: Target) -> None:
    """A text's tokens make the text again."""
    text = "Paris is the capital of France."
    told = await target.ask("/tokenize", prompt=text, return_token_strs=True)
    back = await target.ask("/detokenize", tokens=told["tokens"])

    keys(told, "count max_model_len tokens token_strs")
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"]) > 0
    assert all(type(token) is int for token in told["tokens"])
    assert back == {"prompt": text}


async def test_the_tokens_of_a_chat(target: Target) -> None:
    """They are as many as the usage of the same chat says."""
    messages = target.body(CHAT)["messages"]
    answer = await target.client.post("/tokenize", json={"model": target.model, "messages": messages})
    used = (await target.ask(CHAT))["usage"]["prompt_tokens"]

    assert answer.status_code == 200, answer.text
    assert answer.json()["token_strs"] is None
    assert answer.json()["count"] == used


async def test_embeddings(target: Target) -> None:
    """A list of vectors in the order of the inputs, as numbers or packed; a 404 where there are none."""
    answer = await target.post("/v1/embeddings", input=["Paris", "Rome"])
    if is_not_served(target, answer):
        return
    body = answer.json()
    packed = await target.ask("/v1/embeddings", encoding_format="base64")

    keys(body, "id object created model data usage")
    assert body["object"] == "list"
    assert [each["index"] for each in body["data"]] == [0, 1]
    for each in body["data"]:
        keys(each, "index object embedding")
        assert all(isinstance(number, float) for number in each["embedding"])
    assert isinstance(packed["data"][0]["embedding"], str)
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] > 0


async def test_a_rerank(target: Target) -> None:
    """The best documents first, no more than asked for; a 404 where it is not served."""
    answer = await target.post("/v1/rerank", documents=["a", "b", "c"], top_n=2)
    if is_not_served(target, answer):
        return
    body = answer.json()
    first, second = body["results"]

    keys(body, "id model usage results")
    keys(body["usage"], "prompt_tokens total_tokens")
    keys(first, "index document relevance_score")
    assert first["document"]["text"] == "abc"[first["index"]]
    assert first["relevance_score"] >= second["relevance_score"]


async def test_a_score(target: Target) -> None:
    """One for each text of the second side, in its order; a 404 where it is not served."""
    answer = await target.post("/v1/score")
    if is_not_served(target, answer):
        return
    body = answer.json()

    keys(body, "id object created model data usage")
    assert [(each["index"], each["object"]) for each in body["data"]] == [(0, "score"), (1, "score")]
    assert all(isinstance(each["score"], float) for each in body["data"])


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/nothing"])
async def test_a_route_that_is_not_there(path: str) -> None:
    """An engine whose model generates has no pooling routes, and says so in FastAPI's words, as vLLM does."""
    async with (
        FakeVllm(pooling=False) as fake,
        httpx.AsyncClient(base_url=fake.url, trust_env=False) as client,
    ):
        missing = await client.post(path, json={"input": "a"})
        wrong = await client.get(CHAT)

    assert (missing.status_code, missing.json()) == (404, {"detail": "Not Found"})
    assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})


async def test_tools_that_may_be_called(target: Target) -> None:
    """What needs no call is answered without one, and the message says nothing of calls."""
    answer = await target.ask(CHAT, tools=TOOLS, tool_choice="auto")
    [choice] = answer["choices"]

    keys(choice["message"], "role content refusal annotations audio function_call reasoning")
    assert choice["finish_reason"] in ("stop", "length")


@pytest.mark.parametrize(("choice", "reason"), [("required", "tool_calls"), (NAMED, "stop")])
async def test_a_tool_that_must_be_called(target: Target, choice: Any, reason: str) -> None:
    """One call with valid arguments, whole and streamed; a named tool ends with `stop`, as OpenAI has it."""
    fields = {"messages": QUESTION, "max_tokens": 90, "tools": TOOLS, "tool_choice": choice}
    whole = await target.ask(CHAT, **fields)
    chunks = await target.chunks(CHAT, **fields)
    [told] = whole["choices"]
    [call] = told["message"]["tool_calls"]
    streamed = [chunk["choices"][0] for chunk in chunks]
    calls = [call for each in streamed for call in each["delta"].get("tool_calls", [])]

    keys(call, "id type function")
    assert (call["type"], call["function"]["name"]) == ("function", "get_weather")
    assert json.loads(call["function"]["arguments"])["city"] in ("Paris", "Rome")
    assert told["finish_reason"] == streamed[-1]["finish_reason"] == reason
    keys(calls[0], "id type index function")
    assert calls[0]["function"] == {"name": "get_weather"}
    assert all({*call} == {"index", "function"} for call in calls[1:])
    arguments = "".join(call["function"]["arguments"] for call in calls[1:])
    assert json.loads(arguments)["city"] in ("Paris", "Rome")


async def test_a_tool_in_a_response(target: Target) -> None:
    """The call is an item of its own, whole and streamed."""
    tool = {"type": "function", **WEATHER, "strict": True, "parameters": CITY}
    fields = {"input": "What is the weather in Paris?", "max_output_tokens": 90}
    chosen = {"tools": [tool], "tool_choice": "required"}
    whole = await target.ask(RESPONSES, **fields, **chosen)
    events = await target.events(RESPONSES, **fields, **chosen)
    [item] = whole["output"]
    names = [event.name for event in events]
    deltas = [event.data["delta"] for event in events if "delta" in event.data]

    keys(item, CALL)
    assert (item["type"], item["name"], whole["status"]) == ("function_call", "get_weather", "completed")
    assert json.loads(item["arguments"])["city"] in ("Paris", "Rome")
    assert names[:3] == [*_BEGUN, "response.output_item.added"]
    assert {*names[3:-3]} == {"response.function_call_arguments.delta"}
    assert names[-3:-1] == ["response.function_call_arguments.done", "response.output_item.done"]
    assert "".join(deltas) == events[-3].data["arguments"]
    keys(events[2].data["item"], CALL)
    whole_response_streamed(events, events[-2].data["item"])


async def test_a_tool_in_a_message(target: Target) -> None:
    """The call is a block of its own, whole and streamed."""
    tool = {**WEATHER, "strict": True, "input_schema": CITY}
    fields = {"messages": QUESTION, "max_tokens": 90, "tools": [tool], "tool_choice": {"type": "any"}}
    whole = await target.ask(MESSAGES, **fields)
    data = [event.data for event in await target.events(MESSAGES, **fields)]
    [block] = whole["content"]
    parts = [each["delta"]["partial_json"] for each in data if each["type"] == "content_block_delta"]

    keys(block, "type id name input")
    assert (block["type"], block["name"], whole["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    assert block["input"]["city"] in ("Paris", "Rome")
    message_streamed(data)
    keys(data[1]["content_block"], "type id name input")
    assert data[1]["content_block"]["input"] == {}
    assert json.loads("".join(parts))["city"] in ("Paris", "Rome")
    assert data[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_batch_of_chats(target: Target) -> None:
    """A choice for each conversation, in their order; usage of all. The proxy makes this answer itself."""
    answer = await target.ask(BATCH)
    one = await target.ask(CHAT)

    assert {*answer} >= {*f"{CHUNK} usage".split()}
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for choice in answer["choices"]:
        assert {*choice} >= {"index", "message", "finish_reason"}
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"]
        assert choice["finish_reason"] in ("stop", "length")
    assert answer["usage"]["prompt_tokens"] == 2 * one["usage"]["prompt_tokens"]
    adds_up(answer["usage"], 16)


async def test_a_batch_has_one_choice_for_each(target: Target) -> None:
    """More are refused."""
    fails(target, await target.post(BATCH, n=2, temperature=1), 400)


@pytest.mark.parametrize("path", ROUTES)
async def test_an_unknown_model(target: Target, path: str) -> None:
    """A 404."""
    fails(target, await target.post(path, model="nobody"), 404)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("content", [b'{"model": ', b"[1]", b""])
async def test_a_body_that_is_no_object(target: Target, path: str, content: bytes) -> None:
    """A 400, and no traceback."""
    headers = {"content-type": "application/json"}
    answer = await target.client.post(path, content=content, headers=headers)

    fails(target, answer, 400)


@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_without_its_content(target: Target, path: str) -> None:
    """A 400 that names what is missing, where it is the engine's."""
    error = fails(target, await target.client.post(path, json={"model": target.model}), 400)

    fields = ("messages", "prompt", "input", "tokens", "max_tokens")
    assert any(field in f"{error['param']} {error['message']}" for field in fields)


@pytest.mark.parametrize("path", [*GENERATING, BATCH])
@pytest.mark.parametrize("temperature", [-1, "hot"])
async def test_a_wrong_value(target: Target, path: str, temperature: Any) -> None:
    """A 400 that names the field."""
    error = fails(target, await target.post(path, temperature=temperature), 400)

    assert "temperature" in f"{error['param']} {error['message']}"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("path", "field"),
    [(CHAT, "messages"), (COMPLETIONS, "prompt"), (RESPONSES, "input"), (MESSAGES, "messages")],
)
async def test_too_long_a_prompt(target: Target, path: str, field: str, *, stream: bool) -> None:
    """A 400 before any event, whether a stream was asked for or not."""
    text = "a " * 70_000
    prompt = [{"role": "user", "content": text}] if field == "messages" else text

    fails(target, await target.post(path, **{field: prompt}, stream=stream), 400)


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        (CHAT, "max_tokens"),
        (COMPLETIONS, "max_tokens"),
        (RESPONSES, "max_output_tokens"),
        (MESSAGES, "max_tokens"),
    ],
)
async def test_too_long_an_answer(target: Target, path: str, limit: str) -> None:
    """A 400: more tokens are asked for than the context has."""
    fails(target, await target.post(path, **{limit: 1_000_000}), 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 0},
        {"n": 2, "temperature": 0},
        {"stream_options": {"include_usage": True}},
        {"tool_choice": "required"},
    ],
)
async def test_what_does_not_go_together(target: Target, fields: dict[str, Any]) -> None:
    """A 400."""
    fails(target, await target.post(CHAT, **fields), 400)


@pytest.mark.parametrize("path", ROUTES)
async def test_unknown_fields_do_not_matter(target: Target, path: str) -> None:
    """The answer is a good one."""
    assert (await target.post(path, no_such_field={"a": [1]})).status_code == 200


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("target", _cases("modelled", "vllm"), indirect=True)
async def test_a_client_that_leaves_a_stream(target: Target, path: str) -> None:
    """The engine stops long before the answer would have been made."""
    await until_running(target, 0)
    made, ended = await made_and_ended(target)
    async with target.client.stream("POST", path, json=endless(target, path, stream=True)) as answer:
        assert answer.status_code == 200
        pieces = answer.aiter_bytes()
        await anext(pieces)
        await until_running(target, 1)
    await until_running(target, 0)
    made_after, ended_after = await made_and_ended(target)

    assert made_after - made < LONG / 2
    assert ended_after == ended


@pytest.mark.parametrize("path", GENERATING)
@pytest.mark.parametrize("target", _cases("modelled", "vllm"), indirect=True)
async def test_a_client_that_leaves_an_answer(target: Target, path: str) -> None:
    """The engine stops then too, although nothing was to be sent yet."""
    await until_running(target, 0)
    made, ended = await made_and_ended(target)
    asking = asyncio.ensure_future(target.client.post(path, json=endless(target, path)))
    await until_running(target, 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await until_running(target, 0)
    made_after, ended_after = await made_and_ended(target)

    assert made_after - made < LONG / 2
    assert ended_after == ended


async def test_the_openai_sdk_reads_it(target: Target) -> None:
    """Chats, completions and responses, whole and streamed, by the types of OpenAI's own library."""
    async with openai.AsyncOpenAI(base_url=f"{target.client.base_url}/v1", api_key="none") as sdk:
        model = target.model
        chat = await sdk.chat.completions.create(
            model=model, messages=target.body(CHAT)["messages"], max_tokens=4
        )
        stream = await sdk.chat.completions.create(
            model=model, messages=target.body(CHAT)["messages"], max_tokens=4, stream=True
        )
        chunks = [chunk async for chunk in stream]
        text = await sdk.completions.create(model=model, prompt="Paris is", max_tokens=4)
        response = await sdk.responses.create(model=model, input="Say hello.", max_output_tokens=4)

    assert chat.usage is not None
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert text.choices[0].text
    assert response.output_text


_RESPONSE = (
    "id created_at incomplete_details instructions metadata model object output parallel_tool_calls temperature "
    "tool_choice tools top_p background max_output_tokens max_tool_calls previous_response_id prompt reasoning "
    "service_tier status text top_logprobs truncation usage user presence_penalty frequency_penalty "
    "kv_transfer_params ec_transfer_params input_messages output_messages"
)
_BEGUN = ["response.created", "response.in_progress"]


def responded(usage: dict[str, Any]) -> None:
    """Check a response's usage."""
    keys(usage, "input_tokens input_tokens_details output_tokens output_tokens_details total_tokens")
    keys(
        usage["input_tokens_details"],
        "cached_tokens cache_write_tokens input_tokens_per_turn cached_tokens_per_turn",
    )
    keys(
        usage["output_tokens_details"],
        "reasoning_tokens tool_output_tokens output_tokens_per_turn tool_output_tokens_per_turn",
    )
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"] > 0


def whole_response_streamed(events: list[Event], item: dict[str, Any]) -> None:
    """Check the events that have the whole response, and that its one item is the one that was closed."""
    first, second, last = (events[place].data["response"] for place in (0, 1, -1))
    for response in (first, second, last):
        keys(response, _RESPONSE)
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert last["output"] == [item]
    assert item["status"] == "completed"
    responded(last["usage"])


def message_streamed(data: list[dict[str, Any]]) -> None:
    """Check how a message's events begin and end."""
    start, ended, stopped = data[0], data[-2], data[-1]
    keys(start, "type message")
    keys(start["message"], "id type role content model stop_reason stop_sequence usage")
    assert (start["type"], start["message"]["content"]) == ("message_start", [])
    keys(ended, "type delta usage")
    keys(ended["delta"], "stop_reason stop_sequence")
    keys(ended["usage"], "input_tokens output_tokens", "cache_read_input_tokens")
    assert ended["usage"]["input_tokens"] == start["message"]["usage"]["input_tokens"] > 0
    assert stopped == {"type": "message_stop"}
    assert all(each["index"] <= after["index"] for each, after in pairwise(data[1:-2]))


def is_not_served(target: Target, answer: httpx.Response) -> bool:
    """Whether the engine serves no pooling routes; the answer is then a 404, and a success otherwise."""
    assert answer.status_code == (200 if target.pooling else 404), answer.text
    if not target.pooling:
        keys(answer.json(), "error" if target.is_proxied else "detail")
    return not target.pooling


def endless(target: Target, path: str, **fields: Any) -> dict[str, Any]:
    """A request for an answer that takes many seconds; of a message vLLM's small model makes two seconds' worth."""
    if path == MESSAGES:  # which cannot forbid the model to end it
        fields |= {"messages": [{"role": "user", "content": "Tell me a long story."}]}
    else:
        fields |= {"ignore_eos": True}
    return target.body(path, **{"max_output_tokens" if path == RESPONSES else "max_tokens": LONG}, **fields)


async def until_running(target: Target, count: int) -> None:
    """Wait until the engine says that it runs so many requests."""
    while await target.metric("num_requests_running") != count:
        await asyncio.sleep(0.01)  # another process may want the processor


async def made_and_ended(target: Target) -> tuple[float, list[float]]:
    """Tokens made, and answers that have come to their end."""
    ended = [
        await target.metric("request_success_total", finished_reason=each) for each in ("stop", "length")
    ]
    return await target.metric("generation_tokens_total"), ended
