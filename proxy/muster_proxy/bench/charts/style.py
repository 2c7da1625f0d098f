"""What all charts look like: direct in grey, Muster in one strong colour, names beside the lines they name."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from typing import Any, Final

from matplotlib.axes import Axes

DIRECT, MUSTER = "direct", "Muster"
INK, FAINT = "#212529", "#adb5bd"
COLOURS: Final = {DIRECT: "#868e96", MUSTER: "#d9480f"}

RC: Final[dict[Any, Any]] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "grid.color": "#e9ecef",
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "muster",  # the same figures give the same file
}


_DECADES_S = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)
_HALVES_S = (1e-3, 3e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_WIDE = 100.0


def line(axes: Axes, xs: Sequence[float], ys: Sequence[float], colour: str, **look: Any) -> None:  # noqa: ANN401
    """Draw a line; `look` is matplotlib's."""
    axes.plot(xs, ys, color=colour, **look)


def name(axes: Axes, at: tuple[float, float], text: str, colour: str, **look: Any) -> None:  # noqa: ANN401
    """Write a line's name beside a point of it."""
    placed: dict[str, Any] = {
        "xytext": (6, 0),
        "textcoords": "offset points",
        "va": "center",
        "fontweight": "bold",
    } | look
    axes.annotate(text, at, color=colour, **placed)


def distribution(
    axes: Axes,
    quantiles_s: Sequence[float],
    text: str,
    colour: str,
    at: float,
    **look: Any,  # noqa: ANN401
) -> None:
    """Draw what share of the requests had their first token by when, named where it reaches the share `at`.

    Args:
        axes: With a logarithmic x axis in seconds.
        quantiles_s: As `muster_proxy.bench.figures.quantiles` makes them.
        text: The name.
        colour: Of both.
        at: 0 to 1.
        look: matplotlib's, of the line.
    """
    if not quantiles_s:
        return
    last = len(quantiles_s) - 1
    line(axes, quantiles_s, [100 * step / last for step in range(last + 1)], colour, **look)
    name(axes, (quantiles_s[round(at * last)], 100 * at), text, colour)


def seconds(axes: Axes) -> None:
    """Make x a logarithmic axis of times that is easy to read."""
    axes.set_xscale("log")
    axes.margins(x=0.12)  # room for the names
    low_s, high_s = axes.get_xlim()
    steps_s = _DECADES_S if high_s / low_s > _WIDE else _HALVES_S
    ticks_s = [each for each in steps_s if low_s <= each <= high_s]
    axes.set_xticks(ticks_s, [time_label(each) for each in ticks_s])
    axes.minorticks_off()


def time_label(time_s: float) -> str:
    """A time in the unit that suits it."""
    return f"{1000 * time_s:.3g} ms" if time_s < 1 else f"{time_s:.3g} s"
