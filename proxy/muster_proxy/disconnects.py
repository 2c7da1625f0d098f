"""Stops work for a client that has hung up."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

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
        receive: The ASGI application's `receive`. No task is needed to listen to one that gives a future (`protocol`).
        is_answered: Whether the last byte has been handed over; servers then report a disconnect too.
    """

    __slots__ = ("_cancelling", "_gone", "_is_answered", "_leaving", "_receive", "_task")

    _task: asyncio.Task[Any]
    _leaving: asyncio.Future[Any]

    def __init__(self, receive: "Receive", is_answered: Callable[[], bool]) -> None:
        self._receive = receive
        self._is_answered = is_answered
        self._gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        self._task = task
        self._cancelling = task.cancelling()
        leaving = self._receive()
        self._leaving = leaving if isinstance(leaving, asyncio.Future) else asyncio.ensure_future(leaving)
        self._leaving.add_done_callback(self._left)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: "TracebackType | None",
    ) -> None:
        self._leaving.remove_done_callback(self._left)
        self._leaving.cancel()
        if self._gone and self._task.uncancel() <= self._cancelling and exc_type is asyncio.CancelledError:
            raise ClientGoneError from exc

    def _left(self, leaving: asyncio.Future[Any]) -> None:
        if not leaving.cancelled() and not self._is_answered():
            self._gone = True
            self._task.cancel()
