"""Every relayed route: what reaches the engine, what comes back, which engine is asked."""

import json
from typing import Any

import pytest

from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.asking import MESSAGES, body, metric, post
from tests.proxy.conftest import Proxied

USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
OTHER_USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}

ROUTES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/v1/chat/completions": ({"messages": MESSAGES}, {"choices": [], "usage": USAGE}),
    "/v1/completions": ({"prompt": "Hello"}, {"choices": [], "usage": USAGE}),
    "/v1/embeddings": ({"input": ["Hello", "there"]}, {"object": "list", "data": [], "usage": USAGE}),
    "/v1/responses": ({"input": "Hello"}, {"status": "completed", "output": [], "usage": OTHER_USAGE}),
    "/v1/messages": (
        {"messages": MESSAGES, "max_tokens": 9},
        {"type": "message", "content": [], "usage": OTHER_USAGE},
    ),
    "/tokenize": ({"prompt": "Hello"}, {"count": 1, "max_model_len": 9, "tokens": [5]}),
    "/detokenize": ({"tokens": [5]}, {"prompt": "Hello"}),
    "/v1/rerank": ({"query": "a", "documents": ["b"]}, {"results": [], "usage": {"total_tokens": 7}}),
    "/v1/score": ({"text_1": "a", "text_2": "b"}, {"data": [], "usage": USAGE}),
}

STREAMS: dict[str, tuple[dict[str, Any], list[bytes]]] = {
    "/v1/chat/completions": (
        {"messages": MESSAGES},
        [
            b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
            b"data: [DONE]\n\n",
        ],
    ),
    "/v1/completions": (
        {"prompt": "Hello"},
        [
            b'data: {"choices":[{"index":0,"text":"Hi"}]}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\n',
            b"data: [DONE]\n\n",
        ],
    ),
    "/v1/responses": (
        {"input": "Hello"},
        [
            b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hi"}\n\n',
            (
                b'event: response.completed\ndata: {"type":"response.completed","response":'
                b'{"status":"completed","usage":{"input_tokens":3,"output_tokens":4}}}\n\n'
            ),
        ],
    ),
    "/v1/messages": (
        {"messages": MESSAGES, "max_tokens": 9},
        [
            b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"Hi"}}\n\n',
            (
                b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
                b'"usage":{"input_tokens":3,"output_tokens":4}}\n\n'
            ),
            b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
        ],
    ),
}


@pytest.mark.parametrize("path", ROUTES)
async def test_bodies_pass_unchanged_on_every_route(engine: FakeVllm, proxied: Proxied, path: str) -> None:
    """Unknown fields and odd spacing too, in both directions; and the engine's usage is accounted for."""
    fields, answer = ROUTES[path]
    sent = b' { "model" : "fake-model", "made_up": {"x": [1.50]},' + json.dumps(fields).encode()[1:]
    raw = json.dumps({**answer, "engine_says": 1.0}, indent=1).encode()
    engine.script(Reply(raw=[raw]))
    async with proxied(engine.url) as client:
        got = await client.post(path, content=sent)

        assert (got.status_code, got.content) == (200, raw)
        assert (engine.requests[0].path, engine.requests[0].raw) == (path, sent)
        if answer.get("usage") in (USAGE, OTHER_USAGE):
            assert await metric(client, 'muster_tokens_total{direction="input"}') == 3
            assert await metric(client, 'muster_tokens_total{direction="output"}') == 4


@pytest.mark.parametrize("path", STREAMS)
async def test_streams_pass_event_by_event_on_every_route_that_has_them(
    engine: FakeVllm, proxied: Proxied, path: str
) -> None:
    """To their own end; with the usage where the client asked for it or the API always tells it."""
    fields, events = STREAMS[path]
    engine.script(Reply(raw=events, content_type="text/event-stream"))
    asked = {"stream_options": {"include_usage": True}} if "completions" in path else {}
    async with proxied(engine.url) as client:
        got = await client.post(path, json={"model": "fake-model", "stream": True, **fields, **asked})

        assert got.content == b"".join(events)
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 4


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_usage_is_asked_for_and_taken_out_again(engine: FakeVllm, proxied: Proxied, path: str) -> None:
    """Who did not ask gets no event without choices, as OpenAI's clients break on one that they did not ask for."""
    fields, events = STREAMS[path]
    engine.script(Reply(raw=events, content_type="text/event-stream"))
    async with proxied(engine.url) as client:
        got = await client.post(path, json={"model": "fake-model", "stream": True, **fields})

        assert got.content == events[0] + events[2]
        assert engine.requests[0].body["stream_options"] == {"include_usage": True}
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 4


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_without_its_end_ends_with_an_error_of_its_api(
    engine: FakeVllm, proxied: Proxied, path: str
) -> None:
    """A client of each API is told in the words of that API."""
    fields, events = STREAMS[path]
    engine.script(Reply(raw=events[:1], content_type="text/event-stream"))
    async with proxied(engine.url) as client:
        got = await client.post(path, json={"model": "fake-model", "stream": True, **fields})

    assert got.content.startswith(events[0])
    told = got.text[len(events[0]) :]
    assert "upstream_stream_error" in told
    assert ("event: error" in told) is ("completions" not in path)
    assert told.endswith("data: [DONE]\n\n") is (path != "/v1/messages")


