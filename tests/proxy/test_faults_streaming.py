"""What a stream's client sees of an engine that slices, mumbles, breaks off or falls silent."""

import asyncio
import json
import re
from collections.abc import Sequence

import httpx
import pytest

from muster_proxy import sse
from muster_proxy.testing import End, FakeVllm, Play, RawEngine, Reply
from muster_proxy.testing.raw_faults import (
    BAD_CHUNK,
    ENDLESS_EVENT,
    ERROR_EVENT,
    HUGE_EVENT,
    JSON_FOR_STREAM,
    NO_DONE,
    NOT_JSON_EVENT,
    dies_after,
    drips,
)
from muster_proxy.testing.raw_http import LAST_CHUNK, STREAM_HEAD, chunk, event, stream
from tests.proxy.asking import metric, open_stream, post
from tests.proxy.conftest import Proxied
from tests.proxy.test_scheduling import busy

DONE = b"data: [DONE]\n\n"
# Characters of two, three and four bytes.
EVENTS = b'data: {"a":"\xc3\xa9\xe2\x82\xac"}\n\ndata: {"b":"\xf0\x9f\x8e\xb5"}\n\n' + DONE


def told(content: bytes) -> list[str]:
    """The data of a stream's events."""
    return [data.decode() for data in sse.data_of(content)]


def code_of(data: str) -> str | None:
    """The code of an error event; None for any other."""
    parsed = None if data == "[DONE]" else json.loads(data)
    return parsed["error"]["code"] if parsed and "error" in parsed else None


async def streamed(client: httpx.AsyncClient) -> bytes:
    """The bytes of a stream that begins well."""
    answer = await post(client, stream=True)
    assert answer.status_code == 200
    return answer.content


def in_two(content: bytes) -> list[Play]:
    """A stream split at each of its bytes."""
    return [
        (STREAM_HEAD, chunk(content[:at]), chunk(content[at:]) + LAST_CHUNK) for at in range(1, len(content))
    ]


async def test_a_split_at_any_byte_changes_nothing(proxied: Proxied) -> None:
    """The client gets the same bytes wherever the engine's chunks end, in the middle of a character too."""
    plays = in_two(EVENTS)
    async with RawEngine(plays) as engine, proxied(engine.url) as client:
        got = [await streamed(client) for _ in plays]

    assert got == [EVENTS] * len(plays)


async def test_one_byte_at_a_time_is_the_same_stream(proxied: Proxied) -> None:
    """Heads, chunk sizes and events in segments of one byte."""
    async with (
        RawEngine([drips(0.0), stream("one", " two", " three")]) as engine,
        proxied(engine.url) as client,
    ):
        assert await streamed(client) == await streamed(client)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CR LF", "CR"])
async def test_every_line_end_is_one(proxied: Proxied, end: bytes) -> None:
    """With each of the three, split anywhere, the events are the same."""
    content = EVENTS.replace(b"\n", end)
    plays = in_two(content)
    async with RawEngine(plays) as engine, proxied(engine.url) as client:
        got = [told(await streamed(client)) for _ in plays]

    assert got == [told(EVENTS)] * len(plays)


async def test_line_ends_may_be_mixed(proxied: Proxied) -> None:
    """Each event may end in its own way."""
    content = b'data: {"a":1}\r\n\ndata: {"b":2}\n\r\ndata: {"c":3}\r\r' + DONE
    plays = in_two(content)
    async with RawEngine(plays) as engine, proxied(engine.url) as client:
        got = [told(await streamed(client)) for _ in plays]

    assert got == [['{"a":1}', '{"b":2}', '{"c":3}', "[DONE]"]] * len(plays)


async def kept_alive(client: httpx.AsyncClient, resume: asyncio.Event) -> str:
    """A stream read to its end; its engine goes on once two comments have come."""
    lines: list[str] = []
    async with open_stream(client) as answer:
        async for line in answer.aiter_lines():
            lines.append(line)
            if lines.count(": keep-alive") == 2:
                resume.set()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("before", [0, 1], ids=["before the first token", "in the middle"])
async def test_silence_is_filled_with_comments(proxied: Proxied, before: int) -> None:
    """They come between events, take nothing from them, and no event has an id, at which openai-python would fail."""
    resume = asyncio.Event()
    head, *events = stream("one", "two")
    play = (head, *events[:before], resume, *events[before:])
    async with (
        RawEngine([stream("one", "two"), play]) as engine,
        proxied(engine.url, keep_alive_s=0.02) as client,
    ):
        plain = await streamed(client)
        kept = await kept_alive(client, resume)

    assert told(kept.encode()) == told(plain)
    assert kept.count(": keep-alive\n") >= 2
    assert not re.search("^id:", kept, re.MULTILINE)


