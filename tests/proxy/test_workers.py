"""Several processes behind one port: who gets what, what a scrape sees, and how each of them ends."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics import exposition as open_metrics
from prometheus_client.openmetrics import parser as open_metrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from muster_observability import server
from muster_observability.server import ExitCode
from muster_proxy.settings import ConfigurationError, ProxySettings, UpstreamSettings
from muster_proxy.testing import FakeVllm, Reply
from muster_proxy.workers import shares
from muster_proxy.workers.channel import MOST_UNTAKEN, Orders, Sender
from muster_proxy.workers.dealer import Dealer
from muster_proxy.workers.merged_metrics import merged
from muster_proxy.workers.patience import Patience
from muster_proxy.workers.pool import Pool
from tests.proxy.asking import open_stream, post
from tests.stacks import until

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@dataclass
class Pooled:
    """A running `muster proxy --workers 2`.

    Attributes:
        process: The parent.
        said: Its log lines and the workers'.
        clients: One for each worker, each with one connection.
    """

    process: asyncio.subprocess.Process
    said: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    clients: list[httpx.AsyncClient] = field(default_factory=list[httpx.AsyncClient])
    url: str = ""

    async def wait_for(self, words: str, count: int = 1) -> dict[str, Any]:
        """Read its log up to a line with these words."""
        assert self.process.stderr
        while sum(words in line["event"] for line in self.said) < count:
            line = await self.process.stderr.readline()
            assert line, f"it ended without saying {words!r}: {self.said}"
            self.said.append(json.loads(line))
        return [line for line in self.said if words in line["event"]][-1]

    @property
    def pids(self) -> dict[int, int]:
        """The workers' processes, as last told."""
        return {line["worker"]: line["pid"] for line in self.said if line["event"] == "a worker starts"}


@contextlib.asynccontextmanager
async def pooled(engine: FakeVllm, **environment: str) -> AsyncGenerator[Pooled]:
    """Start one; the block has it once both workers are ready, and nothing of it is left after."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "muster_proxy", "proxy", "--workers", "2", "--port", "0"),
        *("--upstream", engine.url),
        stderr=subprocess.PIPE,
        env={**os.environ, "MUSTER_LOG_FORMAT": "json", **environment},
    )
    running = Pooled(process)
    try:
        running.url = (await running.wait_for("listening"))["url"]
        async with fresh(running) as first, fresh(running) as second:
            running.clients = [first, second]
            for client in running.clients:
                while not (await client.get("/health/ready")).is_success:
                    await asyncio.sleep(0)
            yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        for pid in running.pids.values():
            wait_until_gone(pid)


def fresh(running: Pooled) -> httpx.AsyncClient:
    """A client that has no connection yet."""
    return httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=30)


def wait_until_gone(pid: int) -> None:
    """Wait until the process has ended, whether or not anybody has asked how."""
    for _ in until(30, f"the end of process {pid}"):
        listed = subprocess.run(
            ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False
        ).stdout
        if not listed.strip() or listed.startswith(b"Z"):
            return


async def samples(client: httpx.AsyncClient, name: str) -> dict[str, float]:
    """Each worker's value of a metric, summed over its other labels."""
    page = (await client.get("/metrics")).text
    found: dict[str, float] = {}
    for each in every_sample(page):
        if each.name == name:
            found[each.labels["worker"]] = found.get(each.labels["worker"], 0) + each.value
    return found


def every_sample(page: str) -> list[Sample]:
    """What a scraper reads."""
    return [sample for family in text_string_to_metric_families(page) for sample in family.samples]


async def test_connections_are_dealt_out_in_turn(engine: FakeVllm) -> None:
    """Each worker gets half of them, and a page that any worker gives has both, in either format."""
    async with pooled(engine) as running:
        for _ in range(8):
            async with fresh(running) as client:
                assert (await post(client)).is_success

        for client in running.clients:
            assert await samples(client, "muster_requests_total") == {"0": 4, "1": 4}
            answer = await client.get("/metrics", headers={"accept": OPEN_METRICS})
            families = list(open_metrics_parser.text_string_to_metric_families(answer.text))
            assert answer.headers["content-type"].startswith("application/openmetrics-text")
            assert len({family.name for family in families}) == len(families)
            assert {sample.labels["worker"] for family in families for sample in family.samples} == {"0", "1"}


