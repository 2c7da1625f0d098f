"""What a process and its children use, read from `/proc`; None where there is none (macOS).

A child that has come and gone between two readings is not counted; no proxy here has such.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")

HAS_PROC = (_PROC / "self/statm").exists()


def cpu_s(pid: int) -> float | None:
    """Seconds of CPU, user and system, that the tree has used since it began.

    The kernel's CPU clock of each process, to the nanosecond: `/proc/PID/stat` has the same in ticks of 10 ms. The
    number of that clock is what `clock_getcpuclockid` computes.
    """
    if not HAS_PROC:
        return None
    return sum(_cpu_s(each) for each in _members(pid))


def resident_bytes(pid: int) -> int | None:
    """Memory that the tree holds now; pages that two of its processes share count twice."""
    if not HAS_PROC:
        return None
    pages = sum(int(text.split()[1]) for each in _members(pid) if (text := _read(each, "statm")))
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int | None:
    """Open files and sockets of the tree."""
    if not HAS_PROC:
        return None
    return sum(_descriptors(each) for each in _members(pid))


def _members(pid: int) -> Iterator[int]:
    yield pid
    try:
        threads = [entry.name for entry in (_PROC / str(pid) / "task").iterdir()]
    except OSError:
        return
    for thread in threads:
        for child in _read(pid, f"task/{thread}/children").split():
            yield from _members(int(child))


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # it has ended
        return 0.0


def _descriptors(pid: int) -> int:
    try:
        return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return 0


def _read(pid: int, name: str) -> str:
    try:
        return (_PROC / str(pid) / name).read_text()
    except OSError:
        return ""
