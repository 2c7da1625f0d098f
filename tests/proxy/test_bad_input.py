"""Whatever a client sends: a 4xx in OpenAI's shape that says what is wrong, and nothing reaches an engine."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from muster_proxy.testing import FakeVllm
from tests.proxy.asking import post
from tests.proxy.conftest import Proxied

MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "CANARY"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

RAW = {
    "empty": b"",
    "null": b"null",
    "array": b"[]",
    "string": b'"x"',
    "number": b"123",
    "truncated": b'{"model": "fake-model", "messages": [{"role": "user", "content": "CANARY',
    "trailing": b'{"model": "fake-model"} CANARY',
    "single quotes": b"{'model': 'CANARY'}",
    "NaN": b'{"model": "fake-model", "messages": [], "temperature": NaN}',
    "Infinity": b'{"model": "fake-model", "x": Infinity}',
    "too large a number": b'{"model": "fake-model", "x": 1e999}',
    "lone surrogate": b'{"model": "\\ud800", "messages": []}',
    "lone surrogate in an unknown field": b'{"model": "fake-model", "x": "\\ud800"}',
    "not UTF-8": b'{"model": "\xff"}',
    "deep": b'{"model": "fake-model", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "control character": b'{"model": "a\x01b"}',
}

FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": None}, "model"),
    "model a number": ({"model": 3}, "model"),
    "model empty": ({"model": ""}, "model"),
    "messages empty": ({"messages": []}, "messages"),
    "messages null": ({"messages": None}, "messages"),
    "messages a string": ({"messages": "CANARY"}, "messages"),
    "a message a string": ({"messages": ["CANARY"]}, "messages[0]"),
    "no role": ({"messages": [{"content": "CANARY"}]}, "messages[0].role"),
    "unknown role": ({"messages": [{"role": "CANARY", "content": "x"}]}, "messages[0].role"),
    "content a number": ({"messages": [{"role": "user", "content": 4}]}, "messages[0].content"),
    "content of lists": ({"messages": [{"role": "user", "content": [["CANARY"]]}]}, "messages[0].content[0]"),
    "stream a string": ({"stream": "yes"}, "stream"),
    "max_tokens a string": ({"max_tokens": "CANARY"}, "max_tokens"),
    "max_tokens zero": ({"max_tokens": 0}, "max_tokens"),
    "max_tokens negative": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens huge": ({"max_tokens": 10**30}, "max_tokens"),
    "max_tokens broken": ({"max_tokens": 1.5}, "max_tokens"),
    "n zero": ({"n": 0}, "n"),
    "n huge": ({"n": 1_000_000}, "n"),
    "temperature negative": ({"temperature": -1}, "temperature"),
    "temperature a list": ({"temperature": [1]}, "temperature"),
    "top_p": ({"top_p": 2}, "top_p"),
    "top_logprobs": ({"top_logprobs": 1000}, "top_logprobs"),
    "stop of numbers": ({"stop": [1]}, "stop[0]"),
    "logit_bias": ({"logit_bias": {"1": "CANARY"}}, "logit_bias[...]"),
    "response_format a string": ({"response_format": "json"}, "response_format"),
    "response_format without a type": ({"response_format": {}}, "response_format.type"),
    "tools an object": ({"tools": {}}, "tools"),
    "a tool without a function": ({"tools": [{"type": "function"}]}, "tools[0].function"),
    "a tool of another type": ({"tools": [{"type": "CANARY"}]}, "tools[0].type"),
    "a tool's name": (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
    ),
    "two tools of one name": ({"tools": [TOOL, TOOL]}, "tools"),
    "tool_choice unknown": ({"tools": [TOOL], "tool_choice": "CANARY"}, "tool_choice"),
    "tool_choice without tools": ({"tool_choice": "required"}, "tool_choice"),
    "tool_choice of another tool": (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "CANARY"}}},
        "tool_choice",
    ),
}


@pytest.fixture(scope="module")
async def proxy(proxied: Proxied) -> AsyncIterator[httpx.AsyncClient]:
    """A proxy whose engine must hear nothing of these tests."""
    async with FakeVllm() as engine:
        async with proxied(engine.url, tool_mode="emulated", max_body_bytes=1_000_000) as client:
            yield client
        assert not engine.requests


def check(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which must have OpenAI's shape and repeat nothing of the request."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert "CANARY" not in answer.text
    return error


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
async def test_what_is_not_a_json_object_is_a_400(proxy: httpx.AsyncClient, raw: bytes) -> None:
    """Strict JSON, or an error that says where it stops being that."""
    check(await proxy.post("/v1/chat/completions", content=raw))


@pytest.mark.parametrize(("fields", "param"), FIELDS.values(), ids=FIELDS.keys())
async def test_a_wrong_value_is_a_400_that_names_its_field(
    proxy: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    """`param` is the path of the field at fault."""
    body = {"model": "fake-model", "messages": MESSAGES, **fields}
    if body["model"] is None:
        del body["model"]

    error = check(await proxy.post("/v1/chat/completions", json=body))

    assert error["param"] == param


async def test_a_text_may_have_a_nul(proxied: Proxied, engine: FakeVllm) -> None:
    """It is a character as any other: it reaches the engine."""
    message = {"role": "user", "content": "a\0b"}
    async with proxied(engine.url) as client:
        assert (await post(client, messages=[message])).status_code == 200

    assert engine.requests[-1].body["messages"] == [message]


async def test_a_body_over_the_limit_is_a_413(proxy: httpx.AsyncClient) -> None:
    """Declared or not, and the message says what the limit is."""
    large = b" " * 1_000_001

    async def chunks() -> AsyncIterator[bytes]:
        yield large

    for content in (large, chunks()):
        error = check(await proxy.post("/v1/chat/completions", content=content), 413)
        assert "1000000" in error["message"]


async def test_an_encoded_body_is_a_415(proxy: httpx.AsyncClient) -> None:
    """Nothing is inflated here, so nothing can be a bomb."""
    check(await proxy.post("/v1/chat/completions", content=b"x", headers={"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/chat/completions/", "/V1/models", "/v1/../metrics2", "//v1/models", "/v1/unknown"],
)
async def test_an_unknown_path_is_a_404(proxy: httpx.AsyncClient, path: str) -> None:
    """In the same shape, with no redirect."""
    assert check(await proxy.post(path, json={}), 404)["code"] == "unknown_url"


async def test_an_unknown_method_is_a_405(proxy: httpx.AsyncClient) -> None:
    """With the methods that the path takes."""
    answer = await proxy.request("DELETE", "/v1/chat/completions")

    assert check(answer, 405)["code"] == "method_not_allowed"
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("depth", [300, 900])
@pytest.mark.parametrize("place", ["enum", "properties", "arguments"])
async def test_a_value_nested_too_deeply_to_write_again_is_a_400(
    proxy: httpx.AsyncClient, place: str, depth: int
) -> None:
    """Emulation writes the request anew, and its writer stops before its reader does."""
    deep = '{"a":' * depth + "1" + "}" * depth
    parameters = {"enum": f'{{"enum": [{deep}]}}', "properties": f'{{"properties": {{"q": {deep}}}}}'}.get(
        place, "{}"
    )
    call = json.dumps(
        {"id": "c", "function": {"name": "f", "arguments": deep if place == "arguments" else "{}"}}
    )
    body = (
        f'{{"model": "fake-model", "messages": [{{"role": "assistant", "tool_calls": [{call}]}}],'
        f'"tools": [{{"type": "function", "function": {{"name": "f", "parameters": {parameters}}}}}]}}'
    )

    check(await proxy.post("/v1/chat/completions", content=body.encode()))
