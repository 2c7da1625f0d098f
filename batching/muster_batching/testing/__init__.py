"""What tests of a scheduler play with: time moved by hand, a log of decisions, a model of an engine."""

from muster_batching.testing.engine import (
    EngineModel,
    EngineRequest,
    Finished,
    FirstToken,
)
from muster_batching.testing.profiles import CPU_135M, H200_8B, PROFILES, EngineProfile
from muster_batching.testing.timeline import Timeline, VirtualClock

__all__ = [
    "CPU_135M",
    "H200_8B",
    "PROFILES",
    "EngineModel",
    "EngineProfile",
    "EngineRequest",
    "Finished",
    "FirstToken",
    "Timeline",
    "VirtualClock",
]
