"""Starts the parts, watches them, restarts the engine, and stops all of them, whatever ends the stack.

Each part is in a session of its own, so that Ctrl-C reaches the supervisor alone and it stops the parts in
order; and each holds the read end of a pipe as its standard input, whose end tells it that the supervisor
is gone, even where that was killed. No part outlives the stack.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field

import httpx

from muster_observability.server import SUPERVISED_VARIABLE, ExitCode
from muster_proxy.up.output import Output
from muster_proxy.up.parts import Part

READY_WITHIN_S = 300.0
STOP_WITHIN_S = 5.0
FIRST_BACKOFF_S = 1.0
LAST_BACKOFF_S = 30.0
# So many deaths in a row, none of them after a minute of life, and restarting is no cure.
MAX_RESTARTS = 5
STEADY_AFTER_S = 60.0
_POLL_S = 0.1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class PartDiedError(Exception):
    """A part ended that should not have.

    Attributes:
        part: Which.
        status: Its process's return code, as `subprocess` gives it.
    """

    def __init__(self, part: Part, status: int) -> None:
        self.part = part
        self.status = status
        super().__init__(f"{part.name} {describe(status)}")


class NotReadyError(Exception):
    """A part did not become ready in time."""


def describe(status: int) -> str:
    """A process's end in words."""
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with exit code {status}"


@dataclass(slots=True)
class _Child:
    process: asyncio.subprocess.Process
    copying: asyncio.Task[None]
    started_s: float = field(default_factory=time.monotonic)


class Supervisor:
    """A stack while it runs.

    Args:
        parts: In the order in which they start; they stop in the opposite one.
        output: Takes the parts' logs and the supervisor's words.
        environment: Of the parts, beside this process's own.
    """

    def __init__(self, parts: Sequence[Part], output: Output, environment: dict[str, str]) -> None:
        self._parts = parts
        self._output = output
        self._environment = {**os.environ, **environment, SUPERVISED_VARIABLE: "1"}
        self._children: dict[str, _Child] = {}
        self._stop_asked = asyncio.Event()
        self._kill_asked = asyncio.Event()
        self._signal = signal.SIGINT
        self._is_serving = False

    async def run(self, welcome: str) -> ExitCode:
        """Run the stack to its end.

        Args:
            welcome: Said when all parts are ready.
        """
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            # nohup has SIGHUP ignored, and means it. A shell has SIGINT ignored for what it starts in the
            # background, and a script that then sends one means that.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._ask_to_stop, number)
        try:
            return await self._run_until_stopped(welcome)
        finally:
            await self._stop_all()

    async def _run_until_stopped(self, welcome: str) -> ExitCode:
        stopping = asyncio.ensure_future(self._stop_asked.wait())
        serving = asyncio.ensure_future(self._serve(welcome))
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not serving.done():
            serving.cancel()
            self._output.say(f"stopping ({self._signal.name}); once more to stop at once")
            return ExitCode.OK if self._is_serving else ExitCode.INTERRUPTED
        try:
            serving.result()
        except (PartDiedError, NotReadyError) as error:
            self._output.say(f"{error}; stopping the others")
            status = error.status if isinstance(error, PartDiedError) and not self._is_serving else 0
            # A part that could not start says why by its own exit code.
            return ExitCode(status) if status in set(ExitCode) - {ExitCode.OK} else ExitCode.SOFTWARE
        return ExitCode.OK

    def _ask_to_stop(self, number: signal.Signals) -> None:
        if self._stop_asked.is_set():
            self._kill_asked.set()
        self._signal = number
        self._stop_asked.set()

    async def _serve(self, welcome: str) -> None:
        started_s = time.monotonic()
        for part in self._parts:
            await self._start(part)
        async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
            await _all(self._ready(part, client) for part in self._parts)
            self._is_serving = True
            self._output.say(f"ready after {time.monotonic() - started_s:.1f} s")
            self._output.show(welcome)
            await _all(self._watch(part, client) for part in self._parts)

    async def _start(self, part: Part) -> None:
        process = await asyncio.create_subprocess_exec(
            *part.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=self._environment,
        )
        assert process.stdout is not None  # noqa: S101  it was asked for
        copying = asyncio.ensure_future(self._output.copy(part.name, process.stdout))
        self._children[part.name] = _Child(process, copying)

    async def _ready(self, part: Part, client: httpx.AsyncClient) -> None:
        """Wait until the part is ready.

        Raises:
            PartDiedError: It ended.
            NotReadyError: It took longer than any start takes.
        """
        process = self._children[part.name].process
        deadline_s = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < deadline_s:
            if process.returncode is not None:
                raise PartDiedError(part, process.returncode)
            with contextlib.suppress(httpx.HTTPError):
                if (await client.get(part.url + part.ready_path)).is_success:
                    return
            await asyncio.sleep(_POLL_S)
        raise NotReadyError(f"{part.name} is not ready after {READY_WITHIN_S:.0f} s")

    async def _watch(self, part: Part, client: httpx.AsyncClient) -> None:
        """Watch one part while the stack serves; restart it where that is its way.

        Raises:
            PartDiedError: It ended, and is not restarted or died too often.
        """
        deaths = 0
        while True:
            child = self._children[part.name]
            status = await child.process.wait()
            if not part.restarts:
                raise PartDiedError(part, status)
            lived_s = time.monotonic() - child.started_s
            deaths = 1 if lived_s > STEADY_AFTER_S else deaths + 1
            if deaths > MAX_RESTARTS:
                raise PartDiedError(part, status)
            backoff_s = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (deaths - 1))
            self._output.say(f"{part.name} {describe(status)}; starting it again in {backoff_s:g} s")
            await asyncio.sleep(backoff_s)
            started_s = time.monotonic()
            await self._start(part)
            with contextlib.suppress(PartDiedError):
                await self._ready(part, client)
                self._output.say(f"{part.name} is back after {time.monotonic() - started_s:.1f} s")

    async def _stop_all(self) -> None:
        for part in reversed(self._parts):
            if child := self._children.get(part.name):
                await self._stop(part, child)
        for child in self._children.values():
            await child.copying

    async def _stop(self, part: Part, child: _Child) -> None:
        """End one part: SIGTERM, and SIGKILL when it takes too long or a second signal asks for it."""
        _send(child.process, signal.SIGTERM)
        waiting = asyncio.ensure_future(child.process.wait())
        asked = asyncio.ensure_future(self._kill_asked.wait())
        await asyncio.wait({waiting, asked}, timeout=STOP_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if not waiting.done():
            self._output.say(f"{part.name} does not stop; killing it")
            _send(child.process, signal.SIGKILL)
        await waiting


async def _all(works: Iterable[Coroutine[object, object, None]]) -> None:
    """Do all of them at once; the first that fails ends the others, and its error is raised as it is."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _send(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Signal the part's whole session: what it started ends with it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
