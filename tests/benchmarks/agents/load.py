"""Many threads, many runs at once: what a step costs, how late events come, what a thread takes.

    python -m tests.benchmarks.agents.load [--database sqlite] [--threads 500] [--runs 100] [--steps 4] [--json FILE]

`muster agent` runs in front of a scripted model, which is a process of its own. First the threads are opened, with a
run of one step on each. Then so many runs are kept going at once, on threads in turn, in three ways: waited for,
streamed, and streamed while the model thinks before each reply. In the first two the service is at its limit all the
time, so a token waits for the work of all other runs; the third shows the delay of a service that has time left.

A step is one model call, and what follows from it: every step of a run but the last calls the calculator.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.benchmarks.agents.events import events
from tests.benchmarks.agents.processes import (
    NotReadyError,
    Service,
    database,
    folder,
    new_folder,
    scripted_model,
    wait_until_ready,
)
from tests.benchmarks.agents.scripted_model import CONTROL, SENT, Asked
from tests.benchmarks.peers import process_tree
from tests.benchmarks.peers.launch import allow_descriptors, end_orderly
from tests.benchmarks.peers.load import percentile
from tests.benchmarks.peers.table import machine

LIMIT_MS = 12.0
"""CPU of the service for a step that is still good."""

ROUNDS = 4
"""Runs in a phase, for each that goes on at once; the phase in which the model thinks has half of them."""

WARM_RUNS = 20
ANSWERS_WITHIN_S = 300.0
STREAMED = {"stream_mode": ["messages-tuple", "updates"], "stream_resumable": True}


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        threads: That are opened.
        at_once: Runs that go on at once.
        steps: Of each of them.
        think_s: Mean of the seconds that the model thinks in the last phase.
        rounds: Runs of a phase for each that goes on at once.
    """

    threads: int = 500
    at_once: int = 100
    steps: int = 4
    think_s: float = 2.0
    rounds: int = ROUNDS

    @property
    def total(self) -> int:
        """Runs of everything."""
        return WARM_RUNS + self.threads + self.at_once * (2 * self.rounds + self.rounds // 2)


@dataclass(frozen=True)
class Phase:
    """What was measured while some runs were run.

    Attributes:
        name: Of the phase.
        runs: That ended well.
        failed: The others.
        model_calls: That the model got.
        wall_s: From the first run's start to the last one's end.
        cpu_s: Of the service; None where it cannot be read.
        delays_ms: Of each token, from the model to the client.
        resident_bytes: Of the service at the end.
    """

    name: str
    runs: int
    failed: int
    model_calls: int
    wall_s: float
    cpu_s: float | None
    delays_ms: Sequence[float]
    resident_bytes: int | None

    @property
    def cpu_ms(self) -> float | None:
        """CPU of the service for one model call."""
        return None if self.cpu_s is None or not self.model_calls else self.cpu_s / self.model_calls * 1e3

    def delay_ms(self, quantile: float) -> float | None:
        """The delay that so many tokens did not exceed."""
        return percentile(sorted(self.delays_ms), quantile) if self.delays_ms else None

    def document(self) -> dict[str, Any]:
        """Everything but the single delays."""
        known = {name: value for name, value in asdict(self).items() if name != "delays_ms"}
        delays = {"tokens": len(self.delays_ms), "p50_ms": self.delay_ms(0.5), "p99_ms": self.delay_ms(0.99)}
        return {**known, "cpu_ms_per_step": self.cpu_ms, "delay": delays}


@dataclass(frozen=True)
class Found:
    """Everything that was measured.

    Attributes:
        ready_s: From the start of the process to its first answer.
        idle_bytes: Memory of the service then.
        warm_bytes: After a few runs.
        phases: Of the load, the opening of the threads first.
    """

    ready_s: float
    idle_bytes: int | None
    warm_bytes: int | None
    phases: Sequence[Phase]

    def thread_kb(self, threads: int) -> float | None:
        """Memory for each open thread: what opening them has added, by their number."""
        opened = self.phases[0].resident_bytes
        return (
            None if opened is None or self.warm_bytes is None else (opened - self.warm_bytes) / threads / 1e3
        )

    @property
    def failed(self) -> int:
        """Runs that did not end well."""
        return sum(phase.failed for phase in self.phases)


class Client:
    """Runs runs as LangGraph's clients do.

    Args:
        session: Keeps connections.
        url: Root of the service.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.delays_ms: list[float] = []

    async def open_thread(self) -> str:
        """Make a thread."""
        async with self._session.post(f"{self._url}/threads", json={}) as answer:
            answer.raise_for_status()
            return str((await answer.json())["thread_id"])

    async def wait(self, thread_id: str, asked: Asked) -> bool:
        """Run a run and take its result. Returns whether that is whole."""
        async with self._ask(thread_id, "wait", asked) as answer:
            values = await answer.json()
            return answer.status == 200 and values["messages"][-1]["content"].startswith("t")

    async def stream(self, thread_id: str, asked: Asked) -> bool:
        """Run a run and hear it out. Returns whether it ended well."""
        last = b""
        async with self._ask(thread_id, "stream", asked, **STREAMED) as answer:
            async for event in events(answer.content.iter_any()):
                if event.name == "messages":
                    sent = SENT.findall(event.data)
                    self.delays_ms += [(event.heard_ns - int(each)) / 1e6 for each in sent]
                last = event.data
        return last == b'{"status":"success"}'

    def _ask(self, thread_id: str, way: str, asked: Asked, **more: Any) -> Any:
        body = {"assistant_id": "agent", "input": {"messages": [asked.message()]}, **more}
        return self._session.post(f"{self._url}/threads/{thread_id}/runs/{way}", json=body)


class Load:
    """The load on one service.

    Args:
        session: Keeps connections.
        service: Where it is.
        pid: Its process.
        sizes: How much is run.
        step: Called when a run has ended.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        service: Service,
        pid: int,
        sizes: Sizes,
        step: Callable[[], None],
    ) -> None:
        self._session = session
        self._service = service
        self._pid = pid
        self._sizes = sizes
        self._step = step
        self._threads: list[str] = []
        self._next = 0

    async def run(self, ready_s: float) -> Found:
        """Everything, one phase after the other."""
        sizes, many = self._sizes, self._sizes.at_once * self._sizes.rounds
        idle_bytes = process_tree.resident_bytes(self._pid)
        await self._phase("warm", WARM_RUNS, self._open)
        warm_bytes = process_tree.resident_bytes(self._pid)
        self._threads.clear()
        phases = [
            await self._phase(f"open {sizes.threads} threads", sizes.threads, self._open),
            await self._phase("waited for", many, self._wait),
            await self._phase("streamed", many, self._stream),
        ]
        await self._calls(f"?think_s={sizes.think_s}")
        phases.append(await self._phase("streamed, model thinks", many // 2, self._stream))
        return Found(ready_s, idle_bytes, warm_bytes, phases)

    async def _open(self, client: Client) -> bool:
        thread_id = await client.open_thread()
        self._threads.append(thread_id)
        return await client.wait(thread_id, Asked(1))

    async def _wait(self, client: Client) -> bool:
        return await client.wait(self._thread(), Asked(self._sizes.steps))

    async def _stream(self, client: Client) -> bool:
        return await client.stream(self._thread(), Asked(self._sizes.steps))

    def _thread(self) -> str:
        self._next += 1
        return self._threads[self._next % len(self._threads)]

    async def _calls(self, query: str = "") -> int:
        """Model calls so far."""
        async with self._session.get(f"{self._service.proxy}{CONTROL}{query}") as answer:
            return int((await answer.json())["calls"])

    async def _phase(self, name: str, runs: int, run: Callable[[Client], Awaitable[bool]]) -> Phase:
        client, left = Client(self._session, self._service.url), iter(range(runs))
        good: list[bool] = []

        async def go_on() -> None:
            for _ in left:
                good.append(await _ends_well(run(client)))
                self._step()

        calls, cpu_s, began_s = await self._calls(), process_tree.cpu_s(self._pid), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._sizes.at_once):
                group.create_task(go_on())
        wall_s, ended_s = time.perf_counter() - began_s, process_tree.cpu_s(self._pid)
        return Phase(
            name=name,
            runs=sum(good),
            failed=runs - sum(good),
            model_calls=await self._calls() - calls,
            wall_s=wall_s,
            cpu_s=None if cpu_s is None or ended_s is None else ended_s - cpu_s,
            delays_ms=client.delays_ms,
            resident_bytes=process_tree.resident_bytes(self._pid),
        )


async def _ends_well(run: Awaitable[bool]) -> bool:
    try:
        return await run
    except (aiohttp.ClientError, TimeoutError, KeyError):
        return False


def measured(asked_database: str, sizes: Sizes, step: Callable[[], None]) -> Found:
    """Start everything, measure, and stop it.

    Raises:
        NotReadyError: The service or the model does not start.
    """
    with (
        new_folder() as place,
        database(asked_database, place) as url,
        scripted_model(folder(place, "model")) as model,
    ):
        service, its_place = Service(model, url), folder(place, "service")
        began_s = time.perf_counter()
        with service.started(its_place) as process:
            wait_until_ready(f"{service.url}/ok", process, its_place)
            ready_s = time.perf_counter() - began_s
            return asyncio.run(_loaded(service, process.pid, sizes, step, ready_s))


async def _loaded(
    service: Service, pid: int, sizes: Sizes, step: Callable[[], None], ready_s: float
) -> Found:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=ANSWERS_WITHIN_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return await Load(session, service, pid, sizes, step).run(ready_s)


def drawn(phases: Iterable[Phase]) -> Table:
    """The phases as a table in Markdown."""
    table = Table(box=box.MARKDOWN)
    table.add_column("")
    for title in ("runs", "failed", "runs/s", "CPU ms/step", "delay p50 ms", "delay p99 ms", "MiB"):
        table.add_column(title, justify="right")
    for phase in phases:
        cells = (
            f"{phase.runs}",
            f"{phase.failed}",
            f"{phase.runs / phase.wall_s:.1f}",
            _told(phase.cpu_ms, 2),
            _told(phase.delay_ms(0.5), 1),
            _told(phase.delay_ms(0.99), 1),
            _mib(phase.resident_bytes),
        )
        table.add_row(phase.name, *cells)
    return table


def notes(found: Found, sizes: Sizes) -> list[str]:
    """What stands under the table."""
    costs = [phase.cpu_ms for phase in found.phases[1:] if phase.cpu_ms is not None]
    idle, warm = _mib(found.idle_bytes), _mib(found.warm_bytes)
    told = [
        f"ready after {found.ready_s:.2f} s; {idle} MiB then, {warm} MiB after {WARM_RUNS} runs",
        f"{_told(found.thread_kb(sizes.threads), 1)} KB for each open thread",
        machine(),
    ]
    if costs and max(costs) > LIMIT_MS:
        told.append(f"a step costs more than {LIMIT_MS:g} ms of CPU")
    return told


def _told(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _mib(size_bytes: int | None) -> str:
    return _told(None if size_bytes is None else size_bytes / 2**20, 0)


def as_json(found: Found, sizes: Sizes, asked_database: str) -> bytes:
    """Everything as JSON."""
    document = {
        "machine": machine(),
        "database": asked_database.partition(":")[0],  # the rest of a URL may hold a password
        "sizes": asdict(sizes),
        "ready_s": found.ready_s,
        "idle_bytes": found.idle_bytes,
        "warm_bytes": found.warm_bytes,
        "thread_kb": found.thread_kb(sizes.threads),
        "phases": [phase.document() for phase in found.phases],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--database",
        default="sqlite",
        help="sqlite (a temporary file), postgresql (one is started), or a URL",
    )
    options.add_argument("--threads", type=int, default=500, help="that are opened (500)")
    options.add_argument("--runs", type=int, default=100, help="at once (100)")
    options.add_argument("--steps", type=int, default=4, help="of each run (4)")
    options.add_argument(
        "--think-s", type=float, default=2.0, help="mean of the model's thought, last phase (2)"
    )
    options.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"runs of a phase for each at once ({ROUNDS})"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    return options.parse_args()


def main() -> int:
    """Run it; 0 if every run ended well."""
    chosen = _options()
    sizes = Sizes(chosen.threads, chosen.runs, chosen.steps, chosen.think_s, chosen.rounds)
    console = Console(width=160)
    allow_descriptors()
    end_orderly()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, refresh_per_second=2) as progress:
            task = progress.add_task("runs", total=sizes.total)
            found = measured(chosen.database, sizes, lambda: progress.advance(task))
    except NotReadyError as error:
        print(f"load: does not start: {error}", file=sys.stderr)
        return 1
    console.print(drawn(found.phases))
    for note in notes(found, sizes):
        console.print(note, highlight=False)
    if chosen.json is not None:
        chosen.json.write_bytes(as_json(found, sizes, chosen.database))
    return int(found.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
