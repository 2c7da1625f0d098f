"""The upstreams, the pools they serve, and who has room."""

import math
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from operator import attrgetter

from muster_batching.errors import LimitError
from muster_batching.tickets import PoolId, UpstreamId


@dataclass(frozen=True, slots=True)
class UpstreamReport:
    """What is known of an upstream now; a later report replaces it whole.

    Attributes:
        limit: Slots it has, 1 or more, shared by its pools. It may fall below what is in flight.
        pools: The pools it serves.
        available: Whether it takes new requests.

    Raises:
        LimitError: The limit is below 1.
    """

    limit: int
    pools: frozenset[PoolId]
    available: bool

    def __post_init__(self) -> None:
        if not 1 <= self.limit < math.inf:
            raise LimitError("limit", self.limit, 1)


@dataclass(slots=True, eq=False)
class Upstream:
    """One upstream: its latest report and the slots taken on it."""

    id: UpstreamId
    report: UpstreamReport
    in_flight: int = 0

    @property
    def serves(self) -> AbstractSet[PoolId]:
        """The pools whose tickets it takes now."""
        return self.report.pools if self.report.available else frozenset()

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.in_flight < self.report.limit

    @property
    def load(self) -> float:
        """The share of its slots that is taken; over 1 after its limit fell."""
        return self.in_flight / self.report.limit


class Upstreams:
    """Every upstream that serves a pool or still has tickets in flight.

    A pool once served stays known, so that a model whose last replica is being replaced is told from a
    model that does not exist.
    """

    def __init__(self) -> None:
        self._by_id: dict[UpstreamId, Upstream] = {}
        self._serving: dict[PoolId, dict[UpstreamId, Upstream]] = {}

    def update(self, upstream_id: UpstreamId, report: UpstreamReport) -> tuple[Upstream, list[PoolId]]:
        """Add an upstream or replace its report; return it and the pools it was the last to serve, sorted."""
        upstream = self._by_id.get(upstream_id)
        served: AbstractSet[PoolId] = frozenset() if upstream is None else upstream.serves
        if upstream is None:
            upstream = self._by_id[upstream_id] = Upstream(upstream_id, report)
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
        self._forget_if_gone(upstream)
        return unserved

    def give_back(self, upstream: Upstream) -> None:
        """Take back one slot."""
        upstream.in_flight -= 1
        self._forget_if_gone(upstream)

    def least_loaded(self, pool: PoolId) -> Upstream | None:
        """Find the upstream of the pool with the smallest load, the longest-serving among equals.

        O(upstreams of the pool). None when all of them are at their limit.
        """
        with_room = [upstream for upstream in self._serving[pool].values() if upstream.has_room]
        return min(with_room, key=attrgetter("load"), default=None)

    def knows(self, pool: PoolId) -> bool:
        """Tell whether any upstream has ever served the pool."""
        return pool in self._serving

    def serves(self, pool: PoolId) -> bool:
        """Tell whether an upstream of the pool is available."""
        return bool(self._serving.get(pool))

    def in_flight_on(self, upstream_id: UpstreamId) -> int:
        """Count the slots taken on an upstream; 0 on one that is not known."""
        upstream = self._by_id.get(upstream_id)
        return 0 if upstream is None else upstream.in_flight

    def __repr__(self) -> str:
        return "{" + ", ".join(map(_describe, self._by_id.values())) + "}"

    def _forget_if_gone(self, upstream: Upstream) -> None:
        # One that was removed is kept while it has tickets in flight: if the same id is reported again, the
        # slots they hold still count against its limit.
        if not upstream.report.pools and not upstream.in_flight:
            del self._by_id[upstream.id]


def _describe(upstream: Upstream) -> str:
    state = "" if upstream.report.available else " unavailable"
    return f"{upstream.id!r}: {upstream.in_flight}/{upstream.report.limit}{state}"
