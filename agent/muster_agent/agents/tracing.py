"""LangSmith's tracing, which LangChain has around every middleware's work, whether anybody traces or not."""

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any

import langsmith
from langsmith.utils import tracing_is_enabled  # pyright: ignore[reportUnknownVariableType] - its argument


def stay_in_loop_untraced() -> None:
    """Do LangSmith's work in the event loop where tracing is off: there is next to none.

    LangSmith goes to a thread and back before and after each call that it might trace, to write down what it traces.
    For an agent's step that is a dozen times: a sixth of its CPU time.
    """
    langsmith.set_runtime_overrides(aio_to_thread=_done)


async def _done(
    in_thread: Callable[..., Awaitable[Any]],
    context: Context,
    work: Callable[..., Any],
    /,
    *given: Any,  # noqa: ANN401 - anything
    **named: Any,  # noqa: ANN401 - anything
) -> Any:  # noqa: ANN401 - what the work returns
    if tracing_is_enabled():
        return await in_thread(context, work, *given, **named)
    return context.run(work, *given, **named)
