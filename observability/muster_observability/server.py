"""How a Muster server process starts, says that it is ready, and stops.

Every server binds the loopback interface only: there are no keys yet, and a server without keys is never
open to a network.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Generator
from enum import IntEnum
from typing import TYPE_CHECKING

import uvicorn

from muster_observability import logs

if TYPE_CHECKING:
    from types import FrameType

    from starlette.types import ASGIApp

LOOPBACK = "127.0.0.1"

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

    def __init__(self, port: int, setting: str) -> None:
        self.port = port
        self.setting = setting
        super().__init__(
            f"port {port} is taken: another program listens on {LOOPBACK}:{port}. "
            f"Stop that program, or choose another port with {setting}."
        )


def bind(port: int, setting: str) -> socket.socket:
    """A loopback socket bound to `port`; 0 lets the system choose a free one.

    Args:
        port: The TCP port.
        setting: How the user chooses another, for the error: `--port or MUSTER_PROXY_PORT`.

    Raises:
        PortTakenError: Another program has the port.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Lets a restarted server have its port while old connections are in TIME_WAIT.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(port, setting) from error
        raise
    return listener


def serve(app: "ASGIApp", listener: socket.socket, *, part: str, drain_s: float) -> ExitCode:
    """Serve `app` on a bound socket until SIGINT or SIGTERM, then let requests in flight finish.

    Args:
        app: The application; its lifespan runs before `listening` is logged.
        listener: From `bind`.
        part: The name in the logs: `proxy` or `agent`.
        drain_s: Seconds that requests in flight have to finish after the signal.
    """
    if os.environ.get(SUPERVISED_VARIABLE) == "1":
        stop_with_parent()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(drain_s)),
    )
    server = _AnnouncingServer(config, part, listener)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _absorb)
    server.run(sockets=[listener])
    return ExitCode.OK if server.started else ExitCode.FAILED


def _absorb(_number: int, _frame: "FrameType | None") -> None:
    """Take the signal that uvicorn repeats once it has stopped: it was heard, and the exit is a clean one."""


@contextlib.asynccontextmanager
async def serving(app: "ASGIApp", listener: socket.socket) -> AsyncGenerator[uvicorn.Server]:
    """Serve `app` in this event loop for as long as the block runs, its signals left alone.

    For tests and for programs that hold a server beside other work. What is still going on at the end of the
    block is broken off.
    """
    server = _GuestServer(uvicorn.Config(app, log_config=None, access_log=False))
    async with asyncio.TaskGroup() as group:
        group.create_task(server.serve([listener]))
        await server.is_up.wait()
        try:
            yield server
        finally:
            server.stop.set()


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
    def __init__(self, config: uvicorn.Config, part: str, listener: socket.socket) -> None:
        super().__init__(config)
        self._part = part
        self._port: int = listener.getsockname()[1]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            logs.get(self._part).info("listening", url=f"http://{LOOPBACK}:{self._port}")


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
