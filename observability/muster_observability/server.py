"""How a Muster server process starts, says that it is ready, and stops.

A server binds the loopback interface unless it is told otherwise: one without keys is never open to a network.
"""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from muster_observability import logs

if TYPE_CHECKING:
    from types import FrameType

    from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"

_LAST_RESORT_S = 10.0
"""Seconds that all has to stop in once requests in flight have had theirs."""

SUPERVISED_VARIABLE = "MUSTER_SUPERVISED"
"""Set to 1 by a supervisor that holds the other end of this process's standard input."""


class ExitCode(IntEnum):
    """What a `muster` command's exit status means, after sysexits.h where it has a word for it."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 69  # something this command needs is not to be had: a port, a model, an engine
    SOFTWARE = 70  # a part died and did not come back
    IO_ERROR = 74  # the disk is full or cannot be written
    CONFIG = 78  # a setting is wrong or unknown
    INTERRUPTED = 130  # Ctrl-C before the work was done


class PortTakenError(Exception):
    """Another program listens on the port.

    Attributes:
        port: The port that was asked for.
        setting: The setting that chooses another.
    """

    def __init__(self, host: str, port: int, setting: str) -> None:
        self.port = port
        self.setting = setting
        super().__init__(
            f"port {port} is taken: another program listens on {host}:{port}. "
            f"Stop that program, or choose another port with {setting}."
        )


class AddressError(Exception):
    """The address is none of this machine's."""


def bind(port: int, setting: str, host: str = LOOPBACK) -> socket.socket:
    """A socket bound to `port`; 0 lets the system choose a free one.

    Args:
        port: The TCP port.
        setting: How the user chooses another, for the error: `--port or MUSTER_PROXY_PORT`.
        host: The IP address to listen on.

    Raises:
        PortTakenError: Another program has the port.
        AddressError: This machine has no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY on the connections of a socket that names its protocol, and of no other; without it a
    # small answer waits for the client's delayed acknowledgement, 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # Lets a restarted server have its port while old connections are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(host, port, setting) from error
        if isinstance(error, socket.gaierror) or error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
            raise AddressError(f"{host} is no address of this machine") from error
        raise
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a bound socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True, slots=True)
class Manner:
    """How a server serves, where that is not as uvicorn does by itself.

    Attributes:
        protocol: Makes the protocols of its connections; None for uvicorn's own.
        stopping: Called when it has been told to stop, before anything else.
        delay_s: Seconds that it still takes connections after that: a cluster needs some to send no more.
        websockets: Whether the application speaks WebSocket; else no library for it is loaded.
    """

    protocol: Callable[..., asyncio.Protocol] | None = None
    stopping: Callable[[], None] | None = None
    delay_s: float = 0.0
    websockets: bool = False

    def config(self, app: "ASGIApp", **options: Any) -> uvicorn.Config:  # noqa: ANN401  uvicorn's own
        """Uvicorn's configuration."""
        ws = "websockets-sansio" if self.websockets else "none"
        options |= {"log_config": None, "access_log": False, "ws": ws, "server_header": False}
        # Whoever sends it may write what it likes into X-Forwarded-For.
        options |= {"proxy_headers": False}
        return uvicorn.Config(app, http=cast("Any", self.protocol or "auto"), **options)

    def serving(self, app: "ASGIApp", drain_s: float) -> uvicorn.Config:
        """Uvicorn's configuration for a server whose requests in flight have these seconds to finish."""
        return self.config(app, timeout_graceful_shutdown=max(1, round(drain_s)))


