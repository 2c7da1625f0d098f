"""OpenAI's Python SDK as a client: what its users see of the proxy, call by call and fault by fault."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio.to_thread
import httpx2
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from openai.types.responses import FunctionToolParam

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.conftest import Proxied
from tests.proxy.sdks.conftest import KEY, WORDS, Full

MODEL = "fake-model"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Where is it warm?"}]
TEXT = "".join(WORDS)
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: list[ChatCompletionFunctionToolParam] = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}
]
TOOL: FunctionToolParam = {"type": "function", "name": "weather", "parameters": SCHEMA, "strict": True}
CALLS = [("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')]


@contextlib.asynccontextmanager
async def _sdk(url: str, **options: Any) -> AsyncGenerator[openai.AsyncOpenAI]:
    hooks = options.pop("event_hooks", None)
    http = openai.DefaultAsyncHttpxClient(trust_env=False, event_hooks=hooks)
    given: dict[str, Any] = {"api_key": KEY, "max_retries": 0, **options}
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", http_client=http, **given) as client:
        yield client


def _id_of(answer: ChatCompletion) -> str | None:
    # The underscore only keeps it apart from an answer's fields: OpenAI documents it as public.
    return answer._request_id  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
async def client(proxy_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The SDK, in front of the proxy that works; it tries nothing twice."""
    async with _sdk(proxy_url) as sdk:
        yield sdk


async def test_chat(client: openai.AsyncOpenAI) -> None:
    """A chat completion has its text, its end, its usage and the request's id."""
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(WORDS)
    assert _id_of(answer)


async def test_the_request_id_is_the_one_that_the_client_gave(client: openai.AsyncOpenAI) -> None:
    """An `x-request-id` of the client's is the one that the SDK shows."""
    answer = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, extra_headers={"x-request-id": "mine-1"}
    )

    assert _id_of(answer) == "mine-1"


async def test_several_choices(client: openai.AsyncOpenAI) -> None:
    """`n` choices come as so many, each with its index."""
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3)

    assert [choice.index for choice in answer.choices] == [0, 1, 2]


async def test_stream_without_usage(client: openai.AsyncOpenAI) -> None:
    """A client that asked for no usage gets none, and every chunk has a choice."""
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]

    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert stream.response.headers["x-request-id"]


async def test_stream_with_usage(client: openai.AsyncOpenAI) -> None:
    """A client that asked for the usage gets it in one last chunk, which has no choices."""
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]

    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == len(WORDS)
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_stream_of_several_choices(client: openai.AsyncOpenAI) -> None:
    """The chunks of several choices come together again by their index."""
    texts = ["", ""]
    async for chunk in await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True, n=2):
        [choice] = chunk.choices
        texts[choice.index] += choice.delta.content or ""

    assert texts == [TEXT, TEXT]


async def test_tools(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """Tool calls come whole, with a name, arguments and ids of their own."""
    engine.script(Reply("", tool_calls=CALLS))
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=TOOLS)
    calls = answer.choices[0].message.tool_calls or []

    assert answer.choices[0].finish_reason == "tool_calls"
    assert [
        (each.function.name, each.function.arguments) for each in calls if each.type == "function"
    ] == CALLS
    assert len({each.id for each in calls}) == len(CALLS)


