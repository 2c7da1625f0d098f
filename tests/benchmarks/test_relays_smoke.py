"""The relays pass on what the engine says; how fast any of them is, is not asked here."""

import asyncio
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.benchmarks.peers import load
from tests.benchmarks.peers.comparison import Round, Row
from tests.benchmarks.peers.launch import Cores, paced_engine
from tests.benchmarks.peers.load import Result, Spread, Work
from tests.benchmarks.peers.pace import Fault, Pace
from tests.benchmarks.peers.proxies import DIRECT
from tests.benchmarks.peers.start import started
from tests.benchmarks.relays.app import Relay
from tests.benchmarks.relays.clients import opened
from tests.benchmarks.relays.clients.by_ours import begun
from tests.benchmarks.relays.combinations import ALL, BASIS, CLIENTS, SERVERS, Combination
from tests.benchmarks.relays.drawing import drawn
from tests.benchmarks.relays.environment import REQUIREMENTS, interpreter, place_of

if TYPE_CHECKING:
    from starlette.types import Message, Scope

INSTALLED_CLIENTS = ("ours", "aiohttp", "httpx2")
"""pyreqwest is no dependency of the project; it runs in the relays' own environment alone."""

HTTP: "Scope" = {"type": "http"}
LIFESPAN: "Scope" = {"type": "lifespan"}


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """A paced engine's root URL."""
    with paced_engine(None) as url:
        yield url


