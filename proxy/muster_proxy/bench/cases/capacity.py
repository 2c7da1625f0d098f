"""What the engine can do: the unit that loads are told in."""

import itertools

from muster_proxy.bench.labs import BenchmarkError, Lab, Way
from muster_proxy.bench.workloads import Mix, once

_BEGUN, _ENDING = 0.2, 0.8
_FEWEST = 10


def capacity_per_s(lab: Lab, mix: Mix, requests: int, seed: str) -> float:
    """Answers per second that the saturated engine gives, Muster left out.

    All requests are sent at once. What counts is the time between the first and the last fifth of the answers: before
    that the batch is still filling with long answers, after it there is not enough left to fill it.

    Raises:
        BenchmarkError: Some were not answered, or they are too few to tell.
    """
    calls = itertools.islice(mix.calls(f"{seed} capacity"), requests)
    seen = lab.run("capacity of the engine", Way.DIRECT, [(0.0, once(call)) for call in calls])
    ends_s = sorted(record.ended_s for record in seen.ended() if record.ended_s is not None)
    if len(ends_s) < requests or requests < _FEWEST:
        raise BenchmarkError(f"the engine answered {len(ends_s)} of {requests} requests sent at once")
    first, last = int(_BEGUN * requests), int(_ENDING * requests)
    return (last - first) / max(1e-9, ends_s[last] - ends_s[first])
