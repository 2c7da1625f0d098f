"""`muster bench overload`: many times more than the engine can do, and clients that do not wait for ever."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from muster_batching.testing.simulation import Record, Script
from muster_proxy.bench.cases.capacity import capacity_per_s
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, ratio
from muster_proxy.bench.labs import WAYS, Lab, Seen, Way
from muster_proxy.bench.workloads import CHAT, Mix, arrivals, before, draws, interactive

LEAST_GOODPUT = 0.95
LEAST_REFUSED_AT_ONCE = 0.98

AT_ONCE_S = 0.05
"""A refusal within this is one on arrival; in a simulation it takes no time at all."""

OUTCOMES = ("answered", "refused at once", "refused late", "gave up", "failed")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        times: The offered load, in units of the engine's capacity.
        duration_s: How long it is offered.
        deadline_s: Clients hang up when no token has come by then.
        silent: They do not say so in their requests.
        capacity_requests: Requests that the capacity is measured with.
        mix: What they look like.
        seed: Of all draws.
    """

    times: float = 10.0
    duration_s: float = 60.0
    deadline_s: float = 10.0
    silent: bool = False
    capacity_requests: int = 2000
    mix: Mix = CHAT
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "real": Plan(capacity_requests=150),
    "quick": Plan(duration_s=8.0, deadline_s=2.0, capacity_requests=2000),
}


def run(lab: Lab, plan: Plan) -> Findings:
    """Offer several times the capacity for a while, both ways."""
    capacity = capacity_per_s(lab, plan.mix, plan.capacity_requests, plan.seed)
    seen = {way: lab.run(f"overload, {way}", way, [(0.0, _crowd(plan, capacity))]) for way in WAYS}
    goodput = {way: _goodput_per_s(seen[way], plan) for way in WAYS}
    figures = _figures(seen, {way: ratio(goodput[way], capacity) for way in WAYS})
    return Findings(
        case="overload",
        finding=f"At {plan.times:g} x capacity Muster serves {figures[0].value:.0%} of capacity and refuses "
        f"{figures[1].value:.1%} of the rest at once; direct serves {figures[2].value:.0%}",
        rows=[Row(way, _values(seen[way], goodput[way])) for way in WAYS],
        figures=figures,
        curves={
            "capacity_per_s": capacity,
            "duration_s": plan.duration_s,
            "outcomes_per_s": {way: _over_time(seen[way].records) for way in WAYS},
            "answers_per_s": {way: _answers(seen[way], plan) for way in WAYS},
        },
        notes=[
            f"capacity {capacity:.1f} req/s; {plan.times:g} x that arrives for {plan.duration_s:g} s",
            f"goodput: complete answers whose first token came within {plan.deadline_s:g} s",
            f"counted as they end, from {_warm_s(plan):g} s to {plan.duration_s:g} s: the engine is full by then",
        ],
    )


def _crowd(plan: Plan, capacity: float) -> Script:
    deadline = {"ttft_deadline_s": plan.deadline_s, "tells_deadline": not plan.silent}
    calls = interactive(plan.mix, f"{plan.seed} overload", **deadline)
    gaps = draws(f"{plan.seed} overload arrivals")
    return arrivals(calls, plan.times * capacity, gaps, before(plan.duration_s))


def _warm_s(plan: Plan) -> float:
    """From then on the engine is full, and has been for as long as clients wait."""
    return min(plan.deadline_s, plan.duration_s / 3)


def _goodput_per_s(seen: Seen, plan: Plan) -> float:
    """Good answers per second while the load is on.

    Neither the filling of the engine at the beginning counts nor its draining at the end, as in its capacity.
    """
    begin_s = _warm_s(plan)
    good = [record for record in seen.ended() if begin_s <= (record.ended_s or 0.0) < plan.duration_s]
    return len(good) / (plan.duration_s - begin_s)


def _is_refused_at_once(record: Record) -> bool:
    if record.outcome != "turned_away" or record.retry_after_s is None or record.ended_s is None:
        return False
    return record.ended_s - record.sent_s < AT_ONCE_S


def outcome_of(record: Record) -> str:
    """One of `OUTCOMES`."""
    if record.outcome == "completed":
        return "answered"
    if record.outcome == "turned_away":
        return "refused at once" if _is_refused_at_once(record) else "refused late"
    return "gave up" if record.outcome == "gave_up" else "failed"


def _counts(records: Sequence[Record]) -> dict[str, int]:
    counts: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
    for record in records:
        counts[outcome_of(record)] += 1
    return counts


def _values(seen: Seen, goodput_per_s: float) -> dict[str, float | None]:
    return {
        "offered": len(seen.records),
        **_counts(seen.records),
        "goodput req/s": goodput_per_s,
        "TTFT p50 s": percentile([each.ttft_s or 0.0 for each in seen.ended()], 50),
        "TTFT p99 s": percentile([each.ttft_s or 0.0 for each in seen.ended()], 99),
    }


def _figures(seen: Mapping[Way, Seen], goodput: Mapping[Way, float]) -> list[Figure]:
    counts = {way: _counts(seen[way].records) for way in WAYS}
    at_once = {
        way: ratio(counts[way]["refused at once"], len(seen[way].records) - counts[way]["answered"])
        for way in WAYS
    }
    return [
        Figure("goodput over capacity", goodput[Way.MUSTER], LEAST_GOODPUT),
        Figure(
            "share of the rest refused on arrival, with retry-after",
            at_once[Way.MUSTER],
            LEAST_REFUSED_AT_ONCE,
        ),
        Figure("goodput over capacity, direct", goodput[Way.DIRECT]),
        Figure("share of the rest refused on arrival, direct", at_once[Way.DIRECT]),
    ]


def _over_time(records: Sequence[Record]) -> dict[str, list[int]]:
    """What became of the requests that were sent in each second."""
    seconds = int(max((record.sent_s for record in records), default=0.0)) + 1
    series = {outcome: [0] * seconds for outcome in OUTCOMES}
    for record in records:
        series[outcome_of(record)][int(record.sent_s)] += 1
    return series


def _answers(seen: Seen, plan: Plan) -> list[int]:
    """Answers that were completed in each second of the load."""
    series = [0] * max(1, int(plan.duration_s))
    for record in seen.ended():
        second = int(record.ended_s or 0.0)
        if second < len(series):
            series[second] += 1
    return series
