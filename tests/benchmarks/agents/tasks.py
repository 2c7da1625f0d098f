"""Twenty small tasks that need one to three tool calls: how many end with the right answer.

    python -m tests.benchmarks.agents.tasks [--upstream URL] [--json FILE] [--transcripts 2]

Without `--upstream` the embedded engine is started. In front of it run the proxy, with tools emulated, and the agent
service with a calculator, a clock, a folder of documents and a database. A task is right when its answer has what it
must have; how it was found does not count, but the tools that were used are told.
"""

import argparse
import asyncio
import contextlib
import json
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from muster_proxy.bench import servers

_TIMEOUT_S = 240
_LONGEST_SHOWN = 400
_MOST_TOKENS = 256  # of one model call: tiny models ramble on until their context is full

_HANDBOOK = {
    "holidays.md": "# Holidays\n\nEvery employee has 28 days of paid holiday a year.\n\n"
    "Up to 5 days may be carried over to the next year.\n",
    "travel.md": "# Travel\n\nTravel is booked with the agency Nordwind. A hotel may cost 120 euros a night.\n",
    "office.md": "# Office\n\nThe office in Bergen is at Strandgaten 18. The door code is 4711.\n",
    "pets.md": "# Pets\n\nDogs are welcome on Fridays. Cats are not.\n",
}
_SHOP = """
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer TEXT, city TEXT, total REAL);
INSERT INTO orders (customer, city, total) VALUES
  ('Ada', 'Oslo', 120.5), ('Bob', 'Bergen', 80), ('Ada', 'Oslo', 30), ('Cy', 'Oslo', 19.5), ('Dee', 'Bergen', 250);
"""


@dataclass(frozen=True)
class Task:
    """A question, and what its answer must have.

    Attributes:
        question: What the user asks.
        expected: A regular expression that the answer must match, whatever its case.
    """

    question: str
    expected: str


def _year() -> str:
    return str(datetime.now(UTC).year)


TASKS = (
    Task("What is 23 * 7?", r"\b161\b"),
    Task("What is 1234 + 5678?", r"6,?912"),
    Task("What is 17 squared?", r"\b289\b"),
    Task("What is (45 - 12) * 3?", r"\b99\b"),
    Task("What is the square root of 1764?", r"(?<![\d.,])42\b"),
    Task("A pen costs 1.25. What do 48 pens cost?", r"(?<![\d.,])60\b"),
    Task("What is 15 percent of 240?", r"\b36\b"),
    Task("First calculate 12 * 12, then add 56 to the result. What is it?", r"\b200\b"),
    Task("What is 2 to the power of 20?", r"1,?048,?576"),
    Task("Which year is it? Use the clock.", _year()),
    Task(
        "What time zone offset does Tokyo have from UTC? Look at the clock in Asia/Tokyo.",
        r"(\+|plus |utc ?)0?9(:?00)?(?!\d)|\b0?9(:00)? hours|nine hours",
    ),
    Task("What day of the week is it today in UTC? Use the clock.", datetime.now(UTC).strftime("%A")),
    Task("How many days of paid holiday does an employee have? Search the documents.", r"\b28\b"),
    Task("How much may a hotel cost a night? Search the documents.", r"\b120\b"),
    Task("What is the address of the office in Bergen? Search the documents.", r"strandgaten 18"),
    Task("On which day are dogs welcome? Search the documents.", r"friday"),
    Task("How many orders are in the table orders? Query the database.", r"(?<![\d.,])5(?![\d.,]\d)\b|five"),
    Task("What is the sum of total of all orders from Oslo? Query the database table orders.", r"\b170\b"),
    Task("Which customer has the order with the highest total? Query the database table orders.", r"dee"),
    Task(
        "How many days of holiday may be carried over? Search the documents, then multiply by 8.",
        r"(?<![\d.,])40\b",
    ),
)


@dataclass(frozen=True)
class Result:
    """How a task ended.

    Attributes:
        question: The task.
        is_right: Whether its answer has what it must have.
        answer: What the agent said last.
        tools: The tools it used, in order.
        seconds: How long it took.
        transcript: Who said what.
    """

    question: str
    is_right: bool
    answer: str
    tools: Sequence[str]
    seconds: float
    transcript: Sequence[str]


