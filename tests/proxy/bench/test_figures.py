"""What is computed of what was measured."""

import math

import pytest

from muster_proxy.bench.figures import Figure, Findings, Row, jain, percentile, quantiles, ratio
from muster_proxy.bench.report import as_json, told


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([7.0], 99, 7.0), ([1.0, 2.0], 50, 1.5), ([3.0, 1.0, 2.0], 0, 1.0), ([3.0, 1.0, 2.0], 100, 3.0)],
)
def test_percentiles_lie_between_neighbours(values: list[float], percent: float, expected: float) -> None:
    """In proportion, whatever order the values come in."""
    assert percentile(values, percent) == expected


def test_a_hundred_values_have_their_percentiles() -> None:
    """The p-th of 0 to 100 is p."""
    values = [float(value) for value in range(101)]

    assert [percentile(values, percent) for percent in (1, 50, 99)] == [1.0, 50.0, 99.0]
    assert quantiles(values, steps=4) == [0.0, 25.0, 50.0, 75.0, 100.0]


def test_nothing_has_no_percentile() -> None:
    """It is told as missing, not as zero."""
    assert math.isnan(percentile([], 50))
    assert quantiles([]) == []


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([5.0] * 10, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 2.0, 3.0], 36 / (3 * 14))],
)
def test_jains_index(shares: list[float], expected: float) -> None:
    """Equal shares give 1, one of n that has all gives 1/n."""
    assert jain(shares) == pytest.approx(expected)


def test_nobody_served_is_neither_fair_nor_unfair() -> None:
    """The index is missing, and so is a ratio over nothing."""
    assert math.isnan(jain([0.0, 0.0]))
    assert math.isnan(ratio(1.0, 0.0))
    assert ratio(1.0, 2.0) == 0.5


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (Figure("f", 2.0, 2.0, "at most"), True),
        (Figure("f", 2.1, 2.0, "at most"), False),
        (Figure("f", 0.9, 0.95), False),
        (Figure("f", 0.95, 0.95), True),
        (Figure("f", math.nan, 0.95), False),
        (Figure("f", math.nan, 2.0, "at most"), False),
        (Figure("f", 1.0), None),
    ],
)
def test_a_figure_is_held_against_its_target(figure: Figure, *, holds: bool | None) -> None:
    """The bound itself is within, what is missing is not, and without a target there is nothing to hold."""
    assert figure.holds is holds


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (3000.0, "3,000"),
        (12345.6, "12,346"),
        (123.45, "123.5"),
        (0.01234, "0.0123"),
    ],
)
def test_numbers_are_told_with_the_digits_that_matter(value: float | None, text: str) -> None:
    """A reader compares them at a glance."""
    assert told(value) == text


def test_missing_numbers_are_null_in_json() -> None:
    """JSON knows no nan."""
    findings = Findings("light", "finding", [Row("direct", {"ms": math.nan})], [Figure("f", math.nan, 1.0)])

    assert b"nan" not in as_json(findings, {}).lower()
    assert b'"ms": null' in as_json(findings, {})
