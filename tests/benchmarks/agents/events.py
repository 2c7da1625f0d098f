"""Server-sent events as the agent service writes them, and when they came."""

import time
from collections.abc import AsyncGenerator, AsyncIterable
from dataclasses import dataclass

_BETWEEN = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        number: Its identifier; 0 where it has none.
        name: What it is.
        data: JSON.
        heard_ns: When it came, on the monotonic clock.
    """

    number: int
    name: str
    data: bytes
    heard_ns: int

    @property
    def told(self) -> tuple[int, str, bytes]:
        """What it says, whenever it came."""
        return self.number, self.name, self.data


async def events(body: AsyncIterable[bytes]) -> AsyncGenerator[Event]:
    """The events of a body that comes in pieces; comments are left out."""
    buffer = b""
    async for piece in body:
        heard_ns = time.monotonic_ns()
        *whole, buffer = (buffer + piece).split(_BETWEEN)
        for text in whole:
            fields = dict(line.split(b": ", 1) for line in text.split(b"\r\n") if not line.startswith(b":"))
            if fields:
                number = int(fields.get(b"id", b"0"))
                yield Event(number, fields[b"event"].decode(), fields[b"data"], heard_ns)
