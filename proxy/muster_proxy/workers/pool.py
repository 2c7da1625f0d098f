"""The parent of the workers: starts them, starts them again when they die, stops them, and outlives all of them."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from muster_observability import logs, server
from muster_observability.server import ExitCode
from muster_proxy.settings import ProxySettings
from muster_proxy.up.supervisor import describe
from muster_proxy.workers.channel import Orders, Sender, packed
from muster_proxy.workers.dealer import Dealer
from muster_proxy.workers.merged_metrics import place_of
from muster_proxy.workers.patience import Patience

# What a worker has beyond its own limits before it is killed.
_GRACE_S = 10.0

# Of a Unix socket's address on macOS, which has the least.
_MOST_PATH_BYTES = 103

_NO_DIRECTORY = """several workers need a directory for sockets, and none can be made: {why}
Set TMPDIR to a short path that can be written, or take one worker."""

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logs.get("proxy")


def run_workers(
    shares: Sequence[ProxySettings],
    listener: socket.socket,
    log_level: logs.LogLevel,
    log_format: logs.LogFormat,
) -> ExitCode:
    """Serve with a process for each share until SIGINT or SIGTERM, then let requests in flight finish.

    Args:
        shares: Each worker's settings.
        listener: From `server.bind`.
        log_level: Of the workers.
        log_format: Likewise.
    """
    if os.environ.get(server.SUPERVISED_VARIABLE) == "1":
        server.stop_with_parent()
    try:
        held = tempfile.TemporaryDirectory(prefix="muster-", ignore_cleanup_errors=True)
    except OSError as error:
        return server.refuse(_NO_DIRECTORY.format(why=error.strerror), ExitCode.UNAVAILABLE)
    with held as name:
        directory = Path(name)
        if len(os.fsencode(place_of(directory, len(shares)))) > _MOST_PATH_BYTES:
            return server.refuse(_NO_DIRECTORY.format(why="its path is too long"), ExitCode.UNAVAILABLE)
        every = [
            Orders(index, len(shares), share, directory, log_level, log_format)
            for index, share in enumerate(shares)
        ]
        return asyncio.run(_run(every, listener))


async def _run(every: Sequence[Orders], listener: socket.socket) -> ExitCode:
    return await Pool(every, listener).run()


class Pool:
    """The workers of one port, while they run.

    Args:
        every: Orders, for each worker its own.
        listener: Bound.
        patience: With each worker that dies.

    Attributes:
        opened: Set when all of them are ready for the first time.
    """

    def __init__(
        self, every: Sequence[Orders], listener: socket.socket, patience: Patience | None = None
    ) -> None:
        self._every = every
        self._url = server.url_of(listener)
        self._dealer = Dealer(listener, len(every))
        self.opened = self._dealer.opened
        self._patience = patience or Patience()
        self._environment = {
            name: value for name, value in os.environ.items() if name != server.SUPERVISED_VARIABLE
        }
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._code = ExitCode.OK

    @property
    def pids(self) -> dict[int, int]:
        """The workers' processes, by the workers' numbers."""
        return {index: process.pid for index, process in self._processes.items()}

    async def run(self) -> ExitCode:
        """Run to the end of the last worker."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop, number)
        async with asyncio.TaskGroup() as group:
            opening = group.create_task(self._announce())
            for orders in self._every:
                group.create_task(self._keep(orders))
            await self._stopping.wait()
            opening.cancel()
        self._dealer.close()
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)
        return self._code

    async def _announce(self) -> None:
        await self.opened.wait()
        _log.info("listening", url=self._url, workers=len(self._every))

    async def _keep(self, orders: Orders) -> None:
        """Have one worker, until the pool stops or the worker dies too often."""
        patience = replace(self._patience)
        while True:
            started_s = time.monotonic()
            status, was_ready = await self._live(orders)
            if self._stopping.is_set():
                return
            # What cannot start once will not start a second time; what could has met something that may pass.
            has_served = was_ready or self.opened.is_set()
            pause_s = patience.pause_s(time.monotonic() - started_s) if has_served else None
            if pause_s is None:
                self._give_up(orders, status)
                return
            _log.error(
                f"a worker {describe(status)}; starting it again", worker=orders.index, pause_s=pause_s
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                    return

    async def _live(self, orders: Orders) -> tuple[int, bool]:
        """Run one worker once: its process's return code, and whether it was ever ready."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            process = await self._start(theirs)
        except OSError as error:  # this machine has no process or memory left; that may pass
            _log.error("no worker can be started", worker=orders.index, error=error.strerror)
            ours.close()
            return ExitCode.FAILED, False
        finally:
            theirs.close()
        self._processes[orders.index] = process
        _log.info("a worker starts", worker=orders.index, pid=process.pid)
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await loop.sock_sendall(ours, packed(orders))
        sender = Sender(ours)
        self._dealer.add(sender)
        status = await process.wait()
        self._dealer.remove(sender)
        del self._processes[orders.index]
        return status, sender.was_ready

    async def _start(self, channel: socket.socket) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "muster_proxy.workers"),
            stdin=channel.fileno(),
            start_new_session=True,  # Ctrl-C comes to the parent alone, which passes it on
            env=self._environment,
        )

    def _give_up(self, orders: Orders, status: int) -> None:
        _log.error(f"a worker {describe(status)}; giving up", worker=orders.index)
        self._code = ExitCode.SOFTWARE
        self._stop(signal.SIGTERM)

    def _stop(self, number: signal.Signals) -> None:
        """Pass the signal on; a second SIGINT cuts short what the first let finish."""
        for process in self._processes.values():
            _signal(process, number)
        if self._stopping.is_set():
            return
        self._stopping.set()
        loop = asyncio.get_running_loop()
        settings = self._every[0].settings
        loop.call_later(settings.stop_delay_s, self._dealer.close)
        loop.call_later(settings.stop_delay_s + settings.drain_s + _GRACE_S, self._kill)

    def _kill(self) -> None:
        for index, process in self._processes.items():
            _log.error("a worker does not stop; killing it", worker=index)
            _signal(process, signal.SIGKILL)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
