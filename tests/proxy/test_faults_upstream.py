"""Engines that refuse, vanish, mumble, hang or push back: what clients see, and who is asked next.

Errors of engines one by one: `test_relay`. Ejections in their time: `test_health`. Overload: `muster bench`.
"""

import asyncio
import contextlib
import gc
import time

import httpx
import pytest

from muster_proxy.client import Timeouts
from muster_proxy.exchange import Exchange
from muster_proxy.failures import Reason, RequestError
from muster_proxy.generation import Generation
from muster_proxy.health import ACTIVE_PER_RETRY, RETRIES_AT_LEAST, SILENCES_IN_A_ROW
from muster_proxy.quarantine import SUSPECT_AFTER
from muster_proxy.testing import End, Endless, FakeVllm, Play, RawEngine, Reply
from muster_proxy.testing.raw_faults import (
    ENDLESS_HEAD,
    ENDLESS_INTERIM,
    HANGS,
    LONG_BODY,
    NO_LENGTH,
    NOT_HTTP,
    NOT_JSON,
    SHORT_BODY,
)
from muster_proxy.testing.raw_http import answer, completion, head
from muster_proxy.wire import Call
from tests.proxy.asking import metric, post
from tests.proxy.carrying import EngineSide, Taken, engine_side
from tests.proxy.conftest import Proxied
from tests.proxy.test_client import black_hole

EJECTIONS = 'muster_ejections_total{upstream="upstream-1"}'
FIRST = 'muster_limit{upstream="upstream-1"}'

