"""The agent's metrics. Labels are bounded: outcomes are listed here, tools are those it has."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RunOutcome = Literal["success", "error", "timeout", "interrupted", "abandoned"]

# From one quick model call to the default run timeout.
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)


@dataclass(slots=True)
class RunRecord:
    """How a run went; whoever ends it writes its outcome.

    Args:
        outcome: `abandoned` until somebody knows better: an attempt that another one goes on from says nothing.
    """

    outcome: RunOutcome = "abandoned"
    seconds: float = 0.0


class Measures:
    """Counts what the agents do.

    Args:
        registry: Where the metrics are shown.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tools: set[str] = set()
        self._runs = Counter(
            "muster_agent_runs",
            "Attempts at runs that are over, by how they ended.",
            ["agent", "outcome"],
            registry=registry,
        )
        self._tool_calls = Counter(
            "muster_agent_tool_calls", "Tool calls that ended.", ["tool", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "muster_agent_run_seconds", "Seconds of an attempt at a run.", buckets=_SECONDS, registry=registry
        )
        self._in_flight = Gauge("muster_agent_runs_in_flight", "Runs in this process.", registry=registry)

    def know_tools(self, names: Iterable[str]) -> None:
        """Count these tools by name; others count as `unknown`."""
        self._tools.update(names)

    @contextmanager
    def run_of(self, agent: str) -> Generator[RunRecord]:
        """Measure an attempt; its outcome is what the record holds at the end."""
        record = RunRecord()
        began = time.monotonic()
        self._in_flight.inc()
        try:
            yield record
        finally:
            record.seconds = time.monotonic() - began
            self._in_flight.dec()
            self._runs.labels(agent, record.outcome).inc()
            self._seconds.observe(record.seconds)

    def tool_called(self, name: str, *, ok: bool) -> None:
        """Count one tool call that ended."""
        tool = name if name in self._tools else "unknown"
        self._tool_calls.labels(tool, "ok" if ok else "error").inc()
