"""The agent's metrics. Labels are bounded: outcomes are listed here, tools are those it has."""

import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

RunOutcome = Literal["completed", "length", "step_limit", "timeout", "failed", "cancelled"]

# From one quick model call to the default run timeout.
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)


@dataclass(slots=True)
class RunRecord:
    """How a run went; whoever ends it writes its outcome.

    Args:
        outcome: `cancelled` until somebody knows better: a cancelled run gets no chance to say so.
    """

    outcome: RunOutcome = "cancelled"
    seconds: float = 0.0


class Measures:
    """Counts what the agent does.

    Args:
        registry: Where the metrics are shown.
        tools: The names of the known tools; others count as `unknown`.
    """

    def __init__(self, registry: CollectorRegistry, tools: Iterable[str]) -> None:
        self._tools = frozenset(tools)
        self._runs = Counter(
            "muster_agent_runs", "Runs that ended, by how they ended.", ["outcome"], registry=registry
        )
        self._tool_calls = Counter(
            "muster_agent_tool_calls", "Tool calls that ended.", ["tool", "outcome"], registry=registry
        )
        self._seconds = Histogram(
            "muster_agent_run_seconds",
            "From a request to its run's end.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_flight = Gauge(
            "muster_agent_runs_in_flight",
            "Runs going on, those waiting for a thread included.",
            registry=registry,
        )

    @contextmanager
    def run(self) -> Generator[RunRecord]:
        """Measure one run; its outcome is what the record holds at the end."""
        record = RunRecord()
        began = time.monotonic()
        self._in_flight.inc()
        try:
            yield record
        finally:
            record.seconds = time.monotonic() - began
            self._in_flight.dec()
            self._runs.labels(record.outcome).inc()
            self._seconds.observe(record.seconds)

    def tool_called(self, name: str, *, ok: bool) -> None:
        """Count one tool call that ended."""
        tool = name if name in self._tools else "unknown"
        self._tool_calls.labels(tool, "ok" if ok else "error").inc()
