"""Who a model call belongs to: headers on every call, so that the scheduler knows which go together.

`x-session-id` is the thread: calls of one session share a growing prefix, and the proxy schedules by it.
`x-request-id` is the client's request with the number of the call behind it, so that one name finds a request in the
logs of every part. The rest is for the proxy's log. The caller's own key goes with the calls, so its tenant pays.

Calls are made deep inside libraries, also by middleware that calls a model by itself. So the headers are written by a
hook of the HTTP client, which every call passes.
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import httpx2

from muster_observability.request_ids import REQUEST_ID

SESSION_ID = "x-session-id"
RUN_ID = "x-muster-run-id"
THREAD_ID = "x-muster-thread-id"
STEP = "x-muster-step"
CALL_KIND = "x-muster-call-kind"
RETRY_COUNT = "x-stainless-retry-count"

CallKind = Literal["model", "summary", "title"]

# The proxy takes up to 128 characters; the number of the call needs its share of them.
_LONGEST_STEM = 120


@dataclass(slots=True)
class RunIdentity:
    """The identity of one attempt at a run, or of a request that makes a model call without a run.

    Attributes:
        session_id: The thread.
        request_id: Of the request that made the run.
        tenant: Whose it is.
        key: The caller's key, if it sent one.
        run_id: The run.
        attempt: Which attempt at it, from 1.
        is_patient: Whether nobody waits at the other end of a connection who could try again.
        step: Which model call of the turn is being made, from 1.
        kind: What it is for.
        calls: Model calls made so far.
        retries: Times that the present call has been turned away.
    """

    session_id: str
    request_id: str
    tenant: str = ""
    key: str | None = field(default=None, repr=False)
    run_id: str | None = None
    attempt: int = 1
    is_patient: bool = True
    step: int = 0
    kind: CallKind = "model"
    calls: int = 0
    retries: int = 0


_current: ContextVar[RunIdentity | None] = ContextVar("run_identity", default=None)


@contextmanager
def assumed(identity: RunIdentity) -> Generator[None]:
    """Make the model calls of this block, and of tasks started in it, carry `identity`."""
    token = _current.set(identity)
    try:
        yield
    finally:
        _current.reset(token)


def tenant() -> str:
    """For whom the caller works; nobody's name outside of a run."""
    identity = _current.get()
    return "" if identity is None else identity.tenant


def begin_step(step: int) -> None:
    """The model is about to be called for the `step`th time in its turn."""
    if (identity := _current.get()) is not None:
        identity.step = step
        identity.retries = 0


def is_patient() -> bool:
    """Whether a call that is turned away may be made again at leisure."""
    identity = _current.get()
    return identity is None or identity.is_patient


def count_retry() -> None:
    """The present call is made again."""
    if (identity := _current.get()) is not None:
        identity.retries += 1


@contextmanager
def calling(kind: CallKind) -> Generator[None]:
    """Model calls of this block are for something beside the conversation."""
    identity = _current.get()
    if identity is None:
        yield
        return
    before, identity.kind = identity.kind, kind
    try:
        yield
    finally:
        identity.kind = before


async def add_identity(request: httpx2.Request) -> None:
    """Write the current identity on a request; the event hook of the client that calls the proxy."""
    identity = _current.get()
    if identity is None:
        return
    if identity.key is not None:
        request.headers["authorization"] = f"Bearer {identity.key}"
    if request.method != "POST":  # a GET asks which models there are: no model call
        return
    identity.calls += 1
    request.headers[SESSION_ID] = identity.session_id
    request.headers[REQUEST_ID] = f"{identity.request_id[:_LONGEST_STEM]}-{identity.calls}"
    request.headers[CALL_KIND] = identity.kind
    if identity.run_id is not None:
        request.headers[RUN_ID] = identity.run_id
        request.headers[THREAD_ID] = identity.session_id
        request.headers[STEP] = str(max(1, identity.step))
        # The SDK counts its own retries, of which there are none. A run that is resumed makes a call again, too.
        request.headers[RETRY_COUNT] = str(identity.retries + identity.attempt - 1)
