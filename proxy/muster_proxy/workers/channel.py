"""What the parent and one worker say to each other over a pair of connected Unix sockets.

    parent -> worker: its orders, once; then a byte and a descriptor for each connection
    worker -> parent: READY, once; then TAKEN for each connection

The parent keeps its copy of a connection until it hears TAKEN: macOS may close a descriptor in transit that its sender
has closed, and what a dead worker has not taken is dealt to another. A worker that reads the end of its channel has
no parent any more, however that went; a parent that reads it has a worker that takes nothing more.
"""

import asyncio
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from muster_observability.logs import LogFormat, LogLevel
from muster_proxy.settings import ProxySettings

MOST_UNTAKEN = 32
"""Connections under way to one worker. A kernel allows a process some hundred descriptors in transit."""

_CONNECTION, _READY, _TAKEN = b"c", b"r", b"t"
_SIZE = struct.Struct("!Q")
_CHUNK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker has to do.

    Attributes:
        index: Which it is, from 0.
        count: How many there are.
        settings: Its share of them.
        directory: Where the workers' metrics are shown to each other.
        log_level: As the parent's.
        log_format: As the parent's.
    """

    index: int
    count: int
    settings: ProxySettings
    directory: Path
    log_level: LogLevel
    log_format: LogFormat


def packed(orders: Orders) -> bytes:
    """The orders as they go through a channel: settings hold keys, which stand in no argument and no file."""
    data = pickle.dumps(orders)
    return _SIZE.pack(len(data)) + data


def read_orders(channel: socket.socket) -> Orders:
    """Wait for the orders.

    Raises:
        EOFError: The parent is gone.
    """
    (size,) = _SIZE.unpack(_read_exactly(channel, _SIZE.size))
    orders: Orders = pickle.loads(_read_exactly(channel, size))  # noqa: S301  from the parent, and nobody else
    return orders


def _read_exactly(channel: socket.socket, size: int) -> bytes:
    read = bytearray()
    while len(read) < size:
        chunk = channel.recv(size - len(read))
        if not chunk:
            raise EOFError
        read += chunk
    return bytes(read)


class Sender:
    """The parent's end of a channel.

    Args:
        channel: The socket; it does not block.

    Attributes:
        was_ready: Whether the worker has ever been ready.
        is_open: Whether it may be sent connections, once it is ready.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._untaken: deque[socket.socket] = deque()
        self.was_ready = False
        self.is_open = True

    @property
    def untaken(self) -> int:
        """Connections under way to the worker."""
        return len(self._untaken)

    @property
    def has_room(self) -> bool:
        """Whether the worker may be sent a connection now."""
        return self.was_ready and self.is_open and len(self._untaken) < MOST_UNTAKEN

    def fileno(self) -> int:
        """For the event loop."""
        return self._channel.fileno()

    def send(self, connection: socket.socket) -> bool:
        """Send a connection and own it; False where the channel takes no more, for good."""
        try:
            socket.send_fds(self._channel, [_CONNECTION], [connection.fileno()])
        except OSError:
            self.is_open = False
            return False
        self._untaken.append(connection)
        return True

    def hear(self) -> None:
        """Read what the worker says; to be called when there is something."""
        try:
            said = self._channel.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:  # it died with connections unread
            said = b""
        if not said:
            self.is_open = False
        self.was_ready = self.was_ready or _READY in said
        for _ in range(said.count(_TAKEN)):
            self._untaken.popleft().close()

    def close(self) -> list[socket.socket]:
        """Close the channel; returns what was not taken."""
        self._channel.close()
        untaken = list(self._untaken)
        self._untaken.clear()
        return untaken


class Intake:
    """The worker's end of a channel.

    Args:
        channel: The socket.

    Attributes:
        is_orphaned: Whether the parent is gone.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._wake = asyncio.Event()
        self._is_stopping = False
        self.is_orphaned = False

    async def run(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Say that the worker is ready, and serve each connection that comes, until told to stop.

        Ends by itself when the parent is gone.
        """
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, self._wake.set)
        try:
            await loop.sock_sendall(self._channel, _READY)
            while (descriptors := await self._next()) is not None:
                await loop.sock_sendall(self._channel, _TAKEN)
                for descriptor in descriptors:
                    await _serve(protocol, descriptor)
        except (BrokenPipeError, ConnectionResetError):
            self.is_orphaned = True
        finally:
            loop.remove_reader(self._channel)
            self._channel.close()

    def stop(self) -> None:
        """Have `run` serve what has been sent and end."""
        self._is_stopping = True
        self._wake.set()

    async def _next(self) -> list[int] | None:
        """The next connection's descriptor; none in the list where this process has too many, and that one is lost."""
        while True:
            self._wake.clear()
            try:
                said, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                if self._is_stopping:
                    return None
                await self._wake.wait()
                continue
            if said:
                return descriptors
            self.is_orphaned = True
            return None


async def _serve(protocol: Callable[[], asyncio.Protocol], descriptor: int) -> None:
    os.set_inheritable(descriptor, False)
    connection = socket.socket(fileno=descriptor)
    try:
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
    except OSError:  # its client has left already
        connection.close()
