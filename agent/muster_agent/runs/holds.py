"""What this process holds at the moment: the run, or the hand, that code deep inside a graph works for."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from muster_agent.runs.records import Lease, LeaseLostError


@dataclass(slots=True)
class Hold:
    """A lease as its owner sees it.

    Attributes:
        lease: The lease.
        is_lost: Whether another process is known to have it.
        is_saved: Whether a checkpoint of this attempt is stored: the run's input is in the thread by then.
        on_saved: Called when it is.
    """

    lease: Lease
    is_lost: bool = False
    is_saved: bool = False
    on_saved: Callable[[], None] | None = None

    def note_saved(self) -> None:
        """A checkpoint is stored."""
        self.is_saved = True
        if self.on_saved is not None:
            self.on_saved()


_current: ContextVar[Hold | None] = ContextVar("hold", default=None)


@contextmanager
def assumed(hold: Hold) -> Generator[None]:
    """Let this block, and tasks started in it, write under `hold`."""
    token = _current.set(hold)
    try:
        yield
    finally:
        _current.reset(token)


def peek() -> Hold | None:
    """What the caller works under, if anything."""
    return _current.get()


def current() -> Hold:
    """What the caller works under.

    Raises:
        LeaseLostError: It is known to be lost.
        RuntimeError: Nothing: whoever writes to a thread must hold it.
    """
    hold = _current.get()
    if hold is None:
        raise RuntimeError("a thread's state is written by whoever holds the thread, and nobody does here")
    if hold.is_lost:
        raise LeaseLostError(hold.lease.run_id)
    return hold
