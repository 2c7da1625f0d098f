"""Tells what a benchmark found: as a table, as figures against their targets, and as JSON."""

import math
from collections.abc import Mapping
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from muster_proxy.bench.figures import Figure, Findings

_WORDS = {True: "holds", False: "misses", None: ""}


def show(findings: Findings, engine: str, console: Console) -> None:
    """Print tables and notes."""
    console.print(_rows(findings, engine))
    console.print()
    console.print(_figures(findings))
    for note in findings.notes:
        console.print(note, highlight=False, style="dim")


def as_json(findings: Findings, about: Mapping[str, Any]) -> bytes:
    """All that was found, as JSON; numbers that are missing are null.

    Args:
        findings: What was found.
        about: What it was found on, and with which options.
    """
    document = {
        "case": findings.case,
        "finding": findings.finding,
        **about,
        "rows": [{"way": row.way, **row.values} for row in findings.rows],
        "figures": [_figure(figure) for figure in findings.figures],
        "notes": findings.notes,
        "curves": findings.curves,
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


def told(value: float | None) -> str:
    """A number with as many digits as mean something, or a dash."""
    if value is None or math.isnan(value):
        return "-"
    if value == round(value) or abs(value) >= 1000:  # noqa: PLR2004  four digits are enough
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"  # noqa: PLR2004  likewise


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "value": figure.value,
        "target": figure.target,
        "bound": figure.bound,
        "holds": figure.holds,
    }


def _rows(findings: Findings, engine: str) -> Table:
    table = Table(title=f"{findings.case}, {engine}", title_justify="left", box=None, padding=(0, 1, 0, 0))
    columns = list(dict.fromkeys(name for row in findings.rows for name in row.values))
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for row in findings.rows:
        table.add_row(row.way, *(told(row.values.get(column)) for column in columns))
    return table


def _figures(findings: Findings) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("figure")
    for heading in ("value", "target", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in findings.figures:
        target = "" if figure.target is None else f"{figure.bound} {told(figure.target)}"
        table.add_row(figure.name, told(figure.value), target, _WORDS[figure.holds])
    return table
