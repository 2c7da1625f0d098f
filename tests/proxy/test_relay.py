"""A request's life through a real proxy in front of a scripted engine, over real sockets."""

import asyncio
import json

import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import body, metric, open_stream, post, waiting
from tests.proxy.conftest import Proxied


async def test_the_bytes_of_a_request_and_of_its_answer_pass_unchanged(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """Odd spacing, unknown fields and an engine's own fields survive in both directions."""
    sent = b'{ "model":"fake-model",  "messages":[{"role":"user","content":"h\\u00e9"}], "made_up": {"x": [1.50]} }'
    answer = b'{"id":"x", "choices": [], "engine_says": 1.0, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}'
    engine.script(Reply(raw=[answer]))
    async with proxied(engine.url) as client:
        got = await client.post(
            "/v1/chat/completions", content=sent, headers={"content-type": "application/json"}
        )

        assert got.status_code == 200
        assert got.content == answer
        assert engine.requests[0].raw == sent
        assert await metric(client, 'muster_tokens_total{direction="input"}') == 3
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 4


async def test_a_stream_passes_event_by_event(engine: FakeVllm, proxied: Proxied) -> None:
    """The client has the first events while the engine still holds the rest, and the same bytes at the end."""
    resume = asyncio.Event()
    engine.script(Reply("one two three", pauses_after=2, resume=resume))
    async with proxied(engine.url) as client, open_stream(client) as answer:
        events = answer.aiter_lines()
        lines = [await anext(events) for _ in range(3)]
        assert '"one"' in lines[2]

        resume.set()
        rest = [line async for line in events if line]

        assert rest[-1] == "data: [DONE]"
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-muster-upstream"] == "upstream-1"


async def test_answers_say_who_answered_and_where_the_time_went(engine: FakeVllm, proxied: Proxied) -> None:
    """The headers of an answer carry the request's id, the upstream's name and the timing."""
    async with proxied(engine.url) as client:
        answer = await client.post("/v1/chat/completions", json=body(), headers={"x-request-id": "my-1"})

        assert answer.headers["x-request-id"] == "my-1"
        assert engine.requests[0].headers["x-request-id"] == "my-1"
        assert answer.headers["x-muster-upstream"] == "upstream-1"
        assert [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")] == [
            "queue",
            "ttft",
            "total",
        ]


async def test_a_request_id_that_is_no_plain_identifier_is_replaced(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """What a client calls its request cannot forge a log line or a header."""
    async with proxied(engine.url) as client:
        answer = await client.post(
            "/v1/chat/completions",
            json=body(),
            headers={"x-request-id": 'a"b' + "c" * 300, "x-session-id": "s 1"},
        )

        assert answer.headers["x-request-id"].startswith("req_")
        assert "x-session-id" not in engine.requests[0].headers


async def test_the_clients_key_stays_here_and_its_session_goes_on(engine: FakeVllm, proxied: Proxied) -> None:
    """An engine gets the session's name, and never the key that was meant for the proxy."""
    async with proxied(engine.url) as client:
        headers = {"authorization": "Bearer sk-secret", "x-session-id": "run-7"}
        await client.post("/v1/chat/completions", json=body(), headers=headers)

    assert "authorization" not in engine.requests[0].headers
    assert engine.requests[0].headers["x-session-id"] == "run-7"


async def test_no_more_than_the_limit_is_in_flight(engine: FakeVllm, proxied: Proxied) -> None:
    """Ten requests at a limit of three: the engine never has more than three, and all are answered."""
    releases = [asyncio.Event() for _ in range(10)]
    engine.script(*(Reply(release=release) for release in releases))
    async with proxied(engine.url, limit=3) as client, asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(post(client)) for _ in range(10)]
        for _ in range(3):
            await engine.arrived.acquire()
        for number, release in enumerate(releases):
            release.set()
            if number < 7:
                await engine.arrived.acquire()
    assert [answer.result().status_code for answer in answers] == [200] * 10
    assert engine.peak == 3


async def test_a_client_that_leaves_the_queue_is_never_sent(engine: FakeVllm, proxied: Proxied) -> None:
    """Of two waiting requests the first one's client hangs up: the engine gets the second alone."""
    release = asyncio.Event()
    engine.script(Reply(release=release))
    async with proxied(engine.url, limit=1) as client, asyncio.TaskGroup() as tasks:
        first = tasks.create_task(post(client))
        await engine.arrived.acquire()
        leaving = tasks.create_task(post(client, user="leaving"))
        staying = tasks.create_task(post(client, user="staying"))
        while await waiting(client) < 2:
            await asyncio.sleep(0)

        leaving.cancel()
        while await waiting(client) > 1:
            await asyncio.sleep(0)
        release.set()

    assert (first.result().status_code, staying.result().status_code) == (200, 200)
    assert [request.body.get("user") for request in engine.requests] == [None, "staying"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_aborts_its_generation(
    engine: FakeVllm, proxied: Proxied, *, stream: bool
) -> None:
    """Before the first byte the engine's connection is closed, streamed or not, and the slot comes back."""
    engine.script(Reply(release=asyncio.Event()))
    async with proxied(engine.url, limit=1) as client, asyncio.TaskGroup() as tasks:
        leaving = tasks.create_task(post(client, stream=stream))
        await engine.arrived.acquire()
        leaving.cancel()
        await engine.aborted.acquire()

        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0
        assert await metric(client, 'muster_requests_total{outcome="cancelled"}') == 1


async def test_a_client_that_hangs_up_mid_stream_aborts_its_generation(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """After the first events, likewise."""
    engine.script(Reply("one two three", pauses_after=2, resume=asyncio.Event()))
    async with proxied(engine.url, limit=1) as client:
        async with open_stream(client) as answer:
            await anext(answer.aiter_lines())
        await engine.aborted.acquire()

        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0


async def test_an_engine_lost_before_its_answer_is_a_503(engine: FakeVllm, proxied: Proxied) -> None:
    """Nothing was sent yet, so the client gets a clean error that says to try again.

    Twice: the first time the connection had been used before, and might have been closed for that.
    """
    engine.script(Reply(breaks_after=0), Reply(breaks_after=0))
    async with proxied(engine.url) as client:
        answer = await post(client)

        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "upstream_lost"
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("pieces", [1, 3])
async def test_a_broken_stream_ends_with_an_error_event(
    engine: FakeVllm, proxied: Proxied, pieces: int
) -> None:
    """After the first byte: an error event and [DONE], and no finish_reason that nobody gave."""
    engine.script(Reply("one two three", breaks_after=pieces))
    async with proxied(engine.url) as client, open_stream(client) as answer:
        data = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]

    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["error"]["code"] == "upstream_stream_error"
    assert len(data) == pieces + 2
    assert all(json.loads(each)["choices"][0]["finish_reason"] is None for each in data[:-2])


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param([b'data: {"choices": []}\n\n'], id="no DONE"),
        pytest.param([b'data: {"choices": []}\n\n', b'data: {"choi'], id="half an event"),
        pytest.param(
            [b'data: {"choices": []}\n\n', b'data: {"error": {"message": "at 0x7f"}}\n\n'],
            id="an error event",
        ),
    ],
)
async def test_a_stream_that_ends_wrongly_ends_with_an_error_event(
    engine: FakeVllm, proxied: Proxied, raw: list[bytes]
) -> None:
    """A clean end of the connection is not a clean end of the answer; an engine's words stay here."""
    engine.script(Reply(raw=raw, content_type="text/event-stream"))
    async with proxied(engine.url) as client:
        answer = await post(client, stream=True)

    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert data[0] == '{"choices": []}'
    assert json.loads(data[1])["error"]["code"] == "upstream_stream_error"
    assert data[2:] == ["[DONE]"]