CANARY = "at 0x7f00c0ffee00"


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        pytest.param(ENDLESS_HEAD, 502, "upstream_protocol_error", id="a head without end"),
        pytest.param(ENDLESS_INTERIM, 502, "upstream_protocol_error", id="interim answers without end"),
        pytest.param(NOT_HTTP, 502, "upstream_protocol_error", id="no HTTP"),
        pytest.param(NOT_JSON, 502, "upstream_protocol_error", id="no JSON"),
        pytest.param(SHORT_BODY, 503, "upstream_lost", id="less than its length"),
        pytest.param(
            (head(len(completion()) - 1) + completion(),),
            502,
            "upstream_protocol_error",
            id="more than its length",
        ),
        pytest.param((answer(b""),), 502, "upstream_protocol_error", id="nothing"),
        pytest.param((answer(b'"text"'),), 502, "upstream_protocol_error", id="no object"),
        pytest.param((answer(b"\xff" + completion()),), 502, "upstream_protocol_error", id="no UTF-8"),
        pytest.param(
            (b"HTTP/1.1 500 Oops\r\n\r\n", Endless(f"<html>{CANARY}</html>".encode() * 1000)),
            502,
            "upstream_error",
            id="a 500 with a page without end",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_broken_answer_is_a_clean_error(
    proxied: Proxied, play: Play, status: int, code: str, *, stream: bool
) -> None:
    """In OpenAI's shape, without the engine's words, never a cut 200; the next request is served."""
    async with RawEngine([play]) as engine, proxied(engine.url, limit=1) as client:
        got = await post(client, stream=stream)
        assert (await post(client)).status_code == 200
        assert await metric(client, "muster_in_flight") == 0

    assert (got.status_code, got.json()["error"]["code"]) == (status, code)
    assert set(got.json()["error"]) == {"message", "type", "param", "code"}
    assert CANARY not in got.text
    assert engine.written_bytes < 64 * 1024 * 1024


@pytest.mark.parametrize("play", [LONG_BODY, NO_LENGTH], ids=["more after it", "until the end"])
async def test_a_whole_answer_stands(proxied: Proxied, play: Play) -> None:
    """What comes after it is no part of it, and one without a length ends where its connection does."""
    async with RawEngine([play]) as engine, proxied(engine.url) as client:
        got = await post(client)

    assert (got.status_code, got.content) == (200, completion())


async def test_a_rejection_too_long_to_read_is_the_requests_fault() -> None:
    """Engines repeat what was wrong: nobody can have one ejected, or the next one asked, by sending much of it."""
    play = (answer(b'{"error":{"message":"%b"}}' % (b"x" * 200_000), status=400),)
    async with RawEngine([play] * 20) as one, RawEngine([play] * 20) as two, engine_side() as side:
        side.add("a", one.url)
        side.add("b", two.url)
        for _ in range(20):
            with pytest.raises(RequestError, match=Reason.REQUEST_REJECTED):
                await side.carry_out()

        assert len(one.requests) + len(two.requests) == 20


async def test_a_refused_connection_is_tried_elsewhere(proxied: Proxied) -> None:
    """The client gets its answer from the engine that is there; when none is, a 503 that says when to come again."""
    async with FakeVllm() as there:
        async with FakeVllm() as leaving:
            proxy = proxied(leaving.url, there.url)
            client = await proxy.__aenter__()
            while await metric(client, 'muster_upstream_available{upstream="upstream-2"}') == 0:
                await asyncio.sleep(0)
        assert [(await post(client)).status_code for _ in range(4)] == [200] * 4
    try:
        refused = await post(client)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
    finally:
        await proxy.__aexit__(None, None, None)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_address_that_does_not_answer_is_passed_by(*, stream: bool) -> None:
    """After the time for connecting the request goes to the next engine, and no more come to the first."""
    with black_hole() as port:
        async with FakeVllm() as there, engine_side(Timeouts(connect_s=0.05)) as side:
            silent = side.add("a", f"http://127.0.0.1:{port}")
            side.add("b", there.url)
            taken = Taken()
            generations = [await side.carry_out(taken, stream=stream) for _ in range(3)]

            assert max(each.tries for each in generations) == 2
            assert {each.upstream for each in generations} == {"b"}
            assert not silent.available
            assert side.client.active == 0


@pytest.mark.parametrize(
    "play",
    [
        pytest.param((b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",), id="a 500"),
        pytest.param((answer(b"", status=503),), id="a 503"),
        pytest.param((End.RESET,), id="a reset"),
        pytest.param(NOT_JSON, id="no JSON"),
    ],
)
async def test_a_failure_before_the_answer_is_made_good_elsewhere(play: Play) -> None:
    """The next engine answers: two tries, and no client hears of it."""
    async with RawEngine([play]) as one, RawEngine() as two, engine_side() as side:
        side.add("a", one.url)
        side.add("b", two.url)
        tries: list[int] = []
        while not one.requests:
            taken = Taken()
            tries.append((await side.carry_out(taken)).tries)
            assert taken.content == completion()

        assert tries[-1] == 2
        assert len(one.requests) == 1


async def test_what_has_begun_is_not_tried_again() -> None:
    """A client that has events of one answer is not given those of another."""
    async with FakeVllm() as one, FakeVllm() as two, engine_side() as side:
        for engine in (one, two):
            engine.script(Reply("one two", breaks_after=2))
            side.add(engine.url, engine.url)
        with pytest.raises(RequestError, match=Reason.UPSTREAM_STREAM_ERROR):
            await side.carry_out(stream=True)

        assert len(one.requests) + len(two.requests) == 1


async def test_a_connection_that_an_engine_closed_while_idle_is_no_error(proxied: Proxied) -> None:
    """Closed just before or just as the next request comes: a 200, and one generation for each request."""
    async with RawEngine() as engine, proxied(engine.url) as client:
        for _ in range(5):
            assert (await post(client)).status_code == 200
            while not await engine.close_idle():
                await asyncio.sleep(0)

    assert len(engine.requests) == 5


async def test_an_engine_that_hangs_is_given_up_although_it_looks_well(proxied: Proxied) -> None:
    """Its `/health` says 200 all the while: after two silences it gets nothing, and the other all."""
    async with (
        RawEngine([HANGS] * 9) as hung,
        FakeVllm() as well,
        proxied(hung.url, well.url, first_byte_timeout_s=0.05) as client,
    ):
        while await metric(client, 'muster_upstream_available{upstream="upstream-2"}') == 0:
            await asyncio.sleep(0)
        answers: list[int] = []
        while await metric(client, EJECTIONS) == 0:
            answers.append((await post(client)).status_code)

        assert answers.count(504) == SILENCES_IN_A_ROW
        assert [(await post(client)).status_code for _ in range(10)] == [200] * 10
        assert len(hung.requests) == SILENCES_IN_A_ROW


async def test_a_probe_ends_no_ejection() -> None:
    """What the probes say of an engine that hangs changes nothing; the other has all the work."""
    async with (
        RawEngine([HANGS] * 9) as hung,
        FakeVllm() as well,
        engine_side(Timeouts(first_byte_s=0.05)) as side,
    ):
        silent = side.add("a", hung.url)
        side.add("b", well.url)
        while len(hung.requests) < SILENCES_IN_A_ROW:
            with contextlib.suppress(RequestError):
                await side.carry_out()
        for _ in range(5):
            side.upstreams.learn(silent, available=True)

        async with asyncio.TaskGroup() as tasks:
            rest = [tasks.create_task(side.carry_out()) for _ in range(8)]
        assert {each.result().upstream for each in rest} == {"b"}
        assert len(hung.requests) == SILENCES_IN_A_ROW


async def test_the_only_engine_gets_a_trickle_and_is_back_with_its_first_success(proxied: Proxied) -> None:
    """While it hangs it is asked one by one; when it answers once, all may go there again."""
    async with (
        RawEngine([HANGS] * 3) as engine,
        proxied(engine.url, first_byte_timeout_s=0.05, limit=8) as client,
    ):
        while await metric(client, FIRST) != 1:
            assert (await post(client)).status_code == 504
        assert len(engine.requests) == SILENCES_IN_A_ROW
        assert (await post(client)).status_code == 504
        assert await metric(client, FIRST) == 1

        assert (await post(client)).status_code == 200
        assert await metric(client, FIRST) == 8
        assert await metric(client, EJECTIONS) == 0


async def test_requests_that_others_pass_by_do_not_tell_of_the_engine() -> None:
    """Several fall silent together while those that came after them are answered: it keeps its slots and its work."""
    silent = SILENCES_IN_A_ROW + 3
    async with FakeVllm() as engine, engine_side(Timeouts(first_byte_s=0.2)) as side:
        engine.script(*[Reply(release=asyncio.Event())] * silent)
        upstream = side.add("a", engine.url, limit=None)
        slots = side.scheduler.scheduler.slots_on(upstream.id)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(silent):
                tasks.create_task(_timed_out(side))
            for _ in range(silent):
                await engine.arrived.acquire()
            await side.carry_out()

        assert not side.upstreams.is_on_trial(upstream)
        assert side.scheduler.scheduler.slots_on(upstream.id) >= slots


async def _timed_out(side: EngineSide) -> None:
    with pytest.raises(RequestError, match=Reason.UPSTREAM_TIMEOUT):
        await side.carry_out()


@pytest.mark.parametrize("status", [429, 503])
async def test_an_engine_that_pushes_back_is_not_ejected(
    engine: FakeVllm, proxied: Proxied, status: int
) -> None:
    """However often it says that it is full, it is well."""
    engine.script(*[Reply(status=status)] * 20)
    async with proxied(engine.url, limit=4) as client:
        assert [(await post(client)).status_code for _ in range(20)] == [status] * 20
        assert await metric(client, FIRST) == 4
        assert (await post(client)).status_code == 200


async def test_failures_at_once_are_not_twice_the_load() -> None:
    """Of a hundred requests that fail together a fifth is tried again, so engines in trouble get 1.2 times the load."""
    fail, fail_again = asyncio.Event(), asyncio.Event()
    script = [Reply(status=500, release=fail)] * 50 + [Reply(status=500, release=fail_again)] * 100
    async with FakeVllm() as one, FakeVllm() as two, engine_side(retries=1) as side:
        for engine in (one, two):
            engine.script(*script)
            side.add(engine.url, engine.url, limit=50)
        generations = [side.generation() for _ in range(100)]
        asked = [asyncio.ensure_future(side.engines.carry_out(each, Taken())) for each in generations]
        while one.in_flight + two.in_flight < 100:
            await asyncio.sleep(0)
        fail.set()
        while not all(
            is_over.done() or each.ticket.avoid for is_over, each in zip(asked, generations, strict=True)
        ):
            await asyncio.sleep(0)
        fail_again.set()
        await asyncio.wait(asked)

        assert all(isinstance(each.exception(), RequestError) for each in asked)
        again = sum(each.ticket.avoid is not None for each in generations)
        assert RETRIES_AT_LEAST <= again <= 100 // ACTIVE_PER_RETRY
        assert len(one.requests) + len(two.requests) <= 100 + again
        assert side.scheduler.scheduler.in_flight == 0


async def test_an_engine_that_loads_again_is_a_503_until_it_is_back(proxied: Proxied) -> None:
    """A request that comes meanwhile hears when to come again, and fails for good in no case."""
    async with FakeVllm() as engine, proxied(engine.url) as client:
        engine.script(Reply(status=503, headers={"retry-after": "3"}))
        loading = await post(client)

        assert (loading.status_code, loading.headers["retry-after"]) == (503, "3")
        assert loading.headers["x-should-retry"] == "true"
        assert (await post(client)).status_code == 200


async def test_a_request_that_kills_engines_is_quarantined() -> None:
    """It takes two along before its client is told, and a third when it is sent again; then it goes to none."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(RawEngine([(End.RESET,)] * 9)) for _ in range(3)]
        side = await stack.enter_async_context(engine_side())
        upstreams = [side.add(name, engine.url) for name, engine in zip("abc", engines, strict=True)]

        async def send() -> Reason:
            with pytest.raises(RequestError) as caught:
                await side.carry_out(user="poison")
            for upstream, engine in zip(upstreams, engines, strict=True):
                if upstream.available and engine.requests:
                    side.upstreams.learn(upstream, available=False)  # as its probe finds
            return caught.value.reason

        assert await send() is Reason.UPSTREAM_LOST
        assert sum(len(engine.requests) for engine in engines) == 2
        assert await send() is Reason.UPSTREAM_LOST
        assert [len(engine.requests) for engine in engines] == [1, 1, 1]
        for upstream in upstreams:
            side.upstreams.learn(upstream, available=True)
        assert await send() is Reason.REQUEST_QUARANTINED
        assert [len(engine.requests) for engine in engines] == [1, 1, 1]


async def test_those_that_died_with_it_are_tried_one_by_one() -> None:
    """Who was in flight at two deaths is suspect: one of them at a time, and twice the same not at all."""
    async with FakeVllm() as fake, engine_side() as side:
        upstream = side.add("a", fake.url)
        quarantine = side.upstreams.quarantine
        innocents = [f"innocent {number}" for number in range(4)]
        now_s = time.monotonic()
        for number in range(SUSPECT_AFTER):
            quarantine.returned(upstream.id)
            for each in innocents:
                quarantine.failed(side.generation(user=each).fingerprint, upstream.id, now_s + number)
            quarantine.died(upstream.id, now_s + number)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(side.carry_out(user=each)) for each in innocents]
            while not fake.requests:
                await asyncio.sleep(0)
            with pytest.raises(RequestError, match=Reason.QUEUE_FULL):
                await side.carry_out(user=innocents[-1])
        assert all(task.result().usage for task in tasks)
        assert fake.peak == 1

        assert quarantine.is_empty
        async with asyncio.TaskGroup() as group:
            for each in innocents:
                group.create_task(side.carry_out(user=each))
        assert fake.peak > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "play",
    [
        pytest.param((End.RESET,), id="a reset"),
        pytest.param(SHORT_BODY, id="less than its length"),
        pytest.param(NOT_JSON, id="no JSON"),
        pytest.param(HANGS, id="silence"),
        pytest.param((answer(b"{}", status=400),), id="a rejection"),
    ],
)
async def test_what_has_failed_is_freed_at_once(proxied: Proxied, play: Play, *, stream: bool) -> None:
    """Not when the garbage collector comes, which may be hundreds of requests later, each with its body."""
    gc.collect()
    gc.disable()
    try:
        async with (
            RawEngine([play] * 9) as engine,
            proxied(engine.url, first_byte_timeout_s=0.05, limit=1) as client,
        ):
            for _ in range(3):
                assert (await post(client, stream=stream)).status_code != 200
            await _hang_up(client, engine, stream=stream)
            ended = ('muster_requests_total{outcome="failed"}', 'muster_requests_total{outcome="cancelled"}')
            while sum([await metric(client, each) for each in ended]) < 4:
                await asyncio.sleep(0)
            kept = [each for each in gc.get_objects() if isinstance(each, (Exchange, Generation, Call))]
    finally:
        gc.enable()
    assert not kept


async def _hang_up(client: httpx.AsyncClient, engine: RawEngine, *, stream: bool) -> None:
    """Ask, and leave when the engine has heard of it."""
    asked = len(engine.requests)
    asking = asyncio.create_task(post(client, stream=stream))
    while len(engine.requests) == asked and not asking.done():
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait({asking})