async def test_a_stream_that_waits_for_its_turn_is_kept_alive(engine: FakeVllm, proxied: Proxied) -> None:
    """Its head and comments come while another has the slot, and then all of its answer."""
    async with proxied(engine.url, limit=1, keep_alive_s=0.02) as client, busy(engine, client) as release:
        lines: list[str] = []
        async with open_stream(client) as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 2 and not release.is_set():
                    assert len(engine.requests) == 1
                    release.set()

    assert [each for each in lines if each][-1] == "data: [DONE]"
    assert sum('"finish_reason":"stop"' in each.replace(" ", "") for each in lines) == 1


GOOD = event("one")


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(b"data: {out of order\n\n", id="no JSON"),
        pytest.param(b'data: {"a":1}{"b":2}\n\n', id="two objects in a line"),
        pytest.param(b'data: {"a":1}\ndata: {"b":2}\n\n', id="no empty line between two"),
        pytest.param(b"data: [1]\n\n", id="no object"),
        pytest.param(b'data: {"a":NaN}\n\n', id="NaN"),
    ],
)
@pytest.mark.parametrize("is_one_segment", [False, True])
async def test_an_event_that_is_none_ends_the_stream(
    proxied: Proxied, bad: bytes, *, is_one_segment: bool
) -> None:
    """The client has what came before it and an error, and nothing of what came after it."""
    go_on = asyncio.Event()
    rest = [chunk(bad), chunk(event("two", "stop")), chunk(DONE) + LAST_CHUNK]
    play: Play = [STREAM_HEAD + chunk(GOOD), go_on, *([b"".join(rest)] if is_one_segment else rest)]
    content = b""
    async with RawEngine([play]) as engine, proxied(engine.url) as client:
        async with open_stream(client) as answer:
            async for piece in answer.aiter_bytes():
                content += piece
                go_on.set()
        assert await metric(client, 'muster_requests_total{outcome="failed"}') == 1

    assert content.startswith(GOOD)
    assert [code_of(data) for data in told(content)] == [None, "upstream_protocol_error", None]
    assert told(content)[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("play", "code"),
    [
        pytest.param((HUGE_EVENT[0], chunk(GOOD), *HUGE_EVENT[1:]), "upstream_protocol_error", id="50 MB"),
        pytest.param(
            (ENDLESS_EVENT[0], chunk(GOOD), *ENDLESS_EVENT[1:]), "upstream_protocol_error", id="no end"
        ),
        pytest.param(NOT_JSON_EVENT, "upstream_protocol_error", id="no JSON"),
        pytest.param(BAD_CHUNK, "upstream_protocol_error", id="a chunk without a size"),
        pytest.param(ERROR_EVENT, "upstream_stream_error", id="the engine fails"),
        pytest.param(NO_DONE, "upstream_stream_error", id="no DONE"),
        pytest.param(dies_after(1), "upstream_stream_error", id="a reset"),
        pytest.param(dies_after(1, End.CLOSE), "upstream_stream_error", id="a close"),
        pytest.param(dies_after(1, End.HANG), "upstream_timeout", id="silence"),
    ],
)
async def test_a_stream_that_breaks_ends_with_one_error(proxied: Proxied, play: Play, code: str) -> None:
    """After its first event: an error in OpenAI's shape, [DONE], no reason that nobody gave, none of its words."""
    async with RawEngine([play]) as engine, proxied(engine.url, idle_timeout_s=0.2, limit=1) as client:
        content = await streamed(client)
        assert await metric(client, "muster_in_flight") == 0
        assert (await post(client)).status_code == 200

    data = told(content)
    assert [code_of(each) for each in data] == [None, code, None]
    assert set(json.loads(data[1])["error"]) == {"message", "type", "param", "code"}
    assert json.loads(data[0])["choices"][0]["finish_reason"] is None
    assert b"out of order" not in content
    assert engine.written_bytes < 50 * 1024 * 1024


