"""`FakeVllm` with a profile answers at a modelled engine's pace, and its metrics and its cache are the model's."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Literal

import httpx
import openai
import pytest

from muster_batching.testing import H200_8B
from muster_proxy.bench import servers
from muster_proxy.testing import FakeVllm, Reply

# Ten milliseconds a step whatever is in it, and room for two requests: enough to see them run, queue and be cut.
SMALL = replace(
    H200_8B,
    max_num_seqs=2,
    kv_blocks=64,
    step_s=0.01,
    decode_s=0.0,
    context_s=0.0,
    prefill_s=0.0,
    request_s=0.0,
    policy="priority",
)
FAST = 1_000.0
"""A speed at which an answer takes no time worth the name."""

LONG = 900
"""Tokens of an answer that takes nine seconds: long enough to be there when a test looks."""


@pytest.fixture
async def modelled() -> AsyncIterator[FakeVllm]:
    """An engine that runs two requests at once."""
    async with FakeVllm(profile=SMALL) as fake:
        yield fake


@pytest.fixture
async def client(modelled: FakeVllm) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with httpx.AsyncClient(base_url=modelled.url, trust_env=False, timeout=30) as client:
        yield client


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    """A chat whose messages are the user's and the assistant's by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return {"model": "fake-model", "messages": messages, **fields}


async def ask(
    client: httpx.AsyncClient, body: dict[str, Any], path: str = "chat/completions"
) -> dict[str, Any]:
    """The answer to a request that succeeds."""
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


async def events(
    client: httpx.AsyncClient, body: dict[str, Any], path: str = "chat/completions"
) -> list[dict[str, Any]]:
    """The events of a stream that ends well."""
    text = (await client.post(f"/v1/{path}", json={**body, "stream": True})).text
    *data, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(each.removeprefix("data: ")) for each in data]


async def readings(client: httpx.AsyncClient) -> dict[str, float]:
    """The metrics by name, without their labels; of one with several label sets the last."""
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, value in pairs}


async def until_reading(client: httpx.AsyncClient, **values: float) -> None:
    """Wait until these metrics of vLLM's have these values."""
    wanted = {f"vllm:{name}": value for name, value in values.items()}
    while wanted.items() - (await readings(client)).items():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("fields", "tokens", "reason"),
    [
        ({}, 16, "stop"),
        ({"max_tokens": 5}, 5, "length"),
        ({"max_tokens": 5, "max_completion_tokens": 3}, 3, "length"),
        ({"max_tokens": 1_020}, 1_015, "length"),
        ({"ignore_eos": True}, 1_015, "length"),
    ],
)
async def test_an_answer_is_as_long_as_asked(
    fields: dict[str, Any], tokens: int, reason: Literal["stop", "length"]
) -> None:
    """To `max_tokens` if there is one, else as the model likes; never past the context's end."""
    async with (
        FakeVllm(profile=SMALL, more={"max_model_len": 1_024}, speed=FAST) as fake,
        httpx.AsyncClient(base_url=fake.url, trust_env=False) as client,
    ):
        body = await ask(client, chat("Hello, how are y", **fields))
        streamed = await events(
            client, chat("Hello, how are y", **fields, stream_options={"include_usage": True})
        )

    text = body["choices"][0]["message"]["content"]
    assert body["usage"]["prompt_tokens"] == 2 + 4 + 3
    assert (body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]) == (tokens, reason)
    assert len(text) == 4 * (tokens - (reason == "stop"))
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in streamed[:-1]) == text
    assert streamed[-2]["choices"][0]["finish_reason"] == reason
    assert len(streamed) == 1 + tokens + 1
    assert streamed[-1]["usage"]["completion_tokens"] == tokens


async def test_a_choice_begins_with_the_role_and_each_token_is_an_event(client: httpx.AsyncClient) -> None:
    """As vLLM does it: the reason to end comes with the last token."""
    chunks = await events(client, chat("Hello", max_tokens=2))
    deltas = [(each["choices"][0]["delta"], each["choices"][0]["finish_reason"]) for each in chunks]

    assert [{*delta} for delta, _ in deltas] == [{"role", "content"}, {"content"}, {"content"}]
    assert [reason for _, reason in deltas] == [None, None, "length"]
    assert all(len(delta["content"]) == 4 for delta, _ in deltas[1:])


async def test_the_openai_sdk_reads_it(modelled: FakeVllm) -> None:
    """A stream with usage, whole."""
    async with openai.AsyncOpenAI(base_url=f"{modelled.url}/v1", api_key="none") as sdk:
        stream = await sdk.chat.completions.create(
            model="fake-model",
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=5,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]

    assert len(chunks) == 7
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5


