"""An engine whose answers are bytes: what a broken one sends, in pieces, at a pace, well-formed or not.

    async with RawEngine([(STREAM_HEAD, chunk(event("one")), End.RESET)]) as engine:
        ...  # point a proxy at engine.url; its first POST gets a head, one event and a reset

`GET /health`, `/v1/models` and `/metrics` are answered properly all the while. `raw_http` has the bytes of good
answers, `raw_faults` ready plays of bad ones.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Self, TypeAlias

from muster_observability import server
from muster_proxy.testing.raw_http import answer, completion

_METRICS = b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_READ_BYTES = 65_536


class End(Enum):
    """A step after which a connection is of no more use."""

    CLOSE = "close"
    """Send a FIN: the answer ends here, whether it is complete or not."""
    RESET = "reset"
    """Send an RST, as a killed process's machine does."""
    HANG = "hang"
    """Say nothing more until the peer leaves."""


@dataclass(frozen=True)
class Endless:
    """A step that sends the same piece again and again until the peer leaves.

    Attributes:
        piece: What is sent.
        pause_s: Seconds between two of them.
    """

    piece: bytes
    pause_s: float = 0.0


@dataclass(frozen=True)
class Drip:
    """A step that sends bytes one by one.

    Attributes:
        content: All of them.
        pause_s: Seconds after each.
    """

    content: bytes
    pause_s: float


Step: TypeAlias = bytes | asyncio.Event | Drip | Endless | End
"""Bytes are sent, an event is waited for."""

Play: TypeAlias = Sequence[Step]
"""What is done with one POST. A play that does not end the connection leaves it open for the next request."""


_GOOD: Play = (answer(completion()),)


@dataclass(frozen=True)
class RawRequest:
    """A POST as it came.

    Attributes:
        head: The request line and the headers.
        body: What the content-length says; empty for a chunked one.
        connection: The number of the connection that it came over, from 1.
    """

    head: bytes
    body: bytes
    connection: int


class _Incoming:
    """What a peer sends; nothing of it is lost when the reading is cancelled."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._kept = bytearray()

    async def head(self) -> bytes:
        """The next request's head, its empty line included."""
        while b"\r\n\r\n" not in self._kept:
            await self._more()
        return self._taken(self._kept.index(b"\r\n\r\n") + 4)

    async def exactly(self, length: int) -> bytes:
        """So many bytes."""
        while len(self._kept) < length:
            await self._more()
        return self._taken(length)

    async def end(self) -> None:
        """Return when the peer has left; what it sends before is kept."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self._more()

    async def _more(self) -> None:
        content = await self._reader.read(_READ_BYTES)
        if not content:
            raise ConnectionResetError("the peer has left")
        self._kept += content

    def _taken(self, length: int) -> bytes:
        taken = bytes(self._kept[:length])
        del self._kept[:length]
        return taken


class RawEngine:
    """Plays a script on 127.0.0.1, for as long as its `async with` block runs.

    Args:
        script: A play for each POST, in the order in which they come; POSTs beyond it get a good answer.
        model: The model that `/v1/models` lists.

    Attributes:
        requests: The POSTs that came.
        arrived: Released once for each POST.
        left: Released once for each connection that the peer closed while its POST was played.
        connections: How many connections have been made.
        open: How many of them are open now.
        written_bytes: What has been handed to the sockets for POSTs; an endless answer that nobody reads stops here.
    """

    def __init__(self, script: Iterable[Play] = (), model: str = "fake-model") -> None:
        self.requests: list[RawRequest] = []
        self.arrived = asyncio.Semaphore(0)
        self.left = asyncio.Semaphore(0)
        self.connections = 0
        self.open = 0
        self.written_bytes = 0
        self._script = deque(script)
        self._models = json.dumps({"object": "list", "data": [{"id": model, "object": "model"}]}).encode()
        self._listener = server.bind(0, "port")
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Its root URL."""
        return f"http://{server.LOOPBACK}:{self._listener.getsockname()[1]}"

    def script(self, *plays: Play) -> None:
        """Give the next POSTs these plays, after those it has."""
        self._script.extend(plays)

    async def close_idle(self) -> int:
        """Close the connections that wait for a request, as a keep-alive timeout does; how many they were."""
        idle = list(self._idle)
        for writer in idle:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        return len(idle)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, sock=self._listener)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for task in tasks:
            await task

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  start_server makes one, the type checker cannot know
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            await self._converse(_Incoming(reader), writer, self.connections)
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()  # the peer has left, or the block has ended
        finally:
            self._tasks.discard(task)
            self.open -= 1
            writer.close()

    async def _converse(self, incoming: "_Incoming", writer: asyncio.StreamWriter, connection: int) -> None:
        while not writer.is_closing():
            with self._waiting(writer):
                head = await incoming.head()
            if head.startswith(b"GET "):
                writer.write(self._told(head))
                continue
            body = await incoming.exactly(_content_length(head))
            self.requests.append(RawRequest(head, body, connection))
            self.arrived.release()
            await self._perform(self._script.popleft() if self._script else _GOOD, incoming, writer)

    @contextlib.contextmanager
    def _waiting(self, writer: asyncio.StreamWriter) -> Generator[None]:
        self._idle.add(writer)
        try:
            yield
        finally:
            self._idle.discard(writer)

    def _told(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1]
        if path == b"/v1/models":
            return answer(self._models)
        if path == b"/metrics":
            return answer(_METRICS, content_type="text/plain; version=1.0.0")
        return answer(b"", status=200 if path == b"/health" else 404)

    async def _perform(self, play: Play, incoming: "_Incoming", writer: asyncio.StreamWriter) -> None:
        """Go through a play, and stop where the peer leaves."""
        playing = asyncio.ensure_future(self._steps(play, writer))
        leaving = asyncio.ensure_future(incoming.end())
        try:
            await asyncio.wait({playing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not playing.done() or isinstance(playing.exception(), ConnectionError):
                self.left.release()
                writer.transport.abort()
        finally:
            await _stop(leaving)
            await _stop(playing)

    async def _steps(self, play: Play, writer: asyncio.StreamWriter) -> None:
        for step in play:
            if isinstance(step, bytes):
                await self._send(writer, step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, End):
                await _end(writer, step)
            else:
                await self._go_on(writer, step)

    async def _go_on(self, writer: asyncio.StreamWriter, step: Drip | Endless) -> None:
        if isinstance(step, Drip):
            for place in range(len(step.content)):
                await self._send(writer, step.content[place : place + 1])
                await asyncio.sleep(step.pause_s)
            return
        while True:
            await self._send(writer, step.piece)
            await asyncio.sleep(step.pause_s)

    async def _send(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        self.written_bytes += len(content)
        writer.write(content)
        await writer.drain()


def _content_length(head: bytes) -> int:
    lines = head.lower().split(b"\r\n")
    lengths = [line.partition(b":")[2] for line in lines if line.startswith(b"content-length:")]
    return int(lengths[0]) if lengths else 0


async def _stop(task: asyncio.Future[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, ConnectionError):
        await task


async def _end(writer: asyncio.StreamWriter, step: End) -> None:
    if step is End.HANG:
        await asyncio.Event().wait()
    if step is End.RESET:
        plain: socket.socket = writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()
    else:
        writer.close()
