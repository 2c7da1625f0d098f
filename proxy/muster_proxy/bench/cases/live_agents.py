"""`muster bench agents --live`: agents beside people on an engine that computes, three ways that take turns.

The agents begin together and take a few steps each. Every step sends the whole conversation so far and a little more,
and between two steps stands the time that a tool takes. Meanwhile people send requests that have nothing to do with
each other. The same agents and people go directly to the engine, through Muster without a word of which requests belong
together, and through Muster with `x-session-id`, by which it orders sessions.

There is no setting that turns the order of sessions off. But a request without the header is in no session, and all are
of one tenant and one class: the way without it has the order of arrival.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from muster_batching.testing.simulation import Call, Record, Script
from muster_batching.tickets import TenantId
from muster_proxy.bench.figures import Figure, Findings, Row, percentile, quantiles, ratio
from muster_proxy.bench.labs import Lab, Scripts, Way
from muster_proxy.bench.over_http import HttpRecord
from muster_proxy.bench.workloads import (
    AgentShape,
    Lengths,
    Mix,
    SessionRun,
    agents,
    draws,
    once,
    sessions,
)

_TENANT = TenantId("agents")
"""Of people too: between two tenants Muster would take turns."""


class LiveWay(StrEnum):
    """How requests get to the engine, and what they say."""

    DIRECT = "direct"
    WITHOUT = "Muster, no sessions"
    WITH = "Muster"


LIVE_WAYS = tuple(LiveWay)

_COMPARED = (
    (LiveWay.WITHOUT, LiveWay.DIRECT),
    (LiveWay.WITH, LiveWay.DIRECT),
    (LiveWay.WITH, LiveWay.WITHOUT),
)


# An engine without a GPU computes about 130 tokens of a prompt in a second: with these a run takes it half
# a minute.
_SHAPE = AgentShape(
    system_tokens=48,
    results=(8, 16),
    answers=(4, 8),
    turns=(4, 4),
    tool_s=1.0,
    shortest_tool_s=0.5,
    longest_tool_s=3.0,
)
_MIX = Mix(Lengths(24, 0.5, 8, 64), Lengths(12, 0.5, 4, 32))


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is sent.

    Attributes:
        agents: Sessions, all at once.
        rounds: How often each way is run; in each round another one is first.
        people: Requests beside them.
        rate_per_s: At which these come.
        settle_s: Over how long the sessions begin.
        shape: What sessions look like.
        mix: What people send.
        seed: Of all draws.
    """

    agents: int = 16
    rounds: int = 3
    people: int = 10
    rate_per_s: float = 0.4
    settle_s: float = 2.0
    shape: AgentShape = _SHAPE
    mix: Mix = _MIX
    seed: str = "7"

    @property
    def calls(self) -> int:
        """How many each run makes, if none has to be made again."""
        return self.agents * self.shape.turns[1] + self.people


PLANS: Mapping[str, Plan] = {
    "real": Plan(),
    "quick": Plan(
        agents=2,
        rounds=1,
        people=2,
        rate_per_s=2.0,
        settle_s=0.5,
        shape=dataclasses.replace(_SHAPE, turns=(2, 2), shortest_tool_s=0.1, longest_tool_s=0.5),
    ),
}


@dataclass(slots=True)
class _Outcome:
    """What all runs of one way saw."""

    runs: list[SessionRun] = field(default_factory=list[SessionRun])
    of_agents: list[Record] = field(default_factory=list[Record])
    of_people: list[Record] = field(default_factory=list[Record])
    p95s_s: list[float] = field(default_factory=list[float])

    @property
    def times_s(self) -> list[float]:
        """How long the complete sessions took."""
        return _times_s(self.runs)

    @property
    def hit_rate(self) -> float:
        """Share of the agents' prompts, in tokens, that the engine had in its prefix cache; nan where it is silent."""
        told = [each for each in self.of_agents if isinstance(each, HttpRecord)]
        return ratio(sum(each.cached_tokens for each in told), sum(each.looked_up_tokens for each in told))

    @property
    def waits_s(self) -> list[float]:
        """How long people waited for the whole of each answer."""
        return [
            each.ended_s - each.sent_s
            for each in self.of_people
            if each.ended_s is not None and each.outcome == "completed"
        ]