def serve(
    app: "ASGIApp", listener: socket.socket, *, part: str, drain_s: float, manner: Manner | None = None
) -> ExitCode:
    """Serve `app` on a bound socket until SIGINT or SIGTERM, then let requests in flight finish.

    Args:
        app: The application; its lifespan runs before `listening` is logged.
        listener: From `bind`.
        part: The name in the logs: `proxy` or `agent`.
        drain_s: Seconds that requests in flight have to finish after the signal.
        manner: What is different from the usual.
    """
    if os.environ.get(SUPERVISED_VARIABLE) == "1":
        stop_with_parent()
    manner = manner or Manner()
    return run(_AnnouncingServer(manner.serving(app, drain_s), part, listener, manner), [listener])


def run(server: uvicorn.Server, listeners: list[socket.socket]) -> ExitCode:
    """Run a server until SIGINT or SIGTERM."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _absorb)
    server.run(sockets=listeners)
    return ExitCode.OK if server.started else ExitCode.FAILED


def _absorb(_number: int, _frame: "FrameType | None") -> None:
    """Take the signal that uvicorn repeats once it has stopped: it was heard, and the exit is a clean one."""


@contextlib.asynccontextmanager
async def serving(
    app: "ASGIApp", listener: socket.socket, manner: Manner | None = None
) -> AsyncGenerator[uvicorn.Server]:
    """Serve `app` in this event loop for as long as the block runs, its signals left alone.

    For tests and for programs that hold a server beside other work. What is still going on at the end of the
    block is broken off.
    """
    server = _GuestServer((manner or Manner()).config(app))
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(server.serve([listener]))
        await server.is_up.wait()
        try:
            yield server
        finally:
            # Before the group hears of a failure in the block, and would cancel what has yet to close.
            server.stop.set()
            await asyncio.wait([serving])


class _GuestServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self.stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    async def main_loop(self) -> None:
        await self.stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Break off what goes on, where a server in use would wait for it."""
        del sockets
        for server in self.servers:
            server.close()
        for connection in tuple(self.server_state.connections):
            connection.shutdown()
        tasks = tuple(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self.lifespan.shutdown()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _AnnouncingServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, part: str, listener: socket.socket, manner: Manner) -> None:
        super().__init__(config)
        self._part = part
        self._manner = manner
        self._url = url_of(listener)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _spare_the_collector()
            logs.get(self._part).info("listening", url=self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that it stops, wait for those who have not heard it, and stop."""
        self._end_in_any_case()
        if self._manner.stopping is not None:
            self._manner.stopping()
        await asyncio.sleep(self._manner.delay_s)
        await super().shutdown(sockets)

    def _end_in_any_case(self) -> None:
        """End the process though something in it does not: a thread that somebody's code blocks is never joined."""
        drain_s = self.config.timeout_graceful_shutdown or 0
        timer = threading.Timer(self._manner.delay_s + drain_s + _LAST_RESORT_S, self._end_now)
        timer.daemon = True
        timer.start()

    def _end_now(self) -> None:
        logs.get(self._part).error("ended: something did not stop in time")
        os._exit(ExitCode.SOFTWARE)


def _spare_the_collector() -> None:
    """Have the garbage collector look at what requests leave behind, and less often at that.

    What has been loaded by now stays for the life of the process. What a request makes is nearly all freed by its
    reference counts, and need not be searched for cycles as often as by Python's own thresholds.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def refuse(what: object, code: ExitCode) -> ExitCode:
    """Tell the user on stderr why a command ends here; returns `code`, its exit status."""
    print(f"muster: {what}", file=sys.stderr)  # noqa: T201  a command's answer
    return code


def interrupt_on_stop_signals() -> None:
    """Have SIGINT and SIGTERM raise KeyboardInterrupt, for the time before a server or supervisor takes them.

    SIGINT too: a shell has it ignored for what it starts in the background, and a script that then sends one
    means it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: "FrameType | None") -> None:
    raise KeyboardInterrupt


def stop_with_parent() -> None:
    """Stop this process when the supervisor that holds its standard input is gone, however it went.

    A pipe's end of file is the one sign of a parent's death, SIGKILL included, that every Unix gives.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass  # nothing is said on it; only its end counts
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()
