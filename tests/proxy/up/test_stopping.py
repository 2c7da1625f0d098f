"""Whatever ends a stack, at whatever stage: no process is left, and the exit code says how it ended."""

import os
import signal
import threading
from contextlib import AbstractContextManager

import httpx
import pytest

from muster_observability import server
from tests.stacks import Stack, muster_up, until

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("weights")]


def test_ctrl_c_while_starting_leaves_nothing() -> None:
    """The parts have begun to load when the signal comes; the command says that it was interrupted."""
    with muster_up() as stack:
        for _ in until(60, "the parts' start"):
            if len(stack.parts()) == 3:
                break

        assert stack.stop() == server.ExitCode.INTERRUPTED
        assert not stack.parts()


def test_ctrl_c_in_the_middle_of_a_stream_ends_it_cleanly() -> None:
    """The client is told that the server is shutting down; nothing is left, and the exit is a clean one."""
    with muster_up() as stack:
        stack.wait_for("ready after")
        with long_stream(stack) as answer:
            lines = answer.iter_lines()
            next(lines)
            stopping = threading.Thread(target=stack.stop)
            stopping.start()
            rest = [line for line in lines if line]
            stopping.join()

        assert stack.process.returncode == server.ExitCode.OK
        assert '"server_shutting_down"' in rest[-2]
        assert rest[-1] == "data: [DONE]"
        assert not stack.parts()


def test_an_engine_that_is_killed_is_started_again() -> None:
    """`muster up` says so; requests meanwhile get 503 with retry-after; afterwards they are served."""
    with muster_up() as stack:
        stack.wait_for("ready after")
        os.kill(stack.parts()["engine"], signal.SIGKILL)
        stack.wait_for("engine was killed by SIGKILL; starting it again")
        meanwhile = ask(stack)
        stack.wait_for("engine is back")
        for _ in until(30, "the proxy's word that the engine answers"):
            if ask(stack).status_code == 200:
                break

    assert meanwhile.status_code == 503
    assert int(meanwhile.headers["retry-after"]) >= 1
    assert meanwhile.json()["error"]["type"] == "server_error"


def test_a_supervisor_that_is_killed_takes_its_parts_with_it() -> None:
    """SIGKILL leaves it no time for a word; its parts see the end of their pipe."""
    with muster_up() as stack:
        stack.wait_for("ready after")
        assert stack.stop(signal.SIGKILL) == -signal.SIGKILL
        stack.wait_until_no_part_is_left()


def test_a_proxy_that_dies_ends_the_stack() -> None:
    """It is not restarted: the others stop, and the exit code says that a part died."""
    with muster_up() as stack:
        stack.wait_for("ready after")
        os.kill(stack.parts()["proxy"], signal.SIGKILL)

        assert stack.process.wait(60) == server.ExitCode.SOFTWARE
        assert "proxy was killed by SIGKILL" in stack.said()
        assert not stack.parts()


def test_a_part_that_cannot_start_ends_the_stack_with_its_own_exit_code() -> None:
    """The part says what is wrong, and nothing is left running."""
    with muster_up(MUSTER_AGENT_FROB="1") as stack:
        assert stack.process.wait(60) == server.ExitCode.CONFIG
        assert "MUSTER_AGENT_FROB" in stack.said()
        assert not stack.parts()


def test_a_second_signal_stops_at_once() -> None:
    """Even a stack that a shell started in the background, where SIGINT is ignored, heeds both."""
    with muster_up(ignores_sigint=True) as stack:
        stack.wait_for("ready after")
        with long_stream(stack) as answer:
            next(answer.iter_lines())
            stack.process.send_signal(signal.SIGINT)
            stack.wait_for("once more to stop at once")
            assert stack.stop() == server.ExitCode.OK

        assert "killing it" in stack.said()
        assert not stack.parts()


@pytest.mark.parametrize("part", ["engine", "proxy", "agent"])
def test_a_taken_port_is_named_with_the_setting_that_changes_it(part: str) -> None:
    """Before anything is started."""
    with server.bind(0, "") as holder:
        holder.listen()
        port = holder.getsockname()[1]
        with muster_up(f"--{part}-port", str(port)) as stack:
            assert stack.process.wait(60) == server.ExitCode.UNAVAILABLE
            assert f"port {port} is taken" in stack.said()
            assert f"MUSTER_{part.upper()}_PORT" in stack.said()


def long_stream(stack: Stack) -> AbstractContextManager[httpx.Response]:
    """A stream that has more to say than a test will hear."""
    body = {
        "model": "qwen2.5-coder-0.5b-instruct",
        "messages": [{"role": "user", "content": "Count from 1 to 1000."}],
        "stream": True,
        "max_tokens": 3000,
        "ignore_eos": True,
    }
    return httpx.stream("POST", f"{stack.url('proxy')}/v1/chat/completions", json=body, timeout=60)


def ask(stack: Stack) -> httpx.Response:
    """A short request."""
    body = {
        "model": "qwen2.5-coder-0.5b-instruct",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
    }
    return httpx.post(f"{stack.url('proxy')}/v1/chat/completions", json=body, timeout=60)
