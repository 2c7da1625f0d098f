"""`muster bench mixed`: people at an engine that is given a large batch."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field

from muster_batching.testing.simulation import Script
from muster_batching.tickets import RequestClass, TenantId
from muster_proxy.bench.cases.capacity import capacity_per_s
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, quantiles, ratio
from muster_proxy.bench.labs import WAYS, Lab, Scripts, Seen, Way
from muster_proxy.bench.workloads import CHAT, LINES, Job, Mix, arrivals, before, draws, interactive

MOST_TTFT_RATIO = 2.0
LEAST_BATCH_RATIO = 0.95

_PEOPLE, _OFFLINE = TenantId("people"), TenantId("offline")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        load: People's part of the engine's capacity.
        lines: Lines of the batch, all sent at once.
        alone_s: How long people have the engine to themselves, to compare with.
        capacity_requests: Requests that the capacity is measured with.
        people: What people send.
        batch: What the lines look like.
        seed: Of all draws.
    """

    load: float = 0.1
    lines: int = 3000
    alone_s: float = 120.0
    capacity_requests: int = 2000
    people: Mix = CHAT
    batch: Mix = LINES
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "real": Plan(lines=100, alone_s=30.0, capacity_requests=150),
    "quick": Plan(lines=300, alone_s=10.0, capacity_requests=2000),
}


@dataclass(frozen=True, slots=True)
class _Part:
    """People and lines of one run."""

    people: Seen
    lines: Seen
    line_rate_per_s: float | None = None
    ends_s: list[float] = field(default_factory=list[float])


def run(lab: Lab, plan: Plan) -> Findings:
    """Send people's requests alone, then beside a batch, until the batch is done; both ways."""
    capacity = capacity_per_s(lab, plan.people, plan.capacity_requests, plan.seed)
    rate = plan.load * capacity
    alone = _split(lab.run("people alone, direct", Way.DIRECT, [(0.0, _alone(plan, rate))]))
    parts = {way: _split(lab.run(f"people and batch, {way}", way, _both(plan, rate))) for way in WAYS}
    figures = _figures(alone, parts)
    return Findings(
        case="mixed",
        finding=f"Beside {plan.lines:,} batch lines, people's p99 is {figures[0].value:.3g} x that alone through "
        f"Muster, {figures[2].value:.3g} x going direct",
        rows=[Row("people alone", _values(alone)), *(Row(way, _values(parts[way])) for way in WAYS)],
        figures=figures,
        curves={
            "ttft_s": {"alone": quantiles(alone.people.ttfts_s)}
            | {way: quantiles(parts[way].people.ttfts_s) for way in WAYS},
            "batch_tokens_per_s": {way: parts[way].line_rate_per_s for way in WAYS},
        },
        notes=[f"capacity {capacity:.1f} req/s; people send {rate:.2f} req/s of it until the batch is done"],
    )


def _people(plan: Plan, rate: float, is_open: Job | None) -> Script:
    calls = interactive(plan.people, f"{plan.seed} people", tenant=_PEOPLE)
    gaps = draws(f"{plan.seed} people arrivals")
    return arrivals(calls, rate, gaps, is_open.is_open if is_open else before(plan.alone_s))


def _alone(plan: Plan, rate: float) -> Script:
    return _people(plan, rate, None)


def _both(plan: Plan, rate: float) -> Scripts:
    job = Job(plan.lines)
    calls = plan.batch.calls(f"{plan.seed} lines", request_class=RequestClass.BATCH, tenant=_OFFLINE)
    lines = [(0.0, job.line(call)) for call in itertools.islice(calls, plan.lines)]
    return [(0.0, _people(plan, rate, job)), *lines]


def _split(seen: Seen) -> _Part:
    people = [record for record in seen.records if record.call.tenant == _PEOPLE]
    lines = [record for record in seen.records if record.call.tenant == _OFFLINE]
    ends_s = [record.ended_s for record in lines if record.ended_s is not None]
    of_lines = Seen(lines, max(ends_s, default=0.0))
    rate = of_lines.output_tokens / of_lines.ended_s if lines else None
    return _Part(Seen(people, seen.ended_s), of_lines, rate, ends_s)


def _values(part: _Part) -> dict[str, float | None]:
    people, lines = part.people, part.lines
    return {
        "requests": len(people.records),
        "answered": len(people.ended()),
        "TTFT p50 ms": 1000 * percentile(people.ttfts_s, 50),
        "TTFT p99 ms": 1000 * percentile(people.ttfts_s, 99),
        "lines done": len(lines.ended()) if lines.records else None,
        "batch s": lines.ended_s if lines.records else None,
        "batch tok/s": part.line_rate_per_s,
    }


def _figures(alone: _Part, parts: Mapping[Way, _Part]) -> list[Figure]:
    p50s, p99s = (
        {
            way: ratio(
                percentile(parts[way].people.ttfts_s, percent), percentile(alone.people.ttfts_s, percent)
            )
            for way in WAYS
        }
        for percent in (50, 99)
    )
    rates = {way: parts[way].line_rate_per_s or 0.0 for way in WAYS}
    return [
        Figure("interactive TTFT p99 over that alone", p99s[Way.MUSTER], MOST_TTFT_RATIO, "at most"),
        Figure(
            "batch throughput over direct", ratio(rates[Way.MUSTER], rates[Way.DIRECT]), LEAST_BATCH_RATIO
        ),
        Figure("interactive TTFT p99 over that alone, direct", p99s[Way.DIRECT]),
        Figure("interactive TTFT p50 over that alone", p50s[Way.MUSTER]),
    ]
