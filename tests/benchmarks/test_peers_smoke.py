"""The comparison with peers measures what it says; how fast anything is, is not asked here."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.peers import load, process_tree, soak, table
from tests.benchmarks.peers.comparison import Comparison, Round, Row, Sizes
from tests.benchmarks.peers.connection import Connection, request
from tests.benchmarks.peers.install import InstallError, installed, run_step
from tests.benchmarks.peers.launch import paced_engine, two_cores
from tests.benchmarks.peers.load import Result, Work
from tests.benchmarks.peers.pace import Fault, Pace
from tests.benchmarks.peers.paced_engine import Answering, PacedEngine
from tests.benchmarks.peers.proxies import ALL, BASIS, DIRECT, MUSTER, Proxy
from tests.benchmarks.peers.traffic import Traffic
from tests.benchmarks.peers.watching import gauge

SIZES = Sizes(rounds=1, unary=20, streams=4, delayed=4)
STREAM = Pace(tokens=8, is_stream=True)
BROKEN = Proxy("broken", lambda _: [sys.executable, "-c", "print('out of order'); raise SystemExit(3)"])


@contextlib.asynccontextmanager
async def serving(engine: PacedEngine) -> AsyncGenerator[str]:
    """The paced engine in this event loop."""
    connections: list[Answering] = []

    def connected() -> Answering:
        connections.append(Answering(engine))
        return connections[-1]

    loop = asyncio.get_running_loop()
    async with await loop.create_server(connected, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        for each in connections:
            each.close()
        await asyncio.sleep(0)  # what is aborted is closed by the event loop's next turn


def test_the_comparison_counts_direct_calls_and_muster_and_names_what_does_not_start() -> None:
    """A round of direct calls and one of Muster answer everything; a proxy that dies is a row that says so."""
    said: list[str] = []
    steps: list[int] = []
    muster = next(proxy for proxy in ALL if proxy.name == MUSTER)
    with paced_engine(None) as engine:
        run = Comparison(engine, two_cores(), SIZES, said.append, lambda: steps.append(1))
        rows = {row.name: row for row in run.run([muster, BROKEN])}
    for name in (DIRECT, MUSTER):
        assert rows[name].failure is None
        assert rows[name].bad == 0
        (each,) = rows[name].rounds
        assert [each.unary.good, each.streams.good, each.delayed.good] == [20, 4, 4]
        assert (each.unary.cpu_us is not None) == (name == MUSTER and process_tree.HAS_PROC)
    assert rows["broken"].rounds == []
    assert "exit code 3" in (rows["broken"].failure or "")
    assert "out of order" in (rows["broken"].failure or "")
    assert len(steps) == 3


@pytest.mark.parametrize("pace", [Pace(tokens=3), STREAM], ids=["whole", "stream"])
async def test_a_load_counts_every_answer(pace: Pace) -> None:
    """All requests come back whole, and the engine has had as many, those of the warm-up with them."""
    engine = PacedEngine()
    async with serving(engine) as url:
        result = await load.run(Work(url, pace, clients=3, requests=10, warm_up=4))
    assert (result.good, result.bad) == (10, {})
    assert (engine.finished, engine.aborted, engine.running) == (14, 0, 0)
    assert engine.peak <= 3


@pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.ERROR, Fault.SHORT])
async def test_a_faulty_answer_is_a_bad_one(fault: Fault, *, is_stream: bool) -> None:
    """Whatever the engine does wrong, up to the last token, no such answer passes as good."""
    async with serving(PacedEngine()) as url:
        pace = Pace(tokens=4, is_stream=is_stream, fault=fault, fault_at=3)
        result = await load.run(Work(url, pace, clients=1, requests=2))
    assert result.good == 0
    assert sum(result.bad.values()) == 2


async def test_an_engine_that_stalls_lets_go_when_the_client_hangs_up() -> None:
    """A stalled request holds its slot until then, and is counted as aborted."""
    engine = PacedEngine(slots=1)
    async with serving(engine) as url:
        connection = await Connection.open(url)
        exchange = asyncio.ensure_future(connection.exchange(request(url, Pace(fault=Fault.STALL).body())))
        while not engine.running:
            await asyncio.sleep(0)
        connection.close()
        with pytest.raises(ConnectionError):
            await exchange
        while engine.running:
            await asyncio.sleep(0)
    assert (engine.aborted, engine.finished) == (1, 0)


async def test_traffic_tells_faults_from_failures() -> None:
    """Requests that are made to fail are counted by how they ended, and no other request counts as failed."""
    engine = PacedEngine()
    async with serving(engine) as url:
        traffic = Traffic(url, rate_per_s=150, faults=0.0, key=None, seed=7)
        await traffic.run(0.3)
        assert traffic.sent > 10
        assert engine.finished == traffic.sent
        assert not traffic.faulted
        hung_up = Traffic(url, rate_per_s=150, faults=1.0, key=None, seed=7)
        hung_up_run = asyncio.ensure_future(hung_up.run(0.2))
        while not engine.aborted:
            await asyncio.sleep(0.01)
        hung_up_run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung_up_run
    assert not traffic.failed
    assert not hung_up.failed


def test_a_request_is_read_as_it_was_written() -> None:
    """The engine finds in the prompt what the pace put there."""
    pace = Pace(tokens=7, is_stream=True, first_ms=11, gap_ms=13, fault=Fault.STALL, fault_at=5)
    body: dict[str, Any] = load.msgspec.json.decode(pace.body())
    assert Pace.read(body) == pace


def test_the_table_shows_ratios_and_what_is_added() -> None:
    """CPU stands beside the basis's, latency is what comes on top of direct calls, and a failure is a note."""
    rows = [
        _row(DIRECT, cpu_us=None, p50=100.0),
        _row(MUSTER, cpu_us=150.0, p50=101.5),
        _row(BASIS, 100.0, 101.0),
    ]
    shown = table.values(rows)
    assert shown[MUSTER]["added_p50_ms"] == pytest.approx(1.5)
    assert shown[DIRECT]["added_p50_ms"] is None
    cells = list(table.drawn(rows).columns[1].cells)
    assert cells == ["-", "150 (1.50 x)", "100 (1.00 x)"]
    assert "gone: does not start" in table.notes([Row("gone", failure="does not start")], two_cores())


