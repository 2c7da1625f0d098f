"""Processes of the agent service die, again and again, while runs go on: what is lost, doubled or forked?

    python -m tests.benchmarks.agents.kills [--database sqlite] [--runs 50] [--kills 20] [--seed 1] [--json FILE]

Each run is on a thread of its own and has three steps: it calculates, it writes a line with a tool that changes the
world, it answers. Half of the clients stream their run and come back with the number of the last event that they have;
the others wait for its result. All ask again after each break, with the key of their first order.

Meanwhile a process of the service is killed (SIGKILL) and started again, so many times, at random moments: most while
it works, each fifth while it starts. With SQLite there is one process; with PostgreSQL there are two, killed in turn,
and what one has left the other takes over. New runs begin in every life of a process.

In the end nothing may be lost, doubled or forked; the command fails if anything is.
"""

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.benchmarks.agents.conversations import Broken, Conversation, RefusedError
from tests.benchmarks.agents.processes import (
    READY_WITHIN_S,
    NotReadyError,
    Service,
    database,
    folder,
    new_folder,
    scripted_model,
)
from tests.benchmarks.agents.tools import LEDGER
from tests.benchmarks.agents.verdict import Verdict
from tests.benchmarks.peers.launch import allow_descriptors, end_orderly
from tests.benchmarks.peers.table import machine

AGENTS: dict[str, Any] = {
    "agents": {
        "agent": {
            "tools": {"own": ["tests.benchmarks.agents.tools:append_line"], "calculator": True},
            "approval": {"tools": "none"},
        }
    }
}
THINK_S = 0.5
"""Mean: a run lasts for about one life of a process, so most of them are resumed."""

LIFE_S = 2.5
"""The longest time that a process works before it is killed."""

STARTING_S = 1.5
"""The longest time that it is given where it is killed while it starts."""

