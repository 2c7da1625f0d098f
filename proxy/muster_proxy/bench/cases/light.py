"""`muster bench light`: below saturation there is nothing to win, and nothing may be lost."""

from collections.abc import Mapping
from dataclasses import dataclass

from muster_batching.testing.simulation import Script
from muster_proxy.bench.cases.capacity import capacity_per_s
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, quantiles
from muster_proxy.bench.labs import WAYS, Lab, Seen, Way
from muster_proxy.bench.workloads import CHAT, Mix, arrivals, before, draws, interactive

MOST_ADDED_MS = 0.2

_NOTICEABLE_S = 0.001
"""Over HTTP the two time stamps of a request that waits for nothing lie some microseconds apart."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        load: Share of the engine's capacity.
        duration_s: How long requests arrive.
        capacity_requests: Requests that the capacity is measured with.
        mix: What they look like.
        seed: Of all draws.
    """

    load: float = 0.5
    duration_s: float = 60.0
    capacity_requests: int = 2000
    mix: Mix = CHAT
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "real": Plan(duration_s=30.0, capacity_requests=150),
    "quick": Plan(duration_s=5.0, capacity_requests=2000),
}


def run(lab: Lab, plan: Plan) -> Findings:
    """Send people's requests at a part of the engine's capacity, both ways."""
    capacity = capacity_per_s(lab, plan.mix, plan.capacity_requests, plan.seed)
    seen = {way: lab.run(f"light load, {way}", way, [(0.0, _people(plan, capacity))]) for way in WAYS}
    figures = _figures(lab, seen)
    return Findings(
        case="light",
        finding=f"With room in the engine Muster adds {figures[0].value:.2g} ms; "
        f"{figures[1].value:.0f} of {len(seen[Way.MUSTER].records):,} requests waited",
        rows=[Row(way, _values(seen[way])) for way in WAYS],
        figures=figures,
        curves={
            "capacity_per_s": capacity,
            "ttft_s": {way: quantiles(seen[way].ttfts_s) for way in WAYS},
            "submit_s": quantiles([record.submit_s for record in seen[Way.MUSTER].records]),
        },
        notes=[f"capacity {capacity:.1f} req/s; {plan.load:.0%} of it arrives for {plan.duration_s:g} s"],
    )


def _people(plan: Plan, capacity: float) -> Script:
    calls = interactive(plan.mix, f"{plan.seed} light")
    gaps = draws(f"{plan.seed} light arrivals")
    return arrivals(calls, plan.load * capacity, gaps, before(plan.duration_s))


def _values(seen: Seen) -> dict[str, float | None]:
    return {
        "requests": len(seen.records),
        "answered": len(seen.ended()),
        "waited": _waited(seen),
        "TTFT p50 ms": 1000 * percentile(seen.ttfts_s, 50),
        "TTFT p99 ms": 1000 * percentile(seen.ttfts_s, 99),
        "tok/s": seen.output_tokens / seen.ended_s,
    }


def _waited(seen: Seen) -> int:
    """Requests that did not go to the engine as they came."""
    return sum(
        record.dispatched_s is None or record.dispatched_s - record.sent_s > _NOTICEABLE_S
        for record in seen.records
    )


def _figures(lab: Lab, seen: Mapping[Way, Seen]) -> list[Figure]:
    through = seen[Way.MUSTER]
    if lab.is_simulated:
        added_s = percentile([record.submit_s for record in through.records], 50)
        added = Figure(
            "time to first token that scheduling adds, p50 (ms)", 1000 * added_s, MOST_ADDED_MS, "at most"
        )
    else:
        added_s = percentile(through.ttfts_s, 50) - percentile(seen[Way.DIRECT].ttfts_s, 50)
        added = Figure("time to first token added, p50 (ms)", 1000 * added_s)
    return [added, Figure("requests that waited", _waited(through), 0, "at most")]
