"""What a benchmark finds: rows that compare ways, figures held against a target, curves to draw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        way: How the requests went.
        values: By column, whose heading has the unit; None or nan where there is nothing to tell.
    """

    way: str
    values: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Figure:
    """What a benchmark is about.

    Attributes:
        name: What it says, with its unit.
        value: As measured; nan where nothing could be.
        target: What it should be; None where it is only told.
        bound: Whether the target is the most or the least.
    """

    name: str
    value: float
    target: float | None = None
    bound: Literal["at most", "at least"] = "at least"

    @property
    def holds(self) -> bool | None:
        """Whether the target is met, None without one; a value that is missing meets none."""
        if self.target is None:
            return None
        return self.value <= self.target if self.bound == "at most" else self.value >= self.target


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a benchmark found.

    Attributes:
        case: Its name.
        finding: One sentence that says what came out; the chart's title.
        rows: The table.
        figures: What is held against targets.
        curves: What its chart draws, ready for JSON.
        notes: What a reader must know beside.
    """

    case: str
    finding: str
    rows: Sequence[Row]
    figures: Sequence[Figure]
    curves: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: Sequence[str] = ()


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, between neighbours in proportion; nan of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def quantiles(values: Sequence[float], steps: int = 200) -> list[float]:
    """A distribution as a curve: the 0th to the 100th percentile in equal steps."""
    ordered = sorted(values)
    return [percentile(ordered, 100 * step / steps) for step in range(steps + 1)] if ordered else []


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all shares are equal, 1/n when one has everything.

    (sum x)^2 / (n * sum x^2), from R. Jain, D. Chiu, W. Hawe, "A quantitative measure of fairness", DEC-TR-301,
    1984. nan where nobody has anything.
    """
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else math.nan


def ratio(value: float, base: float) -> float:
    """One over the other; nan where the other is 0."""
    return value / base if base else math.nan
