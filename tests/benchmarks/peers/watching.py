"""What a running Muster holds at a moment: from `/proc`, and from its own metrics."""

from dataclasses import dataclass

from tests.benchmarks.peers import process_tree
from tests.benchmarks.peers.start import page

MIB = 1024 * 1024


@dataclass(frozen=True)
class Sample:
    """One reading; None is what could not be read.

    Attributes:
        at_s: Seconds since the measurement began.
        resident_bytes: Memory of the process tree.
        descriptors: Its open files and sockets.
        in_flight: Requests in the engine, as Muster counts them.
        waiting: Requests that wait for a slot.
        tasks: Of its event loop, where it tells them.
    """

    at_s: float
    resident_bytes: int | None = None
    descriptors: int | None = None
    in_flight: float | None = None
    waiting: float | None = None
    tasks: float | None = None


def sample(pid: int, url: str, at_s: float) -> Sample:
    """Read everything. Blocks for as long as `/metrics` takes, at most 5 s."""
    try:
        metrics = page(f"{url}/metrics")
    except OSError:
        metrics = ""
    return Sample(
        at_s=at_s,
        resident_bytes=process_tree.resident_bytes(pid),
        descriptors=process_tree.descriptors(pid),
        in_flight=gauge(metrics, "muster_in_flight"),
        waiting=gauge(metrics, "muster_waiting"),
        tasks=gauge(metrics, "muster_tasks"),
    )


def gauge(metrics: str, name: str) -> float | None:
    """A metric of a page in Prometheus' text format, summed over its labels; None where it is not there."""
    lines = (line.rpartition(" ") for line in metrics.splitlines())
    values = [float(value) for series, _, value in lines if series.partition("{")[0] == name]
    return sum(values) if values else None