async def test_a_worker_that_hangs_or_dies_is_off_the_page_and_is_replaced(engine: FakeVllm) -> None:
    """Its gauges end with it; the other goes on; requests reach the new one."""
    engine.script(Reply(pauses_after=1, resume=asyncio.Event()))
    async with pooled(engine) as running:
        first, second = running.clients
        async with open_stream(first) as stream:
            in_flight = await samples(second, "muster_in_flight")
            (busy,) = [worker for worker, value in in_flight.items() if value]
            (other,) = in_flight.keys() - {busy}
            assert in_flight[busy] == 1

            os.kill(running.pids[int(busy)], signal.SIGSTOP)
            assert (await samples(second, "muster_in_flight")).keys() == {other}

            os.kill(running.pids[int(busy)], signal.SIGKILL)
            told = await running.wait_for("a worker was killed by SIGKILL; starting it again")
            assert told["worker"] == int(busy)
            with pytest.raises(httpx.RemoteProtocolError):
                await stream.aread()
        await running.wait_for("a worker starts", count=3)
        while len(in_flight := await samples(second, "muster_in_flight")) < 2:
            await asyncio.sleep(0)
        assert in_flight == {"0": 0, "1": 0}

        async with fresh(running) as one, fresh(running) as another:
            for client in (one, another):
                while not (await client.get("/health/ready")).is_success:
                    await asyncio.sleep(0)
                assert (await post(client)).is_success
        assert await samples(second, "muster_requests_total") == {"0": 1, "1": 1}


async def test_a_signal_to_stop_lets_both_workers_finish(engine: FakeVllm) -> None:
    """New connections are refused, the streams go on to their ends, and the exit is a clean one."""
    resume = asyncio.Event()
    engine.script(*[Reply(pauses_after=1, resume=resume)] * 2)
    async with pooled(engine) as running:
        first, second = running.clients
        async with open_stream(first) as one, open_stream(second) as other:
            running.process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(30):
                while await is_reached(running):
                    await asyncio.sleep(0)
            resume.set()
            ends = [(await stream.aread()).decode().splitlines()[-2] for stream in (one, other)]

        assert ends == ["data: [DONE]"] * 2
        assert await running.process.wait() == ExitCode.OK


async def is_reached(running: Pooled) -> bool:
    """Whether somebody listens."""
    try:
        _, writer = await asyncio.open_connection(server.LOOPBACK, httpx.URL(running.url).port)
    except ConnectionError:
        return False
    writer.close()
    return True


async def test_workers_end_with_a_parent_that_is_killed(engine: FakeVllm) -> None:
    """SIGKILL leaves it no time for a word; they see the end of their channel, and clear up."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may be too long a path for a socket
        async with pooled(engine, TMPDIR=folder) as running:
            assert found(Path(folder), "muster-*/*.metrics") == 2
            running.process.kill()
            for pid in running.pids.values():
                wait_until_gone(pid)

        assert found(Path(folder), "muster-*") == 0


def found(directory: Path, pattern: str) -> int:
    """How many files there are of that pattern."""
    return len(list(directory.glob(pattern)))


async def test_a_pool_gives_up_on_a_worker_that_dies_too_often(engine: FakeVllm, tmp_path: Path) -> None:
    """The other is stopped, and the exit code says that a part died."""
    settings = ProxySettings(workers=2, upstreams=[UpstreamSettings(url=engine.url)])
    every = [Orders(index, 2, each, tmp_path, "info", "json") for index, each in enumerate(shares(settings))]
    pool = Pool(every, server.bind(0, ""), Patience(most_deaths=0))
    running = asyncio.create_task(pool.run())
    await pool.opened.wait()
    pids = pool.pids
    os.kill(pids[1], signal.SIGKILL)

    assert await running == ExitCode.SOFTWARE
    for pid in pids.values():
        wait_until_gone(pid)


@dataclass
class Told:
    """A worker as the dealer knows it: the other end of its channel."""

    channel: socket.socket

    async def take(self) -> bytes:
        """Take a connection, say so, and read the byte that its client sent."""
        _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, self.channel, 1, 1)
        self.channel.send(b"t")
        with socket.socket(fileno=descriptors[0]) as connection:
            return await asyncio.to_thread(connection.recv, 1)


@dataclass
class Table:
    """A dealer with workers, and clients that connect to it."""

    dealer: Dealer
    listener: socket.socket
    workers: list[Told] = field(default_factory=list[Told])
    clients: list[socket.socket] = field(default_factory=list[socket.socket])

    def connect(self, word: bytes) -> None:
        """Connect a client, which says its word."""
        client = socket.create_connection(self.listener.getsockname())
        client.sendall(word)
        self.clients.append(client)


@contextlib.asynccontextmanager
async def dealing(count: int) -> AsyncGenerator[Table]:
    """A dealer with so many workers, all of them ready."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(server.bind(0, ""))
        table = Table(Dealer(listener, count), listener)
        senders: list[Sender] = []
        for _ in range(count):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            held.enter_context(theirs).settimeout(30)
            table.workers.append(Told(theirs))
            senders.append(Sender(ours))
            table.dealer.add(senders[-1])
            theirs.send(b"r")
        await table.dealer.opened.wait()
        yield table
        table.dealer.close()
        for sender in senders:
            table.dealer.remove(sender)
        for client in table.clients:
            client.close()


@pytest.mark.parametrize("count", [2, 3, 5])
async def test_each_worker_has_its_turn(count: int) -> None:
    """Whether or not the ones before have been taken when a connection comes."""
    async with dealing(count) as table:
        for turn in range(2 * count):
            table.connect(b"%d" % turn)
            assert await table.workers[turn % count].take() == b"%d" % turn


