"""`muster bench tenants`: one tenant floods the engine, nine are polite; then all ten want all of it."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from muster_batching.testing.simulation import Call, Record
from muster_batching.tickets import RequestClass, TenantId
from muster_proxy.bench.cases.capacity import capacity_per_s
from muster_proxy.bench.figures import Figure, Findings, Row, jain, percentile, quantiles, ratio
from muster_proxy.bench.labs import WAYS, Lab, Scripts, Seen, Way
from muster_proxy.bench.workloads import CHAT, Mix, again_and_again, arrivals, before, draws

MOST_TTFT_RATIO = 2.0
LEAST_JAIN = 0.97

BIN_S = 5

_FLOODER = TenantId("flooder")
_INPUT_WEIGHT, _OUTPUT_WEIGHT = 1, 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        polite: How many tenants are polite.
        load: What each of them sends, as a part of the engine's capacity.
        flood: Requests that the flooder has under way at any time.
        flood_s: How long it floods, and how long the polite ones are watched without it.
        backlog: Requests that each of them has under way when all want all.
        backlog_s: How long that goes on.
        window_s: Over how long a time service must be fair.
        heavy: How many of the tenants pay for twice the weight of the others.
        capacity_requests: Requests that the capacity is measured with.
        mix: What requests look like.
        seed: Of all draws.
    """

    polite: int = 9
    load: float = 0.05
    flood: int = 500
    flood_s: float = 90.0
    backlog: int = 100
    backlog_s: float = 150.0
    window_s: int = 30
    heavy: int = 0
    capacity_requests: int = 2000
    mix: Mix = CHAT
    seed: str = "7"

    @property
    def names(self) -> list[TenantId]:
        """All tenants, the polite ones first."""
        return [*(TenantId(f"tenant-{number}") for number in range(1, self.polite + 1)), _FLOODER]

    def weight(self, tenant: TenantId) -> float:
        """What a tenant pays for."""
        return 2.0 if tenant in self.names[: self.heavy] else 1.0


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(heavy=2),
    "real": Plan(flood=100, flood_s=60.0, backlog=20, capacity_requests=150),
    "quick": Plan(heavy=2, flood_s=5.0, backlog=30, backlog_s=8.0, window_s=4, capacity_requests=2000),
}
"""Over HTTP all tenants weigh the same: what a tenant pays for is a matter of its key."""


def run(lab: Lab, plan: Plan) -> Findings:
    """Watch the polite tenants without the flooder and with it, then all of them backlogged; both ways."""
    capacity = capacity_per_s(lab, plan.mix, plan.capacity_requests, plan.seed)
    quiet = {way: lab.run(f"without the flooder, {way}", way, _polite(plan, capacity)) for way in WAYS}
    flooded = {
        way: lab.run(f"with the flooder, {way}", way, [*_polite(plan, capacity), *_flooder(plan)])
        for way in WAYS
    }
    backlogged = {way: lab.run(f"all backlogged, {way}", way, _backlogged(plan)) for way in WAYS}
    service = {way: service_by_second(backlogged[way].records, plan.names) for way in WAYS}
    fairness = {way: _fairness(service[way], plan) for way in WAYS}
    figures = _figures(quiet, flooded, fairness)
    return Findings(
        case="tenants",
        finding=f"A flooder makes the others' p99 {figures[0].value:.3g} x as long through Muster, "
        f"{figures[2].value:.3g} x going direct",
        rows=[*_rows(quiet, "alone"), *_rows(flooded, "flooded"), *_backlog_rows(backlogged, fairness)],
        figures=figures,
        curves={
            "ttft_s": {
                way: {"alone": quantiles(_ttfts_s(quiet[way])), "flooded": quantiles(_ttfts_s(flooded[way]))}
                for way in WAYS
            },
            "service": {way: _binned(service[way], plan) for way in WAYS},
            "fairness": fairness,
            "bin_s": BIN_S,
        },
        notes=[
            f"capacity {capacity:.1f} req/s; each polite tenant sends {plan.load:.0%} of it",
            f"the flooder has {plan.flood} requests under way; backlogged, each tenant has {plan.backlog}",
            f"service: input x {_INPUT_WEIGHT} + output x {_OUTPUT_WEIGHT}, over weight ({plan.heavy} tenants have 2)",
            "counted as it is given: a prompt with the first token, an answer evenly from its first token to its last",
            f"Jain's index is the least of all windows of {plan.window_s} s",
        ],
    )


def _calls(plan: Plan, tenant: TenantId, scale: float, use: str) -> Iterator[Call]:
    mix = dataclasses.replace(plan.mix, scale=plan.mix.scale * scale)
    return mix.calls(
        f"{plan.seed} {use} {tenant}",
        tenant=tenant,
        weight=plan.weight(tenant),
        request_class=RequestClass.STANDARD,
    )


def _polite(plan: Plan, capacity: float) -> Scripts:
    rate = plan.load * capacity
    return [
        (
            0.0,
            arrivals(
                _calls(plan, tenant, 1.0, "polite"),
                rate,
                draws(f"{plan.seed} gaps {tenant}"),
                before(plan.flood_s),
            ),
        )
        for tenant in plan.names[:-1]
    ]


