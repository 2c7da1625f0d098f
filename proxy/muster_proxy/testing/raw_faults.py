"""Plays for `RawEngine`: the ways in which engines, and what stands between, are known to break an answer."""

from muster_proxy.testing.raw_engine import Drip, End, Endless, Play
from muster_proxy.testing.raw_http import (
    LAST_CHUNK,
    STREAM_HEAD,
    answer,
    chunk,
    completion,
    event,
    head,
    stream,
)

_MIB = 1 << 20

HANGS: Play = (End.HANG,)
"""The request is taken and never answered."""

STALE: Play = (End.RESET,)
"""The connection is closed as the request comes, as by a keep-alive timeout; meant for one that was used before."""

CLOSES: Play = (End.CLOSE,)
"""As `STALE`, with a FIN."""

CUT_HEAD: Play = (b"HTTP/1.1 200 OK\r\ncontent-ty", End.CLOSE)
"""The head ends in its middle."""

NOT_HTTP: Play = (b"\x15\x03\x01\x00\x02\x02\x0a", End.CLOSE)
"""The peer speaks TLS."""

SHORT_BODY: Play = (head(len(completion()) + 10) + completion(), End.CLOSE)
"""The connection ends before the body is as long as the head says."""

LONG_BODY: Play = (head(len(completion())) + completion() + b"more than the head says", End.CLOSE)
"""The body is longer than the head says."""

NO_LENGTH: Play = (head(None) + completion(), End.CLOSE)
"""Well-formed: the body ends where the connection does."""

NOT_JSON: Play = (answer(b"<html>out of order</html>"),)
"""A 200 whose body is none of what its content type says."""

JSON_FOR_STREAM: Play = (answer(b'{"error": {"message": "out of order", "type": "InternalServerError"}}'),)
"""A 200 with an error where a stream was asked for."""

ERROR_EVENT: Play = (
    STREAM_HEAD,
    chunk(event("one")),
    chunk(b'data: {"error": {"message": "out of order", "type": "InternalServerError", "code": 500}}\n\n'),
    chunk(b"data: [DONE]\n\n") + LAST_CHUNK,
)
"""The engine fails in the middle of a stream and says so."""

NOT_JSON_EVENT: Play = (STREAM_HEAD, chunk(event("one")), chunk(b"data: {out of order\n\n"), LAST_CHUNK)
"""An event whose data is no JSON."""

NO_DONE: Play = (STREAM_HEAD, chunk(event("one")), LAST_CHUNK)
"""A stream that ends well as HTTP, with neither a reason nor `[DONE]`."""

BAD_CHUNK: Play = (STREAM_HEAD, chunk(event("one")), b"what\r\n", End.CLOSE)
"""A chunk whose size is no number."""

ENDLESS_INTERIM: Play = (Endless(b"HTTP/1.1 102 Processing\r\n\r\n"),)
"""Interim answers without an end."""

ENDLESS_HEAD: Play = (b"HTTP/1.1 200 OK\r\n", Endless(b"x-more: " + b"y" * 1000 + b"\r\n"))
"""Headers without an end."""

ENDLESS_BODY: Play = (head(None), Endless(b" " * 65_536))
"""A body without an end."""

ENDLESS_EVENT: Play = (STREAM_HEAD, chunk(b"data: "), Endless(chunk(b"x" * 65_536)))
"""An event without an end."""

ENDLESS_STREAM: Play = (STREAM_HEAD, Endless(chunk(event("on and on"))))
"""A stream without an end, as fast as it is read."""

HUGE_EVENT: Play = (
    STREAM_HEAD,
    chunk(b'data: {"choices": [{"index": 0, "delta": {"content": "'),
    *(chunk(b"x" * _MIB),) * 50,
    chunk(b'"}}]}\n\n'),
    chunk(b"data: [DONE]\n\n") + LAST_CHUNK,
)
"""A stream with one event of 50 MiB."""


def dies_after(events: int, end: End = End.RESET) -> Play:
    """A stream whose connection ends after its head and so many events."""
    return (STREAM_HEAD, *(chunk(event(f"{number} ")) for number in range(events)), end)


def drips(pause_s: float) -> Play:
    """A good stream of three events, byte by byte with a pause after each."""
    return (Drip(b"".join(stream("one", " two", " three")), pause_s),)
