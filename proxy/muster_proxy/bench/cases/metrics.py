"""`muster bench metrics`: what a saturated engine loses when its metrics are missing, old or untrue."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from muster_batching.testing.simulation import Metrics, Record
from muster_batching.tickets import RequestClass, TenantId
from muster_proxy.bench.cases.capacity import capacity_per_s
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, ratio
from muster_proxy.bench.labs import Scripts, Seen, Way
from muster_proxy.bench.simulated import SimulatedLab
from muster_proxy.bench.workloads import (
    CHAT,
    LINES,
    Mix,
    again_and_again,
    arrivals,
    before,
    draws,
    interactive,
)

LEAST_RATIO = 0.9

MODES: tuple[Metrics, ...] = get_args(Metrics)
MEANINGS: Mapping[Metrics, str] = {
    "honest": "honest",
    "missing": "never there",
    "lost": "lost after 5 s",
    "stale": "frozen after 5 s",
    "zero": "always idle",
    "full": "always full",
}

_PEOPLE = TenantId("people")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        clients: Clients that each have one request under way at any time: enough to saturate the engine.
        load: What people send beside them, as a part of the engine's capacity.
        duration_s: How long that goes on.
        settle_s: Throughput is counted from there.
        capacity_requests: Requests that the capacity is measured with.
        people: What people send.
        lines: What the clients send.
        seed: Of all draws.
    """

    clients: int = 600
    load: float = 0.1
    duration_s: float = 90.0
    settle_s: float = 10.0
    capacity_requests: int = 2000
    people: Mix = CHAT
    lines: Mix = LINES
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "quick": Plan(clients=300, duration_s=9.0, settle_s=2.0, capacity_requests=2000),
}


def run(lab: SimulatedLab, plan: Plan) -> Findings:
    """Saturate the engine through Muster, once for each way in which metrics can fail."""
    capacity = capacity_per_s(lab, plan.people, plan.capacity_requests, plan.seed)
    seen = {
        mode: lab.run(f"metrics {MEANINGS[mode]}", Way.MUSTER, _clients(plan, capacity), metrics=mode)
        for mode in MODES
    }
    rates = {mode: _tokens_per_s(seen[mode], plan) for mode in MODES}
    figures = [
        Figure(f"throughput over honest, {MEANINGS[mode]}", ratio(rates[mode], rates["honest"]), LEAST_RATIO)
        for mode in MODES[1:]
    ]
    worst = min(figures, key=lambda figure: figure.value)
    return Findings(
        case="metrics",
        finding=f"With metrics missing, old or untrue the engine keeps at least {worst.value:.0%} of its throughput",
        rows=[Row(MEANINGS[mode], _values(seen[mode], rates[mode])) for mode in MODES],
        figures=figures,
        curves={
            "modes": [MEANINGS[mode] for mode in MODES],
            "tokens_per_s": [rates[mode] for mode in MODES],
            "ttft_p99_s": [percentile(_ttfts_s(seen[mode]), 99) for mode in MODES],
        },
        notes=[
            f"{plan.clients} clients of class batch send one request after another, for {plan.duration_s:g} s",
            f"people send {plan.load:.0%} of the capacity of {capacity:.1f} req/s",
            f"throughput: output tokens per second from {plan.settle_s:g} s to {plan.duration_s:g} s",
        ],
    )


def _clients(plan: Plan, capacity: float) -> Scripts:
    lines = plan.lines.calls(f"{plan.seed} lines", request_class=RequestClass.BATCH)
    people = interactive(plan.people, f"{plan.seed} people", tenant=_PEOPLE)
    gaps = draws(f"{plan.seed} people arrivals")
    return [
        *((0.0, again_and_again(lines, plan.duration_s)) for _ in range(plan.clients)),
        (0.0, arrivals(people, plan.load * capacity, gaps, before(plan.duration_s))),
    ]


def _tokens_per_s(seen: Seen, plan: Plan) -> float:
    """Output tokens per second, each answer's spread evenly from its first token to its last."""
    tokens = sum(_tokens_between(record, plan.settle_s, plan.duration_s) for record in seen.records)
    return tokens / (plan.duration_s - plan.settle_s)


def _tokens_between(record: Record, begin_s: float, end_s: float) -> float:
    first_s, ended_s = record.first_token_s, record.ended_s
    if first_s is None or ended_s is None or ended_s <= first_s:
        return 0.0
    overlap_s = max(0.0, min(ended_s, end_s) - max(first_s, begin_s))
    return record.output_tokens * overlap_s / (ended_s - first_s)


def _ttfts_s(seen: Seen) -> list[float]:
    """Of people."""
    return [
        record.ttft_s
        for record in seen.records
        if record.ttft_s is not None and record.call.tenant == _PEOPLE
    ]


def _values(seen: Seen, tokens_per_s: float) -> dict[str, float | None]:
    return {
        "requests": len(seen.records),
        "answered": len(seen.ended()),
        "tok/s": tokens_per_s,
        "interactive TTFT p50 ms": 1000 * percentile(_ttfts_s(seen), 50),
        "interactive TTFT p99 ms": 1000 * percentile(_ttfts_s(seen), 99),
    }
