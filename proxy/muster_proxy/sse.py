"""Server-sent events without IO: bytes in, whole events out, on any chunking and with any line ending."""

from collections.abc import Iterator

DONE = b"data: [DONE]\n\n"

# The largest event that is held until its end comes. An event is a few hundred bytes; a whole answer with
# log probabilities in one event stays far below this.
MAX_EVENT_BYTES = 4 * 1024 * 1024

_BORDERS = (b"\n\n", b"\n\r\n", b"\r\r")


class EventTooLargeError(Exception):
    """An event grew past `MAX_EVENT_BYTES` without an end."""


class EventBorders:
    """Passes on whole events and holds back the beginning of one whose end has not come."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, chunk: bytes) -> bytes:
        """The bytes, up to the last event border, that can be passed on now.

        Raises:
            EventTooLargeError: The event that has begun is larger than any event may be.
        """
        if not self._held and chunk.endswith(b"\n\n"):
            return chunk
        data = self._held + chunk
        end = max(_end_of_last(data, border) for border in _BORDERS)
        self._held = data[end:]
        if len(self._held) > MAX_EVENT_BYTES:
            raise EventTooLargeError
        return data[:end]

    @property
    def held(self) -> bytes:
        """The beginning of an event whose end has not come."""
        return self._held


def _end_of_last(data: bytes, border: bytes) -> int:
    at = data.rfind(border)
    return 0 if at < 0 else at + len(border)


def data_of(events: bytes) -> Iterator[bytes]:
    """The data of each event in a run of whole events; comments and other fields are passed over."""
    lines: list[bytes] = []
    for line in events.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        if line.startswith(b"data:"):
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            yield b"\n".join(lines)
            lines = []
