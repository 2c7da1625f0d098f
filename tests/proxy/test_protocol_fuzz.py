"""HTTP/1.1 as the proxy's server speaks it: requests cut anywhere, and bytes that are nearly requests.

`MUSTER_FUZZ_EXAMPLES` asks for more examples than the check has time for.
"""

import asyncio
import itertools
import json
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from muster_observability import server
from muster_proxy.protocol import HttpServer, Limits
from tests.proxy.raw_client import Answer, RawClient, ask, request
from tests.proxy.test_protocol import CHUNKED, FAULTY, echo, lifeless, on

EXAMPLES = int(os.environ.get("MUSTER_FUZZ_EXAMPLES", "75"))

fuzzed = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(
    scope="module",
    params=[("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "uvloop"],
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Both event loops."""
    return request.param


@pytest.fixture(scope="module")
async def port() -> AsyncIterator[int]:
    """The port of a server that answers with what it was asked, and soon has enough of what does not come."""
    async for port in _served(Limits(head_timeout_s=0.05, body_timeout_s=0.05, linger_s=0.05, sweep_s=0.01)):
        yield port


@pytest.fixture(scope="module")
async def patient_port() -> AsyncIterator[int]:
    """The port of one that waits: on a busy machine a whole request may take its time."""
    async for port in _served(Limits()):
        yield port


async def _served(limits: Limits) -> AsyncIterator[int]:
    """The port of a server with these limits; no exception may reach its event loop."""
    loose: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: loose.append(context))
    with server.bind(0, "") as listener:
        async with server.serving(lifeless(echo), listener, server.Manner(HttpServer(limits))):
            yield listener.getsockname()[1]
    asyncio.get_running_loop().set_exception_handler(None)
    assert not loose


def chunked(*pieces: bytes) -> bytes:
    """A request whose body comes in these chunks."""
    content = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return on(CHUNKED, content + b"0\r\n\r\n")


OFFER = ("connection: upgrade", "upgrade: h2c")


def get(target: str, size: int) -> bytes:
    """A request without a body, with a header of that size."""
    return request("GET", f"/{target}?{target}", f"x: {'a' * size}")


def post(content: bytes, offer: Sequence[str]) -> bytes:
    """A request with a body."""
    return request("POST", "/post", *offer, body=content)


BODIES = st.binary(max_size=300)
REQUESTS = st.one_of(
    st.builds(get, st.text("ab/%1", max_size=9), st.just(1) | st.integers(0, 60_000)),
    st.builds(post, BODIES, st.sampled_from([(), OFFER])),
    st.lists(BODIES.filter(len), max_size=4).map(lambda pieces: chunked(*pieces)),
)
PIPELINES = st.lists(REQUESTS, min_size=1, max_size=6)
CUTS = st.lists(st.integers(0, 2**20), max_size=12)


def cut(content: bytes, cuts: Sequence[int]) -> list[bytes]:
    """The content in pieces."""
    places = sorted({place % len(content) for place in cuts} | {0, len(content)})
    return [content[start:end] for start, end in itertools.pairwise(places)]


async def answers(port: int, pieces: Sequence[bytes], count: int) -> list[tuple[int, Any]]:
    """Status and content of the answers to what is sent piece by piece."""
    async with RawClient.connected(port) as client:
        for piece in pieces:
            client.send(piece)
            await asyncio.sleep(0)
        got: list[Answer] = [await client.answer() for _ in range(count)]
        return [(answer.status, json.loads(answer.body)) for answer in got]


@fuzzed
@given(PIPELINES, CUTS)
async def test_where_packets_end_makes_no_difference(
    patient_port: int, pipeline: list[bytes], cuts: list[int]
) -> None:
    """The answers are those to the same requests sent one by one, each over its own connection."""
    expected = [(await answers(patient_port, [each], 1))[0] for each in pipeline]

    assert await answers(patient_port, cut(b"".join(pipeline), cuts), len(pipeline)) == expected
    assert [status for status, _ in expected] == [200] * len(pipeline)


SEEDS = st.sampled_from(list(FAULTY.values())) | REQUESTS
EDITS = st.lists(
    st.tuples(
        st.integers(0, 2**16),
        st.integers(0, 8),
        st.binary(max_size=6)
        | st.sampled_from(
            [b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b": ", b"0\r\n\r\n", b"HTTP/1.1", b"\xff"]
        ),
    ),
    max_size=5,
)


def edited(content: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The content with some bytes in the places of others."""
    for place, size, instead in edits:
        at = place % (len(content) + 1)
        content = content[:at] + instead + content[at + size :]
    return content


def statuses(told: bytes) -> list[int]:
    """Those of answers that follow each other, all with a length."""
    found: list[int] = []
    while told:
        head, _, rest = told.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"HTTP/1.1 ")
        found.append(int(lines[0].split(b" ")[1]))
        if found[-1] == 100:
            told = rest
            continue
        length = next(int(line[16:]) for line in lines if line.startswith(b"content-length: "))
        assert len(rest) >= length
        told = rest[length:]
    return found


@fuzzed
@given(st.lists(st.tuples(SEEDS, EDITS), min_size=1, max_size=4), CUTS)
async def test_whatever_is_sent_is_answered_or_closed(
    port: int, seeds: list[tuple[bytes, list[tuple[int, int, bytes]]]], cuts: list[int]
) -> None:
    """By whole answers, the last one a refusal at most; and the next client is served."""
    content = b"".join(edited(*seed) for seed in seeds) or b"\r\n"
    async with RawClient.connected(port) as client:
        for piece in cut(content, cuts):
            client.send(piece)
            await asyncio.sleep(0)
        # The start of one more request: what is waited for is then never a new one, but this one's end.
        client.send(b"GET / HT")
        told = statuses(await client.rest())

    assert all(status == 200 for status in told[:-1] if status != 100)
    assert told
    assert told[-1] == 200 or 400 <= told[-1] < 500
    assert (await ask(port, request())).status == 200