async def test_events_pass_whole_however_the_engine_slices_them(engine: FakeVllm, proxied: Proxied) -> None:
    """One byte at a time, with a character of several bytes in it, the client gets the same bytes."""
    stream = 'data: {"choices":[{"delta":{"content":"né"}}]}\n\ndata: [DONE]\n\n'.encode()
    engine.script(
        Reply(raw=[stream[at : at + 1] for at in range(len(stream))], content_type="text/event-stream")
    )
    async with proxied(engine.url) as client:
        answer = await post(client, stream=True)

    assert answer.content == stream


async def test_an_answer_that_is_no_json_is_a_502(engine: FakeVllm, proxied: Proxied) -> None:
    """A broken 200 never reaches the client as a success."""
    engine.script(Reply(raw=[b'{"choices": [']))
    async with proxied(engine.url) as client:
        answer = await post(client)

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_protocol_error")


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        (
            Reply(
                status=400, error={"error": {"message": "too long", "param": "body.messages", "code": 400}}
            ),
            400,
            "request_rejected",
        ),
        (Reply(status=401, error={"error": "Unauthorized"}), 502, "upstream_auth_error"),
        (Reply(status=429, error={}), 429, "upstream_busy"),
        (Reply(status=503, error={}, headers={"retry-after": "7"}), 503, "upstream_busy"),
        (Reply(status=500, error=b"<html>at 0x7f00</html>"), 502, "upstream_error"),
        (Reply(status=422, error=b"not json"), 422, "request_rejected"),
    ],
)
async def test_an_engines_error_is_told_in_openais_shape(
    engine: FakeVllm, proxied: Proxied, reply: Reply, status: int, code: str
) -> None:
    """Its words pass where the request is at fault; what it says of itself stays here."""
    engine.script(reply)
    async with proxied(engine.url) as client:
        answer = await post(client)

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert "0x7f" not in answer.text
    if status == 400:
        assert (error["message"], error["param"]) == ("too long", "messages")
    if status in (429, 503):
        assert answer.headers["retry-after"] == reply.headers.get("retry-after", "1")