@contextlib.contextmanager
def _stack(upstream: str | None) -> Generator[str]:
    """Proxy and agent in front of an engine; yields the agent's URL."""
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory()))
        options: tuple[str, ...] = ()
        if upstream is None:
            upstream, limit = running.enter_context(servers.embedded_engine())
            options = ("--limit", str(limit))
        tools = ("--tool-mode", "emulated")
        ready = {"ready_path": "/health/ready"}
        proxy = running.enter_context(
            servers.muster("proxy", "--upstream", upstream, *tools, *options, **ready)
        )
        files = ("--agents", str(_agents(folder)), "--database", f"sqlite:///{folder}/agent.db")
        yield running.enter_context(servers.muster("agent", "--proxy", proxy, *files, ready_path="/ok"))


def _agents(folder: Path) -> Path:
    """The declaration of an agent with its documents and its database."""
    handbook, shop = folder / "handbook", folder / "shop.db"
    handbook.mkdir()
    for name, text in _HANDBOOK.items():
        (handbook / name).write_text(text, encoding="utf-8")
    with contextlib.closing(sqlite3.connect(shop)) as connection:
        connection.executescript(_SHOP)
    tools = {
        "calculator": True,
        "time": True,
        "documents": {"folder": str(handbook)},
        "sql": {"database": f"sqlite:///{shop}"},
    }
    path = folder / "agents.yaml"
    path.write_text(yaml.safe_dump({"agents": {"agent": {"tools": tools}}}), encoding="utf-8")
    return path


async def _solve(client: LangGraphClient, task: Task) -> Result:
    began_s = time.monotonic()
    asked: Any = {"messages": [{"role": "user", "content": task.question}]}
    bounded: Any = {"sampling": {"extra_body": {"max_tokens": _MOST_TOKENS}}}
    values: Any = await client.runs.wait(None, "agent", input=asked, context=bounded, raise_error=False)
    messages: list[dict[str, Any]] = values.get("messages", [])
    answer = str(messages[-1]["content"]) if messages else str(values)
    calls = [call for message in messages for call in message.get("tool_calls") or ()]
    return Result(
        question=task.question,
        is_right=bool(messages) and re.search(task.expected, answer, re.IGNORECASE) is not None,
        answer=answer,
        tools=[str(call["name"]) for call in calls],
        seconds=time.monotonic() - began_s,
        transcript=[_line(message) for message in messages] or [answer],
    )


def _line(message: dict[str, Any]) -> str:
    calls = [f"{call['name']}({json.dumps(call['args'])})" for call in message.get("tool_calls") or ()]
    return f"{message['type']}: {' '.join([str(message['content'])[:_LONGEST_SHOWN], *calls])}"


async def _solve_all(url: str, console: Console) -> list[Result]:
    results: list[Result] = []
    async with get_client(url=url, timeout=_TIMEOUT_S) as client:
        with Progress(console=console) as progress:
            bar = progress.add_task("tasks", total=len(TASKS))
            for task in TASKS:  # one after the other: the question is what is right, not how fast
                results.append(await _solve(client, task))
                progress.advance(bar)
    return results


def _show(results: Sequence[Result], transcripts: int, console: Console) -> None:
    table = Table("", "task", "tools", "answer", "s")
    for result in results:
        mark = "right" if result.is_right else "wrong"
        shown = " ".join(result.answer.split())[:70]
        table.add_row(mark, result.question[:60], ", ".join(result.tools), shown, f"{result.seconds:.1f}")
    console.print(table)
    right = sum(result.is_right for result in results)
    console.print(f"{right} of {len(results)} right")
    for result in [each for each in results if not each.is_right][:transcripts]:
        console.print(
            "\nA failure:", *(f"\n  {line}" for line in result.transcript), markup=False, highlight=False
        )


def main() -> int:
    """Run the tasks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--upstream", metavar="URL", help="the engine; the embedded one is started without it"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results")
    parser.add_argument("--transcripts", type=int, default=2, metavar="N", help="failures to show [2]")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    with _stack(given.upstream) as url:
        results = asyncio.run(_solve_all(url, console))
    _show(results, given.transcripts, console)
    if given.json:
        given.json.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
