"""The estimate of when a ticket turned away may come again."""

from muster_batching.drain import LEAST_RETRY_S, MOST_RETRY_S, UNMEASURED_RETRY_S, DrainRate


def drained(*departures_s: float) -> DrainRate:
    """Measure departures at these times from a queue that began at 0 and lasts."""
    drain = DrainRate()
    drain.begin(0.0)
    for now_s in departures_s:
        drain.count(now_s)
    return drain


def test_regular_gaps_are_measured_exactly() -> None:
    """One departure every 4 s puts the third in line 12 s off, however many gaps were seen."""
    assert drained(4.0).retry_after_s(3, now_s=4.0) == 12
    assert drained(4.0, 8.0, 12.0, 16.0).retry_after_s(3, now_s=16.0) == 12


def test_the_time_before_the_first_departure_is_unmeasured() -> None:
    """Before anything left, the answer is a constant, however long the queue."""
    assert drained().retry_after_s(1000, now_s=3.0) == UNMEASURED_RETRY_S


def test_bursts_count_by_their_mean() -> None:
    """64 departures at once every 8 s are eight a second, also right after a burst."""
    bursts = [8.0 * burst for burst in range(1, 20) for _ in range(64)]

    assert drained(*bursts).retry_after_s(160, now_s=bursts[-1]) == 20


def test_a_changed_pace_is_followed() -> None:
    """After a minute at a tenth of the pace, the old pace weighs less than half of what is said."""
    fast = [float(second) for second in range(1, 61)]
    slow = [60.0 + 10.0 * gap for gap in range(1, 7)]

    assert drained(*fast).retry_after_s(5, now_s=fast[-1]) == 5
    assert drained(*fast, *slow).retry_after_s(5, now_s=slow[-1]) > 25


def test_a_stalled_queue_does_not_promise_its_old_pace() -> None:
    """The gap since the last departure counts while it lasts."""
    assert drained(1.0).retry_after_s(2, now_s=1.0) == 2
    assert drained(1.0).retry_after_s(2, now_s=31.0) > 20


def test_the_estimate_stays_in_its_range() -> None:
    """The answer is 1 s at least and 60 s at most, even when the last departure has faded to nothing."""
    assert drained(0.01).retry_after_s(1, now_s=0.01) == LEAST_RETRY_S
    assert drained(10.0).retry_after_s(7, now_s=10.0) == MOST_RETRY_S
    assert drained(10.0).retry_after_s(1, now_s=22_000.0) == MOST_RETRY_S


def test_idle_time_is_left_out() -> None:
    """An hour in which nobody waited neither makes the engine look slow nor fades what was measured."""
    drain = drained(4.0)
    drain.end(4.0)
    assert drain.retry_after_s(3, now_s=3600.0) == 12

    drain.begin(3600.0)
    drain.count(3604.0)
    assert drain.retry_after_s(3, now_s=3604.0) == 12


def test_a_backlog_that_left_unserved_counts_as_waiting() -> None:
    """Seconds at the end of a backlog in which nobody was served weigh in."""
    drain = drained(4.0)
    drain.end(8.0)

    assert drain.retry_after_s(1, now_s=8.0) > 8
