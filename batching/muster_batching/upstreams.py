"""The upstreams, the pools they serve, and who has room."""

import math
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from muster_batching.gate import SessionGate
from muster_batching.limits import Limit, LimitPolicy, Load
from muster_batching.tickets import CLASSES, PoolId, RequestClass, Ticket, UpstreamId

HEADROOM = 0.04
"""The share of an engine's capacity that is kept free for those who are present and below their share: enough
that one of them finds a free place in the engine while a completion is milliseconds away, and little enough
that filling requests keep 95 % and more of the throughput (which grows less than in proportion with the batch)."""

MOST_PROMPT_TOKENS = 8_192
FILL_PROMPT_TOKENS = 2_048
"""Prompt tokens not yet begun in the engine at which no more is sent, or no filling request. What waits for its
prompt to be computed waits better here, where it has an order. A step computes at most so many tokens of prompts as
vLLM's `max_num_batched_tokens`, 8,192 on most GPUs: the first number keeps it full. The second keeps a step short
for whoever comes during it. Both are of requests that tell of their first token (`Ticket.is_stream`)."""

FIRST_PROMPTS = 16
"""While a capacity is not known, no more requests may be in an engine whose first token has not come than this or
than have begun, whichever is more: TCP's slow start (RFC 5681). An engine that can run more doubles what it is given
with each turn of prompts and is computing prompts all the while; one that cannot is not given a long queue that
whoever comes then stands behind."""

AFFINITY_SLACK = 0.25
"""A session stays with its upstream while that has a free slot and is loaded at most this much more than the
least loaded one: about what a prefix that need not be computed again saves of a turn."""


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """What is known of an upstream now; a later report replaces it whole.

    Attributes:
        limit: How its slots are found. A report with an equal one keeps what was learned.
        pools: The pools it serves; they share its slots.
        available: Whether it takes new requests.
    """

    limit: LimitPolicy
    pools: frozenset[PoolId]
    available: bool


@dataclass(slots=True, eq=False)
class Upstream:
    """One upstream: its latest report, the slots taken on it, its limit, and the sessions at home on it.

    Attributes:
        id: Its name.
        report: The latest.
        limit: How many slots it has.
        load: What its limit is told.
        by_class: Slots taken, by class.
        gate: The sessions resident on it.
    """

    id: UpstreamId
    report: UpstreamReport
    limit: Limit
    load: Load = field(default_factory=Load)
    by_class: dict[RequestClass, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))
    gate: SessionGate = field(default_factory=SessionGate)

    @property
    def serves(self) -> AbstractSet[PoolId]:
        """The pools whose tickets it takes now."""
        return self.report.pools if self.report.available else frozenset()

    @property
    def in_flight(self) -> int:
        """Slots taken."""
        return self.load.in_flight

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.load.in_flight < self.limit.slots()

    @property
    def used(self) -> float:
        """The share of its slots that is taken; over 1 after its limit fell."""
        return self.load.in_flight / self.limit.slots()

    def takes(self, *, is_filling: bool) -> bool:
        """Whether it takes one more request.

        Up to its slots, and not while too many prompts are not yet begun. A filling one (less urgent than others who
        are present, or of a tenant that has its share) only up to its capacity less the headroom, so that those find
        a place in the engine's batch and not in its queue: `capacity - round(HEADROOM * capacity)`, and always 1, but
        for a probe of the limit's.
        """
        if not self._takes_prompts(FILL_PROMPT_TOKENS if is_filling else MOST_PROMPT_TOKENS):
            return False
        slots = self.limit.slots()
        if is_filling:
            capacity = self.limit.capacity() or slots
            probe = self.limit.probe()
            filled = capacity + probe if probe else capacity - round(HEADROOM * capacity)
            slots = min(slots, max(1, filled))
        return self.load.in_flight < slots

    def _takes_prompts(self, most_tokens: int) -> bool:
        """Whether it takes another prompt: not if as many tokens, or too many prompts, are not yet begun."""
        load = self.load
        if load.prompt_tokens >= most_tokens:
            return False
        return load.prompts < max(FIRST_PROMPTS, load.begun) or self.limit.capacity() is not None

    def note_if_limiting(self, *, is_waiting: bool) -> None:
        """Note whether tickets wait for its slots; not if they wait for others' prompts to be computed."""
        self.load.is_limiting = is_waiting and self._takes_prompts(FILL_PROMPT_TOKENS)

    def has_share_left(self, request_class: RequestClass, share: float) -> bool:
        """Whether a class holds less than this share of its slots; one is always within it."""
        return self.by_class[request_class] < max(1.0, share * self.limit.slots())

    def take(self, ticket: Ticket) -> None:
        """Take a slot."""
        self.load.in_flight += 1
        self.load.unseen += 1
        self.by_class[ticket.request_class] += 1
        self._count_prompt(ticket, 1)

    def begin(self, ticket: Ticket) -> None:
        """Note that a request's first token has come."""
        self.load.begun += 1
        self.load.moved += 1
        self._count_prompt(ticket, -1)

    def give_back(self, ticket: Ticket, *, has_begun: bool) -> None:
        """Give a slot back."""
        self.load.in_flight -= 1
        self.load.moved += 1
        self.by_class[ticket.request_class] -= 1
        if has_begun:
            self.load.begun -= 1
        else:
            self._count_prompt(ticket, -1)

    def _count_prompt(self, ticket: Ticket, change: int) -> None:
        if ticket.is_stream:  # only these tell of their first token
            self.load.prompts += change
            self.load.prompt_tokens += change * ticket.input_tokens