_EACH_WHILE_STARTING = 5
_JUDGED_WITHIN_S = 120.0
_EVERY_S = 0.02


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        runs: On as many threads.
        kills: Of processes.
        seed: Of everything random.
        limit_s: After which it is given up.
    """

    runs: int = 50
    kills: int = 20
    seed: int = 1
    limit_s: float = 900.0


class Replica:
    """A process of the service that is killed and started again, at the same address.

    Args:
        service: How it is started.
        directory: For what its lives log.
        session: Asks whether it is ready.
    """

    def __init__(self, service: Service, directory: Path, session: aiohttp.ClientSession) -> None:
        self.url = service.url
        self._service = service
        self._directory = directory
        self._session = session
        self._life = ExitStack()
        self._lives = 0

    async def start(self) -> None:
        """Begin a life."""
        self._lives += 1
        life = await asyncio.to_thread(folder, self._directory, f"life-{self._lives}")
        self._process = self._life.enter_context(self._service.started(life))

    async def kill(self) -> None:
        """End it, as the system does when memory runs out: it gets no chance to say anything."""
        self._process.kill()
        await asyncio.to_thread(self._life.close)

    async def ready(self) -> None:
        """Wait until it answers.

        Raises:
            NotReadyError: It has ended by itself, or takes longer than `READY_WITHIN_S`.
        """
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not await self._answers():
                    await asyncio.sleep(_EVERY_S)
        except TimeoutError:
            raise NotReadyError(f"no answer in {READY_WITHIN_S:.0f} s") from None

    async def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise NotReadyError(f"the service ended with exit code {self._process.returncode}")
        try:
            async with self._session.get(f"{self.url}/ok") as answer:
                return answer.status == 200
        except Broken:
            return False


class Havoc:
    """Runs and kills.

    Args:
        replicas: Of the service, not started yet.
        session: Keeps the clients' connections.
        sizes: How much is run.
        said: Told of each kill and of each run that has ended.
    """

    def __init__(
        self,
        replicas: Sequence[Replica],
        session: aiohttp.ClientSession,
        sizes: Sizes,
        said: Callable[[str], None],
    ) -> None:
        self._replicas = replicas
        self._sizes = sizes
        self._said = said
        self._random = random.Random(sizes.seed)  # noqa: S311 - no secret
        urls = [replica.url for replica in replicas]
        self.conversations = [Conversation(session, urls, number) for number in range(sizes.runs)]

    async def run(self) -> None:
        """Start the replicas, run and kill, until every run has ended; then all replicas are up."""
        for replica in self._replicas:
            await replica.start()
        async with asyncio.TaskGroup() as group:
            for life in range(self._sizes.kills + 1):
                replica = self._replicas[life % len(self._replicas)]
                is_starting = life % _EACH_WHILE_STARTING == _EACH_WHILE_STARTING - 1
                if not is_starting:
                    await replica.ready()
                for conversation in self._beginning_in(life):
                    group.create_task(self._hold(conversation))
                if life < self._sizes.kills:
                    await self._kill(replica, STARTING_S if is_starting else LIFE_S)
        for replica in self._replicas:
            await replica.ready()

    def _beginning_in(self, life: int) -> list[Conversation]:
        """The runs that begin between two kills."""
        lives = max(1, self._sizes.kills)
        return [each for each in self.conversations if each.number * lives // self._sizes.runs == life]

    async def _hold(self, conversation: Conversation) -> None:
        await asyncio.sleep(self._random.uniform(0, LIFE_S))
        await conversation.held()
        self._said("runs")

    async def _kill(self, replica: Replica, within_s: float) -> None:
        await asyncio.sleep(self._random.uniform(0, within_s))
        await replica.kill()
        await replica.start()
        self._said("kills")

    async def end(self) -> None:
        """End every replica."""
        for replica in self._replicas:
            await replica.kill()


@dataclass(frozen=True)
class Found:
    """What is left when all has ended.

    Attributes:
        verdict: What is true of it.
        breaks: How often a client was cut off.
        wall_s: How long it took.
    """

    verdict: Verdict
    breaks: int
    wall_s: float


def wreaked(
    asked_database: str, sizes: Sizes, said: Callable[[str], None], logs: Path | None = None
) -> Found:
    """Start everything, run and kill, and judge.

    Args:
        asked_database: As `processes.database` takes it.
        sizes: How much is run.
        said: Told of each kill and of each run that has ended, by `kills` and `runs`.
        logs: A folder for what the processes write; None for one that is gone at the end.

    Raises:
        NotReadyError: The service or the model does not start.
        ExceptionGroup: Of `RefusedError`: a client was answered with an error; or of `NotReadyError`.
    """
    with (
        new_folder(logs) as place,
        database(asked_database, place) as url,
        scripted_model(folder(place, "model"), think_s=THINK_S) as model,
    ):
        agents, ledger = place / "agents.yaml", place / "ledger"
        agents.write_text(yaml.safe_dump(AGENTS), "utf-8")
        variables = {LEDGER: str(ledger), "MUSTER_LOG_LEVEL": "info", "MUSTER_LOG_FORMAT": "json"}
        first = Service(model, url, variables, ("--agents", str(agents)))
        count = 1 if url.startswith("sqlite") else 2
        services = [
            first,
            *(
                Service(model, url, first.variables, first.options, secret=first.secret)
                for _ in range(count - 1)
            ),
        ]
        return asyncio.run(_wreaked(services, place, sizes, said))


async def _wreaked(
    services: Sequence[Service], place: Path, sizes: Sizes, said: Callable[[str], None]
) -> Found:
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None, sock_read=60)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        replicas = [
            Replica(service, await asyncio.to_thread(folder, place, f"replica-{number}"), session)
            for number, service in enumerate(services)
        ]
        havoc, verdict = Havoc(replicas, session, sizes, said), Verdict()
        try:
            with contextlib.suppress(TimeoutError):  # the verdict tells which runs have not ended
                async with asyncio.timeout(sizes.limit_s):
                    await havoc.run()
            async with asyncio.timeout(_JUDGED_WITHIN_S):
                await verdict.judge(havoc.conversations, Path(services[0].variables[LEDGER]))
        finally:
            await havoc.end()
        breaks = sum(conversation.breaks for conversation in havoc.conversations)
        return Found(verdict, breaks, loop.time() - began_s)


def drawn(verdict: Verdict) -> Table:
    """The claims as a table in Markdown."""
    table = Table(box=box.MARKDOWN)
    for title in ("claim", "asked of", "broken"):
        table.add_column(title, justify="left" if title == "claim" else "right")
    for claim in verdict.claims:
        table.add_row(claim.name, str(claim.of), str(len(claim.broken)))
    return table


def notes(found: Found, sizes: Sizes) -> list[str]:
    """What stands under the table."""
    verdict = found.verdict
    resumed = sum(attempts > 1 for attempts in verdict.attempts)
    most = max(verdict.attempts, default=1) - 1
    told = [
        f"{sizes.runs} runs, {sizes.kills} kills in {found.wall_s:.0f} s; runs by status: {dict(verdict.statuses)}",
        f"clients were cut off {found.breaks} times",
        f"of {len(verdict.attempts)} streamed runs {resumed} were resumed, one of them {most} times",
        f"lines written: {verdict.writes}; calls that were broken off and not repeated: {verdict.broken_off}",
        f"{machine()}; seed {sizes.seed}",
    ]
    return told + [f"BROKEN: {claim.name}: {what}" for claim in verdict.claims for what in claim.broken]


def as_json(found: Found, sizes: Sizes, asked_database: str) -> bytes:
    """Everything as JSON."""
    document = {
        "machine": machine(),
        "database": asked_database.partition(":")[0],  # the rest of a URL may hold a password
        "sizes": asdict(sizes),
        "wall_s": found.wall_s,
        "breaks": found.breaks,
        **found.verdict.document(),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2)


def _single(errors: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for each in errors.exceptions:
        if isinstance(each, BaseExceptionGroup):
            yield from _single(each)
        else:
            yield each


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        prog="kills", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--database",
        default="sqlite",
        help="sqlite (a temporary file), postgresql (one is started), or the URL of an empty one",
    )
    options.add_argument("--runs", type=int, default=50, help="on as many threads (50)")
    options.add_argument("--kills", type=int, default=20, help="of processes (20)")
    options.add_argument("--seed", type=int, default=1, help="of everything random (1)")
    options.add_argument("--limit-s", type=float, default=900.0, help="after which it is given up (900)")
    options.add_argument(
        "--logs", type=Path, metavar="FOLDER", help="keep what the processes write, in an empty one"
    )
    options.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found")
    return options.parse_args()


def main() -> int:
    """Run it; 0 if nothing was lost, doubled or forked."""
    chosen = _options()
    sizes = Sizes(chosen.runs, chosen.kills, chosen.seed, chosen.limit_s)
    console = Console(width=160)
    allow_descriptors()
    end_orderly()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with Progress(*columns, console=console, refresh_per_second=2) as progress:
            tasks = {
                "kills": progress.add_task("kills", total=sizes.kills),
                "runs": progress.add_task("runs", total=sizes.runs),
            }
            found = wreaked(chosen.database, sizes, lambda what: progress.advance(tasks[what]), chosen.logs)
    except* (NotReadyError, RefusedError) as errors:
        for error in _single(errors):
            print(f"kills: {error}", file=sys.stderr)
        sys.exit(1)
    console.print(drawn(found.verdict))
    for note in notes(found, sizes):
        console.print(note, highlight=False, markup=False)
    if chosen.json is not None:
        chosen.json.write_bytes(as_json(found, sizes, chosen.database))
    return int(not found.verdict.is_good)


if __name__ == "__main__":
    sys.exit(main())
