"""Asking the model: when a call is made again, and how one fails."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import openai

from muster_agent import failures, identity

_Answer = TypeVar("_Answer")

_LONGEST_WAIT_S = 60.0


async def answered(call: Callable[[], Awaitable[_Answer]], *, is_first: bool) -> _Answer:
    """Call the model, for whatever purpose; `is_first` where the run has not called it before.

    Raises:
        Failure: It did not answer, or what it answered cannot be read.
    """
    with failures.told():
        return await _admitted(call, is_first=is_first)


async def _admitted(call: Callable[[], Awaitable[_Answer]], *, is_first: bool) -> _Answer:
    """Call the model; a call that the proxy turns away is made again when the proxy says so, until the run's deadline.

    This is the one place where the agent tries again, and the one thing it tries again: 429 and 503 with `retry-after`
    mean that nothing was done. What fails in an engine is the proxy's to try again. A run whose client waits for the
    first call is not kept waiting here: the client is told, and tries again itself.
    """
    while True:
        try:
            return await call()
        except openai.APIStatusError as error:
            wait_s = _retry_after_s(error)
            if wait_s is None or (is_first and not identity.is_patient()):
                raise
            # Those that were turned away together must not come back together.
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.5))  # noqa: S311 - no secret
            identity.count_retry()


def _retry_after_s(error: openai.APIStatusError) -> float | None:
    if error.status_code not in {429, 503}:
        return None
    given = str(error.response.headers.get("retry-after", ""))
    return min(float(given), _LONGEST_WAIT_S) if given.isascii() and given.isdecimal() else None
