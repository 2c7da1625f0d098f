"""How a server process binds, stops, and serves beside other work."""

import signal
import subprocess
import sys

import httpx
import pytest
from starlette.responses import PlainTextResponse

from muster_observability import server


async def app(scope: object, receive: object, send: object) -> None:
    """Say hello."""
    await PlainTextResponse("hello")(scope, receive, send)  # type: ignore[arg-type]


def test_a_taken_port_is_told_with_its_setting() -> None:
    """The message names the port and what chooses another."""
    with server.bind(0, "") as holder:
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(server.PortTakenError, match=f"port {port} is taken.*--port or MUSTER_PROXY_PORT"):
            server.bind(port, "--port or MUSTER_PROXY_PORT")


async def test_a_guest_server_serves_while_its_block_runs() -> None:
    """And is gone after it."""
    with server.bind(0, "") as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with httpx.AsyncClient() as client, server.serving(app, listener):  # type: ignore[arg-type]
            assert (await client.get(url)).text == "hello"
    async with httpx.AsyncClient() as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)


CHILD = """
import sys
from muster_observability import server
server.stop_with_parent()
print("watching", flush=True)
import signal
signal.pause()
"""


def test_a_process_ends_when_its_supervisors_pipe_does() -> None:
    """The end of its standard input is the sign, whatever became of the supervisor."""
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == b"watching\n"
    assert child.poll() is None

    child.stdin.close()

    assert child.wait(30) == -signal.SIGTERM
    child.stdout.close()


STUCK = """
import asyncio, contextlib, time
from muster_observability import logs, server

logs.configure()


@contextlib.asynccontextmanager
async def lifespan(_app):
    working = asyncio.get_running_loop().run_in_executor(None, time.sleep, 3600)
    yield
    del working


from starlette.applications import Starlette

raise SystemExit(server.serve(Starlette(lifespan=lifespan), server.bind(0, ""), part="test", drain_s=0))
"""


def test_a_thread_that_does_not_end_does_not_keep_the_process() -> None:
    """A server that has been told to stop is gone after a while, whatever blocks in it, and says so."""
    child = subprocess.Popen([sys.executable, "-c", STUCK], stderr=subprocess.PIPE)
    assert child.stderr is not None
    while b"listening" not in (line := child.stderr.readline()):
        assert line, "the server did not start"

    child.send_signal(signal.SIGTERM)
    told = child.stderr.read()

    assert child.wait() == server.ExitCode.SOFTWARE
    assert b"did not stop in time" in told
    child.stderr.close()
