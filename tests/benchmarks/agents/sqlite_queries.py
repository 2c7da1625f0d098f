"""What a question to a SQLite file costs: `python -m tests.benchmarks.agents.sqlite_queries`."""

import resource
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import anyio
from langchain_core.tools import BaseTool

from muster_agent.tools.sql import SqlSettings, open_sql

CALLS = 200


def cpu_s(who: int) -> float:
    """CPU seconds of this process, or of those that it started and that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


async def measure(query: BaseTool) -> None:
    """Ask one question after the other, and tell what one took."""
    own, others = cpu_s(resource.RUSAGE_SELF), cpu_s(resource.RUSAGE_CHILDREN)
    times_ms: list[float] = []
    for _ in range(CALLS):
        began_s = time.perf_counter()
        await query.ainvoke({"sql": "SELECT a, b FROM t WHERE a > 99 ORDER BY b LIMIT 20"})
        times_ms.append((time.perf_counter() - began_s) * 1000)
    own, others = cpu_s(resource.RUSAGE_SELF) - own, cpu_s(resource.RUSAGE_CHILDREN) - others
    print(
        f"median {statistics.median(times_ms):.1f} ms, p95 {statistics.quantiles(times_ms, n=20)[-1]:.1f} ms; CPU"
        f" {own / CALLS * 1000:.1f} ms in this process, {others / CALLS * 1000:.1f} ms in those that it started"
    )


async def main() -> None:
    """Measure on a table of ten thousand rows."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.db"
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("CREATE TABLE t (a integer, b text)")
            rows = ((number, str(number)) for number in range(10_000))
            connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        settings = SqlSettings.model_validate({"database": f"sqlite:///{file}"})
        async with open_sql(settings) as (_, query):
            for _ in range(3):
                await measure(query)


if __name__ == "__main__":
    anyio.run(main)
