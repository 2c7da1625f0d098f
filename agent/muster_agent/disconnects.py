"""Work that stops when the client leaves.

A server notices on its own only when it writes. A run is silent for long, so its end is tied to the
connection instead: the moment the client is gone, the work is cancelled, and with it the model call.
"""

from collections.abc import Awaitable, Callable

import anyio
from starlette.types import Receive


async def until_disconnect(receive: Receive, work: Callable[[], Awaitable[None]]) -> bool:
    """Do `work`, cancelled as soon as the client leaves; the request's body must have been read.

    Returns:
        Whether the work was done; False when the client left first.
    """
    is_done = False
    error: Exception | None = None
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_on_disconnect, receive, group.cancel_scope)
        try:
            await work()
            is_done = True
        except Exception as raised:  # noqa: BLE001 - raised again below, outside the group and not inside an ExceptionGroup
            error = raised
        group.cancel_scope.cancel()
    if error is not None:
        raise error
    return is_done


async def _cancel_on_disconnect(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