def run(lab: Lab, plan: Plan) -> Findings:
    """Run the three ways in turns, so that what else the machine does hits all of them."""
    seen = {way: _Outcome() for way in LIVE_WAYS}
    for number in range(plan.rounds):
        first = number % len(LIVE_WAYS)
        for way in (*LIVE_WAYS[first:], *LIVE_WAYS[:first]):
            _run(lab, plan, way, number, seen[way])
    figures = [figure for way, base in _COMPARED for figure in _figures(seen, way, base)]
    gain = ratio(percentile(seen[LiveWay.WITH].times_s, 95), percentile(seen[LiveWay.DIRECT].times_s, 95))
    return Findings(
        case="agents live",
        finding=f"{plan.agents} agents beside people: through Muster p95 of the session time is {gain:.2f} x "
        "that of going directly",
        rows=[Row(way, _values(seen[way])) for way in LIVE_WAYS],
        figures=figures,
        curves={
            "session_s": {way: quantiles(seen[way].times_s) for way in LIVE_WAYS},
            "session_p95_s_by_round": {way: seen[way].p95s_s for way in LIVE_WAYS},
        },
        notes=_notes(plan, seen),
    )


def _run(lab: Lab, plan: Plan, way: LiveWay, number: int, outcome: _Outcome) -> None:
    road = Way.DIRECT if way is LiveWay.DIRECT else Way.MUSTER
    label = f"round {number + 1} of {plan.rounds}, {way}"
    seed = f"{plan.seed} live {number}"
    runs: list[SessionRun] = []
    scripts = _agents(plan, seed, lab.block_size, runs)
    told = [
        (at_s, _watched(each, outcome.of_agents, tells_session=way is LiveWay.WITH)) for at_s, each in scripts
    ]
    lab.run(label, road, [*told, *_people(plan, seed, outcome.of_people)])
    outcome.runs += runs
    outcome.p95s_s.append(percentile(_times_s(runs), 95))


def _agents(plan: Plan, seed: str, block_size: int, runs: list[SessionRun]) -> Scripts:
    """The agents of a round, each with one session."""
    most_tokens = round(4 * plan.shape.scale * plan.shape.answers[1])
    source = draws(f"{seed} settling")
    for session in sessions(plan.agents, plan.shape, f"{seed} sessions"):
        yield source.uniform(0.0, plan.settle_s), agents(iter([session]), runs, block_size, most_tokens)


def _people(plan: Plan, seed: str, records: list[Record]) -> Scripts:
    """The people of a round: a Poisson process, of as many requests each way."""
    at_s = 0.0
    source = draws(f"{seed} arrivals")
    for call in itertools.islice(plan.mix.calls(f"{seed} people", tenant=_TENANT), plan.people):
        at_s += source.expovariate(plan.rate_per_s)
        yield at_s, _watched(once(call), records, tells_session=False)


def _watched(script: Script, records: list[Record], *, tells_session: bool) -> Script:
    """The same client, whose records are kept, and which may be silent on which of its calls belong together."""
    record: Record | None = None
    for _ in itertools.count():
        try:
            wish = script.send(record)
        except StopIteration:
            return
        is_silent = isinstance(wish, Call) and not tells_session
        record = yield dataclasses.replace(wish, session=None) if is_silent else wish
        if record is not None:
            records.append(record)


def _times_s(runs: Sequence[SessionRun]) -> list[float]:
    return [each.ended_s - each.began_s for each in runs if each.is_complete]


def _measures(outcome: _Outcome) -> dict[str, float]:
    """What the ways are compared by."""
    return {
        "session p50 s": percentile(outcome.times_s, 50),
        "session p95 s": percentile(outcome.times_s, 95),
        "prefix hits": outcome.hit_rate,
        "people p95 s": percentile(outcome.waits_s, 95),
    }


def _values(outcome: _Outcome) -> dict[str, float | None]:
    return {
        "complete": sum(each.is_complete for each in outcome.runs),
        "answered": len(outcome.waits_s),
        **_measures(outcome),
    }


def _figures(seen: Mapping[LiveWay, _Outcome], way: LiveWay, base: LiveWay) -> Iterator[Figure]:
    measured, beside = _measures(seen[way]), _measures(seen[base])
    for name in measured:
        what = name.removesuffix(" s")
        yield Figure(f"{way} over {base}: {what}", ratio(measured[name], beside[name]))


def _notes(plan: Plan, seen: Mapping[LiveWay, _Outcome]) -> list[str]:
    by_round = "; ".join(
        f"{way}: {', '.join(f'{each:.1f}' for each in seen[way].p95s_s)}" for way in LIVE_WAYS
    )
    sizes = f"{plan.agents} sessions of {plan.shape.turns[1]} steps and {plan.people} people's requests"
    return [
        f"{sizes} in each round; session time: from the first call to the last answer",
        f"session p95 by round, s: {by_round}",
    ]
