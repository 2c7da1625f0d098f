"""Where a benchmark's clients are run: a lab is an engine, and two ways to it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from muster_batching.testing.simulation import Record, Script

Scripts = Iterable[tuple[float, Script]]
"""Clients, each with the second at which it starts."""


class Way(StrEnum):
    """How requests get to the engine."""

    DIRECT = "direct"
    MUSTER = "Muster"


WAYS = tuple(Way)


class BenchmarkError(Exception):
    """A benchmark cannot be run, or a request of it failed that must not; the message says why."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one run saw.

    Attributes:
        records: Of every call, in the order in which they were sent.
        ended_s: When the last client ended, from the start of the run.
        prefix_queries: Prompt tokens that were looked up in the engine's prefix cache; None where it does not tell.
        prefix_hits: Of these, tokens found.
        scheduler_s: Real time that a simulation's scheduler took in all; None where it cannot be told apart.
    """

    records: Sequence[Record]
    ended_s: float
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    scheduler_s: float | None = None

    def ended(self, outcome: str = "completed") -> list[Record]:
        """The calls that ended in this way."""
        return [record for record in self.records if record.outcome == outcome]

    @property
    def ttfts_s(self) -> list[float]:
        """Times to the first token, of those calls that got one."""
        return [record.ttft_s for record in self.records if record.ttft_s is not None]

    @property
    def output_tokens(self) -> int:
        """Tokens that clients got."""
        return sum(record.output_tokens for record in self.records)

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens that were found in the prefix cache."""
        if self.prefix_hits is None or not self.prefix_queries:
            return None
        return self.prefix_hits / self.prefix_queries


class Meter(Protocol):
    """Is told how a benchmark gets on."""

    def run_begins(self, label: str) -> None:
        """A run begins."""
        ...

    def call_ended(self, record: Record) -> None:
        """A call of it ended."""
        ...


class Lab(Protocol):
    """An engine, and two ways to it."""

    @property
    def is_simulated(self) -> bool:
        """Whether time is virtual."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Tokens that the engine's KV cache holds.

        Raises:
            BenchmarkError: The engine does not tell.
        """
        ...

    @property
    def block_size(self) -> int:
        """Tokens in a block of the prefix cache."""
        ...

    def run(self, label: str, way: Way, scripts: Scripts) -> Seen:
        """Run clients to their ends; each run begins with nothing in the engine that could help it.

        Raises:
            BenchmarkError: The engine or the proxy does not answer.
        """
        ...
