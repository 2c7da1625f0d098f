"""One picture for each benchmark."""

# matplotlib leaves the types of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from muster_proxy.bench.charts.style import (
    COLOURS,
    DIRECT,
    FAINT,
    INK,
    MUSTER,
    distribution,
    line,
    name,
    seconds,
)

_SHARE_OF_REQUESTS = "requests with a first token by then, %"
_PALE = {
    "answered": None,
    "refused at once": "#e9ecef",
    "refused late": "#ced4da",
    "gave up": "#495057",
    "failed": "#212529",
}
_LARGE_LAYER = 0.06


def seed(figure: Figure, found: Mapping[str, Any]) -> None:
    """Requests per second, one bar for each way."""
    axes = figure.subplots()
    rows = found["rows"][::-1]
    colours = [COLOURS[MUSTER] if row["way"] == "through Muster" else COLOURS[DIRECT] for row in rows]
    labels = [f"{row['requests_per_s']:.2f} req/s   {row['ratio']:.2f} x" for row in rows]
    _bars(axes, [row["way"] for row in rows], [row["requests_per_s"] for row in rows], colours, labels)
    axes.set_xlabel("requests per second")


def light(figure: Figure, found: Mapping[str, Any]) -> None:
    """Times to the first token, both ways: one line on the other."""
    axes = figure.subplots()
    ttft_s = found["curves"]["ttft_s"]
    distribution(axes, ttft_s[DIRECT], DIRECT, COLOURS[DIRECT], 0.35, linewidth=6, alpha=0.6)
    distribution(axes, ttft_s[MUSTER], MUSTER, COLOURS[MUSTER], 0.75)
    _ttft_axes(axes)


def mixed(figure: Figure, found: Mapping[str, Any]) -> None:
    """How long people wait, and what the batch gets."""
    left, right = figure.subplots(1, 2, width_ratios=(5, 3))
    ttft_s = found["curves"]["ttft_s"]
    distribution(left, ttft_s["alone"], "alone", INK, 0.25, linestyle=(0, (4, 2)), linewidth=1.6)
    distribution(left, ttft_s[DIRECT], DIRECT, COLOURS[DIRECT], 0.4)
    distribution(left, ttft_s[MUSTER], MUSTER, COLOURS[MUSTER], 0.6)
    _ttft_axes(left)
    left.set_title("People beside the batch")
    rates = found["curves"]["batch_tokens_per_s"]
    ways = [MUSTER, DIRECT]
    labels = [f"{rates[way]:,.0f}" for way in ways]
    _bars(right, ways, [rates[way] for way in ways], [COLOURS[way] for way in ways], labels)
    right.set_title("The batch, output tokens per second")


def overload(figure: Figure, found: Mapping[str, Any]) -> None:
    """What became of the requests of each second, and how many were answered in it."""
    panels = figure.subplot_mosaic([[DIRECT, MUSTER], ["answers", "answers"]], height_ratios=(3, 2))
    curves = found["curves"]
    for way in (DIRECT, MUSTER):
        _layers(panels[way], curves["outcomes_per_s"][way], COLOURS[way])
        panels[way].set_title(f"{way}: what became of each second's requests", color=COLOURS[way])
    panels[MUSTER].sharey(panels[DIRECT])
    axes = panels["answers"]
    for way in (DIRECT, MUSTER):
        answers = curves["answers_per_s"][way]
        line(axes, _middles(answers), answers, COLOURS[way])
        name(
            axes, (len(answers) - 0.5, answers[-1]), way, COLOURS[way], xytext=(6, -6 if way == MUSTER else 8)
        )
    axes.axhline(curves["capacity_per_s"], color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    name(axes, (0, curves["capacity_per_s"]), "capacity", INK, xytext=(2, 7), fontweight="normal")
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, len(curves["answers_per_s"][MUSTER]) * 1.08)
    axes.set_title("Answers per second")
    axes.set_xlabel("seconds since the load began")


def tenants(figure: Figure, found: Mapping[str, Any]) -> None:
    """How long the polite wait, and who is served how much when all want all."""
    panels = figure.subplot_mosaic([["wait", DIRECT], ["wait", MUSTER]], width_ratios=(1, 1))
    curves = found["curves"]
    wait = panels["wait"]
    for way in (DIRECT, MUSTER):
        ttft_s = curves["ttft_s"][way]
        distribution(wait, ttft_s["alone"], "", COLOURS[way], 0.5, linestyle=(0, (2, 2)), linewidth=1.5)
        distribution(wait, ttft_s["flooded"], f"{way},\nflooded", COLOURS[way], 0.45)
    _ttft_axes(wait)
    wait.set_title("The polite (dotted: without the flooder)")
    for way in (DIRECT, MUSTER):
        _service(panels[way], curves, way)
    panels[MUSTER].sharey(panels[DIRECT])
    panels[MUSTER].set_xlabel("seconds")


def agents(figure: Figure, found: Mapping[str, Any]) -> None:
    """Throughput and hit rate against the working set."""
    left, right = figure.subplots(1, 2)
    curves = found["curves"]
    for way in (DIRECT, MUSTER):
        _against_working_set(left, curves, [value or 0.0 for value in curves["tokens_per_s"][way]], way)
        _against_working_set(right, curves, [100 * (value or 0.0) for value in curves["hit_rate"][way]], way)
    left.set_title("Output tokens per second")
    right.set_title("Prompt tokens found in the prefix cache, %")
    for axes in (left, right):
        axes.axvline(1.0, color=FAINT, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, max(curves["working_sets"]) * 1.2)
        axes.set_xlabel("contexts alive at once, in units of the KV cache")


