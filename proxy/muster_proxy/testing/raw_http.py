"""Bytes of HTTP/1.1 answers, for a test to send whole or in part."""

import json
from http import HTTPStatus

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
"""The head of an event stream."""

LAST_CHUNK = b"0\r\n\r\n"
"""The end of a chunked body."""


def head(length: int | None, *, status: int = 200, content_type: str = "application/json") -> bytes:
    """An answer's head; without a length the body ends where the connection does."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", f"content-type: {content_type}"]
    lines += [] if length is None else [f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(body: bytes, *, status: int = 200, content_type: str = "application/json") -> bytes:
    """A whole answer."""
    return head(len(body), status=status, content_type=content_type) + body


def chunk(content: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(content), content)


def event(text: str, finish_reason: str | None = None) -> bytes:
    """An event of a chat completion's stream."""
    choice = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": finish_reason}
    top = {"id": "chatcmpl-raw", "object": "chat.completion.chunk", "created": 0, "model": "fake-model"}
    return b"data: " + json.dumps({**top, "choices": [choice]}).encode() + b"\n\n"


def completion(text: str = "Hello.") -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    top = {"id": "chatcmpl-raw", "object": "chat.completion", "created": 0, "model": "fake-model"}
    return json.dumps({**top, "choices": [choice], "usage": usage}).encode()


def stream(*texts: str) -> list[bytes]:
    """A good stream: its head, an event for each text, and its end, to be sent one after the other."""
    events = [event(text, "stop" if number == len(texts) else None) for number, text in enumerate(texts, 1)]
    return [STREAM_HEAD, *map(chunk, events), chunk(b"data: [DONE]\n\n") + LAST_CHUNK]