async def test_several_prompts_and_choices_are_answered_in_order(client: httpx.AsyncClient) -> None:
    """A completion of two prompts with two choices each has four, and its usage counts each prompt once."""
    body = {"model": "fake-model", "prompt": ["one two three", "four"], "n": 2, "max_tokens": 3}
    answer = await ask(client, body, "completions")
    streamed = await events(client, {**body, "stream_options": {"include_usage": True}}, "completions")
    texts = ["", "", "", ""]
    for event in streamed[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]

    assert answer["object"] == streamed[0]["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert len({*texts}) == 4
    assert answer["usage"]["prompt_tokens"] == streamed[-1]["usage"]["prompt_tokens"] == 4 + 1
    assert answer["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("abcde", 2), ([1, 2, 3], 3), ([[1, 2, 3], [4]], 4), (["abcd", "e"], 2)]
)
async def test_a_completions_prompt_has_four_forms(
    client: httpx.AsyncClient, prompt: Any, tokens: int
) -> None:
    """A text, tokens, or several of either."""
    body = {"model": "fake-model", "prompt": prompt, "max_tokens": 1}

    assert (await ask(client, body, "completions"))["usage"]["prompt_tokens"] == tokens


async def test_everything_in_a_chat_counts_as_prompt(client: httpx.AsyncClient) -> None:
    """Tools, parts of a content, and the calls that an assistant made."""
    plain = chat("Hello", "", "Go on", max_tokens=1)
    rich = chat("Hello", "", "Go on", max_tokens=1, tools=[{"type": "function", "function": {"name": "f"}}])
    rich["messages"][0]["content"] = [{"type": "text", "text": "Hello"}]
    rich["messages"][1] |= {"content": None, "tool_calls": [{"id": "1"}]}
    less, more = [(await ask(client, body))["usage"]["prompt_tokens"] for body in (plain, rich)]

    assert less == (2 + 2) + 3 + (2 + 2) + 3
    assert more > less + 20


async def test_a_conversation_that_goes_on_is_found_in_the_cache(client: httpx.AsyncClient) -> None:
    """Its next turn finds the full blocks of all that was said, the answer among them."""
    question = "x" * 100
    first = await ask(client, chat(question, max_tokens=40))
    said = first["choices"][0]["message"]["content"]
    second = await ask(client, chat(question, said, "And then?", max_tokens=1))
    other = await ask(client, chat("y" + question, said, "And then?", max_tokens=1))

    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == (30 + 40) // 16 * 16
    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize(
    ("path", "content", "status", "param"),
    [
        ("chat/completions", b"{", 400, "body"),
        ("chat/completions", b"{}", 400, "body.messages"),
        ("completions", b"{}", 400, "body.prompt"),
        ("completions", b'{"prompt": "a", "model": "other"}', 404, "model"),
        ("completions", b'{"prompt": "a", "max_tokens": 0}', 400, "max_tokens"),
        ("completions", b'{"prompt": "a", "max_tokens": 9999999}', 400, "max_tokens"),
        ("completions", json.dumps({"prompt": "a" * 5_000}).encode(), 400, "input_tokens"),
    ],
)
async def test_what_vllm_refuses_is_refused(
    client: httpx.AsyncClient, path: str, content: bytes, status: int, param: str
) -> None:
    """With its status and its shape of error."""
    answer = await client.post(f"/v1/{path}", content=content)

    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (status, param)


async def test_the_model_says_how_long_its_context_is(client: httpx.AsyncClient) -> None:
    """No longer than the KV cache."""
    [model] = (await client.get("/v1/models")).json()["data"]

    assert (model["id"], model["max_model_len"]) == ("fake-model", 64 * 16)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_is_out_of_the_engine(
    modelled: FakeVllm, client: httpx.AsyncClient, *, stream: bool
) -> None:
    """Of three, one waits; when one that runs has gone, the other two run; then nobody is there."""
    async with asyncio.TaskGroup() as group:
        asking: list[asyncio.Task[dict[str, Any]]] = []
        for name in "abc":
            body = chat(name, max_tokens=LONG // 3, stream=stream)
            asking.append(group.create_task(ask(client, body)))
            await modelled.arrived.acquire()
        await until_reading(client, num_requests_running=2, num_requests_waiting=1)
        asking[0].cancel()
        await modelled.aborted.acquire()
        await until_reading(client, num_requests_running=2, num_requests_waiting=0)
        asking[1].cancel()
        asking[2].cancel()
        await until_reading(client, num_requests_running=0, num_requests_waiting=0, kv_cache_usage_perc=0.0)

    metrics = (await client.get("/metrics")).text
    assert (
        'vllm:request_success_total{engine="0",finished_reason="abort",model_name="fake-model"} 3.0'
        in metrics
    )


async def test_a_lower_priority_goes_first() -> None:
    """The body says it, and a header overrides the body."""
    ended: list[str] = []

    async def ask_for(name: str, tokens: int, priority: int, **headers: str) -> None:
        body = chat(name, max_tokens=tokens, priority=priority)
        await client.post("/v1/chat/completions", json=body, headers=headers)
        ended.append(name)

    async with (
        FakeVllm(profile=replace(SMALL, max_num_seqs=1)) as fake,
        httpx.AsyncClient(base_url=fake.url, trust_env=False, timeout=30) as client,
        asyncio.TaskGroup() as group,
    ):
        busy = group.create_task(ask_for("busy", LONG, 0))
        await until_reading(client, num_requests_running=1)
        group.create_task(ask_for("last", 2, 2))
        group.create_task(ask_for("middle", 2, 1))
        group.create_task(ask_for("first", 2, 9, **{"x-vllm-priority": "0"}))
        await until_reading(client, num_requests_waiting=3)
        busy.cancel()

    assert ended == ["first", "middle", "last"]


async def test_the_metrics_are_those_of_the_model(client: httpx.AsyncClient) -> None:
    """They have vLLM's names, and numbers that add up."""
    await ask(client, chat("x" * 100, max_tokens=40))
    await ask(client, chat("x" * 100, max_tokens=2))
    told = await readings(client)
    text = (await client.get("/metrics")).text

    assert (
        told.items()
        >= {
            "vllm:num_requests_running": 0.0,
            "vllm:num_requests_waiting": 0.0,
            "vllm:kv_cache_usage_perc": 0.0,
            "vllm:num_preemptions_total": 0.0,
            "vllm:prefix_cache_queries_total": 60.0,
            "vllm:prefix_cache_hits_total": 16.0,
            "vllm:prompt_tokens_total": 60.0,
            "vllm:generation_tokens_total": 42.0,
            "vllm:time_to_first_token_seconds_count": 2.0,
        }.items()
    )
    assert 'finished_reason="length",model_name="fake-model"} 2.0' in text
    assert 'block_size="16",enable_prefix_caching="True",engine="0",kv_cache_size_tokens="1024"' in text
    assert 'vllm:time_to_first_token_seconds_bucket{engine="0",le="20.0",model_name="fake-model"} 2.0' in text


async def test_metrics_can_lie(modelled: FakeVllm, client: httpx.AsyncClient) -> None:
    """They can be missing, old, empty or full, whatever the engine does, and honest again."""
    modelled.metrics = "stale"
    assert (await readings(client))["vllm:generation_tokens_total"] == 0.0
    await ask(client, chat("Hello", max_tokens=3))
    stale = await readings(client)
    asking = asyncio.ensure_future(ask(client, chat("Hello", max_tokens=LONG)))
    modelled.metrics = "honest"
    await until_reading(client, num_requests_running=1)
    honest = await readings(client)
    modelled.metrics = "zero"
    zero = await readings(client)
    modelled.metrics = "full"
    full = await readings(client)
    modelled.metrics = "missing"
    missing = await client.get("/metrics")
    asking.cancel()

    gauges = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    assert stale["vllm:generation_tokens_total"] == 0.0
    assert honest["vllm:generation_tokens_total"] >= 3.0
    assert [tuple(told[gauge] for gauge in gauges) for told in (honest, zero, full)] == [
        (1, 0),
        (0, 0),
        (1, 1000),
    ]
    assert (zero["vllm:kv_cache_usage_perc"], full["vllm:kv_cache_usage_perc"]) == (0.0, 1.0)
    assert missing.status_code == 404


async def test_a_scripted_engine_has_no_metrics_unless_told(engine: FakeVllm) -> None:
    """It then counts what is in flight, and says nothing of what it does not have."""
    release = asyncio.Event()
    engine.script(Reply(release=release))
    async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as client:
        assert (await client.get("/metrics")).status_code == 404
        engine.metrics = "honest"
        asking = asyncio.ensure_future(ask(client, chat("Hello")))
        await engine.arrived.acquire()
        told = await readings(client)
        release.set()
        await asking

    assert told["vllm:num_requests_running"] == 1.0
    assert "vllm:kv_cache_usage_perc" not in told
    assert "vllm:num_preemptions_total" not in told


async def test_a_script_comes_before_the_model(modelled: FakeVllm, client: httpx.AsyncClient) -> None:
    """Its replies are given first, whatever is asked for."""
    modelled.script(Reply(status=503), Reply("Paris."))

    assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 503
    assert (await ask(client, chat("Hello")))["choices"][0]["message"]["content"] == "Paris."
    assert len((await ask(client, chat("Hello")))["choices"][0]["message"]["content"]) == 60


def test_it_runs_as_a_process_of_its_own() -> None:
    """It serves on the port it is given until it is told to stop, and a second is told that the port is taken."""
    port = servers.free_port()
    command = [
        sys.executable,
        "-m",
        "muster_proxy.testing",
        "--port",
        str(port),
        "--model",
        "small",
        "--speed",
        "9",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert process.stderr is not None
        assert "listening" in process.stderr.readline()
        listed = client.get("/v1/models").json()["data"][0]["id"]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    assert listed == "small"
    assert (second.returncode, "is taken" in second.stderr) == (69, True)
