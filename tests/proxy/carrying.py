"""The engine side of a proxy without its server: upstreams, scheduler, connections and generations."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

import orjson

from muster_batching import AsyncScheduler, PoolId, Scheduler, Ticket, TicketId, UpstreamId
from muster_observability.metrics import new_registry
from muster_proxy import wire
from muster_proxy.client import Origin, Timeouts, UpstreamClient
from muster_proxy.generation import Engines, Generation
from muster_proxy.metrics import ProxyMetrics
from muster_proxy.settings import UpstreamSettings
from muster_proxy.ticketing import TicketOffice
from muster_proxy.upstreams import Upstream, Upstreams
from tests.proxy.asking import body

MODEL = "fake-model"


@dataclass
class Taken:
    """An answer, as its client has it.

    Attributes:
        content: What was given.
        begun: Set when the first of it has come.
        flow: What every piece makes the giver wait for.
    """

    content: bytes = b""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    flow: Callable[[], Awaitable[object] | None] = lambda: None

    def begin(self, generation: Generation) -> None:
        """See `Taker`."""
        assert generation.upstream is not None

    def take(self, piece: bytes) -> Awaitable[object] | None:
        """See `Taker`."""
        self.content += piece
        self.begun.set()
        return self.flow()


@dataclass
class EngineSide:
    """What carries generations out.

    Attributes:
        scheduler: Decides when and where.
        upstreams: Where they may go.
        client: The connections.
        engines: Carry them out.
    """

    scheduler: AsyncScheduler
    upstreams: Upstreams
    client: UpstreamClient
    engines: Engines
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def add(self, name: str, url: str, limit: int | None = 8) -> Upstream:
        """Take in an engine that answers its probes, as far as they are told."""
        settings = UpstreamSettings(url=url, limit=limit)
        upstream = self.upstreams.add(UpstreamId(name), settings, Origin.of(settings.root))
        self.upstreams.learn(upstream, available=True, models={MODEL: {"id": MODEL}})
        return upstream

    def generation(self, **fields: object) -> Generation:
        """One that has still to be carried out."""
        call = wire.read(wire.Kind.CHAT, orjson.dumps(body(**fields)))
        ticket = Ticket(
            TicketId(f"test-{next(self._numbers)}"),
            PoolId(MODEL),
            len(call.body),
            is_stream=call.is_stream,
        )
        return Generation(ticket, call, b"")

    async def carry_out(self, taken: Taken | None = None, **fields: object) -> Generation:
        """Carry one out; what became of it."""
        generation = self.generation(**fields)
        await self.engines.carry_out(generation, taken or Taken())
        return generation


@contextlib.asynccontextmanager
async def engine_side(
    timeouts: Timeouts | None = None, *, retries: int = 2, stall_s: float = 60.0
) -> AsyncGenerator[EngineSide]:
    """An engine side, without upstreams yet."""
    scheduler = AsyncScheduler(Scheduler())
    metrics = ProxyMetrics(new_registry(), scheduler)
    upstreams = Upstreams(scheduler, metrics, {}, stall_s=stall_s, peers=1)
    async with contextlib.aclosing(_Closing(UpstreamClient(timeouts or Timeouts()))) as closing:
        engines = Engines(scheduler, upstreams, closing.client, TicketOffice(), metrics, retries=retries)
        yield EngineSide(scheduler, upstreams, closing.client, engines)


@dataclass
class _Closing:
    client: UpstreamClient

    async def aclose(self) -> None:
        await self.client.close()
