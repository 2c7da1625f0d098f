"""LangSmith's hooks around middleware."""

import threading
from typing import Any

import langsmith
import pytest

from muster_agent.agents.tracing import stay_in_loop_untraced

pytestmark = pytest.mark.anyio


_threads: list[threading.Thread] = []


def _noted(inputs: dict[str, Any]) -> dict[str, Any]:
    _threads.append(threading.current_thread())
    return inputs


@langsmith.traceable(process_inputs=_noted)
async def _work() -> int:
    return 1


async def test_what_is_traced_is_traced_in_a_thread() -> None:
    """Where tracing is on, LangSmith's own way stays: what it writes down may be large."""
    stay_in_loop_untraced()
    _threads.clear()
    client = langsmith.Client(api_url="http://127.0.0.1:9", api_key="none", auto_batch_tracing=False)
    with langsmith.tracing_context(enabled="local", client=client):
        assert await _work() == 1
    assert [thread is threading.current_thread() for thread in _threads] == [False]


async def test_what_is_not_traced_stays_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is off, a call with such hooks needs no thread."""
    stay_in_loop_untraced()

    def started(_thread: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", started)
    assert await _work() == 1