async def test_an_unknown_model_is_a_404(engine: FakeVllm, proxied: Proxied) -> None:
    """The error names the field and not what was in it."""
    async with proxied(engine.url) as client:
        answer = await post(client, model="http://evil")

    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "evil" not in answer.text
    assert not engine.requests


async def test_before_any_engine_answers_the_proxy_is_live_and_not_ready(proxied: Proxied) -> None:
    """A request then gets a 503 that says when to try again, not a 404 for a model that may come."""
    async with FakeVllm() as engine:
        engine.is_loading = True
        async with proxied(engine.url, is_ready=False) as client:
            live, ready, answer = (
                await client.get("/health/live"),
                await client.get("/health/ready"),
                await post(client),
            )
            assert (live.status_code, ready.status_code, answer.status_code) == (200, 503, 503)
            assert answer.headers["retry-after"] == "2"

            engine.is_loading = False
            while not (await client.get("/health/ready")).is_success:
                await asyncio.sleep(0)
            assert (await post(client)).status_code == 200


async def test_a_lost_engine_is_a_503_until_it_is_back(proxied: Proxied) -> None:
    """Requests meanwhile get 503 with retry-after; once it answers its probes again they are served."""
    async with FakeVllm() as first:
        port = first.port
        proxy = proxied(first.url)
        client = await proxy.__aenter__()
        assert (await post(client)).status_code == 200
    try:
        lost = await post(client)
        assert (lost.status_code, lost.headers["retry-after"]) == (503, "2")
        assert (await client.get("/health/ready")).status_code == 503
        async with FakeVllm(port=port):
            while not (await client.get("/health/ready")).is_success:
                await asyncio.sleep(0)
            assert (await post(client)).status_code == 200
    finally:
        await proxy.__aexit__(None, None, None)


async def test_two_engines_of_one_model_share_the_work(proxied: Proxied) -> None:
    """With a limit of one each, two requests at once go to one each."""
    async with FakeVllm() as one, FakeVllm() as two:
        release = asyncio.Event()
        for engine in (one, two):
            engine.script(Reply(release=release))
        async with proxied(one.url, two.url, limit=1) as client, asyncio.TaskGroup() as tasks:
            answers = [tasks.create_task(post(client)) for _ in range(2)]
            await one.arrived.acquire()
            await two.arrived.acquire()
            release.set()
        assert {answer.result().headers["x-muster-upstream"] for answer in answers} == {
            "upstream-1",
            "upstream-2",
        }


async def test_models_of_all_engines_are_listed_once(proxied: Proxied) -> None:
    """Two replicas of one model and one of another make two models."""
    async with (
        FakeVllm("a") as one,
        FakeVllm("a") as two,
        FakeVllm("b") as three,
        proxied(one.url, two.url, three.url, is_ready=False) as client,
    ):
        while len((await client.get("/v1/models")).json()["data"]) < 2:
            await asyncio.sleep(0)
        listed = (await client.get("/v1/models")).json()

    assert listed["object"] == "list"
    assert sorted(entry["id"] for entry in listed["data"]) == ["a", "b"]


async def test_a_full_queue_is_a_429_that_says_when_to_try_again(engine: FakeVllm, proxied: Proxied) -> None:
    """With room for one in flight and one waiting, the third is turned away at once."""
    release = asyncio.Event()
    engine.script(Reply(release=release))
    async with proxied(engine.url, limit=1, max_waiting=1) as client, asyncio.TaskGroup() as tasks:
        admitted = [tasks.create_task(post(client)) for _ in range(2)]
        await engine.arrived.acquire()
        while await waiting(client) < 1:
            await asyncio.sleep(0)
        refused = await post(client)
        release.set()

    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    assert [answer.result().status_code for answer in admitted] == [200, 200]


async def test_an_image_for_a_model_that_reads_text_alone_is_a_400(proxied: Proxied) -> None:
    """Engines answer it with a 500; where the model's entry tells what it reads, the proxy asks first."""
    reads_text = {"architecture": {"input_modalities": ["text"]}}
    async with FakeVllm(more=reads_text) as engine, proxied(engine.url) as client:
        image = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
        answer = await post(client, messages=[{"role": "user", "content": [image]}])

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages[0].content")
    assert not engine.requests