class Heard:
    """An ASGI server's end of one request: its `receive` and its `send`.

    Args:
        body: Of the request; it comes in two pieces.
    """

    def __init__(self, body: bytes) -> None:
        half = len(body) // 2
        self._left: list[Message] = [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
        self.messages: list[Message] = []
        self.more = asyncio.Event()

    async def receive(self) -> "Message":
        """The next piece of the request."""
        return self._left.pop(0)

    async def send(self, message: "Message") -> None:
        """Keep a piece of the answer."""
        self.messages.append(message)
        self.more.set()

    @property
    def body(self) -> bytes:
        """The answer's body so far."""
        return b"".join(message.get("body", b"") for message in self.messages)


@pytest.mark.parametrize("server", ["ours", "uvicorn"])
def test_a_relay_starts_and_answers_everything(engine: str, server: str, tmp_path: Path) -> None:
    """Our server and uvicorn's own, each with our client, relay whole answers and streams to several clients."""
    relay = Combination(server, "ours").relay(engine, sys.executable)
    with started(relay, engine, tmp_path, Cores()) as up:
        for pace in (Pace(tokens=3), Pace(tokens=8, is_stream=True)):
            result = asyncio.run(load.run(Work(up.url, pace, clients=2, requests=6)))
            assert (result.good, result.bad) == (6, {})


@pytest.mark.parametrize("name", INSTALLED_CLIENTS)
async def test_a_client_passes_on_status_headers_and_every_byte(engine: str, name: str) -> None:
    """A whole answer keeps its length, a stream has all its events, and an error stays one."""
    whole = await _answer(engine, name, Pace(tokens=3))
    stream = await _answer(engine, name, Pace(tokens=3, is_stream=True))
    error = await _answer(engine, name, Pace(fault=Fault.ERROR))
    assert whole.messages[0]["status"] == 200
    assert dict(whole.messages[0]["headers"])[b"content-length"] == b"%d" % len(whole.body)
    assert orjson.loads(whole.body)["usage"]["completion_tokens"] == 3
    assert b"content-length" not in dict(stream.messages[0]["headers"])
    assert dict(stream.messages[0]["headers"])[b"content-type"].startswith(b"text/event-stream")
    assert stream.body.count(b" token") == 3
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert error.messages[0]["status"] == 500
    for heard in (whole, stream, error):
        assert [message.get("more_body") for message in heard.messages[-2:]] == [True, False]


async def _answer(engine: str, name: str, pace: Pace) -> Heard:
    heard = Heard(pace.body())
    async with opened(name, engine) as client:
        await client.relay(pace.body(), heard.send)
    return heard


@pytest.mark.parametrize("name", INSTALLED_CLIENTS)
async def test_a_client_holds_nothing_of_a_stream_back(engine: str, name: str) -> None:
    """What the engine has sent arrives while the engine is silent: its stream has no end to wait for."""
    pace = Pace(tokens=9, is_stream=True, fault=Fault.STALL, fault_at=3)
    heard = Heard(pace.body())
    async with opened(name, engine) as client:
        relaying = asyncio.ensure_future(client.relay(pace.body(), heard.send))
        while heard.body.count(b" token") < 3:
            heard.more.clear()
            await heard.more.wait()
        relaying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await relaying


async def test_the_application_reads_the_whole_body_and_closes_its_client(engine: str) -> None:
    """A request that comes in two pieces is relayed whole, between the lifespan's beginning and its end."""
    relay = Relay(engine, "ours")
    stopping = asyncio.Event()
    told: asyncio.Queue[Message] = asyncio.Queue()
    begins = True

    async def receive() -> "Message":
        nonlocal begins
        if not begins:
            await stopping.wait()
        begins = False
        return {"type": "lifespan.startup"}

    living = asyncio.ensure_future(relay(LIFESPAN, receive, told.put))
    assert await told.get() == {"type": "lifespan.startup.complete"}
    heard = Heard(Pace(tokens=2).body())
    await relay(HTTP, heard.receive, heard.send)
    assert orjson.loads(heard.body)["usage"]["completion_tokens"] == 2
    stopping.set()
    await living
    assert await told.get() == {"type": "lifespan.shutdown.complete"}


async def test_what_has_to_wait_is_awaited_to_its_end() -> None:
    """What waits for nothing is over at once; of what waits, the rest is done when it is awaited."""
    drained = asyncio.get_running_loop().create_future()
    done: list[str] = []

    async def send(waits: Awaitable[None] | None) -> None:
        if waits is not None:
            await waits
            await asyncio.sleep(0)
        done.append("sent")

    assert begun(send(None)) is None
    assert done == ["sent"]
    rest = begun(send(drained))
    assert rest is not None
    assert done == ["sent"]
    drained.set_result(None)
    await rest
    assert done == ["sent", "sent"]


def test_an_environment_that_was_made_serves_for_its_versions_alone(tmp_path: Path) -> None:
    """It is used as it is, and found by what it holds: others' versions are another environment."""
    said: list[str] = []
    made = place_of(REQUIREMENTS.read_bytes(), tmp_path)
    made.mkdir()
    (made / ".installed").touch()
    assert interpreter(said.append, tmp_path) == str(made / "bin/python")
    assert said == []
    assert place_of(b"aiohttp==1.0", tmp_path) != made


def test_each_server_and_each_client_has_its_row() -> None:
    """All servers with our client, uvicorn with all clients, none twice."""
    assert len(set(ALL)) == len(ALL) == 7
    assert {each.server for each in ALL if each.client == "ours"} == set(SERVERS)
    assert {each.client for each in ALL if each.server == "uvicorn"} == set(CLIENTS)
    assert Combination("granian", "ours").name in {each.name for each in ALL}


def test_the_table_shows_ratios_to_our_own_and_nothing_that_was_not_measured() -> None:
    """CPU stands beside that of our server and client; the columns of a slow engine's latency are left out."""
    table = drawn([_row(DIRECT, None), _row(BASIS, 100.0), _row("uvicorn+aiohttp", 250.0)])
    assert [str(column.header) for column in table.columns][1:] == [
        "CPU us/request",
        "requests/s",
        "CPU ms/stream",
        "worst gap p99 ms",
        "start s",
        "idle MiB",
    ]
    assert list(table.columns[1].cells) == ["-", "100 (1.00 x)", "250 (2.50 x)"]


def _row(name: str, cpu_us: float | None) -> Row:
    result = Result(10, latency_ms=Spread(1.0, 1.0), cpu_us=cpu_us)
    return Row(name, [Round(1.0, None, result, result, Result(0))])
