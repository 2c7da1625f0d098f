"""pyreqwest: one client, whose pool has no limit by default, the answer read in the chunks that come.

It is no dependency of Muster, so its types, as far as they are used, are written down here.
"""

import contextlib
import importlib
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from tests.benchmarks.relays.clients.answering import END, PATH, REQUEST_HEADERS, head, piece

if TYPE_CHECKING:
    from starlette.types import Send

NOTHING = 0
"""By default an answer is held until 64 KiB of it are there, or its end, which makes a stream come all at once."""


class _Bytes(Protocol):
    def to_bytes(self) -> bytes: ...


class _Reader(Protocol):
    async def read_chunk(self) -> _Bytes | None: ...


class _Response(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def body_reader(self) -> _Reader: ...
    def get_header(self, key: str) -> str | None: ...


class _Request(Protocol):
    def headers(self, headers: Mapping[str, str]) -> "_Request": ...
    def body_bytes(self, body: bytes) -> "_Request": ...
    def streamed_read_buffer_limit(self, value: int) -> "_Request": ...
    def build_streamed(self) -> AbstractAsyncContextManager[_Response]: ...


class _Client(Protocol):
    def post(self, url: str) -> _Request: ...


class _Builder(Protocol):
    def gzip(self, enable: bool) -> "_Builder": ...
    def brotli(self, enable: bool) -> "_Builder": ...
    def zstd(self, enable: bool) -> "_Builder": ...
    def deflate(self, enable: bool) -> "_Builder": ...
    def follow_redirects(self, enable: bool) -> "_Builder": ...
    def no_proxy(self) -> "_Builder": ...
    def connect_timeout(self, timeout: timedelta) -> "_Builder": ...
    def read_timeout(self, timeout: timedelta) -> "_Builder": ...
    def build(self) -> AbstractAsyncContextManager[_Client]: ...


class Pyreqwest:
    """A relay's client.

    Args:
        client: pyreqwest's.
        url: Of the call.
    """

    def __init__(self, client: _Client, url: str) -> None:
        self._client = client
        self._url = url

    async def relay(self, body: bytes, send: "Send") -> None:
        """Post a body to the engine, and send its answer."""
        request = self._client.post(self._url).headers(REQUEST_HEADERS).body_bytes(body)
        async with request.streamed_read_buffer_limit(NOTHING).build_streamed() as answer:
            content_type = answer.get_header("content-type") or ""
            await send(head(answer.status, content_type, answer.get_header("content-length")))
            reader = answer.body_reader
            while (part := await reader.read_chunk()) is not None:
                await send(piece(part.to_bytes()))
            await send(END)


@contextlib.asynccontextmanager
async def opened(engine: str) -> AsyncGenerator[Pyreqwest]:
    """The client, for the length of the block."""
    builder: _Builder = importlib.import_module("pyreqwest.client").ClientBuilder()
    builder = builder.gzip(False).brotli(False).zstd(False).deflate(False).follow_redirects(False).no_proxy()
    builder = builder.connect_timeout(timedelta(seconds=2)).read_timeout(timedelta(seconds=120))
    async with builder.build() as client:
        yield Pyreqwest(client, engine + PATH)