def _flooder(plan: Plan) -> Scripts:
    calls = _calls(plan, _FLOODER, 1.0, "flood")
    return [(0.0, again_and_again(calls, plan.flood_s)) for _ in range(plan.flood)]


def _backlogged(plan: Plan) -> Scripts:
    """Every tenant has many requests under way; theirs are of different lengths, half to one and a half of the mix."""
    last = len(plan.names) - 1
    return [
        (0.0, again_and_again(calls, plan.backlog_s))
        for number, tenant in enumerate(plan.names)
        for calls in [_calls(plan, tenant, 0.5 + number / last, "backlog")]
        for _ in range(plan.backlog)
    ]


def service_by_second(records: Iterable[Record], names: Sequence[TenantId]) -> dict[TenantId, list[float]]:
    """Tokens that each tenant was served in each second, over its weight; see the notes of `run`."""
    answered = [
        record for record in records if record.first_token_s is not None and record.ended_s is not None
    ]
    seconds = int(max((record.ended_s or 0.0 for record in answered), default=0.0)) + 1
    service = {name: [0.0] * seconds for name in names}
    for record in answered:
        _serve(service[record.call.tenant], record)
    return service


def _serve(seconds: list[float], record: Record) -> None:
    first_s, ended_s = record.first_token_s or 0.0, record.ended_s or 0.0
    weight = record.call.weight
    seconds[int(first_s)] += _INPUT_WEIGHT * record.call.input_tokens / weight
    tokens = _OUTPUT_WEIGHT * record.output_tokens / weight
    if ended_s <= first_s:
        seconds[int(first_s)] += tokens
        return
    for second in range(int(first_s), int(ended_s) + 1):
        overlap_s = min(ended_s, second + 1) - max(first_s, second)
        seconds[second] += tokens * overlap_s / (ended_s - first_s)


def _fairness(service: Mapping[TenantId, Sequence[float]], plan: Plan) -> list[float]:
    """Jain's index of each window, one beginning with each second; only while all are backlogged."""
    seconds = min(int(plan.backlog_s), *(len(each) for each in service.values()))
    return [
        jain([sum(each[begin : begin + plan.window_s]) for each in service.values()])
        for begin in range(max(1, seconds - plan.window_s + 1))
    ]


def _binned(service: Mapping[TenantId, Sequence[float]], plan: Plan) -> dict[str, list[float]]:
    """Tokens per second of each tenant, in bins."""
    last = int(plan.backlog_s)
    return {
        name: [sum(each[begin : begin + BIN_S]) / BIN_S for begin in range(0, last, BIN_S)]
        for name, each in service.items()
    }


def _ttfts_s(seen: Seen) -> list[float]:
    """Of the polite tenants."""
    return [
        record.ttft_s
        for record in seen.records
        if record.ttft_s is not None and record.call.tenant != _FLOODER
    ]


def _rows(seen: Mapping[Way, Seen], when: str) -> list[Row]:
    return [Row(f"polite, {when}, {way}", _values(seen[way])) for way in WAYS]


def _values(seen: Seen) -> dict[str, float | None]:
    polite = [record for record in seen.records if record.call.tenant != _FLOODER]
    return {
        "requests": len(polite),
        "answered": sum(record.outcome == "completed" for record in polite),
        "TTFT p50 ms": 1000 * percentile(_ttfts_s(seen), 50),
        "TTFT p99 ms": 1000 * percentile(_ttfts_s(seen), 99),
        "all tok/s": seen.output_tokens / seen.ended_s,
    }


def _backlog_rows(seen: Mapping[Way, Seen], fairness: Mapping[Way, Sequence[float]]) -> list[Row]:
    return [
        Row(
            f"all backlogged, {way}",
            {
                "requests": len(seen[way].records),
                "answered": len(seen[way].ended()),
                "all tok/s": seen[way].output_tokens / seen[way].ended_s,
                "least Jain": min(fairness[way]),
            },
        )
        for way in WAYS
    ]


def _figures(
    quiet: Mapping[Way, Seen], flooded: Mapping[Way, Seen], fairness: Mapping[Way, Sequence[float]]
) -> list[Figure]:
    p50, p99 = (
        {
            way: ratio(percentile(_ttfts_s(flooded[way]), percent), percentile(_ttfts_s(quiet[way]), percent))
            for way in WAYS
        }
        for percent in (50, 99)
    )
    return [
        Figure("polite TTFT p99 over that without the flooder", p99[Way.MUSTER], MOST_TTFT_RATIO, "at most"),
        Figure("least Jain index of service, all backlogged", min(fairness[Way.MUSTER]), LEAST_JAIN),
        Figure("polite TTFT p99 over that without the flooder, direct", p99[Way.DIRECT]),
        Figure("least Jain index of service, all backlogged, direct", min(fairness[Way.DIRECT])),
        Figure("polite TTFT p50 over that without the flooder", p50[Way.MUSTER]),
    ]
