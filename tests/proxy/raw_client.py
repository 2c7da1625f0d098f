"""A client that sends what bytes a test likes, and reads answers strictly."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Answer:
    """An answer as it came.

    Attributes:
        status: HTTP's.
        headers: By lower-case name; a name that came twice has both values, with a comma between.
        body: Without its framing.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""

    @property
    def error(self) -> dict[str, Any]:
        """The error in it, which must have OpenAI's shape."""
        assert self.headers["content-type"] == "application/json"
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


class RawClient:
    """One connection.

    Args:
        reader: Of the connection.
        writer: Of the connection.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    @contextlib.asynccontextmanager
    async def connected(cls, port: int, receive_buffer_bytes: int | None = None) -> AsyncGenerator[Self]:
        """A connection for as long as the block runs; with a small receive buffer it keeps little that is unread."""
        connecting = socket.socket()
        if receive_buffer_bytes is not None:
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        connecting.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connecting, ("127.0.0.1", port))
        except OSError:
            connecting.close()
            raise
        limit = 2**16 if receive_buffer_bytes is None else receive_buffer_bytes
        reader, writer = await asyncio.open_connection(sock=connecting, limit=limit)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def send(self, content: bytes) -> None:
        """Send, as far as buffers go."""
        self._writer.write(content)

    async def drained(self) -> None:
        """Wait until most of it has been taken."""
        await self._writer.drain()

    def end(self) -> None:
        """Send no more."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Leave as a process that is killed."""
        opened = self._writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._writer.transport.abort()

    async def read_until(self, end: bytes) -> bytes:
        """What comes, up to `end` and with it."""
        return await self._reader.readuntil(end)

    async def answer(self, *, is_bodiless: bool = False) -> Answer:
        """The next answer.

        Args:
            is_bodiless: Whether it has none whatever its head says, as one to HEAD.

        Raises:
            EOFError: The connection ended before its end.
        """
        line, *lines = (await self.read_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        headers: dict[str, str] = {}
        for each in lines:
            name, _, value = each.partition(": ")
            headers[name.lower()] = f"{headers[name.lower()]}, {value}" if name.lower() in headers else value
        version, status, *_ = line.split(" ")
        assert version == "HTTP/1.1"
        body = b"" if is_bodiless else await self._body(headers)
        return Answer(int(status), headers, body)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if "content-length" in headers:
            return await self._reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.read()
        body = b""
        while chunk := await self.chunk():
            body += chunk
        return body

    async def chunk(self) -> bytes:
        """The next chunk of an answer; empty at its end."""
        size = int(await self.read_until(b"\r\n"), 16)
        framed = await self._reader.readexactly(size + 2)
        assert framed.endswith(b"\r\n")
        return framed[:-2]

    async def rest(self) -> bytes:
        """All that comes before the server closes, well or badly."""
        rest = b""
        with contextlib.suppress(ConnectionError):
            while piece := await self._reader.read(65_536):
                rest += piece
        return rest


async def ask(port: int, content: bytes, *, is_bodiless: bool = False) -> Answer:
    """The first answer to what is sent over a connection of its own."""
    async with RawClient.connected(port) as client:
        client.send(content)
        return await client.answer(is_bodiless=is_bodiless)


def request(
    method: str = "GET", target: str = "/", *headers: str, body: bytes | None = None, version: str = "1.1"
) -> bytes:
    """A request's bytes; one with a body has its length."""
    lines = [f"{method} {target} HTTP/{version}", "host: h", *headers]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
