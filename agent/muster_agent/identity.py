"""Who a model call belongs to: two headers on every call, so that the scheduler knows which go together.

`x-session-id` is the thread (or the run, where there is no thread): calls of one session share a growing
prefix. `x-request-id` is the client's request with the number of the call behind it, so that one name finds
a request in the logs of every part.
"""

import uuid
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2

from muster_observability.request_ids import REQUEST_ID

SESSION_ID = "x-session-id"

# The proxy takes up to 128 characters; the number of the call needs its share of them.
_LONGEST_STEM = 120


@dataclass(slots=True)
class RunIdentity:
    """The identity of one run.

    Args:
        session_id: The thread, or `run_...` for a run without one.
        request_id: The id of the request that started the run.
        calls: Model calls made so far.
    """

    session_id: str
    request_id: str
    calls: int = 0


_current: ContextVar[RunIdentity | None] = ContextVar("run_identity", default=None)


def new_run_id() -> str:
    """A session identifier for a run that belongs to no thread."""
    return f"run_{uuid.uuid4().hex}"


def assume(identity: RunIdentity) -> None:
    """Make model calls of this task, and of tasks it starts from now on, carry `identity`."""
    _current.set(identity)


async def add_identity(request: httpx2.Request) -> None:
    """Write the current run's identity on a request; the event hook of the client that calls the proxy."""
    identity = _current.get()
    if identity is None or request.method != "POST":  # a GET asks which models there are: no model call
        return
    identity.calls += 1
    request.headers[SESSION_ID] = identity.session_id
    request.headers[REQUEST_ID] = f"{identity.request_id[:_LONGEST_STEM]}-{identity.calls}"