def agents_live(figure: Figure, found: Mapping[str, Any]) -> None:
    """How long sessions took, three ways."""
    axes = figure.subplots()
    session_s = found["curves"]["session_s"]
    looks = zip(session_s, (COLOURS[DIRECT], INK, COLOURS[MUSTER]), (0.25, 0.5, 0.75), strict=True)
    for way, colour, at in looks:
        distribution(axes, session_s[way], way, colour, at)
    seconds(axes)
    axes.set_ylim(0, 101)
    axes.set_xlabel("session time")
    axes.set_ylabel("sessions that had ended by then, %")


def scale(figure: Figure, found: Mapping[str, Any]) -> None:
    """What a decision costs against how many wait."""
    axes = figure.subplots()
    curves = found["curves"]
    waiting = curves["waiting"]
    for kind, marker in (("finish", "o"), ("submit", "s"), ("cancel", "^")):
        median, p99 = curves["median_us"][kind], curves["p99_us"][kind]
        line(axes, waiting, median, COLOURS[MUSTER], marker=marker)
        line(axes, waiting, p99, COLOURS[MUSTER], marker=marker, alpha=0.3, linewidth=1.2, markersize=4)
        name(axes, (waiting[-1], median[-1]), kind, COLOURS[MUSTER])
    axes.axhline(20.0, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    name(axes, (waiting[0], 20.0), "20 us", INK, xytext=(0, -8), fontweight="normal")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(waiting[0] * 0.8, waiting[-1] * 3)
    axes.set_xticks(waiting, [f"{each:,}" for each in waiting])
    axes.set_yticks([1, 3, 10, 30, 100, 300], ["1 us", "3 us", "10 us", "30 us", "100 us", "300 us"])
    axes.minorticks_off()
    axes.set_title("One decision: median, and pale the 99th percentile")
    axes.set_xlabel("tickets that wait")


def metrics(figure: Figure, found: Mapping[str, Any]) -> None:
    """Throughput for each way in which metrics can fail."""
    axes = figure.subplots()
    curves = found["curves"]
    rates, honest = curves["tokens_per_s"][::-1], curves["tokens_per_s"][0]
    ttfts_s = curves["ttft_p99_s"][::-1]
    colours = [COLOURS[MUSTER] if mode == "honest" else COLOURS[DIRECT] for mode in curves["modes"]][::-1]
    labels = [
        f"{rate / honest:.2f} x   interactive TTFT p99 {'-' if ttft_s is None else f'{ttft_s:.2f} s'}"
        for rate, ttft_s in zip(rates, ttfts_s, strict=True)
    ]
    _bars(axes, curves["modes"][::-1], rates, colours, labels)
    axes.axvline(0.9 * honest, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_xlabel("output tokens per second; dashed: 0.9 of honest")


def _bars(
    axes: Axes, names: Sequence[str], values: Sequence[float], colours: Sequence[str], labels: Sequence[str]
) -> None:
    """Horizontal bars, the last on top, with labels at their ends."""
    places = range(len(names))
    bars = axes.barh(places, values, color=colours, height=0.62)
    axes.bar_label(bars, labels, padding=6, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})
    axes.set_yticks(places, names)
    axes.tick_params("y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max(values) * 1.45)


def _ttft_axes(axes: Axes) -> None:
    seconds(axes)
    axes.set_ylim(0, 101)
    axes.set_xlabel("time to the first token")
    axes.set_ylabel(_SHARE_OF_REQUESTS)


def _layers(axes: Axes, outcomes: Mapping[str, Sequence[int]], colour: str) -> None:
    """Stack the outcomes of each second, and write a layer's name into it if it is large enough."""
    shown = {outcome: series for outcome, series in outcomes.items() if any(series)}
    seconds_ = len(next(iter(outcomes.values())))
    total = max(1, sum(sum(series) for series in shown.values()))
    floor = [0.0] * seconds_
    for outcome, series in shown.items():
        top = [below + each for below, each in zip(floor, series, strict=True)]
        fill = _PALE[outcome] or colour
        axes.fill_between(_middles(series), floor, top, color=fill, linewidth=0, step="mid")
        if sum(series) / total > _LARGE_LAYER:
            middle = seconds_ // 2
            text = INK if outcome.startswith("refused") else "white"
            place = (middle, (floor[middle] + top[middle]) / 2)
            box = {"facecolor": fill, "edgecolor": "none", "pad": 1.5}
            axes.annotate(outcome, place, color=text, ha="center", va="center", bbox=box)
        floor = top
    axes.set_xlim(0, seconds_)
    axes.set_ylim(bottom=0)


def _middles(series: Sequence[float]) -> list[float]:
    return [second + 0.5 for second in range(len(series))]


def _service(axes: Axes, curves: Mapping[str, Any], way: str) -> None:
    """A line for each tenant: the closer together, the fairer."""
    bin_s = curves["bin_s"]
    for series in curves["service"][way].values():
        line(axes, [bin_s * each for each in _middles(series)], series, COLOURS[way], linewidth=1.1)
    least = min(curves["fairness"][way])
    axes.set_title(f"{way}, all backlogged; least Jain index {least:.2f}", color=COLOURS[way])
    axes.set_ylabel("tokens/s by weight")
    axes.set_ylim(bottom=0)


def _against_working_set(axes: Axes, curves: Mapping[str, Any], values: Sequence[float], way: str) -> None:
    line(axes, curves["working_sets"], values, COLOURS[way], marker="o")
    name(
        axes,
        (curves["working_sets"][-1], values[-1]),
        way,
        COLOURS[way],
        xytext=(6, 6 if way == MUSTER else -6),
    )
