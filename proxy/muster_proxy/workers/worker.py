"""One worker: the whole application, on the connections that the parent deals to it."""

import asyncio
import contextlib
import socket
import sys
from functools import partial

import uvicorn

from muster_observability import logs, server
from muster_observability.request_ids import RequestIds
from muster_observability.server import ExitCode, Manner
from muster_proxy.app import create_app
from muster_proxy.protocol import HttpServer
from muster_proxy.workers.channel import Intake, Orders, read_orders
from muster_proxy.workers.merged_metrics import Pages, place_of


def run_worker() -> ExitCode:
    """Serve what comes through the channel, which is standard input, until SIGINT, SIGTERM or the parent's end."""
    channel = socket.socket(fileno=sys.stdin.fileno())
    try:
        orders = read_orders(channel)
    except EOFError:
        return ExitCode.OK
    logs.configure(orders.log_level, orders.log_format)
    logs.bind(worker=orders.index)
    return _serve(orders, channel)


def _serve(orders: Orders, channel: socket.socket) -> ExitCode:
    settings = orders.settings
    app = create_app(settings)
    pages = Pages(app.framework, orders.directory, orders.index, orders.count)
    app.straight["GET", "/metrics"] = RequestIds(pages)
    manner = Manner(HttpServer(), app.readiness.drain, settings.stop_delay_s)
    intake = Intake(channel)
    code = server.run(_Worker(manner.serving(app, settings.drain_s), manner, intake, pages), [])
    if intake.is_orphaned:
        _clear(orders)
    return code


def _clear(orders: Orders) -> None:
    """Remove what the parent would have removed; the last worker's attempt on the directory succeeds."""
    with contextlib.suppress(OSError):
        place_of(orders.directory, orders.index).unlink(missing_ok=True)
        orders.directory.rmdir()


class _Worker(uvicorn.Server):
    """Listens nowhere.

    Args:
        config: Uvicorn's.
        manner: Where it is not as uvicorn does by itself.
        intake: Brings the connections.
        pages: Shows its metrics to its siblings.
    """

    def __init__(self, config: uvicorn.Config, manner: Manner, intake: Intake, pages: Pages) -> None:
        super().__init__(config)
        self._manner = manner
        self._intake = intake
        self._pages = pages

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._showing = await self._pages.show()
        protocol = partial(
            self.config.http_protocol_class,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self._taking = asyncio.create_task(self._intake.run(protocol))

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop: also when no connection can come any more."""
        return await super().on_tick(counter) or self._taking.done()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what comes for a while, then no more, and let what is in flight finish."""
        if self._manner.stopping is not None:
            self._manner.stopping()
        await asyncio.sleep(self._manner.delay_s)
        self._intake.stop()
        await asyncio.wait([self._taking])
        await super().shutdown(sockets)
        self._showing.close()
        self._taking.result()
