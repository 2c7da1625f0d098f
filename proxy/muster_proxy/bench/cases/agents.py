"""`muster bench agents`: sessions whose contexts together are smaller or larger than the engine's KV cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from muster_proxy.bench.figures import Figure, Findings, Row, percentile, ratio
from muster_proxy.bench.labs import WAYS, Lab, Scripts, Seen, Way
from muster_proxy.bench.workloads import AgentShape, SessionRun, agents, draws, sessions

LEAST_GAIN, GAIN_AT = 1.5, 2.0
LEAST_PARITY, FITS_AT = 0.98, 0.5
MOST_SESSION_RATIO = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        working_sets: Contexts of all sessions that are alive at once, in units of the KV cache.
        turnover: How many sessions each place in the population sees.
        settle_s: Over how long the first sessions begin, so that they do not grow in step.
        kv_tokens: Size of the KV cache, where the engine does not tell; None to ask it.
        shape: What sessions look like.
        seed: Of all draws.
    """

    working_sets: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0, 3.0)
    turnover: int = 3
    settle_s: float = 45.0
    kv_tokens: int | None = None
    shape: AgentShape = field(default_factory=AgentShape)
    seed: str = "7"


PLANS: Mapping[str, Plan] = {
    "simulated": Plan(),
    "real": Plan(working_sets=(0.5, 2.0), turnover=2),
    "quick": Plan(
        working_sets=(0.5, 2.0),
        turnover=1,
        settle_s=10.0,
        shape=AgentShape(results=(3000, 6000), turns=(2, 3)),
    ),
}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """One run: what was seen, and its sessions."""

    seen: Seen
    sessions: Sequence[SessionRun]

    @property
    def tokens_per_s(self) -> float:
        return self.seen.output_tokens / self.seen.ended_s

    @property
    def times_s(self) -> list[float]:
        """How long the complete sessions took."""
        return [each.ended_s - each.began_s for each in self.sessions if each.is_complete]


def run(lab: Lab, plan: Plan) -> Findings:
    """Run closed populations of several sizes, both ways."""
    kv_tokens = plan.kv_tokens or lab.kv_tokens
    places = {factor: _places(plan, factor * kv_tokens) for factor in plan.working_sets}
    seen = {
        factor: {way: _run(lab, plan, way, factor, count) for way in WAYS} for factor, count in places.items()
    }
    figures = [figure for factor in plan.working_sets for figure in _figures(factor, seen[factor])]
    return Findings(
        case="agents",
        finding=_finding(seen),
        rows=[
            Row(f"{factor:g} x KV, {way}", {"places": count, **_values(seen[factor][way])})
            for factor, count in places.items()
            for way in WAYS
        ],
        figures=figures,
        curves={
            "working_sets": list(plan.working_sets),
            "tokens_per_s": {way: [seen[each][way].tokens_per_s for each in seen] for way in WAYS},
            "hit_rate": {way: [seen[each][way].seen.hit_rate for each in seen] for way in WAYS},
            "session_p99_s": {
                way: [percentile(seen[each][way].times_s, 99) for each in seen] for way in WAYS
            },
        },
        notes=[
            f"KV cache {kv_tokens:,} tokens; a place begins its next session when one ends, {plan.turnover} in all",
            "session time: from the first call to the last answer, of the sessions that were answered to their end",
        ],
    )


def _places(plan: Plan, tokens: float) -> int:
    """How many sessions at once hold so many tokens, the beginning that they share counted once."""
    drawn = sessions(200, plan.shape, f"{plan.seed} sessions")
    own = sum(session.mean_own_tokens for session in drawn) / len(drawn)
    return max(1, round((tokens - drawn[0].system_tokens) / own))


def _run(lab: Lab, plan: Plan, way: Way, factor: float, places: int) -> _Outcome:
    runs: list[SessionRun] = []
    label = f"agents, {factor:g} x KV, {way}"
    return _Outcome(lab.run(label, way, _population(lab, plan, places, runs)), runs)


def _population(lab: Lab, plan: Plan, places: int, runs: list[SessionRun]) -> Scripts:
    waiting = iter(sessions(places * plan.turnover, plan.shape, f"{plan.seed} sessions"))
    most_tokens = round(4 * plan.shape.scale * plan.shape.answers[1])
    source = draws(f"{plan.seed} settling")
    return [
        (source.uniform(0.0, plan.settle_s), agents(waiting, runs, lab.block_size, most_tokens))
        for _ in range(places)
    ]


def _values(outcome: _Outcome) -> dict[str, float | None]:
    return {
        "sessions": len(outcome.sessions),
        "complete": sum(each.is_complete for each in outcome.sessions),
        "tok/s": outcome.tokens_per_s,
        "hit rate": outcome.seen.hit_rate,
        "session p50 s": percentile(outcome.times_s, 50),
        "session p99 s": percentile(outcome.times_s, 99),
        "TTFT p50 s": percentile(outcome.seen.ttfts_s, 50),
        "TTFT p99 s": percentile(outcome.seen.ttfts_s, 99),
    }


def _figures(factor: float, seen: Mapping[Way, _Outcome]) -> list[Figure]:
    gain = ratio(seen[Way.MUSTER].tokens_per_s, seen[Way.DIRECT].tokens_per_s)
    throughput = f"throughput over direct at {factor:g} x KV"
    if factor == FITS_AT:
        return [Figure(throughput, gain, LEAST_PARITY)]
    if factor != GAIN_AT:
        return [Figure(throughput, gain)]
    p99_s = {way: percentile(seen[way].times_s, 99) for way in WAYS}
    return [
        Figure(throughput, gain, LEAST_GAIN),
        Figure(
            f"p99 session time over direct at {factor:g} x KV",
            ratio(p99_s[Way.MUSTER], p99_s[Way.DIRECT]),
            MOST_SESSION_RATIO,
            "at most",
        ),
    ]


def _finding(seen: Mapping[float, Mapping[Way, _Outcome]]) -> str:
    gains = {
        factor: ratio(each[Way.MUSTER].tokens_per_s, each[Way.DIRECT].tokens_per_s)
        for factor, each in seen.items()
    }
    best = max(gains, key=gains.__getitem__)
    return f"Agents that need {best:g} x the KV cache get {gains[best]:.2f} x the tokens through Muster"
