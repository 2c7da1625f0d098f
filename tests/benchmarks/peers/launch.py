"""Starts the processes of a measurement, each on its core, and leaves none behind."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]

STOPS_WITHIN_S = 15.0
DESCRIPTORS = 20_000

LOG = "log"
"""What a program writes, in its directory."""


@dataclass(frozen=True)
class Cores:
    """Which core runs what; None: wherever the system puts it.

    Attributes:
        proxy: Core of what is measured.
        load: Core of the engine and the load.
    """

    proxy: int | None = None
    load: int | None = None

    def __str__(self) -> str:
        """In words."""
        if self.proxy is None:
            return "no process is pinned to a core: that needs two cores and an OS that can (Linux)"
        return f"the proxy has core {self.proxy}, engine and load share core {self.load}"


def two_cores() -> Cores:
    """Two cores to measure on, where this system has two and can pin processes to them."""
    if sys.platform != "linux":
        return Cores()
    cores = sorted(os.sched_getaffinity(0))
    return Cores(cores[0], cores[1]) if len(cores) > 1 else Cores()


@contextlib.contextmanager
def pinned(core: int | None) -> Generator[None]:
    """What is started within the block runs on one core; this thread is back on its own after it.

    Affinity is inherited: a program finds one core when it counts them to choose its number of threads.
    """
    if core is None or sys.platform != "linux":
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def allow_descriptors(count: int = DESCRIPTORS) -> None:
    """Let this process, and those that it starts, open so many files; fewer where the system's limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def end_orderly() -> None:
    """Let SIGTERM end this program through its `finally` blocks, as Ctrl-C does, so that its children end too."""

    def end(number: int, _: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(**more: str) -> dict[str, str]:
    """Variables of every process that is measured: no settings of this shell, above all no HTTP proxy."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    return kept | more


@contextlib.contextmanager
def running(
    command: Sequence[str], directory: Path, core: int | None, variables: Mapping[str, str] | None = None
) -> Generator[subprocess.Popen[bytes]]:
    """A program, for the length of the block; its children end with it.

    Args:
        command: Program and arguments.
        directory: Where it runs, and where `LOG` gets what it writes.
        core: Its core.
        variables: Environment variables beside those that all have.
    """
    with (directory / LOG).open("wb") as log, pinned(core):
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment(**(variables or {})),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


@contextlib.contextmanager
def paced_engine(core: int | None, slots: int | None = None) -> Generator[str]:
    """The paced engine; the block has its root URL."""
    limited = [] if slots is None else ["--slots", str(slots)]
    with pinned(core):
        process = own_process("paced_engine", *limited)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        stop(process)
        process.stdout.close()


def own_process(module: str, *arguments: str, takes_input: bool = False) -> subprocess.Popen[bytes]:
    """A module of this package as a program, whose output can be read."""
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.benchmarks.peers.{module}", *arguments],
        env=environment(PYTHONPATH=str(ROOT)),
        cwd=ROOT,
        stdin=subprocess.PIPE if takes_input else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a program to end, make it end, and its children too: they are in a session of their own."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
