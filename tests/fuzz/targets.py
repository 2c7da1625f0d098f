"""What is fed, and what must hold of it. Each target is made by a function, which imports what it feeds."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from uvicorn import Config
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope, Send

Target: TypeAlias = Callable[[bytes], None]

_REFUSED = range(400, 500)


def body() -> Target:
    """The body of a request: it is read, or refused in words that can be sent; and can be written again."""
    from muster_proxy import wire  # noqa: PLC0415  instrumented when imported
    from muster_proxy.failures import RequestError  # noqa: PLC0415

    kinds = list(wire.Kind)

    def feed(data: bytes) -> None:
        if not data:
            return
        try:
            call = wire.read(kinds[data[0] % len(kinds)], data[1:])
            wire.refuse_remote_media(call)
            wire.refuse_media(call)
            changes = call.usage_changes() | {"cache_salt": "salt", "model": "other"}
            sent = orjson.loads(wire.rewritten(call, changes, wire.names_to_strip(call)))
        except RequestError as error:
            _check_error(error.http_status in _REFUSED, error.body())
            return
        assert (sent["model"], sent["cache_salt"]) == ("other", "salt")
        assert call.model
        assert call.choices >= 0
        assert (call.max_output_tokens or 0) >= 0
        list(call.media())

    return feed


def _check_error(is_right: bool, told: bytes) -> None:
    assert is_right, told
    assert set(orjson.loads(told)["error"]) == {"message", "type", "param", "code"}


def events() -> Target:
    """An engine's stream: whole events pass as they are, however it is cut, and are read or passed over."""
    from muster_proxy import sse  # noqa: PLC0415
    from muster_proxy.dialects import DIALECTS, Dialect  # noqa: PLC0415
    from muster_proxy.failures import Reason, RequestError  # noqa: PLC0415

    dialects = list(dict.fromkeys(DIALECTS.values()))

    def feed(data: bytes) -> None:
        if not data:
            return
        dialect = dialects[data[0] % len(dialects)]
        borders, passed = sse.EventBorders(), b""
        for piece in _pieces(data[1:]):
            run = borders.feed(piece)
            passed += run
            if run:
                read(dialect, run)
        assert passed + borders.held == data[1:]
        try:
            dialect.usage_of(data[1:])
        except RequestError as error:
            _check_error(
                error.reason in (Reason.UPSTREAM_ERROR, Reason.UPSTREAM_PROTOCOL_ERROR), error.body()
            )

    def read(dialect: Dialect, run: bytes) -> None:
        events = b"".join(sse.events_of(run))
        assert run.startswith(events)
        assert not run[len(events) :].strip(b"\r\n")
        if dialect.is_failure(run):
            assert dialect.before_failure(run) != run
        assert len(dialect.without_usage(run)) <= len(run)
        sse.is_understood(run)
        dialect.usage_in(run)
        dialect.is_end(run)
        dialect.is_final(run)

    return feed


def head() -> Target:
    """What comes on a connection: it costs no fault of ours, and is answered no oftener than it asks."""
    from muster_proxy.protocol import HttpServer, Limits  # noqa: PLC0415

    loop = asyncio.new_event_loop()
    config = Config(_echo, log_config=None)
    config.loaded_app = _echo
    server = HttpServer(Limits(head_bytes=512, headers=8, pipelined=4))

    async def talk(data: bytes) -> bytes:
        state, transport = ServerState(), _Nowhere()
        connection = server(config, state, {}, loop)
        connection.connection_made(transport)
        for piece in _pieces(data):
            if not transport.is_closing():
                connection.data_received(piece)
                await asyncio.sleep(0)
        for _ in range(8):  # as many turns as its answers take
            await asyncio.sleep(0)
        connection.connection_lost(None)
        while state.tasks:
            await asyncio.sleep(0)
        return transport.written

    def feed(data: bytes) -> None:
        written = loop.run_until_complete(talk(data))
        assert written.count(b"HTTP/1.1 ") <= data.count(b"\n") + 1
        assert b"HTTP/1.1 5" not in written

    return feed


def _pieces(data: bytes) -> list[bytes]:
    """The data, cut at places that depend on it alone."""
    source = random.Random(data)  # noqa: S311  no secret
    places = sorted(source.randrange(len(data) + 1) for _ in range(source.randrange(4)))
    return [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]


async def _echo(scope: "Scope", receive: "Receive", send: "Send") -> None:
    """Read all, and answer with how much it was."""
    assert scope["path"].startswith("/")
    size, is_whole = 0, False
    while not is_whole:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message["body"])
        is_whole = not message["more_body"]
    told = b"%d" % size
    headers = [(b"content-length", b"%d" % len(told))]
    for answer in (
        {"type": "http.response.start", "status": 200, "headers": headers},
        {"type": "http.response.body", "body": told},
    ):
        sent: Awaitable[None] = send(answer)
        await sent


class _Nowhere(asyncio.Transport):
    """A connection's other side, which takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self._is_closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        self._is_closing = True

    def abort(self) -> None:
        self._is_closing = True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


TARGETS: dict[str, Callable[[], Target]] = {"body": body, "events": events, "head": head}

_BODIES = (
    (
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url",'
        b'"image_url":{"url":"data:image/png;base64,AA"}}]}],"stream":true,"stream_options":{"include_usage":false},'
        b'"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"tool_choice":"auto","n":2,"max_tokens":9}'
    ),
    b'{"model":"m","messages":[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]],"stop":["x"]}',
    b'{"model":"m","prompt":["a",[1,2]],"logprobs":1,"temperature":0.5,"logit_bias":{"1":-1},"stream":true}',
    b'{"model":"m","input":["a","b"],"encoding_format":"base64","dimensions":8}',
    (
        b'{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]}],'
        b'"max_output_tokens":9,"service_tier":"flex","prompt_cache_key":"k"}'
    ),
    (
        b'{"model":"m","max_tokens":9,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64",'
        b'"data":"AA"}}]}],"system":"s","metadata":{"user_id":"u"}}'
    ),
    b'{"model":"m","prompt":"a","return_token_strs":true}',
    b'{"model":"m","tokens":[1,2,3]}',
    b'{"model":"m","query":"a","documents":["b",{"content":[{"type":"text","text":"c"}]}],"top_n":1}',
    b'{"model":"m","text_1":"a","text_2":["b","c"]}',
)
_USAGE = b'"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}'
_STREAMS = (
    b'data: {"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: {"choices":[],%b}\n\n'
    b"data: [DONE]\n\n" % _USAGE,
    b'data: {"error":{"message":"m"}}\r\n\r\n: comment\r\r\ndata: [DONE]\r\n\r\n',
    (
        b'event: response.completed\ndata: {"response":{"status":"completed","output":[{"type":"message"}],'
        b'"usage":{"input_tokens":1,"output_tokens":2}}}\n\n'
    ),
    (
        b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":1}}}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":1}}'
        b'\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n'
    ),
    b'{"choices":[{"message":{"content":"a"}}],%b}' % _USAGE,
)
_HEADS = (
    b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" * 2,
    b"POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\nabcGET / HTTP/1.0\r\n\r\n",
    b"POST /%2f HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nt: u\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
)

SEEDS: dict[str, list[bytes]] = {
    # The first byte chooses the route, or the API.
    "body": [bytes([number]) + each for number, each in enumerate(_BODIES)],
    "events": [bytes([number]) + each for number in range(4) for each in _STREAMS],
    "head": list(_HEADS),
}
"""Good ones, to begin with."""
