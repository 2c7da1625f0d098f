"""Chat completions that are wrong: each is the caller's to mend."""

import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import httpx

from muster_agent.testing import Say, scripted_agent

Ask = Callable[..., Coroutine[Any, Any, httpx.Response]]

USER = {"role": "user", "content": "?"}


def _body(**fields: Any) -> bytes:
    return json.dumps({"model": "muster-agent", "messages": [USER], **fields}).encode()


def _message(**fields: Any) -> bytes:
    return _body(messages=[{**USER, **fields}])


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"not": schema}
    return schema


# body, status, param
WRONG: dict[str, tuple[bytes, int, str | None]] = {
    "empty": (b"", 400, None),
    "null": (b"null", 400, None),
    "list": (b"[]", 400, None),
    "string": (b'"x"', 400, None),
    "number": (b"123", 400, None),
    "truncated": (b'{"model": "muster-agent"', 400, None),
    "trailing": (_body() + b"x", 400, None),
    "not utf-8": (b'{"model": "\xff"}', 400, None),
    "nan": (_body(temperature=float("nan")), 400, None),
    "infinity": (_body(temperature=float("inf")), 400, None),
    "overflow": (_body().replace(b"{", b'{"temperature": 1e999, ', 1), 400, None),
    "lone surrogate": (_message(content="\ud800"), 400, None),
    "deep": (_body(x=json.loads("[" * 900 + "]" * 900)).replace(b"[[", b"[" * 100_000, 1), 400, None),
    "no model": (b'{"messages": [{"role": "user", "content": "?"}]}', 400, "model"),
    "model type": (_body(model=1), 400, "model"),
    "other model": (_body(model="gpt-x"), 404, "model"),
    "no messages": (b'{"model": "muster-agent"}', 400, "messages"),
    "empty messages": (_body(messages=[]), 400, "messages"),
    "messages type": (_body(messages="?"), 400, "messages"),
    "message type": (_body(messages=["?"]), 400, "messages[0]"),
    "unknown role": (_message(role="robot"), 400, "messages[0].role"),
    "tool role": (
        _body(messages=[{"role": "tool", "content": "1", "tool_call_id": "c"}]),
        400,
        "messages[0].role",
    ),
    "no content": (_body(messages=[{"role": "user"}]), 400, "messages[0].content"),
    "content null": (_message(content=None), 400, "messages[0].content"),
    "content number": (_message(content=1), 400, "messages[0].content"),
    "content empty list": (_message(content=[]), 400, "messages[0].content"),
    "content nested list": (_message(content=[["x"]]), 400, "messages[0].content"),
    "image part": (
        _message(content=[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        400,
        "messages[0].content",
    ),
    "part text type": (_message(content=[{"type": "text", "text": 1}]), 400, "messages[0].content"),
    "no user": (_body(messages=[{"role": "system", "content": "x"}]), 400, "messages"),
    "assistant last": (_body(messages=[USER, {"role": "assistant", "content": "x"}]), 400, "messages"),
    "client's tool calls": (
        _body(messages=[{"role": "assistant", "content": "x", "tool_calls": [{"id": "c"}]}, USER]),
        400,
        "messages[0].tool_calls",
    ),
    "tools": (_body(tools=[{"type": "function", "function": {"name": "f"}}]), 400, "tools"),
    "tools type": (_body(tools={}), 400, "tools"),
    "functions": (_body(functions=[{"name": "f"}]), 400, "functions"),
    "tool choice": (_body(tool_choice="auto"), 400, "tool_choice"),
    "function call": (_body(function_call={"name": "f"}), 400, "function_call"),
    "two answers": (_body(n=2), 400, "n"),
    "no answers": (_body(n=0), 400, "n"),
    "stream type": (_body(stream="yes"), 400, "stream"),
    "stream options": (_body(stream=True, stream_options=[]), 400, "stream_options"),
    "hot": (_body(temperature=2.1), 400, "temperature"),
    "temperature type": (_body(temperature="1"), 400, "temperature"),
    "temperature bool": (_body(temperature=True), 400, "temperature"),
    "top p": (_body(top_p=0), 400, "top_p"),
    "max tokens": (_body(max_tokens=0), 400, "max_tokens"),
    "max completion tokens": (_body(max_completion_tokens=10**9), 400, "max_completion_tokens"),
    "max tokens fraction": (_body(max_tokens=1.5), 400, "max_tokens"),
    "seed": (_body(seed=2**70), 400, "seed"),
    "form": (_body(response_format={"type": "poem"}), 400, "response_format.type"),
    "form without schema": (_body(response_format={"type": "json_schema"}), 400, "response_format"),
    "deep form": (
        _body(response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": _nested(250)}}),
        400,
        None,
    ),
    "metadata type": (_body(metadata="t"), 400, "metadata"),
    "cache key type": (_body(prompt_cache_key=1), 400, "prompt_cache_key"),
    "many stops": (_body(stop=["x"] * 10_000), 400, None),
}


async def test_a_wrong_request_is_the_callers_to_mend(http: httpx.AsyncClient) -> None:
    """Every wrong body gets its status and the name of the field, in OpenAI's shape, and no model call."""
    async with scripted_agent() as agent:
        responses = {
            case: await http.post(f"{agent.url}/v1/chat/completions", content=body)
            for case, (body, _, _) in WRONG.items()
        }

    expected = {case: (status, param) for case, (_, status, param) in WRONG.items() if param is not None}
    got = {case: response.json()["error"] for case, response in responses.items()}
    assert {case: (responses[case].status_code, got[case]["param"]) for case in expected} == expected
    assert {responses[case].status_code for case in WRONG} == {400, 404}
    assert {error["type"] for error in got.values()} == {"invalid_request_error"}
    assert agent.model.calls == []


async def test_a_complaint_does_not_repeat_the_request(http: httpx.AsyncClient) -> None:
    """Error messages quote nothing of a message's content."""
    bodies = [_message(content=["CANARY"]), _message(role="CANARY"), b'{"model": "CANARY']
    async with scripted_agent() as agent:
        answers = [await http.post(f"{agent.url}/v1/chat/completions", content=body) for body in bodies]

    assert [("CANARY" in answer.text, answer.status_code) for answer in answers] == [(False, 400)] * 3


async def test_null_fields_are_absent_fields(ask: Ask) -> None:
    """Clients that send every field, empty, are served."""
    names = ["stream", "stream_options", "n", "temperature", "top_p", "max_tokens", "seed", "stop", "tools"]
    async with scripted_agent(Say("fine")) as agent:
        response = await ask(agent, "?", **dict.fromkeys(names), tool_choice="none", functions=[])

    assert response.status_code == 200


async def test_a_large_body_is_refused(http: httpx.AsyncClient) -> None:
    """More than 10 MB is 413, whether the length was declared or not."""
    large = b" " * 10_000_001

    async def undeclared() -> AsyncGenerator[bytes]:
        yield large

    async with scripted_agent() as agent:
        url = f"{agent.url}/v1/chat/completions"
        responses = [await http.post(url, content=large), await http.post(url, content=undeclared())]
        packed = await http.post(url, content=b"x", headers={"content-encoding": "gzip"})

    assert [(response.status_code, response.json()["error"]["type"]) for response in responses] == [
        (413, "invalid_request_error")
    ] * 2
    assert packed.status_code == 415