async def test_what_a_dead_worker_has_not_taken_is_dealt_again() -> None:
    """No client whose connection was under way notices."""
    async with dealing(2) as table:
        for word in (b"a", b"b", b"c", b"d"):
            table.connect(word)
        living, dying = table.workers
        assert [await living.take() for _ in range(2)] == [b"a", b"c"]
        await asyncio.to_thread(dying.channel.recv, 1, socket.MSG_PEEK)
        dying.channel.close()

        assert {await living.take() for _ in range(2)} == {b"b", b"d"}


async def test_a_worker_that_hangs_is_passed_over() -> None:
    """It gets no more than some connections, and the other gets the rest as it takes them."""
    async with dealing(2) as table:
        living, _ = table.workers
        for _ in range(3 * MOST_UNTAKEN):
            table.connect(b"x")
        taken = [await living.take() for _ in range(2 * MOST_UNTAKEN)]

        assert taken == [b"x"] * 2 * MOST_UNTAKEN


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--port", "{taken}"), ExitCode.UNAVAILABLE, "is taken"),
        (("--limit", "1"), ExitCode.CONFIG, "proxy.upstreams.0.limit: 1 cannot be divided among 2 workers"),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(
    options: tuple[str, ...], code: ExitCode, words: str
) -> None:
    """By the parent, in one line."""
    with server.bind(0, "") as holder:
        holder.listen()
        port = str(holder.getsockname()[1])
        given = [option.format(taken=port) for option in options]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "muster_proxy", "proxy", "--workers", "2", "--port", "0"),
                *("--upstream", "http://127.0.0.1:1", *given),
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    assert done.returncode == code
    assert words in done.stderr
    assert "a worker" not in done.stderr


def test_limits_are_divided_to_the_last_one() -> None:
    """What the workers have sums up to what is configured, and no two differ by more than 1."""
    engines = [UpstreamSettings(url="http://a", limit=11), UpstreamSettings(url="http://b")]
    parts = shares(ProxySettings(workers=4, max_waiting=10, max_waiting_bytes=4099, upstreams=engines))

    assert [part.upstreams[0].limit for part in parts] == [3, 3, 3, 2]
    assert [part.upstreams[1].limit for part in parts] == [None] * 4
    assert [part.max_waiting for part in parts] == [3, 3, 2, 2]
    assert sum(part.max_waiting_bytes for part in parts) == 4099


def test_one_worker_has_everything() -> None:
    """Its settings are the very same."""
    settings = ProxySettings(upstreams=[UpstreamSettings(url="http://a", limit=1)])

    assert shares(settings) == [settings]


def test_a_waiting_limit_below_the_number_of_workers_is_refused() -> None:
    """One of them could let nobody wait."""
    with pytest.raises(ConfigurationError, match=r"proxy\.max_waiting: 3 cannot be divided among 4 workers"):
        shares(ProxySettings(workers=4, max_waiting=3))


def test_pauses_grow_with_deaths_in_a_row() -> None:
    """Up to the longest; a long life begins the count anew; too many end it."""
    patience = Patience(first_pause_s=1, last_pause_s=5, most_deaths=4, steady_s=60)

    assert [patience.pause_s(lived_s) for lived_s in (1, 1, 1, 1, 60, 1)] == [1, 2, 4, 5, 1, 2]
    assert [patience.pause_s(1) for _ in range(3)] == [4, 5, None]


def test_pages_are_merged_family_by_family() -> None:
    """Whatever their order, with the labels, label values and exemplars that the workers gave."""
    pages = {index: page_of(index) for index in (1, 0)}
    families = {
        family.name: family for family in open_metrics_parser.text_string_to_metric_families(merged(pages))
    }

    assert families.keys() == {"plain", "odd", "took", "only_1"}
    assert families["odd"].documentation == "With labels."
    assert [(each.labels, each.value) for each in families["odd"].samples if each.name == "odd_total"] == [
        ({"worker": "0", "of": 'a {"b"} c\n\x85d'}, 1.0),
        ({"worker": "1", "of": 'a {"b"} c\n\x85d'}, 2.0),
    ]
    assert [each.labels["worker"] for each in families["plain"].samples] == ["0", "1"]
    assert [each.labels for each in families["only_1"].samples] == [{"worker": "1"}]
    buckets = [each for each in families["took"].samples if each.name == "took_bucket"]
    assert [each.exemplar.labels for each in buckets if each.exemplar] == [{"id": "x"}] * 2


def page_of(worker: int) -> str:
    """A page as a worker gives it."""
    registry = CollectorRegistry()
    if worker:
        Gauge("only_1", "Of one worker.", registry=registry).set(1)
    Gauge("plain", "Without labels.", registry=registry).set(worker)
    Counter("odd", "With labels.", ["of"], registry=registry).labels('a {"b"} c\n\x85d').inc(worker + 1)
    Histogram("took", "With an exemplar.", registry=registry).observe(0.1, {"id": "x"})
    return open_metrics.generate_latest(registry).decode()