def _row(name: str, cpu_us: float | None, p50: float) -> Row:
    result = Result(10, latency_ms=load.Spread(p50, p50), cpu_us=cpu_us)
    return Row(name, [Round(1.0, None, result, result, result)])


def test_what_cannot_be_installed_says_why() -> None:
    """The last words of the step that failed are the message."""
    with pytest.raises(InstallError, match=r"^no such thing$"):
        run_step(
            [sys.executable, "-c", "import sys; print('trying', file=sys.stderr); sys.exit('no such thing')"]
        )


def test_what_is_installed_is_not_installed_again(tmp_path: Path) -> None:
    """An environment that was finished serves as it is, and nothing is told of it."""
    said: list[str] = []
    place = tmp_path / f"peer==1.0-py{sys.version_info.major}.{sys.version_info.minor}"
    place.mkdir()
    (place / ".installed").touch()
    assert installed("peer==1.0", said.append, tmp_path) == place / "bin"
    assert said == []


def test_a_trend_is_the_slope_and_the_quarters() -> None:
    """A value that grows by 2 a minute grows by 120 an hour."""
    trend = soak.Trend.of([(60.0 * minute, 10.0 + 2 * minute) for minute in range(8)])
    assert trend is not None
    assert trend.per_hour == pytest.approx(120.0)
    assert (trend.first_quarter, trend.last_quarter) == (11.0, 23.0)
    assert soak.Trend.of([(0.0, 1.0)]) is None


def test_a_gauge_is_summed_over_its_labels() -> None:
    """And a metric whose name only begins alike is another one."""
    page = (
        'muster_waiting{class="batch"} 2.0\nmuster_waiting{class="standard"} 3.0\nmuster_waiting_bytes 9.0\n'
    )
    assert gauge(page, "muster_waiting") == 5.0
    assert gauge(page, "muster_tasks") is None
