"""Draws what a benchmark found."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
import orjson
from matplotlib.figure import Figure

from muster_proxy.bench.charts import pictures, style

CHARTS: Mapping[str, Callable[[Figure, Any], None]] = {
    "seed": pictures.seed,
    "light": pictures.light,
    "mixed": pictures.mixed,
    "overload": pictures.overload,
    "tenants": pictures.tenants,
    "agents": pictures.agents,
    "agents live": pictures.agents_live,
    "scale": pictures.scale,
    "metrics": pictures.metrics,
}

_TITLE_CHARACTERS = 88


def draw(document: bytes, file: Path) -> None:
    """Draw a benchmark's JSON as an SVG file; the same JSON gives the same bytes.

    Args:
        document: As `muster_proxy.bench.report.as_json` makes it.
        file: Where it goes.
    """
    found: dict[str, Any] = orjson.loads(document)
    with mpl.rc_context(style.RC):
        picture(found).savefig(file, format="svg", metadata={"Date": None})


def picture(found: Mapping[str, Any]) -> Figure:
    """Draw it; within matplotlib's `rc_context(style.RC)`."""
    figure = Figure(figsize=(9.6, 5.4), layout="constrained")
    CHARTS[found["case"]](figure, found)
    title = textwrap.fill(found["finding"], _TITLE_CHARACTERS)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    return figure