class Upstreams:
    """Every upstream that serves a pool or still has tickets in flight.

    A pool once served stays known, so that a model whose last replica is being replaced is told from a
    model that does not exist.
    """

    def __init__(self) -> None:
        self._by_id: dict[UpstreamId, Upstream] = {}
        self._serving: dict[PoolId, dict[UpstreamId, Upstream]] = {}

    def get(self, upstream_id: UpstreamId) -> Upstream | None:
        """The upstream of that name, if it is known."""
        return self._by_id.get(upstream_id)

    def update(self, upstream_id: UpstreamId, report: UpstreamReport) -> tuple[Upstream, list[PoolId]]:
        """Add an upstream or replace its report; return it and the pools it was the last to serve, sorted."""
        upstream = self._by_id.get(upstream_id)
        served: AbstractSet[PoolId] = frozenset() if upstream is None else upstream.serves
        if upstream is None:
            upstream = self._by_id[upstream_id] = Upstream(upstream_id, report, report.limit.start())
        if upstream.report.limit != report.limit:
            upstream.limit = report.limit.start()
        upstream.report = report
        for pool in report.pools:
            self._serving.setdefault(pool, {})
        for pool in served - upstream.serves:
            del self._serving[pool][upstream_id]
        for pool in upstream.serves - served:
            self._serving[pool][upstream_id] = upstream
        return upstream, sorted(pool for pool in served if not self._serving[pool])

    def remove(self, upstream_id: UpstreamId) -> list[PoolId]:
        """Take an upstream out of service; return the pools that it was the last to serve, sorted."""
        upstream = self._by_id.get(upstream_id)
        if upstream is None:
            return []
        _, unserved = self.update(upstream_id, replace(upstream.report, pools=frozenset(), available=False))
        self.forget_if_gone(upstream)
        return unserved

    def of(self, pool: PoolId) -> Iterable[Upstream]:
        """The available upstreams of a pool, the longest-serving first."""
        return self._serving.get(pool, {}).values()

    def knows(self, pool: PoolId) -> bool:
        """Tell whether any upstream has ever served the pool."""
        return pool in self._serving

    def serves(self, pool: PoolId) -> bool:
        """Tell whether an upstream of the pool is available."""
        return bool(self._serving.get(pool))

    def forget_if_gone(self, upstream: Upstream) -> None:
        """Forget an upstream that serves nothing and has nothing in flight.

        One that was removed is kept while it has: if the same id is reported again, the slots they hold still
        count against its limit.
        """
        if not upstream.report.pools and not upstream.in_flight:
            del self._by_id[upstream.id]

    def __repr__(self) -> str:
        return "{" + ", ".join(map(_describe, self._by_id.values())) + "}"


def choose(
    upstreams: Iterable[Upstream],
    home: UpstreamId | None,
    *,
    is_filling: bool,
    avoid: UpstreamId | None = None,
) -> Upstream | None:
    """Find the upstream for a ticket that need not wait; O(upstreams).

    The one with the smallest share of its slots taken, the longest-serving among equals; but a session stays
    at home while that takes it and its share is at most `AFFINITY_SLACK` above the smallest. The one to avoid comes
    after all others.
    """
    best = at_home = avoided = None
    least = math.inf
    for upstream in upstreams:
        if upstream.takes(is_filling=is_filling):
            if upstream.id == avoid:
                avoided = upstream
                continue
            if upstream.id == home:
                at_home = upstream
            if upstream.used < least:
                best, least = upstream, upstream.used
    if best is None:
        return avoided
    return at_home if at_home is not None and at_home.used <= least + AFFINITY_SLACK else best


def _describe(upstream: Upstream) -> str:
    state = "" if upstream.report.available else " unavailable"
    return f"{upstream.id!r}: {upstream.in_flight}/{upstream.limit.slots()}{state}"
