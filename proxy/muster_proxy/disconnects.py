"""Stops work for a client that has hung up."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

    from starlette.types import Receive


class ClientGoneError(Exception):
    """The client hung up before its answer was complete."""


class watch:  # noqa: N801  it reads as a statement, like asyncio.timeout
    """When the client goes, the block is cancelled and ends as `ClientGoneError`.

    Enter it when the request's body has been read whole: from then on the one message that ASGI delivers is
    the disconnect. It works as `asyncio.timeout` does, with the client's leaving in the clock's place, and
    tells its own cancellation from one that comes from outside.

    Args:
        receive: The ASGI application's `receive`.
        is_answered: Whether the last byte has been handed over; servers then report a disconnect too.
    """

    def __init__(self, receive: "Receive", is_answered: Callable[[], bool]) -> None:
        self._receive = receive
        self._is_answered = is_answered
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        # Nobody waits for the watcher: it holds nothing, and its cancellation is delivered on the next turn.
        self._watcher.cancel()
        if self._gone and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise ClientGoneError from exc

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._is_answered():
            self._gone = True
            self._task.cancel()