async def test_anthropics_clients_get_anthropics_errors(engine: FakeVllm, proxied: Proxied) -> None:
    """Its envelope, with OpenAI's fields inside."""
    async with proxied(engine.url) as client:
        got = await client.post(
            "/v1/messages", json={"model": "other", "messages": MESSAGES, "max_tokens": 9}
        )

    assert got.status_code == 404
    assert got.json()["type"] == "error"
    assert got.json()["error"]["type"] == "not_found_error"
    assert got.json()["error"]["code"] == "model_not_found"
    assert got.headers["x-request-id"]


async def test_models_of_all_pools_are_listed_and_asked_where_they_are(proxied: Proxied) -> None:
    """Two engines with a model each: one list, and each request goes to its own."""
    async with FakeVllm("one") as one, FakeVllm("two") as two, proxied(one.url, two.url) as client:
        while len((await client.get("/v1/models")).json()["data"]) < 2:
            pass
        listed = (await client.get("/v1/models")).json()
        for model in ("one", "two", "two"):
            assert (await post(client, model=model)).status_code == 200

        assert sorted(each["id"] for each in listed["data"]) == ["one", "two"]
        assert all(each["object"] == "model" for each in listed["data"])
        assert [len(each.requests) for each in (one, two)] == [1, 2]


async def test_an_alias_is_another_name_of_a_model(engine: FakeVllm, proxied: Proxied) -> None:
    """It is listed, and the engine is asked for the model that it stands for."""
    async with proxied(engine.url, aliases={"gpt-4o-mini": "fake-model", "no": "such-model"}) as client:
        listed = [each["id"] for each in (await client.get("/v1/models")).json()["data"]]
        answer = await post(client, model="gpt-4o-mini", made_up=[1])
        unknown = await post(client, model="no")

    assert listed == ["fake-model", "gpt-4o-mini"]
    assert answer.status_code == 200
    assert engine.requests[0].body == body(made_up=[1])
    assert unknown.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize("model", ["../../x", "http://evil", "//evil", "fake-model/../x", "fake-model\u0000"])
async def test_a_models_name_leads_nowhere_else(engine: FakeVllm, proxied: Proxied, model: str) -> None:
    """It is looked up, and never becomes a part of an address."""
    async with proxied(engine.url) as client:
        assert (await post(client, model=model)).status_code == 404
    assert not engine.requests


async def test_the_model_that_is_checked_is_the_model_that_is_asked_for(
    engine: FakeVllm, proxied: Proxied
) -> None:
    """Of two fields of one name the last counts here, and the engine is sent no other."""
    sent = b'{"model": "other", "messages": [{"role": "user", "content": "x"}], "mod\\u0065l": "fake-model"}'
    async with proxied(engine.url) as client:
        assert (await client.post("/v1/chat/completions", content=sent)).status_code == 200
    assert b"other" not in engine.requests[0].raw
    assert engine.requests[0].body["model"] == "fake-model"


@pytest.mark.parametrize("path", [path for path in ROUTES if path != "/v1/chat/completions"])
async def test_malformed_requests_are_refused_on_every_route(
    engine: FakeVllm, proxied: Proxied, path: str
) -> None:
    """Whatever the API, a client's mistake is a 400 that names the field, and no engine sees it."""
    fields, _ = ROUTES[path]
    async with proxied(engine.url) as client:
        answers = [
            await client.post(path, content=b'{"model": "fake-model", "x": NaN}'),
            await client.post(path, json={**fields, "model": 3}),
            await client.post(path, json={"model": "fake-model"}),
        ]

    assert [each.status_code for each in answers] == [400, 400, 400]
    assert [each.json()["error"]["code"] for each in answers] == [
        "invalid_json",
        "invalid_value",
        "invalid_value",
    ]
    assert answers[1].json()["error"]["param"] == "model"
    assert not engine.requests


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("mode", ["emulated", "none"])
async def test_tools_that_would_be_ignored_are_refused(
    engine: FakeVllm, proxied: Proxied, path: str, mode: str
) -> None:
    """Emulation is there for chat completions; a model that never calls would look as if it never wanted to."""
    tool = {"name": "f", "type": "function", "parameters": {}, "input_schema": {"type": "object"}}
    fields, _ = ROUTES[path]
    async with proxied(engine.url, tool_mode=mode) as client:
        answer = await client.post(path, json={"model": "fake-model", **fields, "tools": [tool]})

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")
    assert not engine.requests
