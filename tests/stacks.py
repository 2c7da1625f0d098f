"""Runs `muster up` as a user does, and watches what it leaves behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from muster_observability import server

WITHIN_S = 120.0


@dataclass
class Stack:
    """A running `muster up`.

    Attributes:
        process: The supervisor.
        ports: Of engine, proxy and agent.
        log: Everything that it has written.
    """

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    log: Path

    def url(self, part: str) -> str:
        """Where a part listens."""
        return f"http://127.0.0.1:{self.ports[part]}"

    def said(self) -> str:
        """What it has written so far."""
        return self.log.read_text("utf-8", "replace")

    def wait_for(self, text: str, count: int = 1) -> None:
        """Wait until it has written `text`, that often."""
        for _ in until(WITHIN_S, f"{text!r} in:\n{self.said()}"):
            if self.said().count(text) >= count:
                return
            assert self.process.poll() is None, f"muster up ended:\n{self.said()}"

    def parts(self) -> dict[str, int]:
        """The parts' processes, by name."""
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        found: dict[str, int] = {}
        for line in listed.splitlines():
            pid, *arguments = line.split()
            if "muster_proxy" in arguments and "--port" in arguments:
                port = arguments[arguments.index("--port") + 1]
                found |= {name: int(pid) for name, own in self.ports.items() if str(own) == port}
        return found

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal the supervisor and wait for its end."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN_S)

    def wait_until_no_part_is_left(self) -> None:
        """Wait until every process of the stack is gone."""
        for _ in until(WITHIN_S, "the parts' end"):
            if not self.parts():
                return


def until(limit_s: float, what: str) -> Iterator[None]:
    """Poll what cannot be awaited, another process's doing; fails when `limit_s` is over."""
    deadline_s = time.monotonic() + limit_s
    while time.monotonic() < deadline_s:
        yield
        time.sleep(0.02)  # between two looks at another process
    raise AssertionError(f"waited {limit_s} s for {what}")


@contextlib.contextmanager
def muster_up(*options: str, ignores_sigint: bool = False, **environment: str) -> Generator[Stack]:
    """Start `muster up` on free ports; the block has it at once, ready or not. Nothing of it is left after.

    Args:
        options: Of the command, after the ports.
        ignores_sigint: Start it as a shell starts a command in the background.
        environment: Of the command, beside this process's own.
    """
    before = signal.getsignal(signal.SIGINT)
    with contextlib.ExitStack() as held:
        listeners = {part: held.enter_context(server.bind(0, "")) for part in ("engine", "proxy", "agent")}
        ports = {part: listener.getsockname()[1] for part, listener in listeners.items()}
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "log")
        arguments = [word for part, port in ports.items() for word in (f"--{part}-port", str(port))]
        with log.open("wb") as output:
            if ignores_sigint:
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # a child inherits it
            process = subprocess.Popen(
                [sys.executable, "-m", "muster_proxy", "up", *arguments, *options],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "MUSTER_STATE_DIR": directory, **environment},
            )
            signal.signal(signal.SIGINT, before)
        stack = Stack(process, ports, log)
        try:
            yield stack
        finally:
            if process.poll() is None:
                stack.stop(signal.SIGTERM)
            stack.wait_until_no_part_is_left()


def log_lines(stack: Stack, part: str) -> list[dict[str, object]]:
    """The JSON lines that a part has written."""
    lines = [line.partition("| ")[2] for line in stack.said().splitlines() if line.startswith(part)]
    return [json.loads(line) for line in lines if line.startswith("{")]