@pytest.mark.parametrize("count", [2, 40])
@pytest.mark.parametrize("end", [End.RESET, End.CLOSE])
async def test_what_came_before_a_loss_is_passed_on(proxied: Proxied, count: int, end: End) -> None:
    """All that has come of it, and then the error; a reset may overtake events that nobody has read yet."""
    async with RawEngine([dies_after(count, end)]) as engine, proxied(engine.url) as client:
        data = told(await streamed(client))

    said = [json.loads(each)["choices"][0]["delta"]["content"] for each in data[:-2]]
    assert said == [f"{number} " for number in range(count)][: len(said)]
    assert len(said) == count or end is End.RESET
    assert code_of(data[-2]) == "upstream_stream_error"


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        pytest.param(dies_after(0), 502, "upstream_stream_error", id="a reset"),
        pytest.param(dies_after(0, End.CLOSE), 502, "upstream_stream_error", id="a close"),
        pytest.param((STREAM_HEAD, LAST_CHUNK), 502, "upstream_stream_error", id="an end"),
        pytest.param((STREAM_HEAD, *ERROR_EVENT[2:]), 502, "upstream_stream_error", id="its own error"),
        pytest.param((STREAM_HEAD, *NOT_JSON_EVENT[2:]), 502, "upstream_protocol_error", id="no JSON"),
        pytest.param(HUGE_EVENT, 502, "upstream_protocol_error", id="50 MB"),
        pytest.param(JSON_FOR_STREAM, 502, "upstream_error", id="an error as JSON"),
        pytest.param((End.RESET,), 503, "upstream_lost", id="no head"),
        pytest.param(dies_after(0, End.HANG), 504, "upstream_timeout", id="silence"),
    ],
)
async def test_a_stream_that_never_began_is_an_http_error(
    proxied: Proxied, play: Play, status: int, code: str
) -> None:
    """Before the first event nothing was promised: the client gets a status, and no stream."""
    again = (
        [play] if code == "upstream_lost" else []
    )  # the first time it may be an idle connection that was closed
    async with RawEngine([play, *again]) as engine, proxied(engine.url, first_byte_timeout_s=0.2) as client:
        answer = await post(client, stream=True)
        assert (await post(client)).status_code == 200

    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert "out of order" not in answer.text


async def test_a_stream_that_nobody_asked_for_is_an_error(proxied: Proxied) -> None:
    """A client that asked for one JSON object is never sent events."""
    async with RawEngine([stream("one")]) as engine, proxied(engine.url) as client:
        answer = await post(client)

    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_protocol_error")


async def test_usage_told_before_a_failure_is_accounted_for(proxied: Proxied) -> None:
    """What a stream has cost until it broke is paid."""
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
    play = (STREAM_HEAD, chunk(GOOD), chunk(usage), End.RESET)
    async with RawEngine([play]) as engine, proxied(engine.url) as client:
        await streamed(client)

        assert await metric(client, 'muster_tokens_total{direction="input"}') == 7
        assert await metric(client, 'muster_tokens_total{direction="output"}') == 2


@pytest.mark.parametrize("more", [b"x", b"GET /health/live HTTP/1.1\r\nhost: muster\r\n\r\n"])
async def test_a_client_that_sends_more_during_its_stream_has_not_left(proxied: Proxied, more: bytes) -> None:
    """The stream goes on to its end; what was sent is dealt with after it."""
    resume = asyncio.Event()
    head, *events = stream("one", "two")
    async with RawEngine([(head, events[0], resume, *events[1:])]) as engine, proxied(engine.url) as client:
        url = httpx.URL(client.base_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(_request())
        await reader.readuntil(b'"one"')
        writer.write(more)
        await writer.drain()
        resume.set()
        rest = await reader.readuntil(b"data: [DONE]\n\n")
        writer.close()
        await writer.wait_closed()

    assert b'"two"' in rest
    assert b"error" not in rest


def _request(fields: Sequence[tuple[str, object]] = ()) -> bytes:
    body = {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "x"}],
        "stream": True,
        **dict(fields),
    }
    content = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nhost: muster\r\ncontent-length: %d\r\n\r\n%b" % (
        len(content),
        content,
    )


async def test_a_delayed_answer_is_whole_again(engine: FakeVllm, proxied: Proxied) -> None:
    """Comments before a reply that then comes at once leave its text as it was."""
    release = asyncio.Event()
    engine.script(Reply("one two three", release=release))
    async with proxied(engine.url, keep_alive_s=0.02) as client, open_stream(client) as answer:
        lines: list[str] = []
        async for line in answer.aiter_lines():
            lines.append(line)
            if ": keep-alive" in lines:
                release.set()

    data = told("\n".join([*lines, ""]).encode())
    assert "".join(json.loads(each)["choices"][0]["delta"].get("content") or "" for each in data[:-1]) == (
        "one two three"
    )