async def test_tools_streamed(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """The SDK puts streamed tool calls together, and reads their arguments by the tool's schema."""
    engine.script(Reply("", tool_calls=CALLS))
    async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, tools=TOOLS) as stream:
        events = [event.type async for event in stream]
        answer = await stream.get_final_completion()
    calls = answer.choices[0].message.tool_calls or []

    assert [each.function.parsed_arguments for each in calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert events.count("tool_calls.function.arguments.done") == len(CALLS)


class _Place(pydantic.BaseModel):
    city: str


async def test_parsed_answers(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A form for the answer goes to the engine as it is, and the SDK reads the answer by it."""
    engine.script(Reply('{"city": "Rome"}'))
    answer = await client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=_Place)

    assert answer.choices[0].message.parsed == _Place(city="Rome")
    assert engine.requests[0].body["response_format"]["json_schema"]["name"] == "_Place"


async def test_unknown_fields_pass(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """What the SDK sends in `extra_body` goes to the engine."""
    await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, extra_body={"min_p": 0.1, "own": [1]}
    )

    assert engine.requests[0].body["own"] == [1]


async def test_completions(client: openai.AsyncOpenAI) -> None:
    """A completion has its text."""
    answer = await client.completions.create(model=MODEL, prompt="Hello")

    assert answer.choices[0].text == TEXT


async def test_completions_streamed(client: openai.AsyncOpenAI) -> None:
    """A completion's stream has its text and a choice in every chunk."""
    stream = await client.completions.create(model=MODEL, prompt="Hello", stream=True)

    assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_embeddings(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """Vectors are the same as floats and as base64, which the SDK asks for where the user says nothing."""
    packed = await client.embeddings.create(model=MODEL, input=["a", "b"])
    plain = await client.embeddings.create(model=MODEL, input=["a", "b"], encoding_format="float")

    assert [request.body["encoding_format"] for request in engine.requests] == ["base64", "float"]
    assert [each.index for each in packed.data] == [0, 1]
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, rel=1e-6)


async def test_responses(client: openai.AsyncOpenAI) -> None:
    """A response has its text and its usage."""
    answer = await client.responses.create(model=MODEL, input="Hello")

    assert answer.output_text == TEXT
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(WORDS)


async def test_responses_streamed(client: openai.AsyncOpenAI) -> None:
    """The SDK follows a response's events to the response that they make."""
    async with client.responses.stream(model=MODEL, input="Hello") as stream:
        events = [event async for event in stream]
        answer = await stream.get_final_response()

    assert answer.output_text == TEXT
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_tools_of_responses_streamed(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A response's tool calls come together, each with its arguments."""
    engine.script(Reply("", tool_calls=CALLS))
    async with client.responses.stream(model=MODEL, input="Hello", tools=[TOOL]) as stream:
        answer = await stream.get_final_response()

    calls = [(item.name, item.arguments) for item in answer.output if item.type == "function_call"]
    assert calls == CALLS


async def test_models(client: openai.AsyncOpenAI) -> None:
    """The models are listed."""
    models = await client.models.list()

    assert [model.id for model in models.data] == [MODEL]
    assert await client.models.retrieve(MODEL) == models.data[0]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve("some/other")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


async def test_the_synchronous_client(proxy_url: str) -> None:
    """The SDK's synchronous client gets whole answers and streams as well."""

    def ask() -> tuple[str | None, str]:
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{proxy_url}/v1", api_key=KEY, http_client=http) as sdk:
            whole = sdk.chat.completions.create(model=MODEL, messages=MESSAGES)
            stream = sdk.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return whole.choices[0].message.content, text

    assert await anyio.to_thread.run_sync(ask) == (TEXT, TEXT)


async def test_many_at_once(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """Requests of one client that are in flight together get each its own answer."""
    engine.script(*(Reply(f"number {number}") for number in range(50)))
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(client.chat.completions.create(model=MODEL, messages=MESSAGES))
            for _ in range(50)
        ]

    told = {task.result().choices[0].message.content for task in asked}
    assert told == {f"number {number}" for number in range(50)}


async def test_bad_request(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A wrong value is a `BadRequestError` that names the field, and no engine hears of it."""
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=0)

    assert (caught.value.param, caught.value.code) == ("max_tokens", "invalid_value")
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id
    assert engine.requests == []


async def test_what_the_engine_rejects(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """What the engine rejects is a `BadRequestError` with the engine's field."""
    error = {"message": "too long", "type": "BadRequestError", "param": "input_tokens", "code": 400}
    engine.script(Reply(status=400, error={"error": error}))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert (caught.value.param, caught.value.code) == ("input_tokens", "request_rejected")


async def test_keys(keyed_url: str) -> None:
    """The right key is let in; a wrong one is an `AuthenticationError` on every route."""
    async with _sdk(keyed_url) as right:
        assert (await right.models.list()).data
    async with _sdk(keyed_url, api_key="wrong") as wrong:
        for ask in (
            wrong.models.list,
            lambda: wrong.chat.completions.create(model=MODEL, messages=MESSAGES),
            lambda: wrong.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True),
        ):
            with pytest.raises(openai.AuthenticationError) as caught:
                await ask()
            assert caught.value.code == "invalid_api_key"


async def test_unknown_models(client: openai.AsyncOpenAI) -> None:
    """A model that does not exist is a `NotFoundError` that names the field."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="other", messages=MESSAGES)

    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


async def test_routes_that_are_not_there(client: openai.AsyncOpenAI) -> None:
    """A call of the SDK's that the proxy does not serve is a `NotFoundError` in OpenAI's shape."""
    with pytest.raises(openai.NotFoundError) as caught:
        await client.moderations.create(input="Hello")

    assert caught.value.code == "unknown_url"


async def test_a_full_queue(full: Full) -> None:
    """A request that is turned away is a `RateLimitError` that says when to come back."""
    async with _sdk(full.url) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.code == "queue_full"
    assert int(caught.value.response.headers["retry-after"]) >= 1
    assert caught.value.response.headers["x-should-retry"] == "true"


async def test_the_sdk_comes_back_when_told(full: Full) -> None:
    """The SDK waits for as long as `retry-after` says, and is then served."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, httpx2.Response]] = []

    async def see(response: httpx2.Response) -> None:
        seen.append((loop.time(), response))
        full.release.set()

    async with _sdk(full.url, max_retries=1, event_hooks={"response": [see]}) as client:
        await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    (refused_s, refused), (served_s, served) = seen
    assert (refused.status_code, served.status_code) == (429, 200)
    # Of itself it would have waited for half a second. A slow machine waits longer, none shorter.
    assert served_s - refused_s > 0.9 * int(refused.headers["retry-after"])


async def test_no_engine(proxied: Proxied, unused_port: int) -> None:
    """Without an engine the error is an `InternalServerError` of status 503 that may be tried again."""
    async with (
        proxied(f"http://127.0.0.1:{unused_port}", is_ready=False) as http,
        _sdk(str(http.base_url)) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            await client.chat.completions.create(model=MODEL, messages=MESSAGES)

    assert caught.value.status_code == 503
    assert caught.value.code == "no_healthy_upstream"
    assert caught.value.response.headers["x-should-retry"] == "true"


async def test_a_stream_that_breaks(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A stream that breaks in its middle raises `APIError` after what came before; no end is made up."""
    engine.script(Reply(breaks_after=2))
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    chunks = [await anext(stream), await anext(stream)]
    with pytest.raises(openai.APIError) as caught:
        chunks.append(await anext(stream))
    chunks.extend([chunk async for chunk in stream])

    assert caught.value.code == "upstream_stream_error"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None]


async def test_a_response_that_breaks(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A response's stream that breaks raises `APIError` too."""
    engine.script(Reply(breaks_after=6))
    stream = await client.responses.create(model=MODEL, input="Hello", stream=True)
    first = await anext(stream)
    with pytest.raises(openai.APIError) as caught:
        assert [event async for event in stream if event.type == "response.completed"] == []

    assert first.type == "response.created"
    assert caught.value.code == "upstream_stream_error"


async def test_an_engine_that_fails_in_a_stream(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """An error that the engine sends as an event raises `APIError`, without the engine's own words."""
    error = {"message": "CUDA error at 0x7f", "type": "InternalServerError", "param": None, "code": 500}
    engine.script(Reply(fails_after=3, error={"error": error}))
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError) as caught:
        assert [chunk async for chunk in stream]

    assert "CUDA" not in str(caught.value.body)


async def test_keep_alives_pass_unnoticed(proxied: Proxied, engine: FakeVllm) -> None:
    """Comments that keep a waiting stream open reach the SDK before the first token, and its user sees none."""
    first = asyncio.Event()
    engine.script(Reply(release=first))
    async with proxied(engine.url, keep_alive_s=0.01) as http, _sdk(str(http.base_url)) as client:
        # It returns with the stream's head, which comes with the first comment: the engine has not answered yet.
        stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
        first.set()
        chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT


async def test_a_timeout_aborts(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A request that the SDK gives up is aborted in the engine."""
    engine.script(Reply(release=asyncio.Event()))
    with pytest.raises(openai.APITimeoutError):
        await client.with_options(timeout=0.2).chat.completions.create(model=MODEL, messages=MESSAGES)

    await engine.aborted.acquire()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_task_aborts(client: openai.AsyncOpenAI, engine: FakeVllm, stream: bool) -> None:
    """A task that is cancelled while it waits for its answer closes the engine's connection."""
    engine.script(Reply(release=asyncio.Event()))
    asked = asyncio.create_task(_ask(client, stream=stream))
    await engine.arrived.acquire()
    asked.cancel()

    await engine.aborted.acquire()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def _ask(client: openai.AsyncOpenAI, *, stream: bool) -> None:
    await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=stream)


async def test_a_closed_stream_aborts(client: openai.AsyncOpenAI, engine: FakeVllm) -> None:
    """A stream that is closed in its middle closes the engine's connection."""
    engine.script(Reply(pauses_after=3, resume=asyncio.Event()))
    stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)
    await anext(stream)
    await stream.close()

    await engine.aborted.acquire()
