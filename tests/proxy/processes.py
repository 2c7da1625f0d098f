"""A proxy as a process of its own, for what only a process shows: signals, limits, all that it writes.

It chooses its port itself. One that the test chose could be another program's by the time the proxy binds it, and the
test would wait for a proxy that is gone.
"""

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from muster_proxy.testing import FakeVllm


@dataclass(slots=True)
class ProxyProcess:
    """A proxy that runs.

    Attributes:
        process: It.
        port: Where it listens.
        told: What it has written, standard output and error; whole once the process has ended.
    """

    process: Process
    port: int
    told: bytearray = field(default_factory=bytearray)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def listen(self) -> None:
        """Read what it writes until it ends."""
        assert self.process.stdout is not None
        while piece := await self.process.stdout.read(65536):
            self.told += piece


@contextlib.asynccontextmanager
async def proxy_process(engine: FakeVllm, **variables: str) -> AsyncGenerator[ProxyProcess]:
    """A proxy in front of an engine, listening, with these environment variables; it is killed at the end."""
    command = (sys.executable, "-m", "muster_proxy", "proxy", "--upstream", engine.url, "--port", "0")
    environment = {**os.environ, "MUSTER_LOG_FORMAT": "json", **variables}
    process = await asyncio.create_subprocess_exec(*command, env=environment, stdout=PIPE, stderr=STDOUT)
    running = ProxyProcess(process, 0)
    try:
        running.port = await _port(running)
        listening = asyncio.create_task(running.listen())
        try:
            yield running
        finally:
            _kill(process)
            await listening
    finally:
        _kill(process)
        await process.wait()


async def _port(running: ProxyProcess) -> int:
    assert running.process.stdout is not None
    async for line in running.process.stdout:
        running.told += line
        if b'"listening"' in line:
            url: str = json.loads(line)["url"]
            return int(url.rpartition(":")[2])
    raise AssertionError(f"the proxy did not start: {running.told.decode()}")


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
