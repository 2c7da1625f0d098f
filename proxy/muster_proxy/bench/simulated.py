"""A lab in virtual time: a model of an engine, and the scheduler itself, without the proxy around it."""

import time

from muster_batching.policy import Policy
from muster_batching.scheduler import Scheduler
from muster_batching.testing import EngineModel, EngineProfile
from muster_batching.testing.simulation import Conditions, Metrics, simulate
from muster_batching.tickets import UpstreamId
from muster_proxy.bench.labs import Meter, Scripts, Seen, Way

_UPSTREAM = UpstreamId("simulated")


class SimulatedLab:
    """Runs clients in virtual time.

    Args:
        profile: The engine.
        meter: Is told how it gets on.

    Attributes:
        virtual_s: Time that passed in all runs so far.
    """

    is_simulated = True

    def __init__(self, profile: EngineProfile, meter: Meter) -> None:
        self._profile = profile
        self._meter = meter
        self.virtual_s = 0.0

    @property
    def kv_tokens(self) -> int:
        """Tokens that the engine's KV cache holds."""
        return self._profile.kv_tokens

    @property
    def block_size(self) -> int:
        """Tokens in a block of its prefix cache."""
        return self._profile.block_size

    def run(self, label: str, way: Way, scripts: Scripts, *, metrics: Metrics = "honest") -> Seen:
        """Run clients to their ends on a fresh engine; `metrics` is what the scheduler sees of it."""
        self._meter.run_begins(label)
        engine = EngineModel(self._profile)
        scheduler = Scheduler(Policy()) if way is Way.MUSTER else None
        conditions = Conditions(metrics=metrics, stopwatch=time.perf_counter, on_end=self._meter.call_ended)
        seen = simulate(scripts, {_UPSTREAM: engine}, scheduler, conditions)
        self.virtual_s += seen.ended_s
        sample = engine.sample()
        return Seen(seen.records, seen.ended_s, sample.prefix_queries, sample.prefix_hits, seen.scheduler_s)
