"""Upstreams behind a name: an upstream for each of its addresses, as long as the name has it.

The addresses are of this machine: an engine listens on 127.0.0.1, and nobody on the others.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass, field

import pytest

from muster_proxy.failures import Reason, RequestError
from muster_proxy.probing import Watch
from muster_proxy.settings import UpstreamSettings
from muster_proxy.testing import FakeVllm, Reply
from tests.proxy.carrying import EngineSide, Taken, engine_side

HERE = "127.0.0.1"
NOWHERE = "127.0.0.9"


@dataclass
class Names:
    """A name server of one name.

    Attributes:
        addresses: Of the name now; none for a server that does not answer.
        asked: Released whenever it has been asked.
    """

    addresses: Collection[str]
    asked: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def resolve(self, _host: str, _port: int, _timeout_s: float) -> Collection[str]:
        """See `Watch`."""
        self.asked.release()
        if not self.addresses:
            raise RequestError(Reason.NO_HEALTHY_UPSTREAM)
        return self.addresses


@contextlib.asynccontextmanager
async def followed(engine: FakeVllm, names: Names) -> AsyncGenerator[EngineSide]:
    """An engine side with the engine behind a name."""
    async with engine_side() as side:
        watch = Watch(
            side.upstreams,
            side.scheduler,
            side.client,
            scrape_interval_s=0.25,
            resolve=names.resolve,
            resolve_interval_s=0.01,
        )
        named = UpstreamSettings(url=f"dns:http://engines.test:{engine.port}", name="engine", limit=4)
        async with watch.watching([named]):
            yield side


async def until_available(side: EngineSide, count: int) -> None:
    """Wait until so many upstreams answer."""
    while sum(each.available for each in side.upstreams.all()) != count:
        await asyncio.sleep(0)


async def until_told(names: Names) -> None:
    """Wait until what the name server says has been acted on."""
    while not names.asked.locked():
        await names.asked.acquire()
    for _ in range(2):  # the second question comes when the first has been acted on
        await names.asked.acquire()


async def test_a_new_address_is_a_new_upstream(engine: FakeVllm) -> None:
    """It is given work when it has answered, beside one that does not."""
    names = Names({NOWHERE})
    async with followed(engine, names) as side:
        await until_told(names)
        assert [each.id for each in side.upstreams.all()] == ["engine-1"]

        names.addresses = {NOWHERE, HERE}
        await until_available(side, 1)
        generation = await side.carry_out()

        assert generation.upstream == "engine-2"
        assert [each.origin.address for each in side.upstreams.all()] == [NOWHERE, HERE]
        assert engine.requests[0].headers["host"] == f"engines.test:{engine.port}"


async def test_an_address_that_is_gone_drains(engine: FakeVllm) -> None:
    """What it has in flight is finished, and it is given nothing more."""
    names, resume = Names({HERE}), asyncio.Event()
    engine.script(Reply("one two three", pauses_after=2, resume=resume))
    async with followed(engine, names) as side:
        await until_available(side, 1)
        taken = Taken()
        streaming = asyncio.ensure_future(side.carry_out(taken, stream=True))
        await taken.begun.wait()

        names.addresses = {NOWHERE}
        await until_told(names)
        with pytest.raises(RequestError, match=Reason.NO_HEALTHY_UPSTREAM):
            await side.carry_out()
        resume.set()
        await streaming

        assert taken.content.endswith(b"data: [DONE]\n\n")
        assert len(engine.requests) == 1
        assert side.scheduler.scheduler.in_flight == 0


async def test_an_address_that_comes_back_has_its_name_again(engine: FakeVllm) -> None:
    """Also while a stream of its last life runs, whose end changes nothing for it."""
    names, resume = Names({HERE}), asyncio.Event()
    engine.script(Reply("one two three", breaks_after=3, pauses_after=2, resume=resume))
    async with followed(engine, names) as side:
        await until_available(side, 1)
        taken = Taken()
        streaming = asyncio.ensure_future(side.carry_out(taken, stream=True))
        await taken.begun.wait()
        names.addresses = {NOWHERE}
        await until_told(names)

        names.addresses = {HERE}
        await until_told(names)
        await until_available(side, 1)
        resume.set()
        with pytest.raises(RequestError, match=Reason.UPSTREAM_STREAM_ERROR):
            await streaming

        generation = await side.carry_out()
        assert generation.upstream is not None
        assert side.upstreams[generation.upstream].origin.address == HERE
        assert side.scheduler.scheduler.in_flight == 0


async def test_a_name_server_that_fails_takes_nobody_away(engine: FakeVllm) -> None:
    """What was known of the name stands."""
    names = Names({HERE})
    async with followed(engine, names) as side:
        await until_available(side, 1)
        names.addresses = ()
        await until_told(names)

        assert (await side.carry_out()).upstream == "engine-1"
