"""What is counted on the path of requests is shown as the library's own counters show it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from muster_observability.metrics import Durations, Tally

BOUNDS_S = (0.001, 0.5, 1, 2.5, 300)


def page(registry: CollectorRegistry) -> list[bytes]:
    """What is shown, without the time at which the library's metrics were made."""
    return [line for line in generate_latest(registry).splitlines() if b"_created" not in line]


@given(st.lists(st.floats(0, 1000) | st.sampled_from(BOUNDS_S)))
def test_durations_are_the_librarys_histogram(seconds: list[float]) -> None:
    """Bounds belong to the bucket below them, and the last one takes the rest."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    durations = Durations("waits_seconds", "How long.", BOUNDS_S, ours)
    histogram = Histogram("waits_seconds", "How long.", buckets=BOUNDS_S, registry=theirs)
    for each in seconds:
        durations.observe(each)
        histogram.observe(each)

    assert page(ours) == page(theirs)


def test_a_tally_is_the_librarys_counter() -> None:
    """With all of its values from the start."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tally = Tally("ends", "How it ended.", "outcome", ("good", "bad"), ours)
    counter = Counter("ends", "How it ended.", ["outcome"], registry=theirs)
    tally.add("good")
    tally.add("good", 3)
    counter.labels("good").inc(4)
    counter.labels("bad")

    assert page(ours) == page(theirs)
    with pytest.raises(KeyError):
        tally.add("unknown")
